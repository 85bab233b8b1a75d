"""Shipped configs: files with `get_config(arg)`. Copy forkme.py to train on your own data."""
