"""Compilation for TPUs, which needs libtpu (`pip install 'sphinx_jax[plan]'`) but no TPU."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

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


def test_shipped_configs_are_lowered_for_their_slices_with_splash_attention():
  """Without compiling them: the loops over layers and the TPU's kernels are in the StableHLO."""
  code = """
from sphinx_jax.configs import idefics2, stage1, stage2
from sphinx_jax.core import accelerator
from sphinx_jax.planning import slices
from sphinx_jax.run import Program

accelerator.quiet_libtpu()
KERNELS = ('tpu_custom_call', 'splash_mha_fwd', 'splash_mha_dkv')


def one_encoder(config):
  # One is traced faster than four.
  with config.unlocked():
    config.model.encoders = {'clip': config.model.encoders.clip}
  return config


for config, topology, loops in (
  (one_encoder(stage1.get_config('13b,224')), 'v5p:2x2x4', {40: '5120x5120xf32'}),
  (idefics2.get_config('whole'), 'v5e:4x8', {27: '1152x4304xbf16', 32: '4096x14336xf32'}),
):
  text = Program(config, slices.devices(slices.find(topology))).lower().as_text()
  print(*(name in text for name in KERNELS))
  for layers, weights in loops.items():
    print(f'dense<{layers}> : tensor<i32>' in text, f'tensor<{layers}x{weights}>' in text)
for config in (stage1.get_config('moe,512'), stage2.get_config('moe,1k')):
  program = Program(one_encoder(config), slices.devices(slices.find('v5p:2x4x4')))
  text = program.lower().as_text()
  print('32x8x4096x14336xf32' in text, 'all_to_all' in text, 'ragged_dot' in text)
"""
  done = run('-c', code)
  assert done.stdout.split() == ['True'] * 18, done.stdout + done.stderr


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
  # Gradients of large matrices are scattered, by fusions or in the loops of their products.
  scattered = r'llm.hidden_states\S* backward +(reduce-scatter|collective-permute) '
  assert re.search(scattered, done.stdout), done.stdout
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

NARROW_IDEFICS2 = """
from sphinx_jax.configs import idefics2


def get_config():
  config = idefics2.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update(image_size=560)
    config.model.slots.longest = 560
    config.model.vision.update(layers=2, width=128, heads=2, hidden=256)
    config.model.perceiver.update(layers=2, queries=8, heads=4, kv_heads=2, head_width=32)
    config.model.llm.update(layers=2, width=512, heads=4, kv_heads=2, multiple_of=512)
    config.batch.update(size=4, seq_len=512, images=2)
    config.optimizer.accumulate = 1
  return config.lock()
"""


@pytest.mark.parametrize(
  'narrow',
  [
    pytest.param(NARROW, id='sphinx'),
    pytest.param(NARROW_IDEFICS2, id='idefics2', marks=pytest.mark.slow),
  ],
)
def test_a_narrow_config_is_compiled_for_a_slice(narrow, tmp_path):
  """The same update as at full size: layers are a loop. The compiler takes half a minute."""
  (tmp_path / 'narrow.py').write_text(narrow)
  check_compiled_plan(
    2,
    f'--config={tmp_path}/narrow.py',
    '--topology=v5p:2x2x1',
    JAX_EXEC_TIME_OPTIMIZATION_EFFORT='-1',
    JAX_MEMORY_FITTING_EFFORT='-1',
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'layers, config, topology',
  [
    (40, 'stage1:13b,224', 'v5p:2x2x4'),
    (32, 'idefics2:whole', 'v5p:2x2x2'),
    (32, 'idefics2:whole', 'v5e:4x8'),
  ],
)
def test_a_shipped_config_is_compiled_for_its_slice(layers, config, topology):
  check_compiled_plan(layers, f'--config={config}', f'--topology={topology}')


@pytest.mark.slow  # tests/planning/test_plan.py estimates the same.
@pytest.mark.parametrize(
  'model, topology', [('7b', 'v5e:1x1'), ('idefics2', 'v5e:1x1'), ('13b', 'v6e:1x1')]
)
def test_qlora_at_full_size_is_compiled_for_one_device(model, topology):
  flags = f'--models={model}', '--only=qlora', f'--topologies={topology}'
  done = run('-m', 'benchmarks.memory', *flags)
  assert done.returncode == 0, done.stderr
  *_, left, rows = done.stdout.splitlines()[-1].strip('| ').split(' | ')
  assert float(left) > 0 and int(rows) >= 1
