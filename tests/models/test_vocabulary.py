"""Rows of new tokens beside the tables of old ones."""

import numpy as np

from sphinx_jax.core import trees
from sphinx_jax.models import families, vocabulary
from tests.models import small

NEW = 3


def split(params):
  """Parameters whose last rows are leaves of their own."""
  flat = trees.flatten(params)
  for path, (leaf, axis, _) in vocabulary.TABLES.items():
    flat[path], flat[leaf] = np.split(flat[path], [flat[path].shape[axis] - NEW], axis)
  return trees.unflatten(flat)


def test_separate_rows_give_the_logits_of_whole_tables():
  fields = small.row(small.examples())
  assert fields[0].max() >= small.light().llm.vocab - NEW  # A new token is among the inputs.
  whole, separate = (
    small.light_forward()(params, *fields, small.images())
    for params in (small.light_params(), split(small.light_params()))
  )
  np.testing.assert_allclose(separate, whole, rtol=1e-5, atol=1e-5)


def test_shapes_and_names_are_those_of_the_separate_rows():
  config = small.light()
  shapes, axes = vocabulary.extend(
    families.abstract_params(config), families.logical_axes(config), NEW
  )
  assert trees.differences(shapes, split(small.light_params())) == []
  assert axes.keys() == shapes.keys() and axes['llm']['embed_new'] == (None, 'lookup')
