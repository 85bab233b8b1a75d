"""The published benchmarks: readers of their questions, one small file per format.

Paths are relative to one root, as in the official SPHINX annotation files
('data/coco/val2014/...'). The table of the benchmarks, their prompts and their protocols is
configs/benchmarks.py. Opening a benchmark reads no image.
"""
