"""Measurements beside other code and on other machines, run as `python -m benchmarks.NAME`.

This file is needed: fairscale installs a package `benchmarks`, too, which would come first if this
folder were no package.
"""
