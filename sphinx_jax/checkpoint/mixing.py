"""Mixes the weights of checkpoints into a new checkpoint of any size in at most 2 GiB of memory.

`mix_checkpoints` cuts every parameter into parts. It reads, mixes (mix/weights.py) and writes
different parts at the same time.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sphinx_jax.checkpoint import content, merged, store, stream
from sphinx_jax.checkpoint.bundle import check_same_model
from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.mix import layers, weights
from sphinx_jax.models import families

Tree = Mapping[str, stream.StoredArray]  # Path -> array of an opened checkpoint.
LeafCoefficients = Mapping[str, Any]  # Path -> coefficients, see `layers.nested`.

_PART_BYTES = 96 << 20  # Of one part of all inputs together.
_PENDING_BYTES = 128 << 20  # Waiting for the disk.
_LARGE_CHUNK = 128 << 20  # A compressed chunk above this size is decompressed alone.
_THREADS = 4  # Buckets answer late.


@dataclasses.dataclass(frozen=True)
class OutputArray:
  """An array of the mixed checkpoint.

  Attributes:
    shape, dtype: of the array.
    part: shape of the parts in which it is mixed and written.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  part: tuple[int, ...]

  @property
  def chunk(self) -> tuple[int, ...]:
    """The chunks that `stream.Writer` is asked for: the parts. It also cuts a stack by layer."""
    return self.part


def mix_checkpoints(
  inputs: Sequence[store.Path],
  coefficients: weights.Coefficients,
  output: store.Path,
  unnormalized: bool = False,
  base: store.Path | None = None,
  method: str = 'linear',
  dtype: str | None = None,
) -> store.Path:
  """Writes the mix of several checkpoints. An output that already holds the same mix is kept.

  The config, tokenizer and dialog are those of the first input. The meta records the parents, their
  identities, their content hashes and the coefficients.

  Args:
    inputs: directories of runs (their newest checkpoint) or of single steps; BASE+ADAPTER is one
      with an adapter merged into it, of a run or of PEFT.
    coefficients: one per input, or ordered rules `(pattern, coefficients)`; see mix/weights.py.
    output: directory of the mixed checkpoint, in the form of a run's directory.
    unnormalized: allow coefficients that do not sum to 1.
    base: the checkpoint that the inputs started from, for task arithmetic.
    method: 'linear' or 'slerp'.
    dtype: numpy name of the dtype of floating-point parameters; None: the first input's, or
      bfloat16 if its kernels are in few bits.

  Returns:
    The output directory.

  Raises:
    SphinxError: an input is no checkpoint, the inputs differ in leaves, settings of the model or
      tokenizer, the coefficients are wrong, a rule matches nothing, the mix is not finite, or the
      output is an input, holds another checkpoint (the mix of inputs that changed since, for
      instance) or cannot be written.
  """
  has_base = base is not None
  rules = weights.as_rules(coefficients, len(inputs), unnormalized or has_base, method, has_base)
  directories = [*inputs, base] if has_base else [*inputs]
  opened_inputs = [merged.open_checkpoint(directory) for directory in directories]
  places = [place for pair in map(merged.split, directories) for place in pair if place]
  check_output(output, filter(store.is_checkpoint, places))
  bundles = [opened.bundle for opened in opened_inputs]
  check_same_model('mix_weights', directories, bundles)
  sources = [opened.source for opened in opened_inputs]
  recipe = {
    'parents': sources[: len(inputs)],
    'coefficients': weights.as_json(coefficients),
    'base': sources[len(inputs) :],
    'method': method,
    'dtype': dtype,
  }
  if holds_mix(output, recipe):
    log.info('%s: this mix was written before', output)
    return output
  opened = [input_.arrays for input_ in opened_inputs]
  for directory, tree in zip(directories[1:], opened[1:]):
    weights.check_same_leaves(
      trees.unflatten(opened[0]),
      trees.unflatten(tree),
      f"input '{directory}'",
      f"'{directories[0]}'",
    )
  experts, stacks = {}, {}
  if method == 'linear':  # Other methods take a stack of layers and experts as one vector.
    experts, stacks = _count_parts(bundles[0].config, opened[0])
  matched = weights.match(rules, opened[0], experts, stacks)
  leaf_coefficients = {
    path: layers.nested(matched, path, experts.get(path, 0), stacks.get(path, 0))
    for path in opened[0]
  }
  outputs = _plan_outputs(opened, dtype)
  meta = {**dataclasses.replace(bundles[0], weights='').to_meta(), **recipe}
  writer = stream.Writer(output, {'params': outputs}, meta, _PENDING_BYTES)
  try:
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      if method == 'slerp':
        leaf_coefficients = _to_slerp_coefficients(opened, leaf_coefficients, outputs)
      input_hashes, output_hash = _write_mix(opened, has_base, leaf_coefficients, outputs, writer)
    hashed = [{**source, 'hash': input_hash} for source, input_hash in zip(sources, input_hashes)]
    writer.finish(parents=hashed[: len(inputs)], base=hashed[len(inputs) :], hash=output_hash)
  except BaseException:
    writer.abandon()
    raise
  log.info(
    '%s: %s of %s%s',
    output,
    recipe['coefficients'],
    ', '.join(map(str, inputs)),
    f', from {base}' if has_base else '',
  )
  return output


def _count_parts(config: ConfigDict, arrays: Tree) -> tuple[dict[str, int], dict[str, int]]:
  """Path -> number of experts of stacks [layers,experts,...], and of layers of all stacks."""
  if 'model' not in config:
    return {}, {}
  axes = trees.flatten(families.logical_axes(config.model))
  experts = {path: array.shape[1] for path, array in arrays.items() if 'experts' in axes[path]}
  stacks = {path: array.shape[0] for path, array in arrays.items() if 'layers' in axes[path]}
  return experts, stacks


def check_output(output: store.Path, inputs: Iterable[store.Path]) -> None:
  """Raises SphinxError if the output of a mix is one of the checkpoints that are mixed."""
  if store.absolute_path(output) in map(store.locate, inputs):
    raise errors.make(
      f"mix_weights, output '{output}'", 'an input', 'a new directory', 'give another --output'
    )


def holds_mix(output: store.Path, recipe: Mapping[str, Any]) -> bool:
  """Whether the output holds the mix of this recipe.

  Args:
    output: directory of the mix.
    recipe: entries of its meta; 'parents' and 'base' are lists of `merged.Opened.source`.

  Raises:
    SphinxError: it holds another checkpoint.
  """
  if store.latest(output) is None:
    return False
  stored = store.load_meta(output)
  for name in ('parents', 'base'):  # The recipe has no hashes: they are computed while mixing.
    stored[name] = [
      {key: value for key, value in source.items() if key != 'hash'}
      for source in stored.get(name, [])
    ]
  different = [key for key, value in recipe.items() if stored.get(key) != value]
  if different:
    parents = [f'{source["directory"]} at step {source["step"]}' for source in stored['parents']]
    changed = [
      source['directory']
      for name in ('parents', 'base')
      for source, other in zip(recipe[name], stored[name])
      if source != other and source == {**other, 'identity': source['identity']}
    ]
    raise errors.make(
      f"mix_weights, output '{output}'",
      f'a checkpoint of {", ".join(parents) or "a training run"}, whose '
      + (f'weights changed since: {", ".join(changed)}' if changed else f'{different} differ'),
      'a new directory',
      'give another --output',
    )
  return True


def _plan_outputs(inputs: Sequence[Tree], dtype: Any) -> dict[str, OutputArray]:
  """Returns dtype and parts of every array of a mix; None as dtype: the first input's dtypes."""
  limit = min(_PART_BYTES // len(inputs), 32 << 20)
  outputs = {}
  for path, array in inputs[0].items():
    out_dtype = weights.out_dtype(array.dtype, dtype)
    itemsize = max(out_dtype.itemsize, *(tree[path].dtype.itemsize for tree in inputs))
    # The chunks of a small array do not matter, and asking for them would open it.
    stored_chunk = None if array.nbytes <= limit else array.chunk
    part = stream.chunk_shape(array.shape, itemsize, limit, stored_chunk)
    outputs[path] = OutputArray(array.shape, out_dtype, part)
  return outputs


def _to_slerp_coefficients(
  parents: Sequence[Tree], coefficients: LeafCoefficients, outputs: Mapping[str, OutputArray]
) -> LeafCoefficients:
  """Returns the factors of slerp for every leaf; a first pass over the parents measures angles."""
  measured = {
    path: output for path, output in outputs.items() if weights.needs_slerp(coefficients[path])
  }
  read = _read_parts(parents, measured, 'measuring')
  return weights.to_slerp(coefficients, ((path, *values) for path, _, values in read))


def _write_mix(
  inputs: Sequence[Tree],
  has_base: bool,
  coefficients: LeafCoefficients,
  outputs: Mapping[str, OutputArray],
  writer: stream.Writer,
) -> tuple[list[str], str]:
  """Reads, mixes and writes every part.

  Args:
    inputs: the parents, then the base if there is one.
    has_base: whether the last input is the base.
    coefficients: of every leaf.
    outputs: what is written.
    writer: of the item 'params'.

  Returns:
    Content hashes of the inputs, and of the mix.
  """
  input_hashes = [content.ContentHash() for _ in inputs]
  output_hash = content.ContentHash()
  for path, index, values in _read_parts(inputs, outputs, 'mixing'):
    output = outputs[path]
    for input_hash, value, tree in zip(input_hashes, values, inputs):
      input_hash.update(path, tree[path], value)
    parent_values = values[:-1] if has_base else values
    base_value = values[-1] if has_base else None
    mixed = _mix_part(parent_values, coefficients[path], base_value, output.dtype, index)
    mixed = np.asarray(mixed).astype(output.dtype, copy=False)
    if not content.is_finite(mixed):
      broken = [str(i) for i, value in enumerate(values, 1) if not content.is_finite(value)]
      raise errors.make(
        'mix_weights',
        f'NaN or infinity in {path}' + (f' of input {", ".join(broken)}' if broken else ''),
        'finite weights',
        'check the inputs, or take a --dtype of more range',
      )
    output_hash.update(path, output, mixed)
    writer.write('params', path, mixed, index)
  return [input_hash.hexdigest() for input_hash in input_hashes], output_hash.hexdigest()


def _mix_part(
  values: Sequence[np.ndarray],
  coefficients: Any,
  base: np.ndarray | None,
  dtype: np.dtype,
  index: stream.Index,
) -> weights.Array:
  """Mixes a part of a leaf.

  Args:
    values: that part of every parent.
    coefficients: of the leaf, see `layers.nested`.
    base: that part of the base, or None.
    dtype: of the result.
    index: where the part is in the leaf.
  """
  if not isinstance(coefficients, list):
    return weights.mix_leaf(values, coefficients, base, dtype)
  own, rest = (index[0], index[1:]) if index else (slice(None), ())
  if isinstance(own, int):  # The values are without this axis.
    return _mix_part(values, coefficients[own], base, dtype, rest)
  mixed = [
    _mix_part([x[i] for x in values], row, None if base is None else base[i], dtype, rest)
    for i, row in enumerate(coefficients[own])
  ]
  return np.stack(mixed)


def _read_parts(
  inputs: Sequence[Tree], outputs: Mapping[str, OutputArray], what: str
) -> Iterator[tuple[str, stream.Index, list[np.ndarray]]]:
  """Yields (path, index, that part of every input) in order, and reads the next parts meanwhile."""
  pieces = [
    (path, index)
    for path, output in outputs.items()
    for index in stream.part_indices(output.shape, output.part)
  ]
  reads = [
    (_read_bytes(inputs, path, outputs[path]), functools.partial(_read_part, inputs, path, index))
    for path, index in pieces
  ]
  values = read_ahead(reads, _THREADS)
  with Progress(total=sum(trees.nbytes(tree) for tree in inputs), what=what, unit='B') as bar:
    for path, index in pieces:
      part = next(values)
      size = sum(value.nbytes for value in part)
      yield path, index, part
      bar.update(size)


def _read_part(inputs: Sequence[Tree], path: str, index: stream.Index) -> list[np.ndarray]:
  if any(_has_large_chunks(tree[path]) for tree in inputs):
    return [tree[path].read(index) for tree in inputs]  # One after the other, to save memory.
  pending = [tree[path].start_read(index) for tree in inputs]
  return [read.result() for read in pending]


def _has_large_chunks(array: stream.StoredArray) -> bool:
  return array.nbytes > _LARGE_CHUNK and _chunk_bytes(array) > _LARGE_CHUNK


def _chunk_bytes(array: stream.StoredArray) -> int:
  return int(np.prod(array.chunk)) * array.dtype.itemsize


def _read_bytes(inputs: Sequence[Tree], path: str, output: OutputArray) -> int:
  """Returns the memory that reading one part takes.

  It is the part of each input. A large chunk adds its compressed and its decompressed bytes.
  """
  part_bytes = int(np.prod(output.part)) * sum(tree[path].dtype.itemsize for tree in inputs)
  chunk_bytes = [2 * _chunk_bytes(tree[path]) for tree in inputs if _has_large_chunks(tree[path])]
  return part_bytes + max(chunk_bytes, default=0)
