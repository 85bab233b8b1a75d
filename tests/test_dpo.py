"""Runs of DPO at a tiny width: adapters beside frozen weights, with pairs made in memory."""

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest

from sphinx_jax import run, train
from sphinx_jax.checkpoint import store
from sphinx_jax.core import errors, trees
from sphinx_jax.data import packing
from sphinx_jax.miniworld import scene
from sphinx_jax.models import adapters
from tests.tiny import VISUAL_TOKENS, in_memory, lines, tiny

HELD_OUT = 10**6
LORA = dict(
  rank=4,
  alpha=8.0,
  target='llm/layers/.*',
  ranks=(),
  rslora=False,
  dropout=0.0,
  neftune=0.0,
  b_rate=1.0,
)


def dpo(base: pathlib.Path, form: str = 'nf4', **changes):
  config = tiny(
    **{'steps': 20, 'eval_every': 0, 'optimizer.name': 'adamw', 'batch.seq_len': 64}
    | {'batch.images': 2}
    | changes
  ).unlock()
  config.update(
    lora=LORA,
    preference=dict(beta=1.0),
    frozen_dtype=form,
    trainable=(('.*/lora_[ab]', 'train'), ('.*', 'frozen')),
    init_from=str(base),
  )
  return config.lock()


def example(rng: np.random.Generator) -> packing.Example:
  """A pair: tokens of the chosen answer follow each other, those of the rejected one do not."""
  begin = rng.integers(2, 30)
  image, task = scene.png(rng.integers(0, 256, (8, 8, 3), np.uint8)), int(rng.integers(2))
  chosen = 2 + (begin - 2 + 3 * np.arange(1, rng.integers(3, 6))) % 28
  rejected = rng.integers(2, 30, rng.integers(2, 5))

  def answer(ids: np.ndarray) -> packing.Example:
    weights = np.float32([0, 0] + [1] * len(ids))
    return packing.Example(np.int32([1, begin, *ids]), weights, (image,), task)

  return dataclasses.replace(answer(chosen), rejected=answer(rejected))


def assemble(config, rows) -> dict:
  return packing.assemble(
    rows,
    config.batch.seq_len,
    config.batch.images,
    config.model.image_size,
    VISUAL_TOKENS,
    report_bad=None,
  )


def batch_at(config, position: int) -> dict:
  """Rows of two pairs."""
  rng = np.random.default_rng(position)
  return assemble(config, [[example(rng), example(rng)] for _ in range(config.batch.size)])


def open_pairs(interrupted_at: int | None = None):
  """Data of pairs, which are other ones for validation."""

  def spoil(config):
    def batch(position: int, _: dict) -> dict:
      if position == interrupted_at:
        raise RuntimeError('as if killed')
      return batch_at(config, position)

    return batch

  def open_data(config, local_rows=None) -> run.Data:
    opened = in_memory(spoil(config))(config)
    return opened._replace(validation=lambda: {'held_out': [batch_at(config, HELD_OUT)]})

  return open_data


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  monkeypatch.setattr(run, 'open_data', open_pairs())


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
  """A base and a run of DPO on it."""
  base, tuned = (tmp_path_factory.mktemp('runs') / name for name in ('base', 'tuned'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'open_data', in_memory())
    train.train(tiny(steps=2, eval_every=0), base)
    patch.setattr(run, 'open_data', open_pairs())
    train.train(dpo(base), tuned)
  return base, tuned


def test_it_begins_at_the_base_and_learns_to_tell_answers_apart(runs):
  base, tuned = runs
  first, *_, last = [line for line in lines(tuned) if 'loss' in line]
  assert first['loss'] < math.log(2) + 0.01  # The mean of two updates.
  assert last['loss'] < 0.5 and last['accuracy'] > 0.75 and last['reward_margin'] > 0.5
  assert last['logp_chosen'] > first['logp_chosen']
  held_out = lines(tuned)[-1]
  assert held_out['validation/held_out'] < 0.6 and held_out['validation/held_out/accuracy'] > 0.7
  assert all(adapters.is_adapter(path) for path in trees.flatten(store.load_params(tuned)))


def test_fresh_adapters_and_packed_rows(runs):
  """The loss of a fresh run is log 2, and rows of one pair give the sums of packed rows."""
  config = dpo(runs[0], form='')
  program = run.Program(config)
  fresh = program.load(config.init_from)
  rng = np.random.default_rng(0)
  a, b, c = (example(rng) for _ in range(3))
  empty = [[]] * (config.batch.size - 3)
  validation = {
    'packed': [assemble(config, [[a, b], [c], [], *empty])],
    'single': [assemble(config, [[a], [b], [c], *empty])],
  }
  losses = program.evaluate(fresh, validation)
  for name in validation:
    assert losses[name] == pytest.approx(math.log(2), abs=1e-7)
    assert losses[f'{name}/reward_margin'] == 0 == losses[f'{name}/accuracy']
  other = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf + 0.3 if path[-1].key == adapters.B else leaf, fresh
  )
  losses = program.evaluate(other, validation)
  assert abs(losses['packed/reward_margin']) > 0.01
  for name in ('', '/reward_margin', '/logp_chosen', '/logp_rejected'):
    assert losses[f'packed{name}'] == pytest.approx(losses[f'single{name}'], rel=1e-4, abs=1e-5)


def test_a_broken_run_resumes_bit_for_bit(runs, tmp_path, monkeypatch):
  base, tuned = runs
  monkeypatch.setattr(run, 'open_data', open_pairs(interrupted_at=10))
  with pytest.raises(RuntimeError, match='as if killed'):
    train.train(dpo(base), tmp_path)
  monkeypatch.setattr(run, 'open_data', open_pairs())
  train.train(dpo(base), tmp_path)
  assert lines(tmp_path) == lines(tuned)
  jax.tree.map(np.testing.assert_array_equal, store.load_params(tmp_path), store.load_params(tuned))


def test_eight_devices_give_the_numbers_of_one(runs, tmp_path):
  """Microbatches of pairs, too, give the numbers of the whole batch."""
  steps = {'steps': 4, 'optimizer.warmup': 1, 'log_every': 1, 'checkpoint.every': 4}
  mesh = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'optimizer.accumulate': 2}
  train.train(dpo(runs[0], **steps), tmp_path / 'one')
  train.train(dpo(runs[0], **steps, **mesh), tmp_path / 'eight')
  one, eight = lines(tmp_path / 'one'), lines(tmp_path / 'eight')
  assert len(one) == len(eight) == 5
  for line, expected in zip(eight, one):
    assert line == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'lora': None, 'frozen_dtype': ''}, 'preference: got a run without adapters'),
    ({'loss_weighting': 'sqrt'}, "loss_weighting: got 'sqrt' with a section preference"),
    ({'preference.beta': 0.0}, 'preference.beta: got 0.0'),
    (
      {'trainable': (('.*/lora_[ab]', 'train'), ('visual_proj/.*', 'train'), ('.*', 'frozen'))},
      'trainable: got visual_proj/.* in a run with a preference section',
    ),
  ],
)
def test_settings_that_cannot_be_are_refused(runs, tmp_path, changes, words):
  config = dpo(runs[0]).unlock()
  for path, value in changes.items():
    if value is None:
      del config[path]
    else:
      config.update_from_flattened_dict({path: value})
  with pytest.raises(errors.SphinxError, match=words):
    train.train(config.lock(), tmp_path)
