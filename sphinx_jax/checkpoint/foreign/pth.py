"""Files of torch.save and torch.jit.save, read without torch: no code of the file is ever run."""

import io
import math
import pathlib
import pickle
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.foreign import files
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors
from sphinx_jax.core.progress import log

STORAGES = {  # torch's storage classes that numpy has a dtype for.
  name: np.dtype(dtype)
  for name, dtype in {
    'FloatStorage': np.float32,
    'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16,
    'DoubleStorage': np.float64,
    'LongStorage': np.int64,
    'IntStorage': np.int32,
    'ShortStorage': np.int16,
    'CharStorage': np.int8,
    'ByteStorage': np.uint8,
    'BoolStorage': np.bool_,
    'ComplexFloatStorage': np.complex64,
    'ComplexDoubleStorage': np.complex128,
  }.items()
}
_WRAPPERS = ('model', 'state_dict', 'teacher')
_LOOKS = [  # (bytes, where they stand, what the file is, what to do), for files that are no zip archive.
  (
    b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.',
    0,
    "a file of torch.save's format before 1.6 (not a zip archive)",
    're-save it: torch.save(torch.load(path, weights_only=True), path)',
  ),
  (b'ustar', 257, 'a tar archive', 'unpack it and give the .pth file inside'),
  (
    b'version https://git-lfs',
    0,
    'a git-lfs pointer, not the file itself',
    'fetch the file with `git lfs pull`',
  ),
  (b'{', 8, 'a safetensors file', 'name it *.safetensors'),
  (b'\x1f\x8b', 0, 'a gzip file', 'unpack it'),
  (b'PK\x03\x04', 0, 'a zip archive that is cut short or damaged', 'download or copy it again'),
  (
    b'\x80',
    0,
    'a bare pickle',
    'pickles can run code: ask its maker for a file of torch.save or safetensors',
  ),
]


class _Storage(NamedTuple):
  """A run of numbers in the archive."""

  record: zipfile.ZipInfo
  dtype: np.dtype
  size: int


class _View(NamedTuple):
  """A tensor: where in its storage it lies. Strides and offset count elements. (A tuple, so no pickle can change it.)"""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def span(self) -> int:
    """Elements of the storage from the first to the last one it uses."""
    return (
      1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides)) if math.prod(self.shape) else 0
    )


class _Attributes:
  """Stands for any class of a TorchScript file: holds attributes, does nothing."""


def open_pth(path) -> dict[str, Tensor]:
  """Opens a zip archive of torch.save or torch.jit.save; no tensor is read yet.

  The tensors are those of the mapping under 'model', 'state_dict' or 'teacher' if there is one, else of the outermost
  mapping. A TorchScript module gives its parameters and buffers by dotted name. Other values are skipped (and logged).
  Reading checks the CRC of the tensor's whole storage and holds the tensor once (a transposed view twice).

  Raises:
    SphinxError: the file is missing, of another kind, damaged, of the other byte order, or its pickle asks for
      anything that is not needed for weights, which could run code; `read` raises it for damage found only then.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.make(
      str(path), 'no such file', 'a checkpoint file of torch.save', 'check the path'
    )
  with files.explain_damage(path):
    archive = _Archive(path)
    top = archive.unpickle()
    views = _flatten(top) if isinstance(top, _Attributes) else _weights(top, path)
  if not views:
    raise errors.make(
      str(path),
      'no tensor',
      "tensors, or a mapping of them under 'model', 'state_dict' or 'teacher'",
      'give the file that holds the weights',
    )
  return {
    key: Tensor(view.shape, view.storage.dtype, lambda view=view: archive.read(view))
    for key, view in views.items()
  }


class _Archive:
  """An open zip archive: its records by name, and reads that check the CRC. Closed when nobody holds it any more."""

  def __init__(self, path: pathlib.Path):
    self._path, self._bytes = path, path.stat().st_size
    try:
      self._zip = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
      raise _other_kind(path) from error
    pickles = [
      name for name in self._zip.namelist() if name.endswith('data.pkl') and name.count('/') <= 1
    ]
    if len(pickles) != 1:
      raise errors.make(
        str(path),
        f'a zip archive with {len(pickles)} records named data.pkl',
        'one, as torch.save writes',
        'give a checkpoint file',
      )
    self._root = pickles[0].removesuffix('data.pkl')
    if self._root + 'byteorder' in self._zip.namelist():
      order = self._zip.read(self.record('byteorder'))
      if order != b'little':
        raise errors.make(
          str(path),
          f'byte order {order[:20]}',
          "b'little'",
          're-save it on a little-endian machine',
        )

  def record(self, name: str) -> zipfile.ZipInfo:
    """A record by its name; its sizes fit the file, so memory may be taken for it."""
    info = self._zip.getinfo(self._root + name)
    if (
      info.compress_type != zipfile.ZIP_STORED
      or info.file_size != info.compress_size
      or info.file_size > self._bytes
    ):
      raise ValueError(
        f'record {name} is compressed or larger than the file; torch.save stores records as they are'
      )
    return info

  def unpickle(self) -> object:
    """What data.pkl holds, with a _View for every tensor."""
    return _Unpickler(self._path, self.record, self._zip.read(self.record('data.pkl'))).load()

  def read(self, view: _View) -> np.ndarray:
    """Reads one tensor. The whole storage goes by, as only then its CRC is known; kept is what the tensor spans."""
    with files.explain_damage(self._path):
      dtype = view.storage.dtype
      start, count = view.offset * dtype.itemsize, view.span * dtype.itemsize
      data = np.empty(count, np.uint8)
      with self._zip.open(view.storage.record) as file:
        _skip(file, start)
        files.read_into(file, data)
        _skip(file, view.storage.record.file_size - start - count)
      strides = [s * dtype.itemsize for s in view.strides]
      array = np.lib.stride_tricks.as_strided(data.view(dtype), view.shape, strides)
      return data.view(dtype).reshape(view.shape) if array.flags.c_contiguous else array.copy()


class _Unpickler(pickle._Unpickler):  # pylint: disable=protected-access
  """Builds plain containers and _Views; refuses every global that weights do not need.

  Python's own unpickler in Python rather than in C: the one in C takes memory by counts it reads from the file.
  Whatever `find_class` hands out cannot be changed by the pickle: strings, built-in types, fresh classes, bound methods.
  """

  def __init__(self, path: pathlib.Path, record, data: bytes):
    super().__init__(io.BytesIO(data))
    self._path, self._record = path, record
    self._known = {
      ('collections', 'OrderedDict'): OrderedDict,
      ('torch', 'Size'): tuple,
      ('torch', 'device'): self._first,
      ('torch._utils', '_rebuild_tensor'): self._tensor,
      ('torch._utils', '_rebuild_tensor_v2'): self._tensor,
      ('torch._utils', '_rebuild_parameter'): self._first,
      ('torch.jit._pickle', 'restore_type_tag'): self._first,
      **{
        ('torch.jit._pickle', f'build_{kind}list'): self._first
        for kind in ('bool', 'double', 'int', 'tensor')
      },
    }

  def find_class(self, module: str, name: str) -> object:
    """What a name in the pickle stands for."""
    if module == 'torch' and (
      name in STORAGES or name in map(str, STORAGES.values())
    ):  # A storage class or a torch.dtype.
      return name
    if module.split('.')[0] == '__torch__':
      return type('TorchScript', (_Attributes,), {})
    if (module, name) not in self._known:
      raise errors.make(
        str(self._path),
        f"a pickle that asks for '{module[:100]}.{name[:100]}'",
        'only tensors and plain containers',
        'loading it would run code, so it is refused: ask its maker for a weights-only file',
      )
    return self._known[module, name]

  def persistent_load(self, pid: object) -> _Storage:
    """The storage that a tensor of the pickle points to."""
    kind, name, key, _, size = pid
    dtype = STORAGES[name]
    record = self._record(f'data/{key}')
    if (
      kind != 'storage'
      or type(size) is not int
      or not 0 <= size * dtype.itemsize <= record.file_size
    ):
      raise ValueError(
        f'storage {key} announces {size} numbers of {dtype} and holds {record.file_size} bytes'
      )
    return _Storage(record, dtype, size)

  def _tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> _View:
    view = _View(storage, offset, tuple(shape), tuple(strides))
    counts = (offset, *view.shape, *view.strides)
    if (
      not isinstance(storage, _Storage)
      or not all(type(i) is int and i >= 0 for i in counts)
      or len(shape) != len(strides)
    ):
      raise ValueError(f'a tensor of shape {shape}, strides {strides} and offset {offset}')
    if offset + view.span > storage.size:
      raise ValueError(
        f'a tensor of shape {shape} reaches over the end of its storage of {storage.size} numbers'
      )
    return view

  def _first(self, value: object, *_) -> object:
    return value


def _weights(top: object, path: pathlib.Path) -> dict[str, _View]:
  """The one mapping of tensors that a checkpoint holds."""
  if not isinstance(top, dict):
    raise errors.make(
      str(path),
      f'a {type(top).__name__}',
      'a mapping of tensors',
      'give the file that holds the weights',
    )
  inner = [
    key
    for key in _WRAPPERS
    if isinstance(top.get(key), dict) and any(map(_is_tensor, top[key].values()))
  ]
  if len(inner) > 1:
    raise errors.make(
      str(path),
      f'several models ({", ".join(inner)})',
      'one',
      'save the wanted one to a file of its own',
    )
  mapping = top[inner[0]] if inner else top
  views = {
    key: value for key, value in mapping.items() if isinstance(key, str) and _is_tensor(value)
  }
  others = [key for key in top if inner and key not in inner] + [
    key for key in mapping if key not in views
  ]
  if others and views:
    log.info(
      '%s: %d values beside the weights are skipped: %s',
      path,
      len(others),
      ', '.join(map(str, others[:8]))[:200],
    )
  return views


def _flatten(module: _Attributes) -> dict[str, _View]:
  """Tensors of a TorchScript module and of the modules in it, by dotted name."""
  views, todo, seen = {}, [('', module)], 0
  while todo:
    prefix, module = todo.pop()
    seen += 1
    if seen > 10_000:  # Real ones have some hundreds; one that holds itself would never end.
      raise ValueError('a module that holds itself, or over 10000 modules')
    views.update({prefix + key: value for key, value in vars(module).items() if _is_tensor(value)})
    todo += reversed(
      [
        (f'{prefix}{key}.', value)
        for key, value in vars(module).items()
        if isinstance(value, _Attributes)
      ]
    )
  return views


def _is_tensor(value: object) -> bool:
  return isinstance(value, _View)


def _skip(file, count: int) -> None:
  while count > 0:
    data = file.read(min(count, files.CHUNK))
    if not data:
      raise EOFError(f'{count} bytes are missing')
    count -= len(data)


def _other_kind(path: pathlib.Path) -> errors.SphinxError:
  """The error for a file that is no zip archive: says what it looks like."""
  with open(path, 'rb') as file:
    head = file.read(512)
  if not head:
    got, do = 'an empty file', 'download or copy it again'
  elif head.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
    got, do = (
      'a web page, not a checkpoint',
      'the download failed: download it again (some sites ask to log in first)',
    )
  else:
    known = [
      (looks, advice) for magic, at, looks, advice in _LOOKS if head[at : at + len(magic)] == magic
    ]
    got, do = known[0] if known else ('an unknown kind of file', 'give a file of torch.save')
  return errors.make(str(path), got, 'a zip archive of torch.save', do)
