"""Imports weights of other projects into a checkpoint, and exports them again:

    python -m sphinx_jax.convert --source=DIR --output=DIR

Import: an official SPHINX folder; a folder of HF transformers (Idefics2, LLaMA), its name in the
local hub cache, or BASE+ADAPTER; LLaMA as Meta releases it; or several sources for a fresh SPHINX,
the start of stage 1: --source=LLAMA,CLIP,CONVNEXT,DINOV2,BLIP2 --variant=llama_ens. The format is
detected.
Few bits: --quantize=int8, int4 or nf4 writes a checkpoint of this package, or an import, with its
matrices so (docs/weights.md, "Few bits"). --verify=FILE.jsonl, or --verify=miniworld, then compares
the losses of both.
Export: --to=official (with --shards=N) or --to=hf writes one of our checkpoints in that format, or
BASE+ADAPTER merged; --to=peft writes the adapters of a run (PEFT).
--set=NAME=VALUE and --ids give what differs between releases of transformers (docs/idefics2.md).
--dry_run prints the table of names and shapes, and the missing and unused tensors.
--verify=DIR compares --source with another model.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import psutil
from absl import flags

from sphinx_jax import few_bits
from sphinx_jax.checkpoint import adapter_runs, content, merged, store, stream, widened
from sphinx_jax.checkpoint.bundle import Bundle, load_bundle
from sphinx_jax.checkpoint.foreign import (
  adapter_export,
  assemble,
  card,
  export,
  files as foreign_files,
  sources,
)
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.core import cli, config as config_lib, errors, files, paths, text, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.data import dialog, tokenizer as tokenizers
from sphinx_jax.evaluation import agreement
from sphinx_jax.generate import load as loading
from sphinx_jax.models import families, forms, quantized, settings

FLAGS = flags.FLAGS
PEFT = 'peft'
_UNUSED_FLAGS = {
  'quantize': ('to', 'shards'),
  'verify': ('output', 'to', 'shards', 'tokenizer', 'seed', 'dry_run', 'set', 'ids'),
  'to': ('variant', 'base', 'tokenizer', 'seed', 'set', 'ids'),
  'import': ('shards',),
}


def open_sources(
  paths: Sequence[str],
  variant: str | None = None,
  base: str | None = None,
  tokenizer: str | None = None,
  strict: bool = True,
  changes: Mapping[str, Any] | None = None,
) -> assemble.Assembly:
  """Detects and logs the format of each source and assembles a model without reading weights.

  Args:
    paths: one whole model, or a language model and encoders.
    variant: the official name of the model, if the files do not have it.
    base: the folder that deltas are added to.
    tokenizer: path of a tokenizer.model, if the language model's folder has none.
    strict: as in `assemble.assemble`.
    changes: settings of the model in place of those of the files, see `settings.change`.

  Raises:
    SphinxError: a format is unknown, the files do not fit together, or a change is impossible.
  """
  for path in paths:
    if _is_ours(path):
      raise errors.make(
        f"source '{path}'",
        'a checkpoint of sphinx_jax',
        'weights of another project',
        'add --to=official, --to=hf or --to=peft to export it, or --quantize, or mix it '
        '(mix_weights)',
      )
  opened = [sources.open_source(path, variant, base) for path in paths]
  for source in opened:
    dtypes = sorted({str(tensor.dtype) for tensor in source.tensors.values()})
    log.info(
      "'%s': %s, %d tensors, %.2f GB, %s",
      source.path,
      source.kind,
      len(source.tensors),
      trees.nbytes(source.tensors) / 1e9,
      ', '.join(dtypes),
    )
  model_bytes = None if tokenizer is None else _read_tokenizer(tokenizer)
  assembly = assemble.assemble(opened, variant, model_bytes, strict)
  if not changes:
    return assembly
  # An export would write the config of the files back as it was.
  origin = {name: value for name, value in assembly.origin.items() if name != 'config'}
  config = settings.change(assembly.config, changes)
  return dataclasses.replace(assembly, config=config, origin=origin)


def _read_tokenizer(path: str) -> bytes:
  try:
    foreign_files.check_kind(path, 'a sentencepiece tokenizer.model')
    return pathlib.Path(path).read_bytes()
  except OSError as error:
    raise errors.make(
      '--tokenizer',
      f"'{path}' ({error.strerror})",
      'a sentencepiece tokenizer.model',
      'check the path',
    ) from None


def import_checkpoint(
  assembly: assemble.Assembly, output: str, seed: int = 0, ids: str = 'v4'
) -> None:
  """Writes a checkpoint of sphinx_jax layer by layer. It appears when it is complete.

  Args:
    assembly: from `open_sources`.
    output: directory of the checkpoint, in the form of a run's directory.
    seed: random seed for the parameters that no source has.
    ids: the token ids of texts, see `data.tokenizer.IDS`.

  Raises:
    SphinxError: there is no tokenizer, the output holds a checkpoint, or a file is damaged.
  """
  _check_tokenizer(assembly)
  arrays = assemble.arrays(assembly)
  fresh = assemble.init_fresh(assembly, seed)
  unused = {
    name: stream.Array(tensor.shape, tensor.dtype, functools.partial(_read_whole, tensor))
    for name, tensor in assembly.unused.items()
  }
  writer = stream.Writer(
    output, {'params': assembly.shapes, export.UNUSED_ITEM: unused}, _meta(assembly, ids)
  )
  try:
    hashed = _copy_arrays(writer, {'params': arrays, export.UNUSED_ITEM: unused})
    for path, value in fresh.items():
      writer.write('params', path, value)
      hashed.update(path, value, value)
    writer.finish(hash=hashed.hexdigest())
  except BaseException:
    writer.abandon()
    raise
  if fresh:
    log.info('initialized at random (seed %d): %s', seed, ', '.join(fresh))
  if unused:
    log.info('kept, not used by the model: %s', ', '.join(unused))
  if assembly.dropped:
    log.info(
      'left out, not used by the model: %d tensors (%s, ...)',
      len(assembly.dropped),
      ', '.join(assembly.dropped[:3]),
    )


def _check_tokenizer(assembly: assemble.Assembly) -> None:
  if assembly.tokenizer is None:
    raise errors.make(
      'convert',
      'no tokenizer.model beside the weights',
      'one, because a checkpoint carries its tokenizer',
      'give --tokenizer=FILE',
    )


def _read_whole(tensor: Tensor, index: stream.Index) -> np.ndarray:
  del index  # Such a tensor is no stack, so it is always read at once.
  return tensor.read()


def _copy_arrays(
  writer: stream.Writer, items: Mapping[str, Mapping[str, stream.Array]]
) -> content.ContentHash:
  """Writes all arrays of all items, and reads the next pieces meanwhile.

  Parameters that are not finite are logged.

  Returns:
    The hash of the parameters.

  Raises:
    SphinxError: a file is damaged.
  """
  hashed, broken = content.ContentHash(), {}
  pieces = [
    (item, path, array, index, size)
    for item, arrays in items.items()
    for path, array in arrays.items()
    for index, size in array.pieces()
  ]
  values = read_ahead(
    [(size, functools.partial(array.read, index)) for _, _, array, index, size in pieces]
  )
  with Progress(total=sum(size for *_, size in pieces), what='writing', unit='B') as bar:
    for item, path, array, index, size in pieces:
      value = next(values)
      if item == 'params':
        hashed.update(path, array, value)
        if not content.is_finite(value):
          broken[path] = None
      writer.write(item, path, value, index)
      del value  # It would be in memory while the next one is read.
      bar.update(size)
  if broken:
    log.warning('NaN or infinity in %d parameters: %s', len(broken), ', '.join(broken))
  return hashed


def _meta(assembly: assemble.Assembly, ids: str) -> dict[str, Any]:
  return {**_bundle(assembly, ids).to_meta(), 'foreign': assembly.origin}


def _bundle(assembly: assemble.Assembly, ids: str) -> Bundle:
  template = {'system': dialog.SYSTEM, **assembly.dialog}
  config = ml_collections.ConfigDict(
    {'name': 'converted', 'model': assembly.config.to_dict(), 'dialog': template}
  )
  return Bundle(config, assembly.tokenizer, template, assembly.added_tokens, ids)


def full_weights(assembly: assemble.Assembly, seed: int = 0, ids: str = 'v4') -> few_bits.Full:
  """Weights of other projects to quantize.

  Args:
    assembly: from `open_sources`.
    seed: as in `import_checkpoint`.
    ids: as in `import_checkpoint`.

  Raises:
    SphinxError: there is no tokenizer.
  """
  _check_tokenizer(assembly)
  fresh = assemble.init_fresh(assembly, seed)
  new = {path: stream.HeldArray(value) for path, value in fresh.items()}
  arrays = {**assemble.arrays(assembly), **new}
  return few_bits.Full(arrays, _bundle(assembly, ids), {'foreign': assembly.origin})


def export_checkpoint(
  source: str, output: str | None, to: str, shards: int = 1, dry_run: bool = False
) -> None:
  """Writes a checkpoint of sphinx_jax in a foreign format. The folder appears when it is complete.

  Args:
    source: a run's directory or one step's, or BASE+ADAPTER.
    output: folder to create.
    to: 'official', or 'hf' (of SPHINX, the language model alone).
    shards: number of tensor-parallel shards of an official folder.
    dry_run: print names and shapes instead.

  Raises:
    SphinxError: the source is no checkpoint, the format does not have this model, the shards do not
      divide it, or the output exists.
  """
  opened, (base, adapter) = merged.open_checkpoint(source), merged.split(source)
  meta, bundle = store.load_meta(base), opened.bundle
  config, origin = bundle.config.model, meta.get('foreign', {})
  if bundle.weights:
    raise errors.make(
      f"source '{source}'",
      f'kernels in {bundle.weights}',
      f'full ones, to export them with --to={to}',
      'widen them first: python -m sphinx_jax.mix_weights --inputs=DIR --output=WIDE',
    )
  target = export.TARGETS[to]
  tensors = target.tensors(config, opened.arrays, stream.read(base, export.UNUSED_ITEM), origin)
  if dry_run:
    _print_tensors(tensors)
    return
  with paths.new_folder(output) as folder:
    target.write(folder, bundle, tensors, origin, shards)
    if to == 'hf':
      text_of_card = _card(pathlib.Path(output).name, meta, adapter)
      files.write_atomic(folder / card.NAME, text_of_card)
  if to == 'hf' and forms.whole(config) is None and families.family(config).sees_images(config):
    log.info(
      'only the language model was written, without the encoders, their projections and the '
      'parameters that mark start and end of a view'
    )


def export_adapter(source: str, output: str | None, dry_run: bool = False) -> None:
  """Writes the adapters of a run as a folder of PEFT, which appears when it is complete.

  Args:
    source: the run's directory or one step's.
    output: folder to create.
    dry_run: print names and shapes instead.

  Raises:
    SphinxError: the source is no run with adapters, PEFT cannot hold what it trained, or the output
      exists.
  """
  if merged.split(source)[1] is not None:
    raise errors.make(
      f"source '{source}'",
      'an adapter beside its weights',
      'a run that holds adapters alone',
      'give --source=ADAPTER, or export the merged weights with --to=hf',
    )
  meta = store.load_meta(source)
  if not adapter_runs.is_adapter(source):
    raise errors.make(
      f"source '{source}'",
      'a checkpoint with all weights',
      'a run that holds adapters alone',
      'export it with --to=hf',
    )
  base = _name_of_base(source)
  config = Bundle.from_meta(meta, source).config
  exported = adapter_export.to_peft(config, stream.read(source), base, source)
  if dry_run:
    _print_tensors(exported.tensors)
    return
  with paths.new_folder(output) as folder:
    adapter_export.write(folder, exported)
    files.write_atomic(folder / card.NAME, _card(pathlib.Path(output).name, meta, library=PEFT))
  if base is None:
    log.info('its base is no model of transformers as it is; export that, too, with --to=hf')
  if forms.whole(config.model) is None and families.family(config.model).sees_images(config.model):
    log.info('it is an adapter of the language model alone, which is all that transformers has')


def _name_of_base(adapter: str) -> str | None:
  """The name of the model of transformers that is the base of a run with adapters, if it is one."""
  try:
    origin = store.load_meta(adapter_runs.base_of(adapter)).get('foreign', {})
  except errors.SphinxError:  # It is not in its place.
    return None
  form = origin.get('form')
  is_release = any(forms.is_transformers(part, form) for part in ('model', 'llm'))
  return origin['name'] if is_release and not origin.get('adapters') else None


def _print_tensors(tensors: Mapping[str, Tensor]) -> None:
  for key, tensor in tensors.items():
    print(f'{key} {list(tensor.shape)} {tensor.dtype}')


def _card(
  title: str, meta: Mapping[str, Any], adapter: str | None = None, library: str = 'transformers'
) -> str:
  """The model card of an exported checkpoint, with the licence that all its origins have."""
  origins = card.releases(meta) | card.adapter(adapter)
  licences = set(origins.values())
  body = (
    f'Weights for [{library}](https://github.com/huggingface/{library}), written by '
    f'sphinx_jax (step {meta["step"]}).'
  )
  licence = licences.pop() if len(licences) == 1 else None
  return card.text(title, licence, [*origins], body, library)


def verify(first: str, second: str, **options: Any) -> float:
  """Prints how much two models differ: in every parameter, by part, and in the logits of a prompt.

  Their values are compared in float32. Kernels in few bits are widened.

  Args:
    first, second: checkpoints of sphinx_jax or foreign folders; BASE+ADAPTER, too.
    options: arguments of `sources.open_source` for `first`.

  Returns:
    The largest difference of any parameter or logit; 0 if all are equal.

  Raises:
    SphinxError: the models have parameters of other names or shapes.
  """
  config, arrays = _open_model(first, **options)
  other_config, other_arrays = _open_model(second)
  for difference in config_lib.differences(
    config_lib.to_dict(config), config_lib.to_dict(other_config)
  ):
    print(text.printable(f'config: {difference}'))
  lines = trees.differences(_shapes(arrays), _shapes(other_arrays))
  if lines:
    raise errors.make(
      f"verify '{second}'",
      f'{len(lines)} differences: ' + '; '.join(lines[:10]),
      f"the parameters of '{first}'",
      'compare models of one size',
    )
  dtypes = collections.Counter(
    (str(array.dtype), str(other_arrays[path].dtype)) for path, array in arrays.items()
  )
  for (dtype, other), count in dtypes.items():
    if dtype != other:
      print(f'dtype: {count} parameters in {dtype} there, {other} here')
  differences: dict[str, list[float]] = {}  # Part of the model -> of each of its parameters.
  with Progress(total=trees.nbytes(arrays), what='comparing', unit='B') as bar:
    for path, array in arrays.items():
      depth = 2 if path.startswith('encoders/') else 1
      part = '/'.join(path.split('/')[:depth])
      largest = max(
        _largest_difference(array.read(index), other_arrays[path].read(index))
        for index, _ in array.pieces()
      )
      differences.setdefault(part, []).append(largest)
      bar.update(array.nbytes)
  rows = [('part', 'parameters', 'equal', 'largest difference')]
  for part, values in differences.items():
    rows.append((part, len(values), values.count(0.0), f'{max(values):.3g}'))
  worst = max(map(max, differences.values()))
  # The models are loaded one after the other and compute in float32.
  has_memory = trees.nbytes(arrays) <= psutil.virtual_memory().available / 4
  if has_memory:
    logits = _largest_difference(
      _example_logits(first, config), _example_logits(second, other_config)
    )
    rows.append(('logits', '', '', f'{logits:.3g}'))
    worst = max(worst, logits)
  print(text.table(rows, 'lrrr'))
  if not has_memory:
    print('logits: not compared, this machine has too little memory')
  return worst


def _open_model(
  directory: str, **options: Any
) -> tuple[ml_collections.ConfigDict, Mapping[str, stream.Array]]:
  """Returns model config and arrays of a checkpoint of sphinx_jax or of a foreign folder."""
  base, adapter = merged.split(directory)
  if store.is_checkpoint(base) and adapter is not None:
    opened = merged.open_checkpoint(directory)
    return opened.bundle.config.model, opened.arrays
  if store.is_checkpoint(directory):
    adapter_runs.check_whole(directory)
    bundle = load_bundle(directory)
    return bundle.config.model, widened.widen(stream.read(directory), bundle.forms, np.float32)
  assembly = assemble.assemble([sources.open_source(directory, **options)])
  return assembly.config, assemble.arrays(assembly)


def _shapes(arrays: Mapping[str, stream.Array]) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of arrays, whose dtypes are not compared."""
  return {path: jax.ShapeDtypeStruct(a.shape, np.float32) for path, a in arrays.items()}


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the largest absolute difference; infinite if one number is NaN and the other is not."""
  a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
  are_equal = (a == b) | (np.isnan(a) & np.isnan(b))
  difference = np.where(are_equal, 0, np.abs(a - b))
  return float(np.nan_to_num(difference, nan=np.inf).max(initial=0))


def _example_logits(directory: str, config: ml_collections.ConfigDict) -> np.ndarray:
  """Returns the logits of 16 fixed random tokens, with a random image if the model has encoders."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.llm.vocab, (1, 16))
  model, family, image = loading.load_model(directory, dtype='float32'), families.family(config), []
  if family.sees_images(config):
    image = [rng.integers(0, 256, (config.image_size, config.image_size, 3), np.uint8)]
  image_token = family.image_token(config)
  if image_token is not None:
    of_image = [image_token] * model.visual_tokens * model.slot_rule.count
    tokens = np.append(of_image, np.where(tokens == image_token, 0, tokens))[None]
  return np.asarray(model.logits(tokens, [image]))


def print_table(assembly: assemble.Assembly) -> None:
  """Prints foreign names and shapes beside ours, one line for all layers.

  Differences and the fresh, unused and dropped names follow.
  """
  arrays = assemble.arrays(assembly)
  width = max(len(weight.key) for weight in assembly.table) + 6
  for weight in assembly.table:
    array = arrays[weight.path]
    key = weight.key if weight.layers is None else f'{weight.key} x{len(weight.layers)}'
    foreign_shape = str(list(weight.foreign_shape(array.shape)))
    ours = f'{weight.path} {list(array.shape)} {array.dtype}'
    print(f'{key:<{width}} {foreign_shape:<20} {ours}')
  for title, names in (
    ('differs', assembly.differences),
    ('initialized at random', assembly.fresh),
    ('kept, not used by the model', assembly.unused),
    ('left out, not used by the model', assembly.dropped),
  ):
    for name in names:
      print(text.printable(f'{title}: {name}'))


def _check_flags() -> None:
  """Refuses flags without effect, and an output in place of a source.

  Raises:
    SphinxError: there is such a flag.
  """
  mode = next((name for name in ('quantize', 'verify', 'to') if FLAGS[name].value), 'import')
  without = _UNUSED_FLAGS[mode]
  if mode == 'quantize' and _is_ours(FLAGS.source[0]):
    without += _UNUSED_FLAGS['to']
  unused = [f'--{name}' for name in without if FLAGS[name].value != FLAGS[name].default]
  if mode != 'import' and len(FLAGS.source) > 1:
    unused.append('a second --source')
  if unused:
    raise errors.make(
      'convert',
      ' and '.join(unused),
      'flags that have an effect ' + ('without --to' if mode == 'import' else f'with --{mode}'),
      'leave it out',
    )
  if FLAGS.output and any(
    os.path.realpath(FLAGS.output) == os.path.realpath(place)
    for path in FLAGS.source
    for place in (path, os.path.dirname(path) if os.path.isfile(path) else path)
  ):
    raise errors.make(
      f"--output '{FLAGS.output}'", 'the source', 'a new directory', 'give another one'
    )


def _is_ours(place: str) -> bool:
  """Whether a source is a checkpoint of sphinx_jax, or one with an adapter."""
  return store.is_checkpoint(merged.split(place)[0])


def _changes() -> dict[str, Any]:
  """The settings of the flags --set=NAME=VALUE."""
  changes = {}
  for text_of_flag in FLAGS.set:
    name, equals, value = text_of_flag.partition('=')
    if not equals:
      raise errors.make('--set', f"'{text_of_flag}'", 'NAME=VALUE', 'such as perceiver.eps=1e-5')
    try:
      changes[name] = json.loads(value)
    except json.JSONDecodeError:
      changes[name] = value
  return changes


def _quantize(full: few_bits.Full) -> None:
  few_bits.quantize(full, FLAGS.output, FLAGS.quantize, FLAGS.verify, FLAGS.dry_run)


def main() -> None:
  """Imports, quantizes, exports, compares or lists weights, as the flags ask."""
  if not FLAGS.source:
    raise errors.make(
      '--source', 'nothing', 'a folder or file of weights', 'for instance --source=DIR --output=DIR'
    )
  _check_flags()
  if FLAGS.verify and not FLAGS.quantize:
    verify(FLAGS.source[0], FLAGS.verify, variant=FLAGS.variant, base=FLAGS.base)
    return
  if not FLAGS.output and not FLAGS.dry_run:
    raise errors.make(
      '--output',
      'nothing',
      'a new directory',
      'for instance --output=DIR, or --dry_run to write nothing',
    )
  if FLAGS.quantize and _is_ours(FLAGS.source[0]):
    _quantize(few_bits.open_full(FLAGS.source[0]))
    return
  if FLAGS.to == PEFT:
    if FLAGS.shards != 1:
      raise errors.make('--shards', f'{FLAGS.shards}', '1 with --to=peft', 'leave it out')
    export_adapter(FLAGS.source[0], FLAGS.output, FLAGS.dry_run)
    return
  if FLAGS.to:
    export_checkpoint(FLAGS.source[0], FLAGS.output, FLAGS.to, FLAGS.shards, FLAGS.dry_run)
    return
  assembly = open_sources(
    FLAGS.source,
    FLAGS.variant,
    FLAGS.base,
    FLAGS.tokenizer,
    strict=not FLAGS.dry_run,
    changes=_changes(),
  )
  if FLAGS.quantize:
    _quantize(full_weights(assembly, FLAGS.seed, FLAGS.ids))
    return
  if FLAGS.dry_run:
    print_table(assembly)
    return
  import_checkpoint(assembly, FLAGS.output, FLAGS.seed, FLAGS.ids)
  log.info("'%s': done", FLAGS.output)


if __name__ == '__main__':
  cli.define_paths(
    'source',
    'Folder or file of weights. For a fresh SPHINX: language model and encoders, with commas.',
  )
  cli.define_path('output', None, 'Directory to create.')
  flags.DEFINE_enum(
    'to', None, [*export.TARGETS, PEFT], 'Export a checkpoint of sphinx_jax to this format.'
  )
  flags.DEFINE_integer(
    'shards', 1, 'Number of tensor-parallel shards of an official folder.', lower_bound=1
  )
  flags.DEFINE_string(
    'variant', None, 'Official name of the model (llama_ens5, ...), if no meta.json has it.'
  )
  cli.define_path(
    'base', None, 'Folder of the weights that the deltas of *.model-diff.pth are added to.'
  )
  cli.define_path(
    'tokenizer', None, "Path of a tokenizer.model, if the language model's folder has none."
  )
  flags.DEFINE_multi_string(
    'set',
    [],
    'NAME=VALUE: a setting of the model in place of that of the files, such as perceiver.eps=1e-5.',
  )
  flags.DEFINE_enum(
    'ids',
    'v4',
    tokenizers.IDS,
    'Major release of transformers whose token ids texts become (docs/idefics2.md, "Tokenizer").',
  )
  cli.define_seed('Random seed for the parameters that no source has.')
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Print the table of names and shapes, and the missing and unused tensors; write nothing.',
  )
  flags.DEFINE_enum(
    'quantize', None, list(quantized.STORED), 'Hold the matrices of the new checkpoint so.'
  )
  cli.define_path(
    'verify',
    None,
    'Compare --source with this model; write nothing. With --quantize: compare losses on the '
    f"examples of this JSONL file, or on '{agreement.EMBEDDED}'.",
  )
  cli.run(main)
