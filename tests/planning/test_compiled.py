"""With the TPU compiler, which needs no TPU: `pip install 'sphinx_jax[plan]'`, as launch/test.sh does."""

import os
import pathlib
import re
import subprocess
import sys

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
  """Neither a warning nor the compiler's library in memory, where JAX computes."""
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


def test_splash_attention_is_in_what_a_tpu_runs():
  code = (
    'import sphinx_jax; from configs import stage1; from sphinx_jax.planning import slices; '
    'from sphinx_jax.run import Program; from sphinx_jax.core import accelerator; accelerator.quiet_libtpu(); '
    "program = Program(stage1.get_config('7b,224'), slices.devices(slices.find('v5e:4x8'))); "
    "text = program.lower().as_text(); print('tpu_custom_call' in text, 'splash_mha_fwd' in text, 'splash_mha_dkv' in text)"
  )
  done = run('-c', code)
  assert done.stdout.split() == ['True'] * 3, done.stdout + done.stderr


def test_a_shipped_config_of_13b_is_compiled_for_its_slice():
  done = run('-m', 'sphinx_jax.plan', '--config=configs/stage1.py:13b,224', '--topology=v5p:2x2x4')
  assert done.returncode == 0, done.stderr
  sections = (
    'total, compiled',
    'fits',
    'Largest pieces of the working memory',
    'llm.states backward',
    'all-gather',
  )
  assert all(words in done.stdout for words in sections), done.stdout
  layers = re.search(r'llm.states forward +all-gather +(\d+) +(\d+)', done.stdout)
  assert (
    layers and int(layers[1]) == 40 and int(layers[2]) == 7
  )  # Every matrix of a layer, and no activations.
  assert 'Replicated leaves over 1 MiB: none' in done.stdout
  assert not re.search('libtpu|WARNING|E0000', done.stderr)
