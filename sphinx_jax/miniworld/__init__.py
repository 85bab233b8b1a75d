"""miniworld: the embedded dataset, which draws its own scenes.

Images, annotations, captions of both domains and text are functions of (seed, split, kind, number).
Drawing needs numpy and Pillow only. `builder` and `reader` use TensorFlow Datasets.
"""
