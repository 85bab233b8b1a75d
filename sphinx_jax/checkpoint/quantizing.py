"""Writes checkpoints whose kernels are in few bits (models/quantized.py), matrix by matrix."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from sphinx_jax.checkpoint import content, placing, store, stream
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import Progress
from sphinx_jax.models import families, stored
from sphinx_jax.models.adapters import KERNEL


class Sizes(NamedTuple):
  """Bytes of the kernels that are quantized, and of all other parameters: before and after.

  Attributes:
    kernels: (before, after).
    rest: the same.
    dtypes: of the kernels before.
  """

  kernels: tuple[int, int]
  rest: tuple[int, int]
  dtypes: tuple[str, ...]

  def rows(self) -> list[tuple[str, ...]]:
    """The rows of a table, the header first."""
    total = tuple(map(sum, zip(self.kernels, self.rest)))
    rows = [('', 'before, GiB', 'after, GiB', 'ratio')]
    named = f'kernels ({", ".join(self.dtypes)})', self.kernels
    for name, (before, after) in (named, ('the rest', self.rest), ('total', total)):
      ratio = f'{after / before:.3f}' if before else ''
      rows.append((name, f'{before / 2**30:.3f}', f'{after / 2**30:.3f}', ratio))
    return rows


def plan(
  arrays: Mapping[str, stream.Array], bundle: Bundle
) -> tuple[dict[str, jax.ShapeDtypeStruct], Sizes]:
  """What a quantized checkpoint holds, path -> shape and dtype, and its sizes; reads nothing.

  Args:
    arrays: path -> array of the full checkpoint.
    bundle: of the quantized one, with its form.
  """
  shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in arrays.items()}
  axes = families.logical_axes(bundle.config.model)
  outputs = trees.flatten(stored.extend(trees.unflatten(shapes), axes, bundle.forms)[0])
  kernels = {path: arrays[path] for path in arrays if path not in outputs}
  kept = {path: arrays[path] for path in arrays if path in outputs}
  codes = {path: leaf for path, leaf in outputs.items() if path not in arrays}
  rest = trees.nbytes(kept)
  dtypes = sorted({str(np.dtype(array.dtype)) for array in kernels.values()})
  return outputs, Sizes((trees.nbytes(kernels), trees.nbytes(codes)), (rest, rest), tuple(dtypes))


def write(
  output: store.Path,
  arrays: Mapping[str, stream.Array],
  bundle: Bundle,
  meta: Mapping[str, Any],
) -> None:
  """Writes a quantized checkpoint. It appears when it is complete.

  At most one matrix, and what is read ahead, are in memory.

  Args:
    output: directory of the checkpoint, in the form of a run's directory.
    arrays: path -> array of the full checkpoint.
    bundle: of the quantized one, with its form.
    meta: more entries of its meta.

  Raises:
    SphinxError: a kernel is not finite, the output holds a checkpoint, or a file is damaged.
  """
  outputs, _ = plan(arrays, bundle)
  hashed = content.ContentHash()
  writer = stream.Writer(output, {'params': outputs}, {**bundle.to_meta(), **meta})
  try:
    for path, index, value in _parts(arrays, bundle.forms):
      hashed.update(path, outputs[path], value)
      writer.write('params', path, value, index)
    writer.finish(hash=hashed.hexdigest())
  except BaseException:
    writer.abandon()
    raise


def _parts(
  arrays: Mapping[str, stream.Array], forms: Mapping[str, stored.Matrix]
) -> Iterator[tuple[str, stream.Index, np.ndarray]]:
  """Yields (path, index, part) of all arrays of a quantized checkpoint."""
  pieces = []
  for path, array in arrays.items():
    layer, _, name = path.rpartition('/')
    matrix = forms.get(layer) if name == KERNEL else None
    whole = array.pieces()
    if matrix is not None:
      layers = array.shape[0] if matrix.stack else 1
      whole = [((i,) if matrix.stack else (), array.nbytes // layers) for i in range(layers)]
    pieces += [(path, matrix, array, index, size) for index, size in whole]
  values = read_ahead(
    [(size, functools.partial(array.read, index)) for _, _, array, index, size in pieces]
  )
  with Progress(total=sum(size for *_, size in pieces), what='quantizing', unit='B') as bar:
    for path, matrix, _, index, size in pieces:
      value = next(values)
      if matrix is None:
        yield path, index, value
      else:
        _check_finite(path, value)
        of_layer = placing.quantize(value, matrix.form, max(matrix.stack - 1, 0))
        for name, leaf in of_layer.items():
          yield f'{path.removesuffix(KERNEL)}{name}', index, np.asarray(leaf)
      del value  # It would be in memory while the next one is read.
      bar.update(size)


def _check_finite(path: str, value: np.ndarray) -> None:
  if not content.is_finite(value):
    raise errors.make(
      f"parameter '{path}'",
      'NaN or infinity',
      'finite numbers, which a few bits can stand for',
      'correct the weights, or leave --quantize out',
    )


def bundle_of(bundle: Bundle, form: str) -> Bundle:
  """The bundle of a checkpoint in few bits.

  Raises:
    SphinxError: the checkpoint is in few bits already.
  """
  if bundle.weights:
    raise errors.make(
      'quantize',
      f'kernels in {bundle.weights}',
      'full ones',
      'take the checkpoint that it was made of',
    )
  return dataclasses.replace(bundle, weights=form)
