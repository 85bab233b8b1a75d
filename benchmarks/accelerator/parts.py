"""What `benchmarks.accelerator` measures: each part yields rows of its table.

Every part runs in a process of its own. Weights are random and made on the device.
"""

import functools
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import data, decode, encoders
from benchmarks.accelerator import update
from benchmarks.accelerator.table import Row, Sizes
from sphinx_jax.configs import sphinx
from sphinx_jax.core import trees
from sphinx_jax.generate import model as models
from sphinx_jax.models import families, variants
from sphinx_jax.planning import flops, peak, slices

ROOT = pathlib.Path(__file__).parents[2]
CACHE_SLOTS = 128  # `Model` rounds the length of a cache to a multiple of it.
DECODE_AIM = 70.0  # % of the bandwidth at batch 1; gpt-fast reaches 69 % of the nominal one.


def device(sizes: Sizes) -> Iterator[Row]:
  """What the other parts run on."""
  first = jax.devices()[0]
  rate = peak.flops_per_second([first], update.DTYPE)
  yield Row('device', first.device_kind, note=first.platform)
  yield Row('JAX', jax.__version__)
  yield Row('peak of products', rate / 1e12, 'TFLOP/s', note='measured' * (first.platform == 'cpu'))
  yield Row('memory for arrays', slices.this_device().chip.hbm / 2**30, 'GiB')


def tests(sizes: Sizes) -> Iterator[Row]:
  """The tests that need a GPU. JAX is imported, so tests/conftest.py cannot choose the CPU."""
  import pytest

  files = sorted(str(file) for file in (ROOT / 'tests').rglob('test_*.py') if _is_for_gpu(file))
  outcomes = _Outcomes()
  code = pytest.main(['-n', '0', '-m', 'gpu', f'--rootdir={ROOT}', *files], plugins=[outcomes])
  yield from outcomes.rows
  if code:
    raise RuntimeError(f'pytest: exit code {int(code)}')


def _is_for_gpu(file: pathlib.Path) -> bool:
  return 'pytest.mark.gpu\n' in file.read_text()


class _Outcomes:
  """A plugin of pytest that keeps the outcome of every test."""

  def __init__(self) -> None:
    self.rows: list[Row] = []

  def pytest_runtest_logreport(self, report: Any) -> None:
    if report.when == 'call' or not report.passed:
      reason = report.longrepr[2].removeprefix('Skipped: ') if report.skipped else ''
      name = report.nodeid.rpartition('::')[2].replace('_', ' ')
      self.rows.append(Row(name, report.outcome, note=reason))


def pipeline(sizes: Sizes) -> Iterator[Row]:
  """Images a second that this machine's cores prepare for training."""
  jax.config.update('jax_platforms', 'cpu')
  cores = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    data.make_data(folder, sizes.files)
    images, _ = data.pipeline_speed(folder, 224, cores, sizes.windows)
  yield Row('files to batches of 224 pixels', images, 'images/s', note=f'{cores} cores')


def encode(sizes: Sizes) -> Iterator[Row]:
  """The forward pass of every encoder of the mix."""
  config = sphinx.model(sizes.decoder, sizes.encoders, sizes.scale)
  for name, settings in config.encoders.items():
    yield from _encode(f'{name}, {settings.view} pixels', name, settings, sizes)


def _encode(title: str, name: str, settings: Any, sizes: Sizes) -> Iterator[Row]:
  module = encoders.module_of(name, settings, update.DTYPE)
  images = jax.random.normal(jax.random.key(1), (sizes.images, settings.view, settings.view, 3))
  init = lambda: nn.unbox(module.init(jax.random.key(0), images[:1])['params'])
  params = update.random_params(jax.eval_shape(init), update.DTYPE)
  apply = jax.jit(lambda params, images: module.apply({'params': params}, images))
  traced = apply.trace(params, images)
  forward, counted = traced.lower().compile(), sum(flops.count(traced, (), 1).parts.values())
  taken = _timed(lambda: forward(params, images), sizes.repeats)
  note = f'{len(images)} images, {trees.count(params) / 1e6:.3g} million parameters'
  yield _milliseconds(f'{title}: forward', taken, note)
  rate = counted / statistics.median(taken)
  peak_rate = peak.flops_per_second(jax.devices()[:1], update.DTYPE)
  yield Row(f'{title}: MFU', 100 * rate / peak_rate, '%', note=f'{rate / 1e12:.4g} TFLOP/s')


def generate(sizes: Sizes) -> Iterator[Row]:
  """Decoding by the language model, beside the bandwidth that a copy reaches."""
  bandwidth = copied_bytes_per_second(sizes.copied)
  yield Row('copy on the device', bandwidth / 1e9, 'GB/s', note='bytes read and written')
  config = variants.language_model(sphinx.LLMS[sizes.decoder], update.DTYPE)
  params = update.random_params(families.abstract_params(config), update.DTYPE)
  model = decode.continuing(config, params)
  # Of the embedding, a row is read.
  weights = trees.nbytes(params) - trees.nbytes({'embed': params['llm']['embed']})
  for batch in sizes.batches:
    yield from _generate(f'{sizes.decoder}, batch {batch}', model, batch, weights, bandwidth, sizes)


def _generate(
  title: str, model: models.Model, batch: int, weights: int, bandwidth: float, sizes: Sizes
) -> Iterator[Row]:
  """Rows of one batch size; `weights` in bytes, `bandwidth` in bytes a second."""
  options = {'vocab': model.config.llm.vocab, 'prompt': sizes.prompt}
  ids = decode.prompts(options, batch).tolist()
  first, whole = (
    _timed(functools.partial(model.complete, ids, max_new_tokens=count), sizes.answers)
    for count in (1, sizes.tokens)
  )
  yield _milliseconds(
    f'{title}: prefill and first token', first, f'prompts of {sizes.prompt} tokens'
  )
  token = (statistics.median(whole) - statistics.median(first)) / (sizes.tokens - 1)
  yield Row(f'{title}: a token', 1e3 * token, 'ms', note=f'of {sizes.tokens} tokens')
  slots = models.round_up(sizes.prompt + sizes.tokens, CACHE_SLOTS)
  cache = jax.eval_shape(lambda: families.init_cache(model.config, batch, slots))
  share = (weights + trees.nbytes(cache)) / bandwidth / token
  aim = DECODE_AIM if batch == 1 else None
  yield Row(f'{title}: of the bandwidth', 100 * share, '%', aim, 'reads weights and cache once')


def copied_bytes_per_second(size: int) -> float:
  """The bandwidth of an addition to an array of `size` bytes: bytes read and written a second."""
  array = jnp.zeros(size // 4)
  add = jax.jit(lambda array: array + 1)
  return 2 * array.nbytes / min(_timed(lambda: add(array), 10))


def _timed(work: Callable[[], Any], repeats: int) -> list[float]:
  """Seconds of every run of a work, arrays waited for, after a first one that compiles."""
  taken = []
  for _ in range(1 + repeats):
    began = time.perf_counter()
    jax.block_until_ready(work())
    taken.append(time.perf_counter() - began)
  return taken[1:]


def _milliseconds(what: str, taken: list[float], note: str) -> Row:
  low, high = 1e3 * min(taken), 1e3 * max(taken)
  return Row(what, 1e3 * statistics.median(taken), 'ms', note=f'{low:.4g} to {high:.4g}; {note}')


# In this order: the last ones get the seconds that those before them leave.
PARTS = {
  'device': device,
  'tests': tests,
  'data': pipeline,
  'encoders': encode,
  'decode': generate,
  'update_1b': lambda sizes: update.measure(sizes.llms['update_1b'], sizes),
  'update_7b': lambda sizes: update.measure(sizes.llms['update_7b'], sizes),
  'lora_7b': lambda sizes: update.measure(sizes.llms['update_7b'], sizes, 'lora'),
  'qlora_7b': lambda sizes: update.measure(sizes.llms['update_7b'], sizes, 'qlora'),
}
