"""Writes files that torch.load reads, without torch, with one tensor in memory at a time."""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping

from sphinx_jax.checkpoint.foreign import files, pth
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

_ROOT = 'archive/'
_ALIGNMENT = 64  # As torch.save does, so that torch.load(mmap=True) returns aligned tensors.
_STORAGE_NAMES = {dtype: name for name, dtype in pth.STORAGES.items()}
# Bytes of a zip entry before its data: the local header, the zip64 field, the head of our field.
_LOCAL_HEADER, _ZIP64_FIELD, _FIELD_HEAD = 30, 20, 4


def write_pth(path: files.Path, tensors: Mapping[str, Tensor], wrapper: str = 'model') -> None:
  """Writes {wrapper: {key: tensor}} for `torch.load(path, weights_only=True)`, also with mmap=True.

  Every tensor is read once and is in memory alone. The file appears under its name only when it is
  complete. Equal tensors give equal bytes.

  Args:
    path: the file.
    tensors: name -> tensor.
    wrapper: key of the mapping of tensors.

  Raises:
    SphinxError: torch has no storage for a dtype, or a tensor differs from what it announces.
  """
  for key, tensor in tensors.items():
    if tensor.dtype not in _STORAGE_NAMES:
      raise errors.make(
        f'{path}: tensor {key}',
        f'dtype {tensor.dtype}',
        f'one of {", ".join(map(str, _STORAGE_NAMES))}',
        'cast it first',
      )
  with (
    files.atomic_path(path) as temporary,
    open(temporary, 'wb') as file,
    zipfile.ZipFile(file, 'w') as archive,
  ):
    _write_record(file, archive, 'data.pkl', [_pickle(tensors, wrapper)])
    _write_record(file, archive, 'byteorder', [b'little'])
    for index, (key, tensor) in enumerate(tensors.items()):
      _write_record(file, archive, f'data/{index}', files.tensor_bytes(key, tensor))
    _write_record(file, archive, 'version', [b'3\n'])


def _write_record(
  file: io.BufferedIOBase, archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes]
) -> None:
  """Adds a record whose data begin at a multiple of 64 bytes, by padding an extra field."""
  info = zipfile.ZipInfo(_ROOT + name)
  start = file.tell() + _LOCAL_HEADER + len(info.filename) + _ZIP64_FIELD + _FIELD_HEAD
  padding = -start % _ALIGNMENT
  info.extra = struct.pack('<2sH', b'FB', padding) + b'Z' * padding
  with archive.open(info, 'w', force_zip64=True) as record:
    for piece in pieces:
      record.write(piece)


def _pickle(tensors: Mapping[str, Tensor], wrapper: str) -> bytes:
  """Returns the pickle of {wrapper: {key: tensor}} as torch writes it, with globals by name."""
  items = b''.join(
    _text(key) + _tensor(index, tensor) for index, (key, tensor) in enumerate(tensors.items())
  )
  inner = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
  outer = pickle.EMPTY_DICT + _text(wrapper) + inner + pickle.SETITEM
  return pickle.PROTO + b'\x02' + outer + pickle.STOP


def _tensor(index: int, tensor: Tensor) -> bytes:
  shape = tensor.shape
  strides = [math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape))]
  storage = _tuple(
    _text('storage'),
    _global('torch', _STORAGE_NAMES[tensor.dtype]),
    _text(str(index)),
    _text('cpu'),
    _int(math.prod(shape)),
  )
  hooks = _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
  arguments = _tuple(
    storage + pickle.BINPERSID,
    _int(0),
    _tuple(*map(_int, shape)),
    _tuple(*map(_int, strides)),
    pickle.NEWFALSE,
    hooks,
  )
  return _global('torch._utils', '_rebuild_tensor_v2') + arguments + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
  return pickle.GLOBAL + f'{module}\n{name}\n'.encode()


def _text(text: str) -> bytes:
  data = text.encode('utf-8', 'surrogatepass')
  return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def _int(value: int) -> bytes:
  if value < 1 << 31:
    return pickle.BININT + struct.pack('<i', value)
  data = pickle.encode_long(value)
  return pickle.LONG1 + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
  return pickle.MARK + b''.join(items) + pickle.TUPLE
