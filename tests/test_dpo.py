"""Runs of DPO at a tiny width: adapters beside frozen weights, with pairs made in memory."""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np
import pytest

from benchmarks import hallucination, own_pairs
from sphinx_jax import run, settings, train
from sphinx_jax.checkpoint import store
from sphinx_jax.configs import mini_dpo
from sphinx_jax.core import errors, trees
from sphinx_jax.data import packing
from sphinx_jax.miniworld import scene
from sphinx_jax.models import adapters, families
from sphinx_jax.planning import flops
from sphinx_jax.training import preference, state as states
from tests.tiny import VISUAL_TOKENS, in_memory, lines, run as tiny_run, tiny

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
  """A base, and a run of DPO on it that was killed once."""
  base, tuned = (tmp_path_factory.mktemp('runs') / name for name in ('base', 'tuned'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'open_data', in_memory())
    train.train(tiny(steps=2, eval_every=0), base)
    patch.setattr(run, 'open_data', open_pairs(interrupted_at=10))
    with pytest.raises(RuntimeError, match='as if killed'):
      train.train(dpo(base), tuned)
    patch.setattr(run, 'open_data', open_pairs())
    train.train(dpo(base), tuned)
  return base, tuned


def updated(base: pathlib.Path, steps: int, **changes):
  """Losses of the first updates of a run, which writes no files, and its parameters."""
  config = dpo(base, **changes)
  return tiny_run(config, run.Program(config).load(base), steps, batch_at)


@pytest.fixture(scope='module')
def whole(runs):
  """The run as it is without a break."""
  return updated(runs[0], 20)


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
  config = dpo(runs[0])
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
  adapter = store.load_params(runs[1])
  other = trees.unflatten(trees.flatten(fresh) | trees.flatten(adapter))
  losses = program.evaluate(other, validation)
  assert losses['packed/reward_margin'] > 0.1
  for name in ('', '/reward_margin', '/logp_chosen', '/logp_rejected'):
    assert losses[f'packed{name}'] == pytest.approx(losses[f'single{name}'], rel=1e-4, abs=1e-5)


def test_a_broken_run_resumes_bit_for_bit(runs, whole):
  for path, leaf in trees.flatten(store.load_params(runs[1])).items():
    np.testing.assert_array_equal(leaf, whole[1][path], err_msg=path)


def test_images_are_encoded_once_for_both_passes(runs):
  """An adapter outside of the language model, which the reference lacks, makes it two passes."""
  config = dpo(runs[0], form='')
  parts = {}
  for target in (config.lora.target, 'llm/layers/.*|visual_proj/.*'):
    with config.unlocked():
      config.lora.target = target
    traced = run.Program(config).trace()
    parts[target] = flops.count(traced, families.part_names(config.model), 1).parts
  once, twice = parts.values()
  assert twice['clip'] == 2 * once['clip'] > 0
  assert once['visual_proj'] < twice['visual_proj'] / 2
  assert once['llm'] == twice['llm']


def test_it_has_the_loss_and_gradients_of_two_encodings(runs):
  config = dpo(runs[0], form='', **{'batch.size': 1})
  program, model = run.Program(config), families.build(config.model)
  params = program.load(runs[0])
  adapter = store.load_params(runs[1])
  params = trees.unflatten(trees.flatten(params) | trees.flatten(adapter))
  trained, frozen = states.split(params, config.trainable)
  apply = functools.partial(families.apply, model)
  batch = batch_at(config, 0)

  def gradients(encode):
    objective = preference.objective(apply, 2, 1.0, 0, encode)

    def loss(trained):
      return objective.sums(states.merge(trained, frozen), batch, None)['loss']

    return jax.jit(jax.value_and_grad(loss))(trained)

  both = [gradients(encode) for encode in (None, functools.partial(families.encoded, model))]
  assert np.any(both[0][1]['llm']['layers']['attention']['wq']['lora_a'])
  jax.tree.map(np.testing.assert_array_equal, *both)


def test_eight_devices_and_microbatches_give_the_numbers_of_one(runs, whole):
  mesh = {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2, 'optimizer.accumulate': 2}
  losses, _ = updated(runs[0], 4, **mesh)
  np.testing.assert_allclose(losses, whole[0][:4], rtol=1e-3)
  assert losses[0][0] == pytest.approx(2 * 8 * math.log(2), rel=1e-6)  # The sum over all pairs.


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


def test_the_laptop_config_trains_pairs_beside_a_recipe():
  config = mini_dpo.get_config('W')
  settings.check_run(config)
  assert config.init_from == 'W/stage2' and config.data_dir == 'W/data'
  assert config.preference and {entry.source for entry in config.mixture.values()} == {
    'miniworld_pairs'
  }


class Answering:
  """Captions a scene with one of its objects and one that it does not have, and always agrees."""

  def __init__(self, scenes):
    self._named = [(sorted(there)[0], 'yellow snail') for _, there in scenes]

  def answers(self, dialogs, images, max_new_tokens):
    if 'Is there' in dialogs[0][0][0]:
      return ['Yes'] * len(dialogs)
    return [f'There is a {right} and a {wrong}.' for right, wrong in self._named]


def test_a_models_own_captions_become_pairs():
  there = {'red house', 'blue boat'}
  captions = [
    'a big red house.',
    'a big red house and a blue tree.',
    'a red house and a blue boat.',
  ]
  assert own_pairs.pair(captions, there) == (captions[2], captions[1])
  assert own_pairs.pair([captions[0], captions[2]], there) is None  # Neither has a wrong object.
  config = mini_dpo.get_config('W,own/pairs.jsonl')
  assert config.mixture.caption.path == str(pathlib.Path('own/pairs.jsonl').absolute())
  assert config.init_from == 'W/stage2' and config.validation.caption.source == 'miniworld_pairs'
  settings.check_run(config)


def test_objects_that_are_not_in_the_scene_are_counted():
  scenes = [(None, {'red house', 'blue boat'}), (None, {'green tree'})]
  scores = hallucination.of_captions(Answering(scenes), scenes)
  assert scores == {'CHAIR_i': 0.5, 'CHAIR_s': 1.0, 'named': pytest.approx(2 / 3)}
  asked = hallucination.of_questions(Answering(scenes), scenes)
  assert asked['accuracy'] == 0.5 and asked['yes ratio'] == 1.0
