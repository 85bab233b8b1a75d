import logging
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sphinx_jax.core import errors, trees
from sphinx_jax.models import families, idefics2
from sphinx_jax.parallel import mesh, rules


def shapes(**leaves) -> dict:
  return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in leaves.items()}


def test_names_become_mesh_axes():
  result = rules.shardings(
    {'up': ('layers', 'embed', 'ffn'), 'bias': (None, 'embed')},
    shapes(up=(3, 8, 6), bias=(3, 4)),
    mesh.make_mesh(1, 4, 2),
  )
  assert result['up'].spec == PartitionSpec(None, ('fsdp', 'expert'), 'tensor')
  assert result['bias'].shard_shape((3, 4)) == (3, 1)
  assert result['up'].shard_shape((3, 8, 6)) == (3, 2, 3)


@pytest.mark.parametrize(
  'axes, shape, message',
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
def test_impossible_shardings_are_refused(axes, shape, message):
  with pytest.raises(errors.SphinxError, match=message):
    rules.shardings({'w': axes}, shapes(w=shape), mesh.make_mesh(1, 4, 2))


def test_a_vocabulary_that_does_not_divide_is_stored_whole():
  names = {'embed': ('vocab', 'lookup'), 'output': ('embed', 'vocab')}
  for vocab, ways in ((6, 2), (7, 1)):
    found = rules.shardings(
      names, shapes(embed=(vocab, 8), output=(8, vocab)), mesh.make_mesh(1, 4, 2)
    )
    assert found['embed'].shard_shape((vocab, 8)) == (vocab // ways, 2)
    assert found['output'].shard_shape((8, vocab)) == (2, vocab // ways)


@pytest.mark.parametrize('fsdp, tensor', [(8, 1), (16, 4), (32, 8), (128, 1)])
def test_every_parameter_of_the_full_size_is_split_over_a_pod(fsdp, tensor):
  """Of Idefics2: 32003 tokens, 64 queries, 4 and 8 key/value heads."""
  config = idefics2.full_size()
  pod = jax.sharding.AbstractMesh((1, fsdp, tensor, 1), mesh.AXES)
  params = families.abstract_params(config)
  found = rules.shardings(families.logical_axes(config), params, pod)
  for path, sharding in trees.flatten(found).items():
    leaf = trees.flatten(params)[path]
    parts = leaf.size / math.prod(sharding.shard_shape(leaf.shape))
    assert leaf.size < rules.LARGE / 4 or parts >= fsdp, path


def test_experts_that_the_mesh_does_not_divide_are_refused():
  names, pod = {'w1': ('layers', 'experts', 'expert_embed', 'ffn')}, mesh.make_mesh(1, 2, 1, 4)
  found = rules.shardings(names, shapes(w1=(2, 8, 6, 5)), pod)['w1']
  assert found.shard_shape((2, 8, 6, 5)) == (2, 2, 3, 5)
  with pytest.raises(
    errors.SphinxError, match="'experts' 6 is not divided by mesh axis expert of 4"
  ):
    rules.shardings(names, shapes(w1=(2, 6, 6, 5)), pod)


def test_a_parameter_without_names_is_refused():
  with pytest.raises(errors.SphinxError, match='extra'):
    rules.shardings({'w': ('embed',)}, shapes(w=(8,), extra=(8,)), mesh.make_mesh())


@pytest.mark.parametrize('sizes, logged', [((2, 2, 2), True), ((1, 1, 1), False)])
def test_large_replicated_leaves_are_logged(sizes, logged, caplog):
  with caplog.at_level(logging.INFO, 'sphinx_jax'):
    rules.shardings(
      {'big': (None, None), 'small': (None,), 'split': ('embed', None)},
      shapes(big=(1024, 512), small=(8,), split=(1024, 512)),
      mesh.make_mesh(*sizes),
    )
  assert ('big (1024, 512), 2.0 MiB' in caplog.text) == logged
  assert 'small' not in caplog.text and 'split' not in caplog.text
