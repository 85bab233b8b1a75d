import logging

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sphinx_jax.core import errors
from sphinx_jax.parallel import mesh, rules


def shapes(**leaves) -> dict:
  return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in leaves.items()}


def test_names_become_mesh_axes():
  found = rules.shardings(
    {'up': ('layers', 'embed', 'ffn'), 'bias': (None, 'embed')},
    shapes(up=(3, 8, 6), bias=(3, 4)),
    mesh.make_mesh(1, 4, 2),
  )
  assert found['up'].spec == PartitionSpec(None, 'fsdp', 'tensor')
  assert found['bias'].shard_shape((3, 4)) == (3, 1)
  assert found['up'].shard_shape((3, 8, 6)) == (3, 2, 3)


@pytest.mark.parametrize(
  'axes, shape, words',
  [
    (('embed', 'embed'), (8, 8), "'w'.*both use mesh axis 'fsdp'"),
    (('vocab', 'heads'), (8, 8), "'w'.*both use mesh axis 'tensor'"),
    (
      ('embed', 'ffn'),
      (6, 8),
      r"'w'.*shape \(6, 8\) whose 'embed' 6 is not divided by mesh axis fsdp of 4",
    ),
    (('embed',), (8, 8), "'w'.*1 names"),
    (('embde', 'ffn'), (8, 8), "'embde'.*did you mean 'embed'"),
  ],
)
def test_layouts_that_cannot_be_are_refused(axes, shape, words):
  with pytest.raises(errors.SphinxError, match=words):
    rules.shardings({'w': axes}, shapes(w=shape), mesh.make_mesh(1, 4, 2))


def test_unnamed_parameter_is_refused():
  with pytest.raises(errors.SphinxError, match='extra'):
    rules.shardings({'w': ('embed',)}, shapes(w=(8,), extra=(8,)), mesh.make_mesh())


@pytest.mark.parametrize('sizes, listed', [((2, 2, 2), True), ((1, 1, 1), False)])
def test_large_replicated_leaves_are_listed(sizes, listed, caplog):
  with caplog.at_level(logging.INFO, 'sphinx_jax'):
    rules.shardings(
      {'big': (None, None), 'small': (None,), 'split': ('embed', None)},
      shapes(big=(1024, 512), small=(8,), split=(1024, 512)),
      mesh.make_mesh(*sizes),
    )
  text = caplog.text
  assert (
    ('big (1024, 512), 2.0 MiB' in text) == listed and 'small' not in text and 'split' not in text
  )
