"""Rules for single layers: which layers they name, and the same mix in memory and on disk."""

import jax
import numpy as np
import pytest

from sphinx_jax.checkpoint import mixing, store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import errors, trees
from sphinx_jax.mix import weights
from sphinx_jax.models import families
from tests.tiny import mixture

STACKED = {'llm/layers/w': 1, 'llm/layers/kernel': 1}


def tree(value: float) -> dict:
  return {
    'llm': {
      'embed': np.full((2, 2), value, np.float32),
      'layers': {
        'w': np.full((3, 2), value, np.float32),
        'kernel': np.full((3, 2, 2), value, np.float32),
      },
    }
  }


def test_a_rule_names_layers_of_the_stacks_that_it_matches():
  rules = [('llm/layers/w@1', (1, 0)), ('llm/layers/.*@0-1', (0, 1)), ('.*', (0.5, 0.5))]
  mixed = trees.flatten(weights.mix([tree(1), tree(3)], rules, stacked=STACKED))
  assert [row[0] for row in mixed['llm/layers/w']] == [3, 1, 2]
  assert [row[0, 0] for row in mixed['llm/layers/kernel']] == [3, 3, 2]
  assert (mixed['llm/embed'] == 2).all()


@pytest.mark.parametrize(
  'rules, message',
  [
    ([('llm/layers/.*@3', (1, 0)), ('.*', (0, 1))], 'got layer 3 of 3, expected layers 0 to 2'),
    ([('llm/embed@0', (1, 0)), ('.*', (0, 1))], 'matches no stack of layers'),
    ([('llm/layers/.*@2-1', (1, 0)), ('.*', (0, 1))], "got layers '@2-1'"),
    ([('llm/layers/.*@0-1', (1, 0)), ('llm/embed', (0, 1))], "parameter 'llm/layers/w@2'"),
  ],
)
def test_layers_that_are_not_there_are_refused(rules, message):
  with pytest.raises(errors.SphinxError, match=message):
    weights.mix([tree(1), tree(3)], rules, stacked=STACKED)


@pytest.mark.parametrize('part_bytes', [mixing._PART_BYTES, 256])
def test_a_checkpoint_gets_the_layers_and_experts_that_rules_name(
  tmp_path, monkeypatch, part_bytes
):
  monkeypatch.setattr(mixing, '_PART_BYTES', part_bytes)
  config = mixture()
  shapes = families.abstract_params(config.model)
  for name, value in (('a', 1.0), ('b', 3.0)):
    params = jax.tree.map(lambda leaf, value=value: np.full(leaf.shape, value, leaf.dtype), shapes)
    with store.Store(tmp_path / name) as run:
      run.save(1, params, None, Bundle(config, b'pieces', {}).to_meta())
  rules = [
    ('llm/layers/feed_forward/w1/kernel/2@1', (0, 1)),
    ('llm/layers/.*@1', (1, 0)),
    ('.*', (0.5, 0.5)),
  ]
  output = mixing.mix_checkpoints([tmp_path / 'a', tmp_path / 'b'], rules, tmp_path / 'mixed')
  mixed = trees.flatten(store.load_params(output, shapes))
  w1, w2 = (mixed[f'llm/layers/feed_forward/{name}/kernel'] for name in ('w1', 'w2'))
  np.testing.assert_array_equal(w1[:, :, 0, 0], [[2, 2, 2, 2], [1, 1, 3, 1]])
  np.testing.assert_array_equal(w2[:, :, 0, 0], [[2, 2, 2, 2], [1, 1, 1, 1]])
  np.testing.assert_array_equal(mixed['llm/layers/attention/wq/kernel'][:, 0, 0], [2, 1])
  assert (mixed['llm/embed'] == 2).all() and (mixed['encoders/clip/cls'] == 2).all()
