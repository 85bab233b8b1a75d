"""Checkpoints read and written part by part, so that a stacked parameter of a 13B model (11 GB) need not fit in memory.

The layout is `store.Store`'s and Orbax reads it. Orbax itself takes and gives whole arrays: it writes the checkpoint's
frame here, with placeholders, and tensorstore (which Orbax writes arrays with) the arrays, a part of them to a chunk.
Directories may be local or gs:// URLs.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from sphinx_jax.checkpoint import places, store
from sphinx_jax.core import config as config_lib, errors, trees

Index = tuple[Any, ...]  # Into an array, as numpy takes it; () is all of it.
Shapes = Mapping[
  str, Any
]  # Path -> anything with shape and dtype, and with `chunk` where its maker knows a good one.

_SMALL = 32 << 20  # Bytes of a stack that is read at once, and of a chunk that is written.
_ALIGNED = 64  # What XLA takes without copying.
_READING = tensorstore.Context()
_MAPPING = tensorstore.Context({'file_io_mode': {'mode': 'memmap'}})
# A crash of the machine may lose what was written, as with `cp`; a crash of the process does not.
_UNSYNCED = {'file_io_sync': False}


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


@dataclasses.dataclass(frozen=True)
class Stored(Array):
  """An array of a checkpoint: `read` takes any index.

  Attributes:
    start: index -> a function that waits for that part, which is on its way meanwhile.
    opened: -> the tensorstore, opened once.
  """

  start: Callable[[Index], Callable[[], np.ndarray]] = None
  opened: Callable[[], tensorstore.TensorStore] = None

  @property
  def chunk(self) -> tuple[int, ...]:
    """Shape of what is stored together, and is best read together."""
    return self.opened().chunk_layout.read_chunk.shape


def read(directory: store.Path, item: str = 'params', mapped: bool = False) -> dict[str, Stored]:
  """Path -> array of one item of a checkpoint; nothing is read yet.

  Args:
    directory: a run's directory (its newest checkpoint is read) or one step's.
    item: 'params', or what else `Writer` was given.
    mapped: maps local files while they are read, which saves a copy and counts as resident memory.

  Raises:
    SphinxError: as `store.stored`.
  """
  place = store.locate(directory)
  return {
    path: _stored(place / item, path, leaf, _MAPPING if mapped else _READING)
    for path, leaf in store.stored(place, item).items()
  }


def _stored(folder: Any, path: str, leaf: Any, context: tensorstore.Context) -> Stored:
  opened = functools.cache(
    lambda: tensorstore.open(_spec(folder, path), context=context, read=True).result()
  )
  start = functools.partial(_start, opened, np.dtype(leaf.dtype))
  return Stored(
    tuple(leaf.shape),
    np.dtype(leaf.dtype),
    lambda index: start(index)(),
    leaf.shape[0] if _is_cut(leaf.shape) else 1,
    start,
    opened,
  )


def _start(
  opened: Callable[[], tensorstore.TensorStore], dtype: np.dtype, index: Index
) -> Callable[[], np.ndarray]:
  part = opened()[index]
  value = _aligned(part.shape, dtype)
  future = tensorstore.array(value).write(
    part[tensorstore.d[:].translate_to[0]] if part.rank else part
  )

  def wait() -> np.ndarray:
    future.result()
    return value

  return wait


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An empty array that XLA need not copy."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNED, np.uint8)
  begin = -memory.ctypes.data % _ALIGNED
  return memory[begin : begin + size].view(dtype).reshape(shape)


def grid(
  shape: Sequence[int], itemsize: int, limit: int = _SMALL, chunk: Sequence[int] | None = None
) -> tuple[int, ...]:
  """The shape of parts that follow each other in row-major order.

  Args:
    shape: of the array.
    itemsize: bytes of a number.
    limit: bytes of a part. Where chunks are up to four times as large, a part is a chunk's rows.
    chunk: of the stored array, where parts should not divide chunks.
  """
  if math.prod(shape) * itemsize <= limit:
    return tuple(shape)
  after = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
  axis = next(axis for axis, size in enumerate(after) if size <= limit)
  rows, step = max(limit // after[axis], 1), chunk[axis] if chunk else 1
  if rows >= step:
    rows = step * _even(-(-shape[axis] // step), rows // step)
  elif step * after[axis] <= 4 * limit:
    rows = step
  else:
    rows = _even(shape[axis], rows)
  return (*(1 for _ in shape[:axis]), rows, *shape[axis + 1 :])


def _even(count: int, most: int) -> int:
  """The size of parts of at most `most`, the last one as large as the others where that can be: zarr fills it up."""
  divisor = next((size for size in range(most, most // 2, -1) if count % size == 0), None)
  return divisor or -(-count // -(-count // most))


def parts(shape: Sequence[int], part: Sequence[int]) -> list[Index]:
  """Where the parts of a grid lie, in row-major order; () where there is one."""
  if tuple(part) == tuple(shape):
    return [()]
  axis = next((axis for axis, size in enumerate(part) if size != 1), len(shape) - 1)
  return [
    (*before, slice(row, min(row + part[axis], shape[axis])))
    for before in np.ndindex(*shape[:axis])
    for row in range(0, shape[axis], part[axis])
  ]


class Writer:
  """Writes a checkpoint part by part; a run's directory with it in appears only at `finish`.

  On gs://, where folders cannot be renamed, Orbax's mark of a complete checkpoint is written last.

  Args:
    directory: of a run; it must not hold checkpoints yet.
    items: item name -> path -> shape and dtype.
    meta: JSON-able; `layout` and `step` are added.
    writing: most bytes on their way to the disk while the next part is made.

  Raises:
    SphinxError: a directory that holds checkpoints already, or cannot be written.
  """

  def __init__(
    self,
    directory: store.Path,
    items: Mapping[str, Shapes],
    meta: Mapping[str, Any],
    writing: int = 0,
  ):
    if store.latest(directory) is not None:
      raise errors.make(
        f"output '{directory}'",
        'a directory that holds a checkpoint',
        'a new one',
        'give another --output',
      )
    root = store.whole_path(directory) / store.FOLDER
    self._final, self._meta = root / '0', {'layout': store.LAYOUT, 'step': 0, **meta}
    self._partial = self._final if config_lib.is_remote(root) else root / 'partial'
    self._most, self._writing = writing, collections.deque()  # (Bytes, future).
    _remove(self._partial)  # What an interrupted call left behind.
    try:
      with self._writable():
        _frame(self._partial, items, self._meta)
        context = tensorstore.Context(
          _UNSYNCED
        )  # Its own: a traceback may hold an earlier try, files cached.
        opening = {
          (name, path): tensorstore.open(
            _spec(self._partial / name, path) | _created(leaf),
            context=context,
            read=True,
            write=True,
          )
          for name, shapes in items.items()
          for path, leaf in shapes.items()
        }
        self._arrays = {key: future.result() for key, future in opening.items()}
    except BaseException:
      self.abandon()
      raise

  def write(self, item: str, path: str, value: np.ndarray, index: Index = ()) -> None:
    """Writes a part of an array; what is still on its way afterwards must not change."""
    with self._writable():
      future = self._arrays[item, path][index].write(
        value, can_reference_source_data_indefinitely=True
      )
      self._writing.append((value.nbytes, future))
      while sum(size for size, _ in self._writing) > self._most:
        self._writing[0][1].result()
        self._writing.popleft()

  def finish(self, **more: Any) -> None:
    """Makes the checkpoint appear, with more meta, when all is written."""
    with self._writable():
      while self._writing:
        self._writing.popleft()[1].result()
      if more:
        (self._partial / 'meta' / 'metadata').write_text(json.dumps({**self._meta, **more}))
      (self._partial / _COMPLETE).write_text('')
      if self._partial != self._final:
        self._partial.rename(self._final)

  def abandon(self) -> None:
    """Removes what was written."""
    for _, future in self._writing:  # A write on its way would bring files back.
      with contextlib.suppress(Exception):
        future.result()
    _remove(self._partial)
    for folder in (self._final.parent, self._final.parent.parent):
      if not config_lib.is_remote(folder) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

  @contextlib.contextmanager
  def _writable(self) -> Iterator[None]:
    """Says a full disk, and what else the place answers, in one line."""
    try:
      yield
    except (
      OSError,
      ValueError,
      RuntimeError,
    ) as error:  # tensorstore raises ValueError for most of what a disk answers.
      if isinstance(error, errors.SphinxError):
        raise
      raise errors.make(
        f"output '{self._final.parent.parent}'",
        _reason(error),
        'a place with room that can be written to',
        'free some, or give another --output; what was written of it is removed',
      ) from error


_COMPLETE = 'commit_success.txt'  # Orbax's mark.


def _reason(error: Exception) -> str:
  """What the system said, out of tensorstore's long messages."""
  text = ' '.join(str(error).split())
  for known in (
    'No space left on device',
    'File too large',
    'Disk quota exceeded',
    'Permission denied',
    'Read-only file system',
  ):
    if known in text:
      return f"'{known}'"
  return f"'{text[:300]}'"


def _remove(folder: epath.Path) -> None:
  if folder.exists():
    folder.rmtree()


def _frame(folder: epath.Path, items: Mapping[str, Shapes], meta: Mapping[str, Any]) -> None:
  """Writes all of a checkpoint but its arrays."""
  shapes = {
    name: ocp.args.StandardSave(_placeholders(group)) for name, group in items.items() if group
  }
  handler = ocp.CompositeCheckpointHandler(  # Plain files: chunks packed together are written at half the speed.
    meta=ocp.JsonCheckpointHandler(),
    **{name: ocp.StandardCheckpointHandler(use_ocdbt=False) for name in shapes},
  )
  with tempfile.TemporaryDirectory() as made, ocp.Checkpointer(handler) as checkpointer:
    frame = epath.Path(made) / 'frame'
    checkpointer.save(frame, args=ocp.args.Composite(meta=ocp.args.JsonSave(dict(meta)), **shapes))
    for source in (frame, *(frame / name for name in ('meta', *shapes))):
      target = folder / source.relative_to(frame)
      target.mkdir(parents=True, exist_ok=True)
      for file in source.iterdir():
        if file.is_file() and (file.name != _COMPLETE or source != frame):
          (target / file.name).write_bytes(file.read_bytes())


def _is_cut(shape: tuple[int, ...]) -> bool:
  # A stack of matrices has a chunk a layer. So have convolutions, which lose nothing by it.
  return len(shape) > 2


def _placeholders(shapes: Shapes) -> dict:
  return trees.unflatten(
    {path: np.zeros((1,) * len(leaf.shape), leaf.dtype) for path, leaf in shapes.items()}
  )


def _spec(folder: Any, path: str) -> dict[str, Any]:
  name = path.replace('/', '.') + '/'
  packed = json.loads((folder / '_METADATA').read_text())['use_ocdbt']
  if packed:
    return {
      'driver': 'zarr',
      'kvstore': {'driver': 'ocdbt', 'base': places.kvstore(folder), 'path': name},
    }
  return {'driver': 'zarr', 'kvstore': places.kvstore(folder / name)}


def _created(leaf: Any) -> dict[str, Any]:
  shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
  chunk = getattr(leaf, 'chunk', None) or grid(shape, dtype.itemsize)
  if _is_cut(shape):
    chunk = (1, *chunk[1:])
  metadata = {
    'shape': shape,
    'chunks': [max(size, 1) for size in chunk],
    'dtype': dtype.str if dtype.kind in 'fiub' else dtype.name,
    'compressor': None,
    'fill_value': None,
    'order': 'C',
    'dimension_separator': '.',
  }
  return {'metadata': metadata, 'create': True, 'delete_existing': True}
