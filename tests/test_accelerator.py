"""benchmarks/accelerator: parts at tiny size, and how failures of parts are reported."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from benchmarks.accelerator import __main__ as script, parts, table, update
from sphinx_jax.configs import sphinx
from sphinx_jax.models import variants
from sphinx_jax.planning import plan
from tests import xla
from tests.tiny import tiny

ROOT = pathlib.Path(__file__).parent.parent
SIZES = table.TINY._replace(rows=(2,), repeats=1, copied=2**20)
ROW = table.Row('step', 1.5, 'ms')


def python(code):
  return [sys.executable, '-c', code]


def test_rows_are_kept_when_their_part_fails_or_hangs(tmp_path):
  write = f'open({str(tmp_path / "x.jsonl")!r}, "w").write({json.dumps(ROW._asdict())!r} + "\\n")'
  fine = script.measure('x', python(f'{write}'), tmp_path, 60)
  assert (fine['rows'], fine['problem']) == ([ROW._asdict()], '')
  failed = script.measure('x', python(f'{write}; print("a"); raise OSError("full")'), tmp_path, 60)
  assert failed == fine | {'problem': 'exit code 1: OSError: full', 'seconds': failed['seconds']}
  sleep = '"import time; time.sleep(60)"'
  children = f'import subprocess, sys; subprocess.run([sys.executable, "-c", {sleep}])'
  hung = script.measure('x', python(children), tmp_path, 0.5)
  assert (hung['rows'], hung['problem']) == ([], 'did not end in 0 s')
  assert hung['seconds'] < 30


@pytest.fixture
def fake(monkeypatch):
  """Parts that take no time; `fake.problems` names those that fail, `fake.calls` has all."""
  fake = types.SimpleNamespace(problems={}, calls=[])

  def measure(name, command, folder, seconds):
    fake.calls.append((name, command, seconds))
    rows = [ROW]
    if name == 'device':
      rows = [table.Row('device', 'NVIDIA H200', note='gpu'), table.Row('JAX', '0.11.2')]
    rows = [row._asdict() for row in rows]
    return {'rows': rows, 'problem': fake.problems.get(name, ''), 'seconds': 0.0}

  monkeypatch.setattr(script, 'measure', measure)
  return fake


def test_a_failure_is_in_the_results_and_later_parts_run(fake, tmp_path):
  fake.problems = {'encoders': 'exit code -9: it printed nothing'}
  done, is_tiny = script.measure_all(list(script.SECONDS), tmp_path, False, 8, ['--attention=xla'])
  results = json.loads((tmp_path / script.RESULTS).read_text())
  assert results == {'device': 'NVIDIA H200', 'jax': '0.11.2', 'tiny': False, 'parts': done}
  assert not is_tiny and list(done) == list(script.SECONDS)
  assert results['parts']['decode']['rows'] == [ROW._asdict()]
  shown = table.formatted(done, is_tiny)
  assert 'FAILED' in shown and 'exit code -9' in shown
  # The last part may take what the others left; the first must leave their seconds.
  name, command, seconds = fake.calls[-1]
  assert name == 'qlora_7b' and seconds == pytest.approx(480, abs=5)
  assert fake.calls[0][2] == pytest.approx(script.SECONDS['device'], abs=1)
  assert '--attention=xla' in command and '--tiny=False' in command


def test_nothing_runs_on_a_device_that_fails(fake, tmp_path):
  fake.problems = {'device': 'exit code 1: no backend'}
  done, _ = script.measure_all(['device', 'decode'], tmp_path, False, 8, [])
  assert list(done) == ['device'] and not (tmp_path / script.RESULTS).exists()


def test_the_table_has_the_aims():
  rows = [table.Row('MFU', value, '%', aim=50.0)._asdict() for value in (49.9, 50.1)]
  done = {'update_7b': {'rows': rows, 'problem': ''}}
  shown = table.formatted(done, tiny=False).splitlines()
  assert '>= 50, missed' in shown[1] and '>= 50, reached' in shown[2]
  assert 'missed' not in table.formatted(done, tiny=True)


def test_the_first_choice_that_fits_is_taken(monkeypatch):
  """Moments matter more than remat, and remat more than rows."""

  def planned(self, config, *args, **options):
    narrow = config.optimizer.moment_dtype == 'bfloat16'
    few = config.model.remat == 'full' or config.batch.size == 2
    return types.SimpleNamespace(fits=narrow and few)

  monkeypatch.setattr(plan.Planner, 'plan', planned)
  titles = [title for title, _ in update.fitting(tiny(), (4, 2), limit=2**40)]
  begin = 'LLM and projections trained, first moment in bfloat16, remat '
  choices = 'none, 2 rows', 'dots, 2 rows', 'full, 4 rows', 'full, 2 rows'
  assert titles == [begin + choice for choice in choices]
  assert not list(update.fitting(tiny(), (4, 2), limit=1000))


def test_a_choice_that_runs_out_of_memory_is_followed_by_the_next(monkeypatch):
  def measure(config, limit, repeats):
    yield table.Row('memory', 1.0)
    if config == 'large':
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(update, '_measure', measure)
  monkeypatch.setattr(update, 'fitting', lambda *args: [('a', 'large'), ('b', 'small')])
  rows = [(row.what, row.value) for row in update.measure('mini', SIZES)]
  first, second = (('update of mini', name) for name in 'ab')
  retry = 'out of memory', 'the next choice is tried'
  assert rows == [first, ('memory', 1.0), retry, second, ('memory', 1.0)]
  monkeypatch.setattr(update, 'fitting', lambda *args: [])
  with pytest.raises(RuntimeError, match='no choice fits'):
    list(update.measure('mini', SIZES))


def test_an_update_is_measured_as_train_compiles_it(monkeypatch):
  """A planned, compiled and timed update of a model that compiles fast."""
  config = tiny(**{'model.dtype': 'bfloat16', 'model.attention': 'xla'})
  monkeypatch.setattr(update, 'config_of', lambda *args: config)
  rows = {row.what: row for row in update.measure('mini', SIZES)}
  assert rows['update of mini'].value == 'LLM and projections trained, remat none, 2 rows'
  assert rows['positions'].value > 0 and rows['images'].value > 0
  assert rows['MFU'].aim == update.AIM
  # XLA counts operations other than products, too.
  assert rows['MFU'].value < rows["utilization by XLA's count"].value < 3 * rows['MFU'].value


def test_an_update_of_adapters_is_measured_beside_weights_in_few_bits(monkeypatch):
  config = tiny(**{'model.dtype': 'bfloat16', 'optimizer.name': 'adamw', 'model.attention': 'xla'})
  monkeypatch.setattr(update, 'config_of', lambda *args: config)
  small = update.adapter_settings('qlora')
  small['lora'] |= {'rank': 2, 'target': '.*attention/wq'}
  monkeypatch.setattr(update, 'adapter_settings', lambda kind: small)
  rows = {row.what: row for row in update.measure('mini', SIZES, 'qlora')}
  assert rows['update of mini'].value == f'{update.ADAPTERS["qlora"]}, remat none, 2 rows'
  assert rows['positions'].value > 0 and rows['MFU'].aim == update.LORA_AIM


def test_a_batch_is_packed_with_images_and_labels():
  config = tiny(**{'batch.seq_len': 128, 'batch.images': 4, 'batch.size': 2})
  batch = update.packed_batch(config)
  assert (batch['segments'] > 0).mean() > 0.7 and batch['segments'].max() > 1
  assert batch['image_size'].any() and 0 < (batch['loss_weight'] > 0).mean() < 0.7


def test_decoding_is_compared_with_the_bytes_that_a_token_reads(monkeypatch):
  """A model whose tokens take 2 ms each, after 50 ms for the prompt and the first one."""
  config = variants.language_model(sphinx.LLMS['mini'], update.DTYPE)

  def complete(ids, max_new_tokens):
    assert np.shape(ids) == (1, SIZES.prompt)
    return 0.048 + 0.002 * max_new_tokens

  monkeypatch.setattr(parts, '_timed', lambda work, repeats: [work()] * repeats)
  model = types.SimpleNamespace(config=config, complete=complete)
  first, token, share = parts._generate('x', model, 1, 10**6, 10**9, SIZES)
  assert (first.value, token.value) == (pytest.approx(50), pytest.approx(2))
  cache = config.llm.layers * 2 * 128 * config.llm.width * 2  # 128 slots in bfloat16.
  assert share.value == pytest.approx(100 * (10**6 + cache) / 10**9 / 0.002)
  assert share.aim == parts.DECODE_AIM
  for sizes in (table.TINY, table.FULL):  # Both lengths of answers have the same programs.
    lengths = sizes.prompt + 1, sizes.prompt + sizes.tokens
    assert len({-(-length // parts.CACHE_SLOTS) for length in lengths}) == 1


@pytest.mark.slow
def test_the_script_measures_everything_at_tiny_size(tmp_path):
  command = ['bash', 'benchmarks/accelerator.sh', f'--output={tmp_path}', '--minutes=60', '--tiny']
  environment = xla.environment() | {'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  results = json.loads((tmp_path / script.RESULTS).read_text())
  assert (
    results['device'] == 'cpu' and results['tiny'] and list(results['parts']) == list(parts.PARTS)
  )
  assert all(part['rows'] and not part['problem'] for part in results['parts'].values())
  for line in ('waits for an NVIDIA GPU', 'mini, batch 8: a token', 'MFU', 'Tiny sizes'):
    assert line in done.stdout
  for flag, message in (('--tiny', 'give another --output'), ('--only=speed', "got 'speed'")):
    again = subprocess.run(
      [*command, flag], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 2 and message in again.stderr
