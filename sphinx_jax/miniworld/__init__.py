"""miniworld: the embedded dataset, which draws its own scenes.

Everything is a function of (seed, split, kind, number): pictures, annotations, captions of both domains, text.
Drawing needs numpy and Pillow only; TensorFlow Datasets is met in `builder` alone.
"""
