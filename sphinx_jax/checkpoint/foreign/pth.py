"""Reads files of torch.save and torch.jit.save without torch. No code of a file is ever run.

The format is the zip archive that torch writes since release 1.6. The tests read files of torch
2.13, the release that setup.py names.
"""

import functools
import io
import math
import pathlib
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.foreign import files
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors
from sphinx_jax.core.progress import log

# Storage classes of torch for which numpy has a dtype.
STORAGES = {
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'DoubleStorage': np.dtype(np.float64),
  'LongStorage': np.dtype(np.int64),
  'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16),
  'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8),
  'BoolStorage': np.dtype(np.bool_),
  'ComplexFloatStorage': np.dtype(np.complex64),
  'ComplexDoubleStorage': np.dtype(np.complex128),
}
_WRAPPERS = ('model', 'state_dict', 'model_state_dict', 'module', 'teacher')
# Of classes of quantized tensors; _v3 builds those of float8 and other dtypes without a storage.
_QUANTIZED = re.compile(r'bitsandbytes|torchao|quanto|hqq|qtensor|\.QU?Int|_rebuild_tensor_v3')
# Common files that are no zip archive: (first bytes, description, advice).
_OTHER_KINDS = (
  (
    b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.',
    'a file of torch.save before release 1.6',
    'save it again: torch.save(torch.load(path, weights_only=True), path)',
  ),
  (b'PK\x03\x04', 'a zip archive that is cut short or damaged', 'download or copy it again'),
)
_MAX_MODULES = 10_000  # Of a TorchScript file. Real ones have some hundreds.


class _Storage(NamedTuple):
  """A record of the archive that holds numbers of one dtype."""

  record: zipfile.ZipInfo
  dtype: np.dtype
  size: int


class _View(NamedTuple):
  """A tensor: a view of a storage. It is a tuple, so a pickle cannot change it.

  Attributes:
    storage: the storage.
    offset: its first element in the storage.
    shape: sizes of its dimensions.
    strides: of its dimensions, in elements.
  """

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def span(self) -> int:
    """Elements of the storage from the first to the last one that the view uses."""
    if not math.prod(self.shape):
      return 0
    last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
    return 1 + last


class _Attributes:
  """Stands for any class of a TorchScript file: it holds attributes and does nothing."""


def open_pth(path: files.Path) -> dict[str, Tensor]:
  """Opens a file of torch.save or torch.jit.save; no tensor is read yet.

  The tensors are those of the mapping under one of _WRAPPERS ('model', ...) if there is one,
  else of the outermost mapping. A TorchScript module has its parameters and buffers under dotted
  names. Other values are skipped, and logged.

  Reading a tensor checks the CRC of its whole storage. It holds the tensor in memory once, a
  transposed view twice.

  Args:
    path: the file.

  Returns:
    Name -> tensor.

  Raises:
    SphinxError: the file is missing, damaged, of another kind or another byte order, or its pickle
      asks for anything that weights do not need and that could run code. `read` raises it for
      damage that is found only then.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.make(
      str(path), 'no such file', 'a checkpoint file of torch.save', 'check the path'
    )
  with files.explain_damage(path):
    archive = _Archive(path)
    top = archive.unpickle()
    views = _module_tensors(top) if isinstance(top, _Attributes) else _find_weights(top, path)
  if not views:
    raise errors.make(
      str(path),
      'no tensor',
      f'tensors, or a mapping of them under {", ".join(_WRAPPERS)}',
      'give the file that holds the weights',
    )
  return {
    key: Tensor(view.shape, view.storage.dtype, functools.partial(archive.read, view))
    for key, view in views.items()
  }


class _Archive:
  """An open zip archive, read with CRC checks. It is closed when no tensor refers to it.

  Args:
    path: the file.
  """

  def __init__(self, path: pathlib.Path) -> None:
    self._path = path
    self._file_size = path.stat().st_size
    try:
      self._zip = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
      raise _other_kind(path) from error
    names = self._zip.namelist()
    pickles = [name for name in names if name.endswith('data.pkl') and name.count('/') <= 1]
    if len(pickles) != 1:
      raise errors.make(
        str(path),
        f'a zip archive with {len(pickles)} records named data.pkl',
        'one, as torch.save writes',
        'give a checkpoint file',
      )
    self._root = pickles[0].removesuffix('data.pkl')
    if self._root + 'byteorder' in names:
      order = self._zip.read(self.record('byteorder'))
      if order != b'little':
        raise errors.make(
          str(path),
          f'byte order {order[:20]}',
          "b'little'",
          'save it again on a little-endian machine',
        )

  def record(self, name: str) -> zipfile.ZipInfo:
    """Returns a record by its name.

    Raises:
      ValueError: its sizes do not fit the file, so they must not decide how much memory to take.
    """
    info = self._zip.getinfo(self._root + name)
    is_stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
    if not is_stored or info.file_size > self._file_size:
      raise ValueError(
        f'record {name} is compressed or larger than the file; torch.save does not compress'
      )
    return info

  def unpickle(self) -> object:
    """Returns the contents of data.pkl, with a _View for every tensor."""
    return _Unpickler(self._path, self.record, self._zip.read(self.record('data.pkl'))).load()

  def read(self, view: _View) -> np.ndarray:
    """Reads one tensor, C-contiguous.

    The whole storage is read to check its CRC. Only the span of the tensor is kept.
    """
    with files.explain_damage(self._path):
      dtype = view.storage.dtype
      start, count = view.offset * dtype.itemsize, view.span * dtype.itemsize
      data = np.empty(count, np.uint8)
      with self._zip.open(view.storage.record) as file:
        _skip(file, start)
        files.read_into(file, data)
        _skip(file, view.storage.record.file_size - start - count)
      strides = [stride * dtype.itemsize for stride in view.strides]
      array = np.lib.stride_tricks.as_strided(data.view(dtype), view.shape, strides)
      if array.flags.c_contiguous:
        return data.view(dtype).reshape(view.shape)
      return array.copy()


class _Unpickler(pickle._Unpickler):
  """Builds plain containers and _Views, and refuses every global that weights do not need.

  It is the unpickler in Python, not the one in C, which takes memory by counts in the file. A
  pickle cannot change anything that `find_class` returns: strings, built-in types, new classes and
  bound methods.

  Args:
    path: the file, for error messages.
    record: `_Archive.record`.
    data: the pickle.
  """

  def __init__(
    self, path: pathlib.Path, record: Callable[[str], zipfile.ZipInfo], data: bytes
  ) -> None:
    super().__init__(io.BytesIO(data))
    self._path, self._record = path, record
    self._globals = {
      ('collections', 'OrderedDict'): OrderedDict,
      ('torch', 'Size'): tuple,
      ('torch', 'device'): self._first_argument,
      ('torch._utils', '_rebuild_tensor'): self._rebuild_tensor,
      ('torch._utils', '_rebuild_tensor_v2'): self._rebuild_tensor,
      ('torch._utils', '_rebuild_parameter'): self._first_argument,
      ('torch.jit._pickle', 'restore_type_tag'): self._first_argument,
    }
    for kind in ('bool', 'double', 'int', 'tensor'):
      self._globals['torch.jit._pickle', f'build_{kind}list'] = self._first_argument

  def find_class(self, module: str, name: str) -> object:
    """Returns what a name in the pickle stands for.

    Raises:
      SphinxError: weights do not need this name.
    """
    is_storage_or_dtype = name in STORAGES or name in map(str, STORAGES.values())
    if module == 'torch' and is_storage_or_dtype:
      return name
    if module.split('.')[0] == '__torch__':
      return type('TorchScript', (_Attributes,), {})
    if _QUANTIZED.search(f'{module}.{name}'):
      raise errors.make(
        str(self._path),
        f"quantized weights ('{module[:100]}.{name[:100]}')",
        'floating-point weights',
        files.DEQUANTIZE,
      )
    if (module, name) not in self._globals:
      raise errors.make(
        str(self._path),
        f"a pickle that asks for '{module[:100]}.{name[:100]}'",
        'only tensors and plain containers',
        'loading it would run code, so it is refused: ask its maker for a weights-only file',
      )
    return self._globals[module, name]

  def persistent_load(self, pid: Any) -> _Storage:
    """Returns the storage that a tensor of the pickle refers to.

    Raises:
      ValueError: the record holds fewer numbers than announced.
    """
    kind, name, key, _, size = pid
    dtype = STORAGES[name]
    record = self._record(f'data/{key}')
    fits = type(size) is int and 0 <= size * dtype.itemsize <= record.file_size
    if kind != 'storage' or not fits:
      raise ValueError(
        f'storage {key} announces {size} numbers of {dtype} and holds {record.file_size} bytes'
      )
    return _Storage(record, dtype, size)

  def _rebuild_tensor(
    self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: object
  ) -> _View:
    view = _View(storage, offset, tuple(shape), tuple(strides))
    counts = (offset, *view.shape, *view.strides)
    are_counts = all(type(count) is int and count >= 0 for count in counts)
    if not isinstance(storage, _Storage) or not are_counts or len(shape) != len(strides):
      raise ValueError(f'a tensor of shape {shape}, strides {strides} and offset {offset}')
    if offset + view.span > storage.size:
      raise ValueError(f'a tensor of shape {shape} exceeds its storage of {storage.size} numbers')
    return view

  def _first_argument(self, value: object, *_: object) -> object:
    return value


def _find_weights(top: object, path: pathlib.Path) -> dict[str, _View]:
  """Returns the tensors of the one mapping of tensors in a checkpoint.

  Args:
    top: the unpickled object.
    path: the file, for messages.

  Raises:
    SphinxError: there is no mapping, or there are several.
  """
  if not isinstance(top, dict):
    raise errors.make(
      str(path),
      f'a {type(top).__name__}',
      'a mapping of tensors',
      'give the file that holds the weights',
    )
  wrappers = [
    key
    for key in _WRAPPERS
    if isinstance(top.get(key), dict) and any(map(_is_tensor, top[key].values()))
  ]
  if len(wrappers) > 1:
    raise errors.make(
      str(path),
      f'several models ({", ".join(wrappers)})',
      'one',
      'save the wanted one to a file of its own',
    )
  mapping = top[wrappers[0]] if wrappers else top
  views = {
    key: value for key, value in mapping.items() if isinstance(key, str) and _is_tensor(value)
  }
  skipped = [key for key in top if key not in wrappers] if wrappers else []
  skipped += [key for key in mapping if key not in views]
  if skipped and views:
    names = ', '.join(map(str, skipped[:8]))[:200]
    log.info('%s: %d values beside the weights are skipped: %s', path, len(skipped), names)
  return views


def _module_tensors(module: _Attributes) -> dict[str, _View]:
  """Returns the tensors of a TorchScript module and its submodules, by dotted name.

  Raises:
    ValueError: a module contains itself, or there are too many.
  """
  views: dict[str, _View] = {}
  stack, count = [('', module)], 0
  while stack:
    prefix, module = stack.pop()
    count += 1
    if count > _MAX_MODULES:
      raise ValueError(f'a module that contains itself, or over {_MAX_MODULES} modules')
    attributes = vars(module)
    views.update({prefix + key: value for key, value in attributes.items() if _is_tensor(value)})
    submodules = [
      (f'{prefix}{key}.', value)
      for key, value in attributes.items()
      if isinstance(value, _Attributes)
    ]
    stack += reversed(submodules)
  return views


def _is_tensor(value: object) -> bool:
  return isinstance(value, _View)


def _skip(file: io.BufferedIOBase, count: int) -> None:
  """Reads and drops bytes.

  Raises:
    EOFError: the file ends before.
  """
  while count > 0:
    data = file.read(min(count, files.CHUNK))
    if not data:
      raise EOFError(f'{count} bytes are missing')
    count -= len(data)


def _other_kind(path: pathlib.Path) -> errors.SphinxError:
  """Returns the error for a file that is no zip archive."""
  files.check_kind(path, 'a zip archive of torch.save')
  with open(path, 'rb') as file:
    head = file.read(64)
  description, advice = 'an unknown kind of file', 'give a file of torch.save'
  if not head:
    description, advice = 'an empty file', 'download or copy it again'
  for first_bytes, kind, remedy in _OTHER_KINDS:
    if head.startswith(first_bytes):
      description, advice = kind, remedy
  return errors.make(str(path), description, 'a zip archive of torch.save', advice)
