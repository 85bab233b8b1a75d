"""Mixes the weights of checkpoints into a new checkpoint of any size in at most 2 GiB of memory.

`mix_checkpoints` cuts every parameter into parts. It reads, mixes (mix/methods.py) and writes
different parts at the same time. A method that must know a whole tensor gets it in one part, or if
it is too large for that, reads its parts once more.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sphinx_jax.checkpoint import (
  content,
  merged,
  statistics as statistics_lib,
  store,
  stream,
)
from sphinx_jax.checkpoint.bundle import check_same_model
from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.mix import linear, methods, weights
from sphinx_jax.mix.tensors import Part, Tensor
from sphinx_jax.models import families

Tree = Mapping[str, stream.StoredArray]  # Path -> array of an opened checkpoint.

_PART_BYTES = 96 << 20  # Of one part of all inputs together.
_TENSOR_BYTES = 512 << 20  # Of a tensor of all inputs that is held as a whole.
_PENDING_BYTES = 128 << 20  # Waiting for the disk.
_LARGE_CHUNK = 128 << 20  # A compressed chunk above this size is decompressed alone.
_THREADS = 4  # Buckets answer late.


@dataclasses.dataclass(frozen=True)
class OutputArray:
  """An array of the mixed checkpoint.

  Attributes:
    shape, dtype: of the array.
    part: shape of the parts in which it is mixed.
    chunk: the chunks that `stream.Writer` is asked for. It also cuts a stack by layer.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  part: tuple[int, ...]
  chunk: tuple[int, ...]


def mix_checkpoints(
  inputs: Sequence[store.Path],
  coefficients: weights.Coefficients,
  output: store.Path,
  unnormalized: bool = False,
  base: store.Path | None = None,
  method: str = 'linear',
  dtype: str | None = None,
  options: Mapping[str, float | None] = types.MappingProxyType({}),
  statistics: Sequence[store.Path] = (),
  choice: Mapping[str, Any] | None = None,
) -> store.Path:
  """Writes the mix of several checkpoints. An output that already holds the same mix is kept.

  The config, tokenizer and dialog are those of the first input. The meta records the parents, their
  identities, their content hashes, the coefficients, and the method with its options.

  Args:
    inputs: directories of runs (their newest checkpoint) or of single steps; BASE+ADAPTER is one
      with an adapter merged into it, of a run or of PEFT.
    coefficients: one per input, or ordered rules `(pattern, coefficients)`; see mix/weights.py.
    output: directory of the mixed checkpoint, in the form of a run's directory.
    unnormalized: allow coefficients that do not sum to 1.
    base: the checkpoint that the inputs started from, for methods that mix differences to it.
    method: a name in `mix.methods.METHODS`.
    dtype: numpy name of the dtype of floating-point parameters; None: the first input's, or
      bfloat16 if its kernels are in few bits.
    options: name -> value of the method's options; None: the default.
    statistics: one directory of `mix_stats` per input, for a method that needs them.
    choice: how the coefficients were chosen, for the meta.

  Returns:
    The output directory.

  Raises:
    SphinxError: an input is no checkpoint, the inputs differ in leaves, settings of the model or
      tokenizer, the coefficients are wrong, a rule matches nothing, the method lacks what it needs,
      the mix is not finite, or the output is an input, holds another checkpoint (the mix of inputs
      that changed since, for instance) or cannot be written.
  """
  has_base = base is not None
  methods.check(method, len(inputs), has_base, len(statistics))
  options = methods.settle(method, options)
  rules = weights.as_rules(coefficients, len(inputs), unnormalized, method, has_base)
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
    # Only if there are some, as mixes of older versions have neither.
    **({'options': options} if options else {}),
    **({'statistics': list(map(store.identity, statistics))} if statistics else {}),
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
  stacked = _stacked(bundles[0].config)
  experts = weights.count_experts(opened[0], stacked)
  matched = weights.match(rules, opened[0], experts, weights.count_layers(opened[0], stacked))
  kind, measured = methods.find(method).statistics, []
  if kind is not None:
    measured = statistics_lib.open_statistics(
      statistics, kind, inputs, sources, statistics_lib.shapes(kind, opened[0], stacked)
    )
  mix = _Mix(method, options, matched, stacked, opened, len(inputs), measured)
  outputs = mix.plan(dtype)
  meta = {**dataclasses.replace(bundles[0], weights='').to_meta(), **recipe}
  if choice is not None:
    meta['choice'] = choice
  writer = stream.Writer(output, {'params': outputs}, meta, _PENDING_BYTES)
  try:
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      input_hashes, output_hash = _write_mix(mix, outputs, writer)
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


def _stacked(config: ConfigDict) -> dict[str, int]:
  return families.stacked(config.model) if 'model' in config else {}


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


class _Mix:
  """Computes the parts of a mix.

  Args:
    method: name of the method.
    options: of the method.
    coefficients: from `weights.match`.
    stacked: path -> number of leading axes along which tensors are stacked.
    inputs: the parents, then the base if there is one.
    parents: the number of parents.
    statistics: of the parents, for a method that needs them; all have the same paths.
  """

  def __init__(
    self,
    method: str,
    options: methods.Options,
    coefficients: Mapping[str, tuple[float, ...]],
    stacked: Mapping[str, int],
    inputs: Sequence[Tree],
    parents: int,
    statistics: Sequence[Tree],
  ) -> None:
    self.method, self.inputs = method, inputs
    self._options, self._coefficients, self._stacked = options, coefficients, stacked
    self._parents = parents
    is_fisher = methods.METHODS[method].statistics == 'fisher'
    self._grams = () if is_fisher else statistics
    self.trees = [*inputs, *(statistics if is_fisher else ())]  # They are read part by part.
    self._last_measured: tuple[str, Any] = '', None  # Of a tensor that comes in several parts.

  def plan(self, dtype: Any) -> dict[str, OutputArray]:
    """Returns the dtype, parts and chunks of every array; None: the first input's dtypes."""
    limit = min(_PART_BYTES // len(self.trees), 32 << 20)
    outputs = {}
    for path, array in self.inputs[0].items():
      out_dtype = linear.out_dtype(array.dtype, dtype)
      stored_dtypes = [tree[path].dtype for tree in _having(self.trees, path)]
      itemsize = max(dtype.itemsize for dtype in (out_dtype, *stored_dtypes))
      # The chunks of a small array do not matter, and asking for them would open it.
      stored = None if array.nbytes <= limit else array.chunk
      chunk = part = stream.chunk_shape(array.shape, itemsize, limit, stored)
      size = math.prod(array.shape[self._stacked.get(path, 0) :]) * itemsize
      if methods.METHODS[self.method].measure and size * len(self.trees) <= _TENSOR_BYTES:
        part = stream.chunk_shape(array.shape, itemsize, max(limit, size))
      outputs[path] = OutputArray(array.shape, out_dtype, part, chunk)
    return outputs

  def mix(
    self, path: str, index: stream.Index, values: Sequence[np.ndarray], output: OutputArray
  ) -> np.ndarray:
    """Mixes a part of a parameter.

    Args:
      path: of the parameter.
      index: of the part.
      values: that part of every tree.
      output: how the parameter is cut.
    """
    shape, depth = values[0].shape, self._stacked.get(path, 0)
    tensors = list(_tensors_of(index, shape, depth))
    rows = [weights.row_of(self._coefficients, path, at) for _, at in tensors]
    if methods.METHODS[self.method].measure is None and len(set(rows)) == 1:
      tensors = [((), tensors[0][1])]  # All numbers are mixed alike.
    mixed = []
    for (place, at), row in zip(tensors, rows):
      used = methods.used(row)
      part = self._part([value[place] for value in values], used, _start(index, output, depth))
      tensor = Tensor(
        weights.tensor_name(path, at),
        math.prod(output.shape[depth:]),
        used,
        [row[i] for i in used],
        functools.partial(self._parts, path, at, part, used, output),
        self._read_grams(path, at, used),
      )
      mixed.append(
        methods.mix_part(
          self.method,
          part,
          tensor.coefficients,
          self._measure(tensor, part),
          self._options,
          output.dtype,
        )
      )
    mixed = [np.asarray(value).astype(output.dtype, copy=False) for value in mixed]
    return mixed[0].reshape(shape) if len(mixed) == 1 else np.stack(mixed).reshape(shape)

  def _part(self, values: Sequence[np.ndarray], used: Sequence[int], start: int) -> Part:
    base = values[self._parents] if len(self.inputs) > self._parents else None
    fishers = values[len(self.inputs) :]
    return Part(
      [values[i] for i in used], base, start, [fishers[i] for i in used] if fishers else ()
    )

  def _read_grams(
    self, path: str, at: tuple[int, ...], used: Sequence[int]
  ) -> list[Callable[[], np.ndarray]]:
    grams = [self._grams[i] for i in used] if self._grams else []
    return [functools.partial(tree[path].read, at) for tree in grams if path in tree]

  def _parts(
    self, path: str, at: tuple[int, ...], part: Part, used: Sequence[int], output: OutputArray
  ) -> Iterator[Part]:
    """Yields a tensor: the part itself if it is whole, or what is read again."""
    depth = len(at)
    if part.size == math.prod(output.shape[depth:]):
      yield part
      return
    for index in stream.part_indices(output.shape, output.part):
      if index[:depth] == at:
        yield self._part(_read_part(self.trees, path, index), used, _start(index, output, depth))

  def _measure(self, tensor: Tensor, part: Part) -> Any:
    """What the method must know of a tensor; measured once if it comes in several parts."""
    if part.size == tensor.size:
      return methods.measure(self.method, tensor, self._options)
    if self._last_measured[0] != tensor.name:
      measured = methods.measure(self.method, tensor, self._options)
      self._last_measured = tensor.name, measured
    return self._last_measured[1]


def _tensors_of(
  index: stream.Index, shape: Sequence[int], depth: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
  """Yields (place in a part, numbers of layer and expert) of the tensors that a part has.

  Args:
    index: of the part.
    shape: of the part.
    depth: number of leading axes of the parameter along which tensors are stacked.
  """
  fixed = tuple(number for number in index[:depth] if isinstance(number, int))
  begin = index[len(fixed)].start if len(fixed) < min(depth, len(index)) else 0
  for place in np.ndindex(*shape[: depth - len(fixed)]):
    yield place, (*fixed, *(place[:1] and (begin + place[0],)), *place[1:])


def _start(index: stream.Index, output: OutputArray, depth: int) -> int:
  """Position of a part's first number in its tensor, in row-major order."""
  begins = [number.start if isinstance(number, slice) else number for number in index[depth:]]
  strides = [math.prod(output.shape[axis + 1 :]) for axis in range(depth, len(output.shape))]
  return sum(begin * stride for begin, stride in zip(begins, strides))


def _write_mix(
  mix: _Mix, outputs: Mapping[str, OutputArray], writer: stream.Writer
) -> tuple[list[str], str]:
  """Reads, mixes and writes every part.

  Args:
    mix: how.
    outputs: what is written.
    writer: of the item 'params'.

  Returns:
    Content hashes of the inputs, and of the mix.
  """
  input_hashes = [content.ContentHash() for _ in mix.inputs]
  output_hash = content.ContentHash()
  for path, index, values in _read_parts(mix.trees, outputs):
    output = outputs[path]
    for input_hash, value, tree in zip(input_hashes, values, mix.inputs):
      input_hash.update(path, tree[path], value)
    mixed = mix.mix(path, index, values, output)
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


def _read_parts(
  inputs: Sequence[Tree], outputs: Mapping[str, OutputArray]
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
  with Progress(total=sum(trees.nbytes(tree) for tree in inputs), what='mixing', unit='B') as bar:
    for path, index in pieces:
      part = next(values)
      size = sum(value.nbytes for value in part)
      yield path, index, part
      bar.update(size)


def _having(inputs: Sequence[Tree], path: str) -> list[Tree]:
  """The trees with a path: statistics are of some parameters only."""
  return [tree for tree in inputs if path in tree]


def _read_part(inputs: Sequence[Tree], path: str, index: stream.Index) -> list[np.ndarray]:
  inputs = _having(inputs, path)
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
  inputs = _having(inputs, path)
  part_bytes = int(np.prod(output.part)) * sum(tree[path].dtype.itemsize for tree in inputs)
  chunk_bytes = [2 * _chunk_bytes(tree[path]) for tree in inputs if _has_large_chunks(tree[path])]
  return part_bytes + max(chunk_bytes, default=0)
