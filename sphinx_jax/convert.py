"""Takes weights in and out: `python -m sphinx_jax.convert --source=DIR --output=DIR`.

In: an official SPHINX folder, LLaMA of Meta or HF transformers, or several sources for a fresh SPHINX, from which stage 1
starts: --source=LLAMA,CLIP,CONVNEXT,DINOV2,BLIP2 --variant=llama_ens. Formats are recognised by their files.
Out: --to=official (with --shards=N) or --to=hf takes one of our checkpoints back.
--dry_run prints the table of names and shapes, and what is missing or left over. --verify=DIR compares with another model.
"""

import base64
import contextlib
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import psutil
from absl import flags

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import assemble, export, sources
from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.core import cli, config as config_lib, errors, trees
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.data import dialog
from sphinx_jax.generate import load as loading

FLAGS = flags.FLAGS


def open_sources(
  paths: Sequence[str],
  variant: str | None = None,
  base: str | None = None,
  tokenizer: str | None = None,
  strict: bool = True,
) -> assemble.Assembly:
  """Recognises what lies there, says it, and puts a model together; no weight is read.

  Args:
    paths: one whole model, or a language model and encoders.
    variant: the official name of the model, where the files do not say.
    base: folder that deltas are added to.
    tokenizer: a tokenizer.model, where the language model's folder has none.
    strict: see `assemble.assemble`.

  Raises:
    SphinxError: nothing recognised, or files that do not fit together.
  """
  for path in paths:
    if loading.is_ours(path):
      raise errors.make(
        f"source '{path}'",
        'a checkpoint of ours',
        'weights of others',
        'give --to=official or --to=hf to take it back',
      )
  found = [sources.open_source(path, variant, base) for path in paths]
  for source in found:
    size = trees.nbytes(source.tensors)
    dtypes = sorted({str(tensor.dtype) for tensor in source.tensors.values()})
    log.info(
      "'%s': %s, %d tensors, %.2f GB, %s",
      source.path,
      source.kind,
      len(source.tensors),
      size / 1e9,
      ', '.join(dtypes),
    )
  given = None if tokenizer is None else _bytes(tokenizer)
  return assemble.assemble(found, variant or 'llama_ens', given, strict)


def _bytes(path: str) -> bytes:
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise errors.make(
      '--tokenizer',
      f"'{path}' ({error.strerror})",
      'a sentencepiece tokenizer.model',
      'check the path',
    ) from None


def read_in(assembly: assemble.Assembly, output: str, seed: int = 0) -> None:
  """Writes a checkpoint of ours, a layer at a time; it appears when it is complete.

  Args:
    assembly: from `open_sources`.
    output: directory, as of a run.
    seed: of the parameters that no source has.

  Raises:
    SphinxError: no tokenizer; an output that holds a checkpoint; a damaged file.
  """
  if assembly.tokenizer is None:
    raise errors.make(
      'convert',
      'no tokenizer.model beside the weights',
      'one, as a checkpoint carries its tokenizer',
      'give --tokenizer=FILE',
    )
  arrays, started = (
    assemble.arrays(assembly),
    assemble.fresh(assembly, seed) if assembly.fresh else {},
  )
  carried = {
    name: stream.Array(tensor.shape, tensor.dtype, lambda _, tensor=tensor: tensor.read())
    for name, tensor in assembly.carried.items()
  }
  writer = stream.Writer(output, {'params': assembly.shapes, 'carried': carried}, _meta(assembly))
  try:
    pieces = [
      (item, path, array, index, size)
      for item, group in (('params', arrays), ('carried', carried))
      for path, array in group.items()
      for index, size in array.pieces()
    ]
    values = read_ahead(
      [(size, functools.partial(array.read, index)) for _, _, array, index, size in pieces]
    )
    with Progress(total=sum(size for *_, size in pieces), what='writing', unit='B') as bar:
      for item, path, _, index, size in pieces:
        writer.write(
          item, path, next(values), index
        )  # No name holds the value while the next one is read.
        bar.update(size)
    for path, value in started.items():
      writer.write('params', path, value)
    writer.finish()
  except BaseException:
    writer.abandon()
    raise
  if started:
    log.info('started from random numbers (seed %d): %s', seed, ', '.join(started))
  if carried:
    log.info('carried along, not used by the model: %s', ', '.join(carried))
  if assembly.dropped:
    log.info(
      'left out, not used by the model: %d tensors (%s, ...)',
      len(assembly.dropped),
      ', '.join(assembly.dropped[:3]),
    )


def _meta(assembly: assemble.Assembly) -> dict[str, Any]:
  config = ml_collections.ConfigDict(
    {'name': 'converted', 'model': assembly.config.to_dict(), 'dialog': {'system': dialog.SYSTEM}}
  )
  return {
    'config': config_lib.to_json(config),
    'tokenizer': base64.b64encode(assembly.tokenizer).decode(),
    'dialog': {'system': dialog.SYSTEM},
    'foreign': assembly.origin,
  }


def take_out(
  source: str, output: str | None, to: str, shards: int = 1, dry_run: bool = False
) -> None:
  """Writes a checkpoint of ours in a foreign format; the folder appears when it is complete.

  Args:
    source: a run's directory or one step's.
    output: folder to be made.
    to: 'official' or 'hf' (the language model alone).
    shards: of an official folder, for as many tensor-parallel ranks.
    dry_run: prints names and shapes instead.

  Raises:
    SphinxError: no checkpoint, a model that the format does not have, shards that do not divide, an output that exists.
  """
  meta = store.load_meta(source)
  config, origin = config_lib.from_json(meta['config']).model, meta.get('foreign', {})
  found = export.TARGETS[to].tensors(
    config, stream.read(source), stream.read(source, 'carried'), origin
  )
  if dry_run:
    for key, tensor in found.items():
      print(f'{key} {list(tensor.shape)} {tensor.dtype}')
    return
  with _new_folder(output) as folder:
    export.TARGETS[to].write(
      folder, config, found, base64.b64decode(meta['tokenizer']), origin, shards
    )
  if to == 'hf' and config.encoders:
    log.info('the language model alone; left out: encoders, projections, start and end of a view')


@contextlib.contextmanager
def _new_folder(output: str) -> Iterator[pathlib.Path]:
  """A temporary folder that becomes `output` if nothing is raised."""
  final = pathlib.Path(output).absolute()
  if final.exists() and (not final.is_dir() or any(final.iterdir())):
    raise errors.make(
      f"output '{output}'", 'something there already', 'a new folder', 'give another --output'
    )
  partial = final.with_name(final.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    if final.exists():
      final.rmdir()
    os.rename(partial, final)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def verify(first: str, second: str, **options) -> float:
  """Prints how far two models are from each other: every parameter, part by part, and the logits of one example.

  Args:
    first, second: our checkpoints or others' folders.
    options: as in `sources.open_source`, for `first`.

  Returns:
    The largest difference of any parameter or logit; 0 for equal ones.

  Raises:
    SphinxError: models of other parameters.
  """
  (config, a), (other, b) = _arrays(first, **options), _arrays(second)
  for line in config_lib.differences(config_lib.to_dict(config), config_lib.to_dict(other)):
    print(f'config: {line}')
  if lines := trees.difference(a, b):
    raise errors.make(
      f"verify '{second}'",
      f'{len(lines)} differences: ' + '; '.join(lines[:10]),
      f"the parameters of '{first}'",
      'compare models of one size',
    )
  rows: dict[str, list[float]] = {}
  with Progress(total=trees.nbytes(a), what='comparing', unit='B') as bar:
    for path, array in a.items():
      part = '/'.join(path.split('/')[: 2 if path.startswith('encoders/') else 1])
      rows.setdefault(part, []).append(
        max(_distance(array.read(index), b[path].read(index)) for index, _ in array.pieces())
      )
      bar.update(array.nbytes)
  print(f'{"part":<20}{"parameters":>12}{"equal":>8}{"largest difference":>22}')
  for part, distances in rows.items():
    print(f'{part:<20}{len(distances):>12}{distances.count(0.0):>8}{max(distances):>22.3g}')
  worst = max(map(max, rows.values()))
  # Each model is loaded in its turn, and computes in float32.
  if trees.nbytes(a) > psutil.virtual_memory().available / 4:
    print('logits: not compared, the memory of this machine is too small')
    return worst
  distance = _distance(_example(first, config), _example(second, other))
  print(f'{"logits":<20}{"":>12}{"":>8}{distance:>22.3g}')
  return max(worst, distance)


def _arrays(
  directory: str, **options
) -> tuple[ml_collections.ConfigDict, Mapping[str, stream.Array]]:
  if loading.is_ours(directory):
    return config_lib.from_json(store.load_meta(directory)['config']).model, stream.read(directory)
  assembly = assemble.assemble([sources.open_source(directory, **options)])
  return assembly.config, assemble.arrays(assembly)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
  """The largest difference; infinite where only one is no number."""
  a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
  return float(
    np.nan_to_num(
      np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b)), nan=np.inf
    ).max(initial=0)
  )


def _example(directory: str, config: ml_collections.ConfigDict) -> np.ndarray:
  """Logits of a fixed row of random tokens, with a random image where the model sees."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.llm.vocab, (1, 16))
  image = (
    rng.integers(0, 256, (1, config.image_size, config.image_size, 3), np.uint8)
    if config.encoders
    else None
  )
  return np.asarray(loading.load_model(directory, dtype='float32').logits(tokens, image))


def print_table(assembly: assemble.Assembly) -> None:
  """Their names and shapes beside ours, one line for all layers; then what is missing, fresh and left over."""
  arrays = assemble.arrays(assembly)
  width = max(len(weight.key) for weight in assembly.table) + 6
  for weight in assembly.table:
    key = weight.key if weight.layers is None else f'{weight.key} x{len(weight.layers)}'
    theirs, ours = weight.their_shape(arrays[weight.path].shape), arrays[weight.path].shape
    print(
      f'{key:<{width}} {str(list(theirs)):<20} {weight.path} {list(ours)} {arrays[weight.path].dtype}'
    )
  for title, names in (
    ('differs', assembly.differences),
    ('starts from random numbers', assembly.fresh),
    ('carried along, not used by the model', assembly.carried),
    ('left out, not used by the model', assembly.dropped),
  ):
    for name in names:
      print(f'{title}: {name}')


def main() -> None:
  if not FLAGS.source:
    raise errors.make(
      '--source', 'nothing', 'a folder or file of weights', 'for instance --source=DIR --output=DIR'
    )
  if FLAGS.verify:
    verify(FLAGS.source[0], FLAGS.verify, variant=FLAGS.variant, base=FLAGS.base)
    return
  if not FLAGS.output and not FLAGS.dry_run:
    raise errors.make(
      '--output',
      'nothing',
      'a new directory',
      'for instance --output=DIR, or --dry_run to look only',
    )
  if FLAGS.to:
    take_out(FLAGS.source[0], FLAGS.output, FLAGS.to, FLAGS.shards, FLAGS.dry_run)
    return
  assembly = open_sources(
    FLAGS.source, FLAGS.variant, FLAGS.base, FLAGS.tokenizer, strict=not FLAGS.dry_run
  )
  if FLAGS.dry_run:
    print_table(assembly)
  else:
    read_in(assembly, FLAGS.output, FLAGS.seed)
    log.info("'%s': done", FLAGS.output)


if __name__ == '__main__':
  flags.DEFINE_list(
    'source',
    [],
    'What to read: a folder or file; for a fresh SPHINX the language model and the encoders.',
  )
  flags.DEFINE_string('output', None, 'Directory to be made.')
  flags.DEFINE_enum(
    'to', None, list(export.TARGETS), 'Takes one of our checkpoints back to this format.'
  )
  flags.DEFINE_integer('shards', 1, 'Tensor-parallel shards of an official folder.', lower_bound=1)
  flags.DEFINE_string(
    'variant', None, 'The official name of the model (llama_ens5, ...), where no meta.json says it.'
  )
  flags.DEFINE_string('base', None, 'The folder that the deltas of *.model-diff.pth are added to.')
  flags.DEFINE_string(
    'tokenizer', None, "A tokenizer.model, where the language model's folder has none."
  )
  flags.DEFINE_integer('seed', 0, 'Of the parameters that no source has (projections).')
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Prints the table of names and shapes, and what is missing or left over; writes nothing.',
  )
  flags.DEFINE_string('verify', None, 'Another model to compare --source with; writes nothing.')
  cli.run(main)
