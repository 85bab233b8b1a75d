"""Reads and writes checkpoints part by part: a stacked parameter of a 13B model has 11 GB.

Orbax saves and restores whole arrays only. Here Orbax writes a checkpoint with placeholders, and
tensorstore, which Orbax itself uses for arrays, writes and reads the real arrays in parts. Orbax
reads the result like any other checkpoint. Directories may be local or gs:// URLs.

This is the only file that knows Orbax's format on disk: its `_METADATA`, the name of the meta file,
zarr arrays in folders or in an OCDBT store, and the mark of a complete checkpoint.
"""

import collections
import contextlib
import dataclasses
import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from sphinx_jax.checkpoint import store
from sphinx_jax.core import errors, files, paths, trees

# Orbax releases whose format was checked; tests/checkpoint/test_stream.py fails with any other one.
CHECKED_ORBAX = '>=0.12,<0.13'
_COMPLETE = 'commit_success.txt'  # Orbax's mark of a complete checkpoint in a bucket.
_METADATA = '_METADATA'

# An index into an array, as numpy takes it; () is the whole array.
Index = tuple[Any, ...]
# Path -> anything with shape and dtype, and optionally `chunk`, the shape of its stored chunks.
Shapes = Mapping[str, Any]

_MAX_CHUNK_BYTES = 32 << 20  # Of a chunk that is written, and of a stack that is read at once.
_ALIGNMENT = 64  # XLA does not copy arrays that start at a multiple of 64 bytes.
_READING = tensorstore.Context()
_MAPPING = tensorstore.Context({'file_io_mode': {'mode': 'memmap'}})
# If the machine crashes, written data may be lost, as with `cp`. If the process crashes, it is not.
_UNSYNCED = {'file_io_sync': False}
_WHOLE = {'fill_missing_data_reads': False}  # A lost file is an error, not zeros.


@dataclasses.dataclass(eq=False)
class Array:
  """An array that is not read yet.

  Attributes:
    shape: sizes of its dimensions.
    dtype: the stored dtype.
    read: index -> that part of the array; () is all of it, (i,) one layer of a stacked parameter.
    layers: number of layers along the first axis that can be read alone; 1 if it is no stack.
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
    """Returns the reads that cover the array, as (index, bytes).

    A large stack is read layer by layer, any other array at once.
    """
    if self.layers == 1 or self.nbytes <= _MAX_CHUNK_BYTES:
      return [((), self.nbytes)]
    return [((layer,), self.nbytes // self.layers) for layer in range(self.layers)]


class HeldArray(Array):
  """An array that is in memory."""

  def __init__(self, value: np.ndarray, layers: int = 1) -> None:
    super().__init__(value.shape, value.dtype, value.__getitem__, layers)

  @property
  def chunk(self) -> tuple[int, ...]:
    """Shape of a stored chunk: all of it."""
    return self.shape

  def start_read(self, index: Index) -> '_Held':
    """A part of the array, which need not be waited for."""
    return _Held(self.read(index))


class _Held(NamedTuple):
  value: np.ndarray

  def result(self) -> np.ndarray:
    """The part."""
    return self.value


class StoredArray(Array):
  """An array of a checkpoint. It takes any index and can be read in the background.

  Args:
    folder: folder of the checkpoint's item.
    path: path of the parameter.
    shape, dtype: of the array.
    context: tensorstore's way of reading files.
  """

  def __init__(
    self,
    folder: epath.Path,
    path: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    context: tensorstore.Context,
  ) -> None:
    super().__init__(shape, dtype, self._read_part, shape[0] if _is_stack(shape) else 1)
    self._folder, self._path, self._context = folder, path, context
    self._opened: tensorstore.TensorStore | None = None
    self._plain: bool | None = None  # Not asked for yet.

  def start_read(self, index: Index) -> 'PendingRead | _Held':
    """Starts reading a part of the array. What is mapped into memory cannot be written to."""
    if (mapped := self._map(index)) is not None:
      return _Held(mapped)
    part = self._open()[index]
    value = empty_aligned(part.shape, self.dtype)
    # tensorstore keeps the origin of a slice; the target starts at 0.
    source = part[tensorstore.d[:].translate_to[0]] if part.rank else part
    return PendingRead(value, tensorstore.array(value).write(source), self._folder)

  @property
  def chunk(self) -> tuple[int, ...]:
    """Shape of a stored chunk: its numbers are best read together."""
    return self._open().chunk_layout.read_chunk.shape

  def _read_part(self, index: Index) -> np.ndarray:
    return self.start_read(index).result()

  def _map(self, index: Index) -> np.ndarray | None:
    """Returns a part that is one file as it is, without a copy; None if it is no such file."""
    if self._context is not _MAPPING or not self._is_plain():
      return None
    places = _whole_chunks(self.shape, self.chunk, index)
    if places is None or len(places) > 1:
      return None
    file = self._folder / self._path.replace('/', '.') / next(iter(places))
    if not file.exists() or file.stat().length != math.prod(self.chunk) * self.dtype.itemsize:
      return None  # tensorstore raises the error.
    with open(file, 'rb') as opened:
      # In a thread that reads ahead, the pages are read from the disk now.
      flags = mmap.MAP_SHARED | getattr(mmap, 'MAP_POPULATE', 0)
      content = mmap.mmap(opened.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
    return np.frombuffer(content, np.uint8).view(self.dtype).reshape(self._open()[index].shape)

  def _is_plain(self) -> bool:
    """Whether chunks are files with the numbers of this machine, in row-major order."""
    if self._plain is None:
      array = self._open()
      spec = array.spec().to_json()
      metadata, driver = spec['metadata'], spec['kvstore']['driver']
      is_encoded = metadata['compressor'] or metadata.get('filters') or metadata['order'] != 'C'
      is_native = array.dtype.numpy_dtype == self.dtype and not metadata['dtype'].startswith('>')
      self._plain = driver == 'file' and not is_encoded and is_native
    return self._plain

  def _open(self) -> tensorstore.TensorStore:
    if self._opened is None:
      spec = array_spec(self._folder, self._path) | _WHOLE
      with store.explain_damage(self._folder):
        self._opened = tensorstore.open(spec, context=self._context, read=True).result()
    return self._opened


class PendingRead:
  """A part of an array that is being read."""

  def __init__(
    self, value: np.ndarray, future: tensorstore.WriteFutures, folder: epath.Path
  ) -> None:
    self._value, self._future, self._folder = value, future, folder

  def result(self) -> np.ndarray:
    """Waits until the part is read and returns it. Raises SphinxError if it is damaged."""
    with store.explain_damage(self._folder):
      self._future.result()
    return self._value


def read(
  directory: store.Path, item: str = 'params', mapped: bool = False
) -> dict[str, StoredArray]:
  """Opens the arrays of one item of a checkpoint; nothing is read yet.

  Args:
    directory: a run's directory (its newest checkpoint is opened) or one step's.
    item: 'params', or another item that `Writer` was given.
    mapped: map local files into memory while they are read. It saves a copy, but the mapped pages
      count as resident memory.

  Returns:
    Path -> array.

  Raises:
    SphinxError: as `store.stored_leaves`.
  """
  step_folder = store.locate(directory)
  context = _MAPPING if mapped else _READING
  return {
    path: StoredArray(step_folder / item, path, tuple(leaf.shape), np.dtype(leaf.dtype), context)
    for path, leaf in store.stored_leaves(step_folder, item).items()
  }


def chunk_shape(
  shape: Sequence[int],
  itemsize: int,
  limit: int | None = None,
  stored: Sequence[int] | None = None,
) -> tuple[int, ...]:
  """Returns the shape of parts that cover an array in row-major order.

  Args:
    shape: shape of the array.
    itemsize: bytes of one number.
    limit: bytes of a part at most; None: 32 MiB. If stored chunks are up to four times as large, a
      part has the rows of one chunk.
    stored: shape of the array's stored chunks, if parts should not divide them.
  """
  limit = _MAX_CHUNK_BYTES if limit is None else limit
  if math.prod(shape) * itemsize <= limit:
    return tuple(shape)
  bytes_of_row = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
  axis = next(axis for axis, size in enumerate(bytes_of_row) if size <= limit)
  row_bytes = bytes_of_row[axis]
  rows = max(limit // row_bytes, 1)
  stored_rows = stored[axis] if stored else 1
  if rows >= stored_rows:
    stored_chunks = -(-shape[axis] // stored_rows)
    rows = stored_rows * _even_size(stored_chunks, rows // stored_rows)
  elif stored_rows * row_bytes <= 4 * limit:
    rows = stored_rows
  else:
    rows = _even_size(shape[axis], rows)
  return (*(1 for _ in shape[:axis]), rows, *shape[axis + 1 :])


def _even_size(count: int, limit: int) -> int:
  """Returns the largest part size <= `limit` that divides `count`, if one is above limit / 2.

  zarr pads the last chunk, so equal parts waste nothing. Otherwise the parts are as equal as they
  can be.
  """
  divisor = next((size for size in range(limit, limit // 2, -1) if count % size == 0), None)
  if divisor:
    return divisor
  parts = -(-count // limit)
  return -(-count // parts)


def part_indices(shape: Sequence[int], part: Sequence[int]) -> list[Index]:
  """Returns the index of every part of an array, in row-major order; [()] if there is one.

  Args:
    shape: shape of the array.
    part: from `chunk_shape`.
  """
  if tuple(part) == tuple(shape):
    return [()]
  axis = next((axis for axis, size in enumerate(part) if size != 1), len(shape) - 1)
  return [
    (*before, slice(row, min(row + part[axis], shape[axis])))
    for before in np.ndindex(*shape[:axis])
    for row in range(0, shape[axis], part[axis])
  ]


class Writer:
  """Writes a checkpoint part by part. The checkpoint appears in the directory only at `finish`.

  In a bucket, where folders cannot be renamed, Orbax's mark of a complete checkpoint is written
  last.

  Args:
    directory: directory of a run; it must not hold checkpoints yet.
    items: item name -> path -> shape and dtype.
    meta: JSON-able; `layout` (the format version) and `step` are added.
    max_pending: bytes that may be waiting for the disk while the next part is made.

  Raises:
    SphinxError: the directory holds checkpoints already, is in use by another process, or cannot be
      written.
  """

  def __init__(
    self,
    directory: store.Path,
    items: Mapping[str, Shapes],
    meta: Mapping[str, Any],
    max_pending: int = 0,
  ) -> None:
    if store.latest(directory) is not None:
      raise errors.make(
        f"output '{directory}'",
        'a directory that holds a checkpoint',
        'a new one',
        'give another --output',
      )
    self._lock = contextlib.ExitStack()  # Until the checkpoint is finished or abandoned.
    self._lock.enter_context(paths.locked(store.absolute_path(directory), 'output'))
    root = store.absolute_path(directory) / store.FOLDER
    self._final = root / '0'
    self._meta = {'layout': store.FORMAT_VERSION, 'step': 0, **meta}
    self._partial = self._final if files.is_remote(root) else root / 'partial'
    self._max_pending = max_pending
    self._pending = collections.deque()  # (bytes, future) of each write.
    # One thread, which copies into the page cache as fast as two.
    self._pool = None if files.is_remote(root) else ThreadPoolExecutor(1)
    try:
      with self._explain_write_errors():
        _remove(self._partial)  # An interrupted call may have left it.
        _write_frame(self._partial, items)
        self._arrays = self._create_arrays(items)
    except BaseException:
      self.abandon()
      raise

  def _create_arrays(
    self, items: Mapping[str, Shapes]
  ) -> dict[tuple[str, str], tensorstore.TensorStore]:
    # A context of its own: a traceback may hold an earlier writer, whose context caches files.
    context = tensorstore.Context(_UNSYNCED)
    opening = {
      (name, path): tensorstore.open(
        array_spec(self._partial / name, path) | _creation_spec(leaf),
        context=context,
        read=True,
        write=True,
      )
      for name, shapes in items.items()
      for path, leaf in shapes.items()
    }
    return {key: future.result() for key, future in opening.items()}

  def write(self, item: str, path: str, value: np.ndarray, index: Index = ()) -> None:
    """Writes a part of an array.

    Args:
      item, path: the array.
      value: the part; its memory must not change afterwards, as it may still be on its way.
      index: where the part belongs.

    Raises:
      SphinxError: this write, or an earlier one, failed.
    """
    with self._explain_write_errors():
      self._pending.append((value.nbytes, self._start_write(item, path, value, index)))
      while sum(size for size, _ in self._pending) > self._max_pending:
        self._pending[0][1].result()
        self._pending.popleft()

  def _start_write(self, item: str, path: str, value: np.ndarray, index: Index) -> Any:
    """Returns a future of a write; tensorstore would copy chunks that are files as they are."""
    array = self._arrays[item, path]
    chunk = array.chunk_layout.write_chunk.shape
    places = None
    if self._pool is not None and value.dtype == array.dtype.numpy_dtype:
      places = _whole_chunks(array.shape, chunk, index)
    if places is None:
      return array[index].write(value, can_reference_source_data_indefinitely=True)
    folder = self._partial / item / path.replace('/', '.')
    # With an axis for every number in the index.
    whole = value.reshape([max(place.stop for place in axis) for axis in zip(*places.values())])
    return self._pool.submit(
      _write_files, {folder / name: whole[place] for name, place in places.items()}
    )

  def finish(self, **meta: Any) -> None:
    """Waits for all writes, adds entries to the meta, and makes the checkpoint appear."""
    with self._explain_write_errors():
      while self._pending:
        self._pending.popleft()[1].result()
      # Without its meta, what a killed process leaves cannot be taken for a checkpoint.
      (self._partial / 'meta' / 'metadata').write_text(json.dumps({**self._meta, **meta}))
      (self._partial / _COMPLETE).write_text('')
      if self._partial != self._final:
        self._partial.rename(self._final)
    self._close()

  def abandon(self) -> None:
    """Removes the unfinished checkpoint, and the directory if it is empty then."""
    for _, future in self._pending:  # A pending write would create its file again.
      with contextlib.suppress(Exception):
        future.result()
    try:
      _remove(self._partial)
    finally:
      self._close()
    for folder in (self._final.parent, self._final.parent.parent):
      if not files.is_remote(folder) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()

  def _close(self) -> None:
    if self._pool is not None:
      self._pool.shutdown()
    self._lock.close()

  @contextlib.contextmanager
  def _explain_write_errors(self) -> Iterator[None]:
    """Re-raises write errors as one SphinxError that names the directory and the reason."""
    try:
      yield
    except errors.SphinxError:
      raise
    # tensorstore raises ValueError for most errors of a disk.
    except (OSError, ValueError, RuntimeError) as error:
      raise errors.make(
        f"output '{self._final.parent.parent}'",
        _short_reason(error),
        'a place with room that can be written to',
        'free some space, or give another --output; the unfinished output is removed',
      ) from error


def kvstore_spec(directory: store.Path) -> dict[str, Any]:
  """Returns tensorstore's key-value store of a local folder or gs:// URL.

  Raises:
    SphinxError: the URL has another scheme.
  """
  text = os.fspath(directory).rstrip('/')
  if not files.is_remote(text):
    return {'driver': 'file', 'path': f'{text}/'}
  scheme, _, rest = text.partition('://')
  if scheme != 'gs':
    raise errors.unknown('scheme of a URL', scheme, ['gs'])
  bucket, _, name = rest.partition('/')
  return {'driver': 'gcs', 'bucket': bucket, 'path': f'{name}/'}


def array_spec(folder: epath.Path, path: str) -> dict[str, Any]:
  """Returns the tensorstore spec of an array of a checkpoint's item.

  Args:
    folder: folder of the item, as Orbax wrote it.
    path: path of the parameter, 'a/b/c'.
  """
  name = path.replace('/', '.') + '/'
  if json.loads((folder / _METADATA).read_text())['use_ocdbt']:
    kvstore = {'driver': 'ocdbt', 'base': kvstore_spec(folder), 'path': name}
  else:
    kvstore = kvstore_spec(folder / name)
  return {'driver': 'zarr', 'kvstore': kvstore}


def _creation_spec(leaf: Any) -> dict[str, Any]:
  """Returns the entries of a spec that create an array."""
  shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
  chunk = getattr(leaf, 'chunk', None) or chunk_shape(shape, dtype.itemsize)
  if _is_stack(shape):
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


def _whole_chunks(
  shape: Sequence[int], chunk: Sequence[int], index: Index
) -> dict[str, tuple[slice, ...]] | None:
  """Name of the file of a chunk -> its place in a part that consists of whole chunks, or None.

  Args:
    shape: shape of the array.
    chunk: shape of its chunks.
    index: where the part is.
  """
  index = (*index, *(slice(None) for _ in shape[len(index) :]))
  bounds = [
    number.indices(size)[:2] if isinstance(number, slice) else (number, number + 1)
    for number, size in zip(index, shape)
  ]
  if not shape or any(n % size for pair, size in zip(bounds, chunk) for n in pair):
    return None
  firsts = [begin // size for (begin, _), size in zip(bounds, chunk)]
  counts = [(end - begin) // size for (begin, end), size in zip(bounds, chunk)]
  return {
    '.'.join(str(first + n) for first, n in zip(firsts, number)): tuple(
      slice(n * size, (n + 1) * size) for n, size in zip(number, chunk)
    )
    for number in np.ndindex(*counts)
  }


def _write_files(contents: Mapping[epath.Path, np.ndarray]) -> None:
  for file, value in contents.items():
    with open(file, 'wb', buffering=0) as opened:
      rest = memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
      while rest:  # The system writes 2 GiB at most.
        rest = rest[opened.write(rest) :]


def _write_frame(folder: epath.Path, items: Mapping[str, Shapes]) -> None:
  """Writes everything of a checkpoint but its arrays and its meta."""
  placeholders = {
    name: ocp.args.StandardSave(_placeholders(shapes)) for name, shapes in items.items() if shapes
  }
  # One process writes, also in a run of several, which Orbax would wait for.
  number = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(number, {number}, 'frame')
  options = dict(multiprocessing_options=alone)
  # Without OCDBT each chunk is a file. An OCDBT store is written at half the speed.
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(**options),
    meta=ocp.JsonCheckpointHandler(**options),
    **{name: ocp.StandardCheckpointHandler(use_ocdbt=False, **options) for name in placeholders},
  )
  with (
    tempfile.TemporaryDirectory() as temporary,
    ocp.Checkpointer(handler, **options) as checkpointer,
  ):
    frame = epath.Path(temporary) / 'frame'
    args = ocp.args.Composite(meta=ocp.args.JsonSave({}), **placeholders)
    checkpointer.save(frame, args=args)
    for source in (frame, *(frame / name for name in ('meta', *placeholders))):
      target = folder / source.relative_to(frame)
      target.mkdir(parents=True, exist_ok=True)
      for file in source.iterdir():
        is_last = file.name == _COMPLETE and source == frame or source.name == 'meta'
        if file.is_file() and not is_last:
          (target / file.name).write_bytes(file.read_bytes())


def _placeholders(shapes: Shapes) -> dict:
  return trees.unflatten(
    {path: np.zeros((1,) * len(leaf.shape), leaf.dtype) for path, leaf in shapes.items()}
  )


def _is_stack(shape: Sequence[int]) -> bool:
  """Whether an array is chunked by layer: stacks of matrices, and convolutions, which may be."""
  return len(shape) > 2


def empty_aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Returns an uninitialized array that XLA can use without a copy."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + _ALIGNMENT, np.uint8)
  begin = -memory.ctypes.data % _ALIGNMENT
  return memory[begin : begin + size].view(dtype).reshape(shape)


def _short_reason(error: Exception) -> str:
  """Returns the operating system's message out of tensorstore's long ones."""
  text = ' '.join(str(error).split())
  known_reasons = (
    'No space left on device',
    'File too large',
    'Disk quota exceeded',
    'Permission denied',
    'Read-only file system',
  )
  for reason in known_reasons:
    if reason in text:
      return f"'{reason}'"
  return f"'{text[:300]}'"


def _remove(folder: epath.Path) -> None:
  if folder.exists():
    folder.rmtree()
