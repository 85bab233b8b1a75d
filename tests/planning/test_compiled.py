"""Compilation for TPUs, which needs libtpu (`pip install 'sphinx_jax[plan]'`) but no TPU."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures('optimized')
ROOT = pathlib.Path(__file__).parent.parent.parent


def run(*arguments, **environment):
  clean = {
    name: value for name, value in os.environ.items() if name not in ('JAX_PLATFORMS', 'XLA_FLAGS')
  }
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=3000,
    env=clean | environment,
  )


def test_ordinary_runs_do_not_look_for_a_tpu():
  """Without a warning, and without the compiler's library in memory."""
  code = (
    'import sphinx_jax, jax; print(jax.devices()[0].platform, (jax.numpy.ones(3) + 1).sum()); '
    'print("libtpu" in open("/proc/self/maps").read())'
  )
  done = run('-c', code)
  assert done.stdout.split() == ['cpu', '6.0', 'False'] and done.stderr == ''


def test_a_platform_that_is_asked_for_is_left_alone():
  done = run(
    '-c', 'import os, sphinx_jax; print(os.environ["JAX_PLATFORMS"])', JAX_PLATFORMS='cuda,cpu'
  )
  assert done.stdout.strip() == 'cuda,cpu'


def test_a_shipped_config_of_13b_is_lowered_for_its_slice_with_splash_attention():
  """Without compiling it: the loops over 40 layers and the TPU's kernels are in the StableHLO."""
  code = """
from sphinx_jax.configs import stage1
from sphinx_jax.core import accelerator
from sphinx_jax.planning import slices
from sphinx_jax.run import Program

accelerator.quiet_libtpu()
program = Program(stage1.get_config('13b,224'), slices.devices(slices.find('v5p:2x2x4')))
text = program.lower().as_text()
print(*(name in text for name in ('tpu_custom_call', 'splash_mha_fwd', 'splash_mha_dkv')))
print('dense<40> : tensor<i32>' in text, 'tensor<40x5120x5120xf32>' in text)
"""
  done = run('-c', code)
  assert done.stdout.split() == ['True'] * 5, done.stdout + done.stderr


def check_compiled_plan(layers, *flags, **environment):
  """Compiles a config for a slice, and checks the sections and the loop over the layers."""
  done = run('-m', 'sphinx_jax.plan', *flags, **environment)
  assert done.returncode == 0, done.stderr
  for words in (
    'total, compiled',
    'fits',
    'Largest pieces of the working memory',
    'llm.hidden_states backward',
    'all-gather',
  ):
    assert words in done.stdout, done.stdout
  assert 'Unavailable' not in done.stdout, done.stdout
  row = re.search(r'llm.hidden_states forward +all-gather +(\d+) +(\d+)', done.stdout)
  # Every matrix of a layer is gathered, and no activations.
  assert row and (int(row[1]), int(row[2])) == (layers, 7), done.stdout
  assert 'Replicated leaves over 1 MiB: none' in done.stdout
  assert not re.search('libtpu|WARNING|E0000', done.stderr)


NARROW = """
from sphinx_jax.configs import stage1


def get_config():
  config = stage1.get_config('13b,224').copy_and_resolve_references()
  with config.unlocked():
    for name in ('convnext', 'dinov2', 'qformer'):
      del config.model.encoders[name]
    config.model.encoders.clip.layers = 2
    config.model.llm.update(layers=2, width=512, heads=4, kv_heads=4, vocab=512)
    config.batch.update(size=8, seq_len=512, images=1)
  return config.lock()
"""


def test_a_narrow_config_is_compiled_for_a_slice(tmp_path):
  """The same update as that of 13B: layers are a loop. The compiler takes half a minute for it."""
  (tmp_path / 'narrow.py').write_text(NARROW)
  check_compiled_plan(
    2,
    f'--config={tmp_path}/narrow.py',
    '--topology=v5p:2x2x1',
    JAX_EXEC_TIME_OPTIMIZATION_EFFORT='-1',
    JAX_MEMORY_FITTING_EFFORT='-1',
  )


@pytest.mark.slow
def test_a_shipped_config_of_13b_is_compiled_for_its_slice():
  check_compiled_plan(40, '--config=stage1:13b,224', '--topology=v5p:2x2x4')
