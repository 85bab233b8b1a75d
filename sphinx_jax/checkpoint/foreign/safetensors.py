"""Files of the safetensors format, alone or as a folder of shards with an index, read and written tensor by tensor."""

import contextlib
import json
import math
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.foreign import files
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

INDEX = 'model.safetensors.index.json'
_DTYPES = {
  name: np.dtype(dtype)
  for name, dtype in {
    'F64': np.float64,
    'F32': np.float32,
    'F16': np.float16,
    'BF16': ml_dtypes.bfloat16,
    'I64': np.int64,
    'I32': np.int32,
    'I16': np.int16,
    'I8': np.int8,
    'U8': np.uint8,
    'BOOL': np.bool_,
  }.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # Bytes, as in the safetensors library.


def open_safetensors(path) -> dict[str, Tensor]:
  """Opens one file, or all that belong together in a folder; no tensor is read yet.

  In a folder with model.safetensors.index.json only the files it names are opened. Reading holds the tensor once. The
  format has no checksum: headers are checked, damage within the numbers cannot be noticed.

  Raises:
    SphinxError: no such file, a damaged header, a missing shard, a key that the index promises and its file lacks, a
      key that two files hold, or a dtype that numpy lacks.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _open_folder(path)
  if not path.is_file():
    raise errors.make(
      str(path), 'no such file', 'a .safetensors file or a folder of them', 'check the path'
    )
  with files.damage(path):
    return _open_file(path)


def write_safetensors(folder, tensors: Mapping[str, Tensor], shard_bytes: float = 5e9) -> None:
  """Writes model.safetensors, or model-00001-of-0000N.safetensors with an index where one file would pass `shard_bytes`.

  Every tensor is read once and is in memory alone. The files get their names only when all are complete, the index last.

  Raises:
    SphinxError: the folder holds safetensors already, a dtype that the format lacks, or a tensor that reads otherwise
      than it announced.
  """
  folder = pathlib.Path(folder)
  if found := sorted(
    file.name for file in folder.glob('*.safetensors*') if file.suffix != '.partial'
  ):
    raise errors.make(
      str(folder),
      f'a folder with {found[0]}',
      'a folder without safetensors',
      'choose another folder, or empty this one: old and new shards would mix',
    )
  for key, tensor in tensors.items():
    if tensor.dtype not in _NAMES:
      raise errors.make(
        f'{folder}: tensor {key}',
        f'dtype {tensor.dtype}',
        f'one of {", ".join(map(str, _NAMES))}',
        'cast it first',
      )
  shards = _shards(tensors, shard_bytes)
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:  # Leaves, and so renames, in the reverse order.
    if len(shards) > 1:
      index = {
        'metadata': {'total_size': sum(tensor.nbytes for tensor in tensors.values())},
        'weight_map': {key: name for name, keys in shards.items() for key in keys},
      }
      stack.enter_context(files.whole(folder / INDEX)).write_text(
        json.dumps(index, indent=2, sort_keys=True) + '\n'
      )
    for name, keys in shards.items():
      _write_file(
        stack.enter_context(files.whole(folder / name)), {key: tensors[key] for key in keys}
      )


def _open_folder(folder: pathlib.Path) -> dict[str, Tensor]:
  index = folder / INDEX
  if index.is_file():
    with files.damage(index):
      return _open_index(index)
  paths = sorted(folder.glob('*.safetensors'))
  if not paths or any('-of-' in path.name for path in paths):
    raise errors.make(
      str(folder),
      f'{len(paths)} .safetensors files and no {INDEX}',
      'model.safetensors, or shards with their index',
      'download the whole folder',
    )
  opened = [(path, open_safetensors(path)) for path in paths]
  return files.join(folder, opened)


def _open_index(index: pathlib.Path) -> dict[str, Tensor]:
  promised = _json(index.read_bytes())['weight_map']
  names = sorted(set(promised.values()))
  if strange := [
    name
    for name in names
    if pathlib.PurePath(name).name != name or not name.endswith('.safetensors')
  ]:
    raise errors.make(
      str(index),
      f'a shard named {strange[0][:100]!r}',
      'names of .safetensors files beside the index',
      'download the index again',
    )
  if missing := [name for name in names if not (index.parent / name).is_file()]:
    raise errors.make(
      str(index),
      f'{len(missing)} of {len(names)} shards missing: {files.some(missing)}',
      'all of them',
      'download the missing files',
    )
  opened = [(index.parent / name, open_safetensors(index.parent / name)) for name in names]
  held = {path.name: tensors for path, tensors in opened}
  if lacking := [key for key, name in promised.items() if key not in held[name]]:
    raise errors.make(
      str(index),
      f'{len(lacking)} keys that their files lack: {files.some(lacking)}',
      'every key in the file that the index names for it',
      'download index and shards from one source',
    )
  return files.join(index.parent, opened)


def _open_file(path: pathlib.Path) -> dict[str, Tensor]:
  with open(path, 'rb') as file:
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), 'little')
    if size < 8 or length > min(size - 8, _HEADER_LIMIT):
      raise ValueError(f'a header of {length} bytes in a file of {size}')
    header = _json(file.read(length))
  header.pop('__metadata__', None)
  start, end = 8 + length, 0
  for key, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
    shape, (begin, stop) = entry['shape'], entry['data_offsets']
    if entry['dtype'] not in _DTYPES:
      raise errors.make(
        f'{path}: tensor {key}',
        f'dtype {entry["dtype"]}',
        f'one of {", ".join(_DTYPES)}',
        'convert it with the library that wrote it',
      )
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)):
      raise ValueError(f'tensor {key} has shape {shape} and offsets {begin}, {stop}')
    if begin != end or stop - begin != math.prod(shape) * _DTYPES[entry['dtype']].itemsize:
      raise ValueError(
        f'tensor {key} of shape {shape} overlaps its neighbour, leaves a hole or does not fill its place'
      )
    end = stop
  if start + end != size:
    raise ValueError(f'{start + end} bytes announced, {size} in the file')
  return {key: _tensor(path, entry, start) for key, entry in header.items()}


def _tensor(path: pathlib.Path, entry: dict, start: int) -> Tensor:
  shape, dtype, (begin, stop) = (
    tuple(entry['shape']),
    _DTYPES[entry['dtype']],
    entry['data_offsets'],
  )

  def read() -> np.ndarray:
    with files.damage(path), open(path, 'rb', buffering=0) as file:
      data = np.empty(stop - begin, np.uint8)
      file.seek(start + begin)
      files.fill(file, data)
      return data.view(dtype).reshape(shape)

  return Tensor(shape, dtype, read)


def _shards(tensors: Mapping[str, Tensor], shard_bytes: float) -> dict[str, list[str]]:
  """Keys by file name: in order, a new file where the next tensor would pass `shard_bytes`."""
  parts, filled = [[]], 0
  for key, tensor in tensors.items():
    if parts[-1] and filled + tensor.nbytes > shard_bytes:
      parts.append([])
      filled = 0
    parts[-1].append(key)
    filled += tensor.nbytes
  if len(parts) == 1:
    return {'model.safetensors': parts[0]}
  return {
    f'model-{i + 1:05d}-of-{len(parts):05d}.safetensors': keys for i, keys in enumerate(parts)
  }


def _write_file(path: pathlib.Path, tensors: dict[str, Tensor]) -> None:
  header, end = {'__metadata__': {'format': 'pt'}}, 0
  ordered = sorted(
    tensors.items(), key=lambda item: -item[1].dtype.itemsize
  )  # Wide dtypes first, so that all are aligned.
  for key, tensor in ordered:
    header[key] = {
      'dtype': _NAMES[tensor.dtype],
      'shape': tensor.shape,
      'data_offsets': [end, end + tensor.nbytes],
    }
    end += tensor.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    for key, tensor in ordered:
      file.writelines(
        files.content(key, tensor)
      )  # In a loop the last piece would keep its tensor while the next is read.


def _json(data: bytes) -> dict:
  """A JSON object; a key that stands twice is an error."""

  def pairs(items):
    found = dict(items)
    if len(found) != len(items):
      raise ValueError('a key stands twice')
    return found

  value = json.loads(data, object_pairs_hook=pairs)
  if not isinstance(value, dict):
    raise ValueError(f'a JSON object was expected, not {type(value).__name__}')
  return value
