"""Writes a dataset of any family as sharded array_record: `python -m sphinx_jax.prepare`."""
