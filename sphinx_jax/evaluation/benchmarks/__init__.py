"""The published benchmarks: their questions read from the official files, one small file per layout.

Paths are relative to one root, as in the official SPHINX annotation files ('data/coco/val2014/...'); configs/benchmarks.py
is the table of what is asked how. Opening reads no picture.
"""
