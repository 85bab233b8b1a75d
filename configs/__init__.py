"""Configs: plain Python files with `get_config(arg)`; start from `forkme.py` for your own data."""
