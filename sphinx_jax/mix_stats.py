"""Computes statistics of a checkpoint on the data of its run, for mixes that look at data:

    python -m sphinx_jax.mix_stats --checkpoint=RUN --statistics=fisher --output=DIR
    python -m sphinx_jax.mix_stats --checkpoint=RUN --statistics=gram --batches=100 --output=DIR

`fisher` is the diagonal of the empirical Fisher information: the squared gradient of the
log-likelihood of every example, with the answers of the data, averaged over examples. `gram` is the
Gram matrix X^T X of the inputs X of every linear layer, also averaged over examples. Both are of
the parameters that the run trained, in float32. `mix_weights --method=fisher` and
`--method=regmean` take them. The data are those of the run's first updates, or its validation sets.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from sphinx_jax import run
from sphinx_jax.checkpoint import (
  merged,
  statistics as stored_statistics,
  store as checkpoints,
  stream,
)
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import batch as batch_contract, cli, errors, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.models import families, layers
from sphinx_jax.parallel import hosts, placement, rules
from sphinx_jax.training import state as states, statistics

FLAGS = flags.FLAGS
SPLITS = ('train', 'validation')
Shapes = dict[str, jax.ShapeDtypeStruct]  # Path -> shape and sharding.


def measure(
  checkpoint: checkpoints.Path,
  kind: str,
  output: checkpoints.Path,
  batches: int = 32,
  split: str = 'train',
  config: ConfigDict | None = None,
) -> None:
  """Writes statistics of a checkpoint.

  On the devices they take twice their size in float32: the sums, and those of an example or a
  microbatch. They are split over the mesh as parameters are.

  Args:
    checkpoint: a run, one of its checkpoints, or a mix of checkpoints.
    kind: 'fisher' or 'gram'.
    output: a new directory.
    batches: number of batches; of split 'validation' at most as many of every set.
    split: 'train', from the first example on, or 'validation'.
    config: config of a run of the same model, for its data, mesh and trained parameters. None means
      the config inside the checkpoint.

  Raises:
    SphinxError: the checkpoint holds no weights, or adapters or few bits; the config does not fit
      it or has no validation sets; data or mesh are wrong; a statistic is not finite; or the output
      cannot be written.
  """
  with hosts.exclusive(output, 'output'):  # Before the work: it can be written.
    config, source = _configured(checkpoint, config, batches, split)
  opened = run.open_parents(config, [checkpoint])
  program, replicated = opened.program, placement.replicated(opened.program.mesh)
  statistic, shapes = (_fisher if kind == 'fisher' else _grams)(config, program)
  names = config.mixture if split == 'train' else config.validation
  facts = dict(split=split, data=[*names])
  with stored_statistics.Writer(output, kind, source, shapes, **facts) as writer:
    add = _compile(statistic, shapes, replicated)
    trained, frozen = states.split(opened.params[0], config.trainable)
    sums, examples = _zeros(shapes), 0
    total = batches * (1 if split == 'train' else len(names))
    with Progress(total=total, what=kind, unit='batch') as bar:
      for batch in _batches(opened.data, batches, split):
        batch_contract.check(batch, families.visual_tokens(config.model))
        with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh):
          placed = placement.put(batch, program.batch_sharding)
          sums, count = placement.block_on_cpu(add(sums, trained, frozen, placed))
        examples += int(count)
        bar.update(note=f'{examples} examples')
    if not examples:
      raise errors.make(f"data of '{checkpoint}'", 'no example', 'some', 'check data_dir')
    for path, index, value in _parts(sums, replicated):
      writer.write(path, value / np.float32(examples), index)
    writer.finish(examples=examples)
  log.info('%s: %s of %s on %d examples', output, kind, checkpoint, examples)


def _configured(
  checkpoint: checkpoints.Path, config: ConfigDict | None, batches: int, split: str
) -> tuple[ConfigDict, dict[str, Any]]:
  """The config to compute with, and what the statistics record of the checkpoint."""
  merged.check_whole(checkpoint, 'statistics of')
  meta = checkpoints.load_meta(checkpoint)
  bundle = Bundle.from_meta(meta, checkpoint)
  if bundle.forms:
    raise errors.make(
      f"statistics of '{checkpoint}'",
      f'kernels in {bundle.weights}',
      'kernels that were trained',
      'widen it first: python -m sphinx_jax.mix_weights --inputs=DIR --output=WIDE',
    )
  config = run.config_for('statistics', checkpoint, bundle, config)
  if split == 'validation' and not config.validation:
    raise errors.make(
      f"statistics of '{checkpoint}'",
      'a config without validation sets',
      'validation sets for --split=validation',
      'leave --split out, or give --config with `validation`',
    )
  with config.unlocked():
    config.cache_features, config.eval_batches = '', batches
    if split == 'train':
      config.validation = ConfigDict()
    if config.model.dtype == 'float16':  # Gradients without a loss scale need more range.
      config.model.dtype = 'float32'
  return config, merged.source_of(checkpoint, meta)


def _fisher(config: ConfigDict, program: run.Program) -> tuple[statistics.Statistic, Shapes]:
  """The statistic, and its arrays: those of the trained parameters."""
  model = _build(config, program)
  trained = trees.flatten(states.split(program.params, config.trainable)[0])
  group = families.feature_params(config.model)
  is_frozen = group and not any(path.startswith(f'{group}/') for path in trained)

  def encode(params: dict, batch: dict) -> dict:
    features = families.features(model, params, batch['images'])
    return batch_contract.with_features(batch, features)

  rows = rules.ways('batch', program.mesh)
  statistic = statistics.fisher(
    functools.partial(families.apply, model),
    config.batch.size // rows,
    config.loss_chunk,
    encode if is_frozen and config.batch.images else None,
  )
  return statistic, {path: _float32(leaf.shape, leaf.sharding) for path, leaf in trained.items()}


def _grams(config: ConfigDict, program: run.Program) -> tuple[statistics.Statistic, Shapes]:
  """The statistic, and its arrays: those of the trained kernels of linear layers."""
  model, axes = _build(config, program), trees.flatten(program.layout.logical_axes)
  trained = trees.flatten(states.split(program.params, config.trainable)[0])
  found = jax.eval_shape(functools.partial(families.grams, model), program.params, program.batch)
  kept = {path: leaf for path, leaf in found.items() if path in trained}
  experts = [path for path in trained if 'experts' in axes[path]]
  if experts:
    log.warning('experts have no Gram matrices and are mixed linearly: %s', ', '.join(experts))
  names = {
    path: (*axes[path][: leaf.ndim - 2], *layers.gram_names(axes[path][leaf.ndim - 2]))
    for path, leaf in kept.items()
  }
  for path, (*others, columns) in names.items():
    if columns and kept[path].shape[-1] % rules.storage_ways(columns, program.mesh):
      names[path] = (*others, None)
  shardings = rules.shardings(trees.unflatten(names), trees.unflatten(kept), program.mesh)
  flat = trees.flatten(shardings)
  shapes = {path: _float32(leaf.shape, flat[path]) for path, leaf in kept.items()}
  return statistics.grams(model, program.microbatches), shapes


def _build(config: ConfigDict, program: run.Program) -> Any:
  return families.build(config.model, program.mesh.devices.flat[0].platform)


def _float32(shape: tuple[int, ...], sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def _shardings(shapes: Shapes) -> dict[str, NamedSharding]:
  return {path: leaf.sharding for path, leaf in shapes.items()}


def _zeros(shapes: Shapes) -> dict[str, jax.Array]:
  make = lambda: {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}
  return jax.jit(make, out_shardings=_shardings(shapes))()


def _compile(
  statistic: statistics.Statistic, shapes: Shapes, replicated: NamedSharding
) -> Callable[..., tuple[dict[str, jax.Array], jax.Array]]:
  """A function that adds the sums of a batch to the first argument, and counts its examples."""

  def measure_batch(sums: dict, trained: dict, frozen: dict, batch: dict) -> tuple[dict, jax.Array]:
    return statistic.add(sums, trained, frozen, batch), statistic.examples(batch)

  return jax.jit(measure_batch, donate_argnums=0, out_shardings=(_shardings(shapes), replicated))


def _batches(data: run.Data, count: int, split: str) -> Iterator[dict[str, np.ndarray]]:
  if split == 'validation':
    yield from itertools.chain.from_iterable(data.validation().values())
    return
  with contextlib.closing(data.batches(0)) as batches:
    for batch, _ in itertools.islice(batches, count):
      yield batch


def _parts(
  sums: Mapping[str, jax.Array], replicated: NamedSharding
) -> Iterator[tuple[str, stream.Index, np.ndarray]]:
  """Yields (path, index, value) of all arrays, of stacks by layer; for all processes alike."""
  whole = jax.jit(lambda x: x, out_shardings=replicated)
  layer = jax.jit(lambda x, i: x[i], out_shardings=replicated)
  total = sum(leaf.nbytes for leaf in sums.values())
  with Progress(total=total, what='writing', unit='B') as bar:
    for path, leaf in sums.items():
      numbers = range(leaf.shape[0]) if leaf.ndim > 2 else [None]
      for number in numbers:
        value = np.asarray(whole(leaf) if number is None else layer(leaf, number))
        yield path, () if number is None else (number,), value
        bar.update(value.nbytes)


def main() -> None:
  """Computes the statistics that the command line describes."""
  for name in ('checkpoint', 'statistics', 'output'):
    if not FLAGS[name].value:
      raise errors.make(
        f'--{name}',
        'nothing',
        'a value',
        'for example --checkpoint=RUN --statistics=fisher --output=DIR',
      )
  facts = {name: FLAGS[name].value for name in ('checkpoint', 'statistics', 'batches', 'split')}
  with hosts.session(facts):
    measure(
      FLAGS.checkpoint, FLAGS.statistics, FLAGS.output, FLAGS.batches, FLAGS.split, FLAGS.config
    )


if __name__ == '__main__':
  cli.define_config(optional=True)
  cli.define_path('checkpoint', None, 'A run, one of its checkpoints, or a mix.')
  flags.DEFINE_enum('statistics', None, stored_statistics.KINDS, 'What to compute.')
  flags.DEFINE_integer('batches', 32, 'Number of batches; of each validation set.', lower_bound=1)
  flags.DEFINE_enum(
    'split', 'train', SPLITS, 'The examples that the run trained on first, or its validation sets.'
  )
  cli.define_path('output', None, 'Directory to create.')
  cli.run(main)
