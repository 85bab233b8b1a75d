import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax import mix_weights
from sphinx_jax.checkpoint import store
from sphinx_jax.core import errors


def params(value: float) -> dict:
  return {'llm': {'w': jnp.full((2, 2), value)}, 'encoders': {'w': jnp.full((3,), value, jnp.bfloat16)}}


@pytest.fixture
def parents(tmp_path):
  for name, value, tokenizer in (('real', 1.0, 'pieces'), ('synthetic', 3.0, 'pieces'), ('foreign', 2.0, 'others')):
    with store.Store(tmp_path / name) as run:
      run.save(7, params(value), {'moments': jnp.zeros(2)}, {'config': '{}', 'tokenizer': tokenizer, 'dialog': {'system': ''}})
  return tmp_path


def test_mix_is_a_checkpoint_that_knows_its_parents(parents):
  output = mix_weights.mix_checkpoints([parents / 'real', parents / 'synthetic'], (0.25, 0.75), parents / 'mix')
  mixed, meta = store.load_params(output), store.load_meta(output)
  assert float(mixed['llm']['w'][0, 0]) == 2.5 and mixed['encoders']['w'].dtype == jnp.bfloat16
  assert meta['parents'] == [{'directory': str(parents / name), 'step': 7} for name in ('real', 'synthetic')]
  assert meta['coefficients'] == [0.25, 0.75] and meta['tokenizer'] == 'pieces' and meta['config'] == '{}'


def test_same_mix_again_is_recognised_and_another_refused(parents):
  inputs = [parents / 'real', parents / 'synthetic']
  mix_weights.mix_checkpoints(inputs, (0.5, 0.5), parents / 'mix')
  before = (parents / 'mix' / 'checkpoints' / '0').stat().st_mtime_ns
  mix_weights.mix_checkpoints(inputs, (0.5, 0.5), parents / 'mix')
  assert (parents / 'mix' / 'checkpoints' / '0').stat().st_mtime_ns == before
  with pytest.raises(errors.SphinxError, match='--output'):
    mix_weights.mix_checkpoints(inputs, (0.25, 0.75), parents / 'mix')
  with pytest.raises(errors.SphinxError, match='a checkpoint of a training run'):
    mix_weights.mix_checkpoints(inputs, (0.5, 0.5), parents / 'foreign')


def test_another_tokenizer_is_refused(parents):
  with pytest.raises(errors.SphinxError, match='foreign.*another tokenizer'):
    mix_weights.mix_checkpoints([parents / 'real', parents / 'foreign'], (0.5, 0.5), parents / 'mix')


def test_curve_measures_every_mix_with_the_parents_at_its_ends():
  seen = []

  def evaluate(mixed: dict) -> dict[str, float]:
    seen.append(mixed)
    return {'real': float(mixed['llm']['w'].sum())}

  points = mix_weights.curve(params(1.0), params(3.0), (0, 0.5, 1), evaluate)
  assert points == [{'coefficient': 0.0, 'real': 12.0}, {'coefficient': 0.5, 'real': 8.0}, {'coefficient': 1.0, 'real': 4.0}]
  jax.tree.map(np.testing.assert_array_equal, (seen[0], seen[2]), (params(3.0), params(1.0)))


def run(*flags: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-m', 'sphinx_jax.mix_weights', *flags], capture_output=True, text=True)


def test_door_with_rules(parents):
  done = run(f'--inputs={parents}/real,{parents}/synthetic', '--coefficients=0.5,0.5', '--rule=encoders/.*:0,1', f'--output={parents}/mix')
  assert done.returncode == 0, done.stderr
  mixed = store.load_params(parents / 'mix')
  assert float(mixed['llm']['w'][0, 0]) == 2 and float(mixed['encoders']['w'][0]) == 3


def test_door_says_what_is_wrong_in_one_line(parents):
  done = run(f'--inputs={parents}/real,{parents}/nowhere', '--coefficients=0.5,0.5', f'--output={parents}/mix')
  assert done.returncode == 2 and done.stderr.strip().count('\n') == 0
  assert done.stderr.startswith('error: checkpoint') and 'nothing there' in done.stderr


@pytest.mark.parametrize('call, words', [
    (lambda: mix_weights._numbers(['0.5', 'half'], '--coefficients'), '--coefficients: got 0.5,half'),
    (lambda: mix_weights._rules(['llm'], (0.5, 0.5)), '--rule: got llm'),
])
def test_mistyped_flags_are_named(call, words):
  with pytest.raises(errors.SphinxError, match=words):
    call()
