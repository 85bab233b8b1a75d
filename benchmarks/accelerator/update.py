"""The update of a SPHINX, as `train` makes it, for `benchmarks.accelerator`.

All weights of the language model are trained, or adapters beside frozen ones (LoRA, QLoRA).
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import data
from benchmarks.accelerator.table import Row, Sizes
from sphinx_jax import run
from sphinx_jax.configs import forkme, sphinx, stage2
from sphinx_jax.core import batch as batch_contract, trees
from sphinx_jax.data import packing
from sphinx_jax.models import adapters, families, quantized
from sphinx_jax.parallel import placement
from sphinx_jax.planning import leaves, peak, plan, slices
from sphinx_jax.training import state as states

DTYPE = 'bfloat16'
AIM = 50.0  # % MFU. MaxText has published 49.7 % for text alone.
LORA_AIM = 41.0  # % MFU. Published for LoRA of an 8B model on text alone: 402 TFLOP/s on an H100.
KERNEL = '__cudnn$fmha'  # Begins the names of cuDNN's attention in a compiled program.
# What is trained, best first -> settings. Encoders are frozen, as in the pod configs.
CHOICES = {
  'LLM and projections trained': {},
  'LLM and projections trained, first moment in bfloat16': {'optimizer.moment_dtype': DTYPE},
  'projections trained, LLM frozen': {
    'trainable': (('(encoders|llm)/.*', 'frozen'), ('.*', 'train'))
  },
}
ADAPTERS = {
  'lora': 'adapters of rank 16 trained, all else frozen in bfloat16',
  'qlora': 'adapters of rank 16 trained, all else frozen in nf4',
}
# Without 'attention', as the backward pass of cuDNN needs more than the output that it saves, and
# computes attention again.
REMAT = ('none', 'dots', 'full')
_TEMPLATE_IDS = 25  # Of an example, in front of its labels.
_WARMUP = 2  # Updates.
_BLOCK = (2**20 + 7,)  # Odd, so that the rows of a matrix differ.
_SMALL = (adapters.SCALE, quantized.SCALE)  # Factors that are no norm's.


def measure(llm: str, sizes: Sizes, kind: str = 'full') -> Iterator[Row]:
  """Times the update of the first choice that the planner fits into the device.

  The compiled program must fit, too, and run; otherwise the next choice is taken.

  Args:
    llm: row of `sphinx.LLMS`.
    sizes: sizes of the rest.
    kind: 'full' for `CHOICES`, or one of `ADAPTERS`.
  """
  limit, kernel = slices.this_device().chip.hbm, sizes.attention
  if kernel is None:
    kernel = 'cudnn' if jax.devices()[0].platform == 'gpu' else 'auto'
  choices = CHOICES if kind == 'full' else {ADAPTERS[kind]: adapter_settings(kind)}
  for title, config in fitting(config_of(llm, sizes, kernel), sizes.rows, limit, choices):
    yield Row(f'update of {llm}', title)
    try:
      yield from _measure(config, limit, sizes.repeats)
      return
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
    yield Row('out of memory', 'the next choice is tried')
  raise RuntimeError(f'no choice fits into {limit / 2**30:.1f} GiB')


def config_of(llm: str, sizes: Sizes, attention: str) -> ConfigDict:
  """The config of stage 2 for pods, with a model of this size, on one device."""
  config = ConfigDict(stage2.get_config('7b,224').to_dict())
  config.model = sphinx.model(llm, sizes.encoders, sizes.scale, DTYPE).to_dict()
  mesh = dict.fromkeys(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), 1)
  return plan.changed(config, {**mesh, **sizes.batch, 'model.attention': attention})


def adapter_settings(kind: str) -> dict[str, Any]:
  """The settings that make a run one of adapters, which `fitting` takes as a choice."""
  settings = forkme.adapters(kind)
  del settings['optimizer']  # Its learning rate takes no time.
  return settings | {'init_from': 'random weights'}


def fitting(
  config: ConfigDict,
  rows: tuple[int, ...],
  limit: int,
  choices: Mapping[str, Mapping[str, Any]] = CHOICES,
) -> Iterator[tuple[str, ConfigDict]]:
  """The choices that fit into `limit` bytes by the planner's estimate, best first.

  What is trained counts most, then the least recomputation, then the number of rows.

  Yields:
    (what the choice is, its config).
  """
  planner = plan.Planner(lambda config, devices: run.Program(config))  # For the device at hand.
  ours = slices.this_device()
  ours = dataclasses.replace(ours, chip=dataclasses.replace(ours.chip, hbm=limit))
  for trained, changes in choices.items():
    resident = leaves.resident_leaves(run.Program(plan.changed(config, changes)))
    if sum(leaves.resident_bytes(resident).values()) > limit:
      continue  # Whatever is recomputed. To trace an update of 7B takes seconds.
    for remat in REMAT:
      for count in rows:
        choice = plan.changed(config, {**changes, 'model.remat': remat, 'batch.size': count})
        if planner.plan(choice, ours, compile_it=False).fits:
          yield f'{trained}, remat {remat}, {count} rows', choice


def packed_batch(config: ConfigDict) -> dict[str, np.ndarray]:
  """A batch of random tokens and one image, with the lengths and the packing of stage 2."""
  rng, batch = np.random.default_rng(0), config.batch
  visual = families.visual_tokens(config.model)
  lengths, has_image = data.draw_lengths(rng, batch.window)
  lengths = np.minimum(lengths, batch.seq_len - visual)
  jpeg = data.draw_jpeg(rng)
  examples = [
    packing.Example(
      ids=rng.integers(3, config.model.llm.vocab, length).astype(np.int32),
      weights=(np.arange(length) >= min(_TEMPLATE_IDS, length - 1)).astype(np.float32),
      images=(jpeg,) * int(pictured),
      task=0,
    )
    for length, pictured in zip(lengths, has_image)
  ]
  needs, slots = packing.needs(examples, batch.images)
  rows = packing.plan([e.length(visual) for e in examples], needs, batch.seq_len, slots)
  chosen = [[examples[i] for i in row] for row in rows[: batch.size]]
  packed = packing.assemble(
    chosen, batch.seq_len, batch.images, config.model.image_size, visual, report_bad=print
  )
  batch_contract.check(packed, visual)
  return packed


def flops_by_xla(config: ConfigDict) -> float:
  """FLOP of an update by XLA's cost analysis: all operations, recomputed ones included.

  XLA counts the body of a loop once and no kernel's inside, so it gets a program without loops and
  with plain attention. Its LM head computes all positions.
  """
  flat = {'model.scan_unroll': 1000, 'loss_chunk': 0, 'model.attention': 'xla'}
  program = run.Program(plan.changed(config, flat), jax.devices('cpu'))
  return program.lower().cost_analysis()['flops']


def _measure(config: ConfigDict, limit: int, repeats: int) -> Iterator[Row]:
  began = time.perf_counter()
  program = run.Program(config)
  with ThreadPoolExecutor(1) as background:
    by_xla = background.submit(flops_by_xla, config)
    step = program.compile()
  used = step.memory_analysis()
  needed = used.argument_size_in_bytes + used.temp_size_in_bytes
  if needed > limit:
    raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: compiled for {needed} bytes')
  note = f'compiled in {time.perf_counter() - began:.0f} s'
  yield Row('memory', needed / 2**30, 'GiB', note=note)
  calls = step.as_text().count(KERNEL)
  if config.model.attention == 'cudnn' and not calls:
    raise RuntimeError(f'the compiled update does not call {KERNEL}')
  note = f'{calls} calls of cuDNN in the compiled update'
  yield Row('attention', config.model.attention, note=note)

  batch = packed_batch(config)
  taken = _run(program, step, config, batch, repeats)
  seconds = statistics.median(taken)
  peak_rate = peak.flops_per_second(list(program.mesh.devices.flat), DTYPE)
  low, high = 1e3 * min(taken), 1e3 * max(taken)
  yield Row('step', 1e3 * seconds, 'ms', note=f'{low:.4g} to {high:.4g}')
  useful, labels = (batch['segments'] > 0).mean(), (batch['loss_weight'] > 0).mean()
  note = f'{useful:.0%} useful, {labels:.0%} predict a label'
  yield Row('positions', batch['tokens'].size / seconds, '1/s', note=note)
  images = np.any(batch['image_size'], axis=-1).sum()
  yield Row('images', images / seconds, '1/s')
  # As `train` counts: the LM head computes positions with labels only.
  skipped = (1 - labels) * program.flops.parts['lm_head']
  done = sum(program.flops.parts.values()) - skipped
  yield Row('rate', done / seconds / 1e12, 'TFLOP/s')
  aim = LORA_AIM if config.get('lora') else AIM
  yield Row('MFU', 100 * done / seconds / peak_rate, '%', aim, 'products of the model')
  by_xla = 100 * (by_xla.result() - skipped) / seconds / peak_rate
  yield Row("utilization by XLA's count", by_xla, '%', note='all operations, recomputed ones too')


def random_params(shapes: dict, dtype: str | None = None) -> dict:
  """Parameters of these shapes, made on the device.

  All repeat one block of random numbers, which takes less time than drawing and compiling. Zeros
  would not do: a GPU computes with them faster.

  Args:
    shapes: tree of ShapeDtypeStruct.
    dtype: of all parameters; None: those of the shapes. Codes of few bits keep theirs.
  """
  key = jax.random.key(0)
  floats, codes = 0.02 * jax.random.normal(key, _BLOCK), jax.random.bits(key, _BLOCK, jnp.uint8)

  def make(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    is_code = jnp.issubdtype(leaf.dtype, jnp.integer)
    block = codes.view(leaf.dtype) if is_code else floats.astype(dtype or leaf.dtype)
    repeated = jnp.tile(block, -(-leaf.size // block.size))[: leaf.size].reshape(leaf.shape)
    is_norm = path.endswith('scale') and not path.endswith(_SMALL)
    return repeated + jnp.array(is_norm, block.dtype)

  flat = trees.flatten(shapes)
  return trees.unflatten({path: make(path, leaf) for path, leaf in flat.items()})


def _run(
  program: run.Program, step: Any, config: ConfigDict, batch: dict, repeats: int
) -> list[float]:
  """Seconds of every update after some to warm up; the batch travels to the device every time."""
  params = random_params(program.params) if config.get('lora') else program.init()
  trained, frozen = states.split(params, config.trainable)
  state = states.State(
    jax.device_put(jnp.int32(0), program.state.step.sharding),
    trained,
    frozen,
    program.init_optimizer(trained),
  )
  del params, trained, frozen  # The first update frees them.
  taken = []
  for _ in range(_WARMUP + repeats):
    began = time.perf_counter()
    state, metrics = step(state, placement.put(batch, program.batch_sharding))
    jax.block_until_ready((state, metrics))
    taken.append(time.perf_counter() - began)
  loss = float(metrics['loss']) / float(metrics['weight'])
  if not math.isfinite(loss):
    raise RuntimeError(f'the loss is {loss}')
  return taken[_WARMUP:]
