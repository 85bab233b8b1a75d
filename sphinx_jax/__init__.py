"""SPHINX (arXiv 2311.07575) for JAX: one model from a joint mix of weights, tasks, visual embeddings and scales.

Rooms, from the bottom: `core`, `mix` (the four mixes: start reading there), `parallel`, `data` and `models`,
`checkpoint` and `training`, `generate`, `evaluate` and `report`; the modules beside this file are the doors
(`python -m sphinx_jax.recipe`, `train`, `chat`, `peek`, ...). A room imports only the rooms before it.

One legend of shape letters holds for the whole package, in einsums, docstrings and tests:

    B  rows of a batch          N  images a row         V  views an image       L  tokens a view
    T  text positions           S  sequence positions   D  model width          E  encoder width
    H  heads                    K  key/value heads      C  head width           F  feed-forward width
    Y  pixel rows               X  pixel columns
"""

__version__ = '0.1.0'
