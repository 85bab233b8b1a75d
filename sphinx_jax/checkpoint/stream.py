"""Checkpoints read and written slice by slice, so that a stacked parameter of a 13B model (11 GB) need not fit in memory.

The layout is `store.Store`'s and Orbax reads it. Orbax itself takes and gives whole arrays: it writes the checkpoint's
frame here, with placeholders, and tensorstore (which Orbax writes arrays with) the arrays, a layer to a chunk.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from sphinx_jax.checkpoint import store
from sphinx_jax.core import errors, trees

Index = tuple[Any, ...]  # Into an array, as numpy takes it; () is all of it.
Shapes = Mapping[str, Any]  # Path -> anything with shape and dtype.

_SMALL = 32 << 20  # Bytes of a stack that is read at once.
# A crash of the machine may lose what was written, as with `cp`; a crash of the process does not.
_CONTEXT = tensorstore.Context({'file_io_sync': False})


@dataclasses.dataclass(frozen=True)
class Array:
  """An array that is not read yet.

  Attributes:
    shape, dtype: as stored.
    read: index -> that part as an np.ndarray; () is all of it, (i,) one layer of a stacked parameter.
    layers: along the leading axis, each of which can be read alone; 1 where it is no stack.
  """
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[Index], np.ndarray]
  layers: int = 1

  @property
  def nbytes(self) -> int:
    """Bytes at the stored dtype."""
    return math.prod(self.shape) * self.dtype.itemsize

  def pieces(self) -> list[tuple[Index, int]]:
    """(index, bytes) of what is best read at once: all of it where it is small or no stack, else layer by layer."""
    if self.layers == 1 or self.nbytes <= _SMALL:
      return [((), self.nbytes)]
    return [((i,), self.nbytes // self.layers) for i in range(self.layers)]


def read(directory: store.Path, item: str = 'params') -> dict[str, Array]:
  """Path -> array of one item of a checkpoint; nothing is read yet.

  Args:
    directory: a run's directory (its newest checkpoint is read) or one step's.
    item: 'params', or what else `Writer` was given.

  Raises:
    SphinxError: as `store.stored`.
  """
  place = store.locate(directory)
  return {path: Array(tuple(leaf.shape), np.dtype(leaf.dtype), functools.partial(_read, place / item, path),
                      leaf.shape[0] if _is_cut(leaf.shape) else 1)
          for path, leaf in store.stored(place, item).items()}


class Writer:
  """Writes a checkpoint slice by slice; a run's directory with it in appears only at `finish`.

  Args:
    directory: of a run; it must not hold checkpoints yet.
    items: item name -> path -> shape and dtype.
    meta: JSON-able; `layout` and `step` are added.

  Raises:
    SphinxError: a directory that holds checkpoints already.
  """

  def __init__(self, directory: store.Path, items: Mapping[str, Shapes], meta: Mapping[str, Any]):
    root = pathlib.Path(directory).absolute() / store.FOLDER
    if store.latest(directory) is not None:
      raise errors.make(f"output '{directory}'", 'a directory that holds a checkpoint', 'a new one', 'give another --output')
    self._final, self._partial, self._writing = root / '0', root / 'partial', None
    shutil.rmtree(self._partial, ignore_errors=True)  # What an interrupted call left behind.
    frame = {name: ocp.args.StandardSave(_placeholders(shapes)) for name, shapes in items.items() if shapes}
    frame['meta'] = ocp.args.JsonSave({'layout': store.LAYOUT, 'step': 0, **meta})
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
      checkpointer.save(self._partial, args=ocp.args.Composite(**frame))
    context = tensorstore.Context(_CONTEXT.spec)  # Its own: a traceback may hold an earlier try, files cached.
    self._arrays = {(name, path): _create(self._partial / name, path, leaf, context) for name, shapes in items.items()
                    for path, leaf in shapes.items()}

  def write(self, item: str, path: str, value: np.ndarray, index: Index = ()) -> None:
    """Writes a part of an array."""
    self._writing = self._arrays[item, path][index].write(value, can_reference_source_data_indefinitely=True)
    self._writing.result()
    self._writing = None

  def finish(self) -> None:
    """Makes the checkpoint appear."""
    os.rename(self._partial, self._final)

  def abandon(self) -> None:
    """Removes what was written."""
    if self._writing is not None:  # Interrupted: a write on its way would bring files back.
      with contextlib.suppress(Exception):
        self._writing.result()
    shutil.rmtree(self._partial, ignore_errors=True)
    for folder in (self._final.parent, self._final.parent.parent):
      if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _is_cut(shape: tuple[int, ...]) -> bool:
  # A stack of matrices has a chunk a layer. So have convolutions, which lose nothing by it.
  return len(shape) > 2


def _placeholders(shapes: Shapes) -> dict:
  return trees.unflatten({path: np.zeros((1,) * len(leaf.shape), leaf.dtype) for path, leaf in shapes.items()})


def _spec(folder: pathlib.Path, path: str) -> dict[str, Any]:
  name = path.replace('/', '.') + '/'
  packed = json.loads((folder / '_METADATA').read_text())['use_ocdbt']
  if packed:
    return {'driver': 'zarr', 'kvstore': {'driver': 'ocdbt', 'base': f'file://{folder}/', 'path': name}}
  return {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{folder}/{name}'}}


def _read(folder: pathlib.Path, path: str, index: Index) -> np.ndarray:
  return tensorstore.open(_spec(folder, path), context=_CONTEXT, read=True).result()[index].read().result()


def _create(folder: pathlib.Path, path: str, leaf: Any, context: tensorstore.Context) -> tensorstore.TensorStore:
  shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
  chunk = (1, *shape[1:]) if _is_cut(shape) else shape
  metadata = {'shape': shape, 'chunks': chunk, 'dtype': dtype.str if dtype.kind in 'fiub' else dtype.name,
              'compressor': None, 'fill_value': None, 'order': 'C', 'dimension_separator': '.'}
  return tensorstore.open(_spec(folder, path) | {'metadata': metadata, 'create': True, 'delete_existing': True},
                          context=context, write=True, read=True).result()
