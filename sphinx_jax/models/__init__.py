"""Models: from a batch to logits.

`sphinx.py` is the model; `encoders/` and `llms/` hold its parts, one file each. `foreign.py` and
`variants.py` describe the same weights in other libraries and in the official release.
"""
