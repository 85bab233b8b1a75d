"""Writes files that torch.load reads, one tensor in memory at a time, without torch."""

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping

from sphinx_jax.checkpoint.foreign import files, pth
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

_ROOT = 'archive/'
_ALIGN = 64  # As torch.save does, so that torch.load(mmap=True) gives aligned tensors.
_NAMES = {dtype: name for name, dtype in pth.STORAGES.items()}


def write_pth(path, tensors: Mapping[str, Tensor], wrapper: str = 'model') -> None:
  """Writes {wrapper: {key: tensor}} for `torch.load(path, weights_only=True)`, also with mmap=True.

  Every tensor is read once and is in memory alone. The file appears under its name only when it is complete; the same
  tensors give the same bytes.

  Raises:
    SphinxError: a dtype that torch has no storage for, or a tensor that reads otherwise than it announced.
  """
  for key, tensor in tensors.items():
    if tensor.dtype not in _NAMES:
      raise errors.make(
        f'{path}: tensor {key}',
        f'dtype {tensor.dtype}',
        f'one of {", ".join(map(str, _NAMES))}',
        'cast it first',
      )
  with (
    files.atomic_path(path) as temporary,
    open(temporary, 'wb') as file,
    zipfile.ZipFile(file, 'w') as archive,
  ):
    _write(file, archive, 'data.pkl', [_pickle(tensors, wrapper)])
    _write(file, archive, 'byteorder', [b'little'])
    for index, (key, tensor) in enumerate(tensors.items()):
      _write(file, archive, f'data/{index}', files.tensor_bytes(key, tensor))
    _write(file, archive, 'version', [b'3\n'])


def _write(file, archive: zipfile.ZipFile, name: str, pieces) -> None:
  """Adds a record whose data begin at a multiple of 64 bytes: an extra field before them is made as long as it takes."""
  info = zipfile.ZipInfo(_ROOT + name)
  start = (
    file.tell() + 30 + len(info.filename) + 20 + 4
  )  # Local header, name, zip64 field, head of our field.
  padding = -start % _ALIGN
  info.extra = struct.pack('<2sH', b'FB', padding) + b'Z' * padding
  with archive.open(info, 'w', force_zip64=True) as record:
    for piece in pieces:
      record.write(piece)


def _pickle(tensors: Mapping[str, Tensor], wrapper: str) -> bytes:
  """The pickle of {wrapper: {key: tensor}} as torch writes it, its globals by name, so that torch is not needed."""
  items = b''.join(
    _text(key) + _tensor(index, tensor) for index, (key, tensor) in enumerate(tensors.items())
  )
  inner = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
  return (
    pickle.PROTO
    + b'\x02'
    + pickle.EMPTY_DICT
    + _text(wrapper)
    + inner
    + pickle.SETITEM
    + pickle.STOP
  )


def _tensor(index: int, tensor: Tensor) -> bytes:
  strides = [math.prod(max(n, 1) for n in tensor.shape[i + 1 :]) for i in range(len(tensor.shape))]
  storage = (
    _tuple(
      _text('storage'),
      _global('torch', _NAMES[tensor.dtype]),
      _text(str(index)),
      _text('cpu'),
      _int(math.prod(tensor.shape)),
    )
    + pickle.BINPERSID
  )
  hooks = _global('collections', 'OrderedDict') + pickle.EMPTY_TUPLE + pickle.REDUCE
  arguments = _tuple(
    storage,
    _int(0),
    _tuple(*map(_int, tensor.shape)),
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
