"""Runs whose mixture gets new weights from held-out losses: which batches they train on."""

import json
import os
import pathlib
import shutil
import signal

import pytest
import xxhash

from sphinx_jax import recipe, run, settings, train
from sphinx_jax.checkpoint import store
from sphinx_jax.configs import mini
from sphinx_jax.core import errors
from sphinx_jax.data import mixture
from sphinx_jax.parallel import hosts
from sphinx_jax.training import writer
from tests.generate import small
from tests.narrow import narrow_recipe
from tests.tiny import crash, lines, tiny

STEPS, EVERY = 16, 4
WINDOW = 24  # New weights are learned inside windows, and blocks begin inside windows.
LEARNED = dict(every=EVERY, rate=0.3, limit=4.0, reference='')
ANSWERS = {
  'easy': lambda i: 'red circle',
  'hard': lambda i: ' '.join(f'{i * prime % 97}' for prime in (31, 59, 83)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  monkeypatch.setattr(mixture, 'BLOCK', 64)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  """Questions with answers that are easy and hard to learn."""
  folder = tmp_path_factory.mktemp('data')
  for name, answer in ANSWERS.items():
    turns = [
      [{'from': 'human', 'value': 'one two'}, {'from': 'gpt', 'value': answer(i)}]
      for i in range(150)
    ]
    for part, chosen in (('train', turns[:120]), ('held_out', turns[120:])):
      text = '\n'.join(json.dumps({'conversations': turn}) for turn in chosen)
      (folder / f'{name}_{part}.jsonl').write_text(text)
  (folder / 'tokenizer.model').write_bytes(small.tokenizer().model_bytes)
  return folder


def config_of(folder, learned=None, by='learned', **changes):
  """The config of a run; `learned` are changes of its section."""
  config = tiny().unlock()
  for group, part in (('mixture', 'train'), ('validation', 'held_out')):
    config[group] = {
      name: dict(source='jsonl', path=f'{name}_{part}.jsonl', root='', task='dialog', weight=1.0)
      for name in ANSWERS
    }
  config.update(tokenizer=str(folder / 'tokenizer.model'), data_dir=str(folder), steps=STEPS)
  config.model.llm.vocab = 320
  config.batch.update(seq_len=64, window=WINDOW)
  config.update(log_every=EVERY, eval_every=0)
  config.checkpoint.every = 8
  losses = dict(easy=9.0, hard=0.0)  # Of which the first is reached from the start.
  config.sampling.update(by=by, learned={**LEARNED, 'reference_losses': losses, **(learned or {})})
  config.update_from_flattened_dict(changes)
  return config.lock()


class Noted:
  """Batches that note the texts at each data position, and run an action at a step."""

  def __init__(self, batches, notes, actions):
    self._batches, self._notes, self._actions = batches, notes, actions

  def __next__(self):
    batch, position = next(self._batches)
    texts = xxhash.xxh3_64_hexdigest(batch['tokens'].tobytes() + batch['task'].tobytes())
    assert self._notes.setdefault(position, texts) == texts
    self._actions.pop(len(self._notes), lambda: None)()
    return batch, position

  def close(self):
    self._batches.close()


@pytest.fixture
def noted(monkeypatch):
  """The texts of every batch by the data position after it, and number of batch -> action."""
  notes, actions, open_data = {}, {}, run.open_data

  def open_noted(*given):
    data = open_data(*given)
    return data._replace(batches=lambda position: Noted(data.batches(position), notes, actions))

  monkeypatch.setattr(run, 'open_data', open_noted)
  return notes, actions


@pytest.fixture(scope='module')
def unbroken(folder, tmp_path_factory) -> tuple[pathlib.Path, dict]:
  """A finished run, and its batches."""
  workdir, notes, open_data = tmp_path_factory.mktemp('runs') / 'unbroken', {}, run.open_data

  def open_noted(*given):
    data = open_data(*given)
    return data._replace(batches=lambda position: Noted(data.batches(position), notes, {}))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mixture, 'BLOCK', 64)
    patch.setattr(run, 'open_data', open_noted)
    train.train(config_of(folder), workdir)
  return workdir, notes


def stages_of(workdir):
  return store.load_meta(workdir)['learned_stages']


def test_the_task_that_is_behind_gets_more_from_the_next_block_on(unbroken):
  workdir, notes = unbroken
  positions, stages = sorted(notes), {}
  for line in lines(workdir):
    if 'weight/hard' in line:
      windows = -(-positions[line['step'] - 1] // WINDOW)
      weights = {name: line[f'weight/{name}'] for name in ANSWERS}
      assert weights['hard'] > 0.6 and sum(weights.values()) == pytest.approx(1)
      stages[-(-windows * WINDOW // 64) * 64] = weights
  assert stages_of(workdir) == [list(stage) for stage in stages.items()]
  # The weights of step 8 begin where those of step 4 would have begun.
  assert [line['step'] for line in lines(workdir) if 'weight/hard' in line] == [4, 8, 12]
  assert len(positions) == STEPS and len(stages) == 2


def test_the_order_is_that_of_the_same_weights_given_as_stages(unbroken, folder):
  workdir, notes = unbroken
  given = tuple((begin, weights) for begin, weights in stages_of(workdir))
  data = run.open_data(config_of(folder, by='examples', **{'sampling.stages': given}))
  batches, seen = Noted(data.batches(0), {}, {}), dict(notes)
  for _ in range(STEPS):
    _, position = next(batches)
  batches.close()
  assert batches._notes == seen
  without = Noted(run.open_data(config_of(folder, by='examples')).batches(0), {}, {})
  for _ in range(STEPS):
    next(without)
  without.close()
  assert without._notes != seen


def test_a_run_that_is_stopped_around_new_weights_equals_an_unbroken_one(
  unbroken, folder, tmp_path, noted
):
  (workdir, expected), (notes, actions) = unbroken, noted
  stop = lambda: os.kill(os.getpid(), signal.SIGTERM)
  # Saves before new weights and with them. Then it is killed after the weights of step 8, of which
  # no checkpoint has a record.
  for step in (3, 4):
    actions[step] = stop
    with pytest.raises(SystemExit):
      train.train(config_of(folder), tmp_path)
    assert store.latest(tmp_path) == step
    assert len(stages_of(tmp_path)) == (step >= 4)
  actions[10] = crash
  with pytest.raises(RuntimeError, match='as if killed'):
    train.train(config_of(folder, **{'checkpoint.every': 100}), tmp_path)
  assert store.latest(tmp_path) == 4
  train.train(config_of(folder), tmp_path)
  assert notes == expected and stages_of(tmp_path) == stages_of(workdir)
  assert lines(tmp_path) == lines(workdir)


def test_another_mesh_continues_with_the_recorded_weights(unbroken, folder, tmp_path, noted):
  workdir, expected = unbroken
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(STEPS))
  train.train(config_of(folder, **{'mesh.data': 2, 'mesh.tensor': 2}), tmp_path / 'run')
  (*recorded, last), (*before, other) = stages_of(workdir), stages_of(tmp_path / 'run')
  assert before == recorded and other[0] == last[0]
  assert other[1] == pytest.approx(last[1], rel=1e-3)
  assert noted[0] == {position: expected[position] for position in noted[0]}


def test_all_processes_take_the_weights_of_process_0(folder, monkeypatch):
  sent = []
  monkeypatch.setattr(hosts, 'broadcast', lambda value: sent.append(value) or {'easy': 1.0})
  assert run.learned_weights(config_of(folder), dict(easy=0.0, hard=1.0)) == {'easy': 1.0}
  assert sent[0]['hard'] > sent[0]['easy']


def test_the_losses_of_a_finished_run_are_references(unbroken, folder, tmp_path):
  workdir, _ = unbroken
  config = run.with_reference_losses(config_of(folder, dict(reference=str(workdir))))
  final = writer.read(workdir)[-1]
  assert config.sampling.learned.reference_losses.to_dict() == {
    name: final[f'validation/{name}'] for name in ANSWERS
  }
  with pytest.raises(errors.SphinxError, match="reference '.*': got no metrics.jsonl, expected he"):
    run.with_reference_losses(config_of(folder, dict(reference=str(tmp_path))))
  (tmp_path / writer.FILE).write_text('{"step": 5, "validation/easy": 0.5}\n')
  with pytest.raises(errors.SphinxError, match='without validation/hard'):
    run.with_reference_losses(config_of(folder, dict(reference=str(tmp_path))))


@pytest.mark.parametrize(
  'learned, changes, words',
  [
    ({'every': STEPS}, {}, 'sampling.learned.every: got 16, expected less than steps, 16'),
    ({'limit': 0.9}, {}, r'sampling.learned.limit: got 0.9, expected a number in \[1, '),
    ({'limit': 8.0}, {}, "limit: got 8, which may leave 'easy' 0.5 of 64 examples"),
    ({'limt': 2.0}, {}, "sampling.learned.limt: .*did you mean 'limit'"),
    (
      {'reference_losses': {'easy': 0.1, 'hard': 0.1, 'haard': 0.1}},
      {},
      "reference_losses: got 'haard'.*did you mean 'hard'",
    ),
    (
      {'reference_losses': {'hard': 0.1}},
      {},
      'reference_losses: got none for easy, only for hard',
    ),
    ({}, {'validation.hrad': dict(source='jsonl', weight=1.0)}, ''),
    ({}, {'sampling.stages': ((64, {'easy': 0.1}),)}, "stages: got stages with by 'learned'"),
    ({}, {'sampling.by': 'lerned'}, "sampling.by: got 'lerned'.*did you mean 'learned'"),
  ],
)
def test_settings_that_cannot_be_are_refused(learned, changes, words, folder):
  config = config_of(folder, learned).unlock()
  config.update_from_flattened_dict(changes)
  if not words:
    del config.validation.hard
    words = 'validation: got none for hard, only for easy, hrad, expected one for each entry'
  with pytest.raises(errors.SphinxError, match=words):
    settings.check_run(config)


def test_the_section_is_needed():
  with pytest.raises(errors.SphinxError, match="'learned' without a section sampling.learned"):
    settings.check_run(tiny(**{'sampling.by': 'learned'}))


@pytest.mark.slow  # Stand-in: test_settings.py checks the config, and the runs above learn.
def test_the_laptop_recipe_learns_the_weights_of_all_tasks(tmp_path, monkeypatch):
  monkeypatch.setattr(mixture, 'BLOCK', 1024)
  config = narrow_recipe(mini.get_config('quick,learned'))
  (tmp_path / 'data').mkdir()
  recipe.data_step(config, 'data', tmp_path)
  stage = run.training_run(config, 'stage2', tmp_path).copy_and_resolve_references()
  with stage.unlocked():
    stage.update(init_from=None, eval_batches=1)
    stage.optimizer.name = 'adamw'  # Compiles faster than muon.
  train.train(stage.lock(), tmp_path / 'stage2')
  (line,) = [line for line in lines(tmp_path / 'stage2') if 'weight/vqa' in line]
  assert line.keys() == {'step', *(f'weight/{task}' for task in mini.TASKS)} and line['step'] == 3
  assert sum(line[f'weight/{task}'] for task in mini.TASKS) == pytest.approx(1)
