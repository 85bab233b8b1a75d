"""The entry point train, with the real model at a tiny width and batches made in memory."""

import base64
import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from sphinx_jax import run, train
from sphinx_jax.checkpoint import bundle, store
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.models import families
from sphinx_jax.training import wandb_run, writer
from tests.tiny import VISUAL_TOKENS, crash, in_memory, interrupt_at, lines, tiny

MACHINE = writer.MACHINE_METRICS


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('runs') / 'unbroken'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'open_data', in_memory())
    train.train(tiny(), workdir)
  return workdir


def test_run_learns_and_writes_its_metrics(unbroken):
  written = writer.read(unbroken)
  assert [line['step'] for line in written] == [2, 3, 4, 5, 5]
  assert written[-2]['loss'] < written[0]['loss']
  assert {'loss/ocr', 'loss/vqa', 'learning_rate', 'grad_norm', 'useful_share', *MACHINE} <= set(
    written[0]
  )
  assert written[0]['useful_share'] == pytest.approx(14 / 16)
  assert 'validation/real' in written[-1]
  assert list((unbroken / 'tensorboard').iterdir())


def test_speed_is_that_of_the_counted_update(unbroken):
  line = writer.read(unbroken)[0]
  program = run.Program(tiny())
  program.compile()
  flops = program.flops.parts
  in_update = 1e12 * line['tflops_per_second'] / line['steps_per_second']
  # The LM head counts for the positions with loss weight.
  assert 0.1 < (in_update - flops['other']) / flops['lm_head'] < 0.9
  assert 0 < line['mfu']
  assert flops['other'] > 6 * 2 * 8 * 16 * 16**2  # Some products of [B*T,D] and [D,D].


class FakeRun(contextlib.AbstractContextManager):
  """What the package uses of `wandb.Run`."""

  def __init__(self, **settings):
    self.settings, self.lines, self.finished = settings, [], False

  def log(self, values, step):
    self.lines.append({'step': step, **values})

  def __exit__(self, *_):
    self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch):
  """The runs that a fake wandb has started."""
  fake, runs = types.ModuleType('wandb'), []
  fake.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
  fake.init = lambda **settings: runs.append(FakeRun(**settings)) or runs[-1]
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  return runs


def test_a_profile_and_wandb_beside_the_metrics(unbroken, wandb_runs, tmp_path, monkeypatch):
  config = tiny(profile=(2, 3), wandb='project')
  monkeypatch.setattr(run, 'open_data', interrupt_at(4, crash))
  with pytest.raises(RuntimeError, match='as if killed'):
    train.train(config, tmp_path)
  assert list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))

  monkeypatch.setattr(run, 'open_data', in_memory())
  train.train(config, tmp_path)
  assert lines(tmp_path) == lines(unbroken)
  first, second = wandb_runs
  assert first.finished and second.finished
  assert first.settings['id'] == second.settings['id'] and second.settings['resume'] == 'allow'
  assert second.settings['project'] == 'project' and second.settings['config']['steps'] == 5
  assert [line['step'] for line in first.lines] == [2, 3, 4]
  assert second.lines == writer.read(tmp_path)[2:]


def test_a_project_without_wandb_is_refused_before_the_workdir_is_made(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.SphinxError, match=r'wandb is not installed.*sphinx_jax\[wandb\]'):
    train.train(tiny(wandb='project'), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow  # Stand-in: the fake above.
def test_the_real_wandb_resumes_offline(tmp_path, monkeypatch):
  pytest.importorskip('wandb', reason='wandb is an extra that no test needs (2026-11-29)')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  for _ in range(2):
    with wandb_run.start(tiny(wandb='project'), tmp_path) as run_of_wandb:
      wandb_run.write(run_of_wandb, {'step': 1, 'loss': 2.0})
  folders = [folder.name for folder in (tmp_path / 'wandb').glob('offline-run-*')]
  assert folders and all(name.endswith((tmp_path / 'wandb_id').read_text()) for name in folders)


def test_batches_fit_the_model():
  assert families.visual_tokens(tiny().model) == VISUAL_TOKENS


def test_frozen_leaves_stay_and_trained_ones_move(unbroken):
  config = tiny()
  begin = trees.flatten(run.Program(config).init())
  end = trees.flatten(store.load_params(unbroken))
  assert set(begin) == set(end)
  for path in begin:
    unchanged = np.asarray(begin[path]).tobytes() == np.asarray(end[path]).tobytes()
    assert unchanged == path.startswith('encoders/'), path


def test_checkpoint_carries_what_inference_needs(unbroken):
  meta = store.load_meta(unbroken)
  assert config_lib.to_json(config_lib.from_json(meta['config'])) == config_lib.to_json(tiny())
  assert (
    base64.b64decode(meta['tokenizer']) == b'pieces'
    and 'dialog' in meta
    and meta['data_position'] == 5
  )


def test_finished_run_is_recognized(unbroken, monkeypatch):
  monkeypatch.setattr(run, 'Program', None)
  metrics = train.train(tiny(), unbroken)
  written = writer.read(unbroken)
  assert (
    metrics['loss'] == written[-2]['loss']
    and metrics['validation/real'] == written[-1]['validation/real']
  )


def test_broken_run_resumes_bit_for_bit(unbroken, tmp_path, monkeypatch):
  # Asked to stop in the first update, in the middle of a window of metrics: it saves first.
  monkeypatch.setattr(
    run, 'open_data', interrupt_at(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
  )
  with pytest.raises(SystemExit) as caught:
    train.train(tiny(), tmp_path)
  assert (
    caught.value.code == 128 + signal.SIGTERM
    and store.latest(tmp_path) == 1
    and lines(tmp_path) == []
  )
  # Dies after step 4, whose line is on disk. The last save is step 3, inside a window again.
  monkeypatch.setattr(run, 'open_data', interrupt_at(4, crash))
  with pytest.raises(RuntimeError):
    train.train(tiny(), tmp_path)
  assert store.latest(tmp_path) == 3 and lines(tmp_path)[-1]['step'] == 4
  monkeypatch.setattr(run, 'open_data', in_memory())
  train.train(tiny(), tmp_path)
  assert lines(tmp_path) == lines(unbroken)
  jax.tree.map(
    np.testing.assert_array_equal, store.load_params(tmp_path), store.load_params(unbroken)
  )


def test_run_resumes_with_another_mesh_and_less_memory(unbroken, tmp_path, monkeypatch):
  opened = interrupt_at(4, crash)  # Without validation: its compilation would be all that it adds.
  monkeypatch.setattr(run, 'open_data', lambda *given: opened(*given)._replace(validation=dict))
  with pytest.raises(RuntimeError):
    train.train(tiny(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}), tmp_path)
  monkeypatch.setattr(run, 'open_data', in_memory())
  train.train(tiny(**{'optimizer.accumulate': 2, 'model.remat': 'full', 'loss_chunk': 4}), tmp_path)
  resumed, expected = (
    [line for line in lines(workdir) if 'loss' in line] for workdir in (tmp_path, unbroken)
  )
  assert [line.keys() for line in resumed] == [line.keys() for line in expected]
  for line, expected_line in zip(resumed, expected):
    assert line == pytest.approx(expected_line, rel=2e-4)


def test_features_are_kept_and_a_run_resumes_with_and_without_them(
  unbroken, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(run.log, 'propagate', True)
  directory = tmp_path / 'features'
  counts = lambda: [
    tuple(map(int, re.findall(r'\d+', line)))
    for line in caplog.messages
    if re.fullmatch(r'features: \d+ read.*', line)
  ]
  monkeypatch.setattr(run, 'open_data', interrupt_at(4, crash))  # Last saved: step 3 of 5.
  with caplog.at_level('INFO'):
    for workdir, before, after in (('with', directory, ''), ('without', '', directory)):
      with pytest.raises(RuntimeError):
        train.train(tiny(cache_features=str(before)), tmp_path / workdir)
      with monkeypatch.context() as patch:
        patch.setattr(run, 'open_data', in_memory())
        train.train(tiny(cache_features=str(after)), tmp_path / workdir)
  # Four batches of 8 images, then those of the steps 4 and 5, of which the first one is kept.
  assert counts() == [(0, 32, 0), (8, 8, 0)]
  for workdir in ('with', 'without'):
    for line, expected in zip(lines(tmp_path / workdir), lines(unbroken), strict=True):
      assert line == pytest.approx(expected, rel=1e-6)


def test_number_that_is_not_finite_stops_and_keeps_the_last_good(tmp_path, monkeypatch):
  def spoil(at: int, batch: dict) -> dict:
    return batch | {'loss_weight': batch['loss_weight'] * (np.float32('nan') if at == 3 else 1)}

  monkeypatch.setattr(run, 'open_data', in_memory(spoil))
  with pytest.raises(errors.SphinxError, match='steps 3 to 4: got loss nan at step 4'):
    train.train(tiny(), tmp_path)
  assert store.latest(tmp_path) == 3


def test_workdir_of_another_config_is_refused(unbroken):
  with pytest.raises(errors.SphinxError, match='optimizer.lr: 0.01 there, 0.5 here'):
    train.train(tiny(**{'optimizer.lr': 0.5}), unbroken)


def test_init_from_takes_the_parameters_only(unbroken, tmp_path):
  config = tiny(init_from=str(unbroken))
  program = run.Program(config)
  with store.Store(tmp_path) as own:
    begun, position, sums, stages = run.restore_or_init(config, program, own)
  jax.tree.map(np.testing.assert_array_equal, begun.params, store.load_params(unbroken))
  assert int(begun.step) == 0 and position == 0 and sums == {} and not stages
  fresh = program.optimizer.init(begun.trained)
  jax.tree.map(np.testing.assert_array_equal, begun.opt_state, fresh)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model.llm.width': 24}, r'llm/norm/scale: shape \(16,\), expected \(24,\)'),
    ({'init_from': 'nowhere'}, 'no such directory'),
  ],
)
def test_init_from_that_does_not_fit_is_refused_before_compilation(
  unbroken, tmp_path, monkeypatch, changes, words
):
  monkeypatch.setattr(run.Program, 'compile', None)
  with pytest.raises(errors.SphinxError, match=words):
    train.train(tiny(**({'init_from': str(unbroken)} | changes)), tmp_path)


def test_init_from_of_another_tokenizer_is_refused(unbroken, tmp_path, monkeypatch):
  opened = in_memory()(tiny())
  monkeypatch.setattr(
    run, 'open_data', lambda *given: opened._replace(bundle=bundle.Bundle(tiny(), b'other', {}))
  )
  with pytest.raises(errors.SphinxError, match='another tokenizer'):
    train.train(tiny(init_from=str(unbroken)), tmp_path)


def test_a_missing_workdir_is_refused_with_what_to_do(tmp_path):
  config = tmp_path / 'config.py'
  config.write_text('import ml_collections\ndef get_config(): return ml_collections.ConfigDict()\n')
  done = subprocess.run(
    [sys.executable, '-m', 'sphinx_jax.train', f'--config={config}'], capture_output=True, text=True
  )
  assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
    'error: --workdir: got nothing'
  )


def test_all_sources_that_cannot_be_opened_are_named_together(tmp_path):
  def entry(path):
    return {'source': 'jsonl', 'path': str(tmp_path / path), 'weight': 1.0}

  (tmp_path / 'empty.jsonl').write_text('')
  config = ConfigDict(
    {
      'data_dir': None,
      'mixture': {'vqa': entry('vqa.jsonl'), 'text': entry('empty.jsonl')},
      'validation': {'rec': {'source': 'cocoo', 'weight': 1.0}},
    }
  )
  with pytest.raises(errors.SphinxError) as caught:
    run.open_sources(config)
  text, vqa, rec = str(caught.value).splitlines()
  assert vqa.startswith('mixture.vqa: ') and 'vqa.jsonl' in vqa and 'no such file' in vqa
  assert text.startswith('mixture.text: ') and 'an empty file' in text
  assert rec.startswith('validation.rec: ') and "'cocoo'" in rec
