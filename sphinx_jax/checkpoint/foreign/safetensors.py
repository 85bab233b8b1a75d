"""Reads and writes safetensors: one file, or a folder of shards with an index.

The `safetensors` library parses and writes single files. This module adds the index of sharded
models (model.safetensors.index.json, as Hugging Face writes it).
"""

import contextlib
import functools
import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sphinx_jax.checkpoint.foreign import files
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

WHOLE = 'model.safetensors'
INDEX = f'{WHOLE}.index.json'
# The library writes whole files, so one shard is in memory while it is written. A conversion shall
# stay within 2 GiB plus twice the largest tensor: 2.5 GiB for Idefics2, whose export took 2.6 GiB
# with 1 GB (benchmarks/full_size.py).
SHARD_BYTES = 8e8
_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype(np.int64),
  'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}


def open_safetensors(path: files.Path) -> dict[str, Tensor]:
  """Opens one file, or all files of a model in a folder, without reading a tensor.

  In a folder only the files that model.safetensors.index.json names are opened, or
  model.safetensors, or all if there is neither.
  The library checks the header. The format has no checksum, so damaged numbers go unnoticed.

  Args:
    path: a .safetensors file or a folder.

  Returns:
    Name -> tensor.

  Raises:
    SphinxError: there is no such file, the header is damaged, a shard is missing, a file lacks a
      key of the index, two files hold the same key, or numpy lacks a dtype.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _open_folder(path)
  if not path.is_file():
    raise errors.make(
      str(path), 'no such file', 'a .safetensors file or a folder of them', 'check the path'
    )
  with files.explain_damage(path):
    files.check_kind(path, 'a .safetensors file')
    return _open_file(path)


def write_safetensors(
  folder: files.Path, tensors: Mapping[str, Tensor], shard_bytes: float = SHARD_BYTES
) -> None:
  """Writes tensors as model.safetensors, or as several shards with an index.

  Tensors are read in order, each once, and the tensors of one shard are in memory together. The
  files get their final names only when all of them are complete; the index is renamed last.

  Args:
    folder: the output folder; made if absent.
    tensors: name -> tensor.
    shard_bytes: a new shard begins with the tensor that would exceed this size.

  Raises:
    SphinxError: the folder holds safetensors already, the format lacks a dtype, a tensor differs
      from what it announces, or the disk is full.
  """
  folder = pathlib.Path(folder)
  existing = sorted(
    file.name for file in folder.glob('*.safetensors*') if file.suffix != '.partial'
  )
  if existing:
    raise errors.make(
      str(folder),
      f'a folder with {existing[0]}',
      'a folder without safetensors',
      'choose another folder, or empty this one: old and new shards would mix',
    )
  for key, tensor in tensors.items():
    if tensor.dtype not in _DTYPES.values():
      raise errors.make(
        f'{folder}: tensor {key}',
        f'dtype {tensor.dtype}',
        f'one of {", ".join(map(str, _DTYPES.values()))}',
        'cast it first',
      )
  shards = _assign_shards(tensors, shard_bytes)
  folder.mkdir(parents=True, exist_ok=True)
  # The stack renames the files in reverse order, so the index appears last.
  with contextlib.ExitStack() as stack:
    if len(shards) > 1:
      index = {
        'metadata': {'total_size': sum(tensor.nbytes for tensor in tensors.values())},
        'weight_map': {key: name for name, keys in shards.items() for key in keys},
      }
      temporary = stack.enter_context(files.atomic_path(folder / INDEX))
      temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')
    for name, keys in shards.items():
      temporary = stack.enter_context(files.atomic_path(folder / name))
      write_file(temporary, {key: tensors[key] for key in keys})


def _open_folder(folder: pathlib.Path) -> dict[str, Tensor]:
  index = folder / INDEX
  if index.is_file():
    return files.open_index(index, open_safetensors)
  paths = sorted(folder.glob('[!.]*.safetensors'))
  # transformers reads only this one. Mistral's releases have the weights twice.
  paths = [path for path in paths if path.name == WHOLE] or paths
  if not paths or any('-of-' in path.name for path in paths):
    raise errors.make(
      str(folder),
      f'{len(paths)} .safetensors files and no {INDEX}',
      'model.safetensors, or shards with their index',
      'download the whole folder',
    )
  opened = [(path, open_safetensors(path)) for path in paths]
  return files.join_tensors(folder, opened)


def _open_file(path: pathlib.Path) -> dict[str, Tensor]:
  # pread, not mmap: reading a mapped file that was cut short would kill the process (SIGBUS).
  file = safe_open(path, framework='numpy', backend='pread')
  tensors = {}
  for key in file.offset_keys():
    header = file.get_slice(key)
    name = header.get_dtype()
    if name not in _DTYPES:
      raise errors.make(
        f'{path}: tensor {key}',
        f'dtype {name}',
        f'one of {", ".join(_DTYPES)}',
        'if it is quantized, ' + files.DEQUANTIZE,
      )
    read = functools.partial(_read_tensor, path, file, key)
    read_rows = functools.partial(_read_rows, path, file, key)
    tensors[key] = Tensor(tuple(header.get_shape()), _DTYPES[name], read, read_rows)
  return tensors


def _read_tensor(path: pathlib.Path, file: safe_open, key: str) -> np.ndarray:
  with files.explain_damage(path):
    return file.get_tensor(key)


def _read_rows(path: pathlib.Path, file: safe_open, key: str, rows: slice) -> np.ndarray:
  with files.explain_damage(path):
    return file.get_slice(key)[rows]


def _assign_shards(tensors: Mapping[str, Tensor], shard_bytes: float) -> dict[str, list[str]]:
  """Returns file name -> keys, in order; no shard exceeds `shard_bytes` unless one tensor does."""
  shards: list[list[str]] = [[]]
  filled = 0
  for key, tensor in tensors.items():
    if shards[-1] and filled + tensor.nbytes > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(key)
    filled += tensor.nbytes
  if len(shards) == 1:
    return {WHOLE: shards[0]}
  count = len(shards)
  return {
    f'model-{number:05d}-of-{count:05d}.safetensors': keys for number, keys in enumerate(shards, 1)
  }


def write_file(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
  """Writes one file, whose tensors are all read first.

  Raises:
    SphinxError: a tensor differs from what it announces, or the disk is full.
  """
  arrays = {key: files.read_checked(key, tensor) for key, tensor in tensors.items()}
  try:
    path.touch()
    mode = path.stat().st_mode  # By the umask. The library makes its files private.
    save_file(arrays, path, metadata={'format': 'pt'})  # transformers refuses files without it.
    path.chmod(mode)
  except SafetensorError as error:
    raise errors.write_failed(path.parent, error) from error
