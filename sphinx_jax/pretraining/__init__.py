"""Trains encoders alone, each by an objective of its own, before a model is made of them."""
