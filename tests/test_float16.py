"""Training and decoding in float16, at a tiny width with batches made in memory."""

import jax
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import run, train
from sphinx_jax.checkpoint import store
from sphinx_jax.training import loss_scale
from tests.generate import small
from tests.tiny import crash, in_memory, interrupt_at, lines, tiny

HALF = {'model.dtype': 'float16'}


def data(opened=None):
  """Batches without validation, whose program would have to be compiled, too."""
  opened = opened or in_memory()
  return lambda *given: opened(*given)._replace(validation=dict)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  monkeypatch.setattr(run, 'open_data', data())
  monkeypatch.setattr(loss_scale, 'INTERVAL', 2)  # The scale grows in the middle of a run.


@pytest.fixture(scope='module')
def half(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('half')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'open_data', data())
    patch.setattr(loss_scale, 'INTERVAL', 2)
    train.train(tiny(**HALF), workdir)
  return workdir


def test_the_losses_are_those_of_float32(half, tmp_path):
  train.train(tiny(), tmp_path)
  losses, norms = (
    np.array([[line[name] for line in lines(place)] for place in (half, tmp_path)])
    for name in ('loss', 'grad_norm')
  )
  np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)
  np.testing.assert_allclose(norms[0], norms[1], rtol=5e-2)
  assert sum(line['skipped_updates'] for line in lines(half)) < 3
  assert not {'skipped_updates', 'loss_scale'} & lines(tmp_path)[0].keys()


def test_a_broken_run_resumes_bit_for_bit(half, tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'open_data', data(interrupt_at(4, crash)))
  with pytest.raises(RuntimeError, match='as if killed'):
    train.train(tiny(**HALF), tmp_path)
  monkeypatch.setattr(run, 'open_data', data())
  train.train(tiny(**HALF), tmp_path)
  assert lines(tmp_path) == lines(half)
  assert len({line['loss_scale'] for line in lines(half)}) > 1  # The checkpoint has a part of it.
  jax.tree.map(np.testing.assert_array_equal, store.load_params(tmp_path), store.load_params(half))


def test_a_model_answers_in_float16(tmp_path):
  folder = small.save(tmp_path)
  tokens, images = np.arange(5, 25)[None], small.images(1)
  full, half = (sphinx_jax.load(folder, dtype=dtype) for dtype in ('float32', 'float16'))
  expected, found = (np.asarray(model.logits(tokens, images)) for model in (full, half))
  assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
  assert half.chat([('What is the color?', None)], images[0], max_new_tokens=4)
