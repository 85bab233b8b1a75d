"""Helpers that the readers and writers of foreign files share."""

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

Path = str | os.PathLike

# Bytes per read or write call. The block stays in the CPU cache while its checksum is computed.
CHUNK = 1 << 18
DEQUANTIZE = 'take the original weights, or dequantize them with the library that quantized them'
# Files that a download may leave instead of the wanted one: (first bytes, description, advice).
_OTHER_KINDS = (
  (
    b'version https://git-lfs',
    'a git-lfs pointer, not the file itself',
    'fetch the file with `git lfs pull`',
  ),
  (b'gguf', 'a GGUF file of llama.cpp', 'take the weights that it was made from'),
  *(
    (
      begin,
      'a web page, not a file of the checkpoint',
      'the download failed: download it again (some sites ask to log in first)',
    )
    for begin in (b'<!doctype', b'<html', b'<?xml')
  ),
)


def check_kind(path: Path, expected: str) -> None:
  """Refuses a file that is a git-lfs pointer, a web page or a GGUF file.

  Args:
    path: a file.
    expected: what it should be, for the error.
  """
  with open(path, 'rb') as file:
    head = file.read(512).lstrip().lower()
  for begin, description, advice in _OTHER_KINDS:
    if head.startswith(begin):
      raise errors.make(str(path), description, expected, advice)


def read_json(path: Path) -> dict[str, Any]:
  """Returns the object of a JSON file, which may begin with a byte order mark.

  Raises:
    SphinxError: the file is no JSON object.
  """
  check_kind(path, 'a JSON object')
  try:
    value = json.loads(pathlib.Path(path).read_bytes())
  except (ValueError, RecursionError) as error:
    raise errors.make(
      f"'{path}'", f'text that is no JSON ({error})', 'a JSON object', 'copy the file again'
    ) from None
  if not isinstance(value, dict):
    raise errors.make(
      f"'{path}'", f'a JSON {type(value).__name__}', 'a JSON object', 'copy the file again'
    )
  return value


@contextlib.contextmanager
def explain_damage(path: Path) -> Iterator[None]:
  """Turns any exception of a parser into a SphinxError that names the damaged file."""
  try:
    yield
  except errors.SphinxError:
    raise
  except Exception as error:  # A parser may raise any exception on a damaged file.
    raise errors.make(
      str(path),
      f'a damaged or incomplete file ({type(error).__name__}: {str(error)[:200]})',
      'a complete checkpoint file',
      'download or copy it again',
    ) from error


def first_names(names: Sequence[str]) -> str:
  """Returns the first five names of a list as text for an error message."""
  return ', '.join(str(name)[:100] for name in names[:5]) + (', ...' if len(names) > 5 else '')


def join_tensors(
  folder: pathlib.Path, opened: Iterable[tuple[pathlib.Path, dict[str, Tensor]]]
) -> dict[str, Tensor]:
  """Merges the tensors of several files of one model.

  Args:
    folder: the folder that holds the files, for error messages.
    opened: pairs of a file and its tensors by name.

  Returns:
    Name -> tensor, in the order of the files.

  Raises:
    SphinxError: two files hold the same name.
  """
  joined: dict[str, Tensor] = {}
  origin: dict[str, str] = {}
  for path, tensors in opened:
    duplicates = sorted(joined.keys() & tensors.keys())
    if duplicates:
      raise errors.make(
        str(folder),
        f'{len(duplicates)} keys both in {origin[duplicates[0]]} and in {path.name}: '
        f'{first_names(duplicates)}',
        'every key once',
        'remove the file that does not belong here',
      )
    joined.update(tensors)
    origin.update(dict.fromkeys(tensors, path.name))
  return joined


def open_index(
  index: pathlib.Path, open_file: Callable[[pathlib.Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
  """Opens the shards that an index names, 'model.safetensors.index.json' for instance.

  Args:
    index: the file, beside its shards.
    open_file: opens one shard.

  Raises:
    SphinxError: the index is damaged, a shard is missing or lacks a key, two of them hold the same
      key, or the whole model is there as one file, too.
  """
  with explain_damage(index):
    check_kind(index, 'an index of shards')
    weight_map = json.loads(index.read_bytes())['weight_map']
    names = sorted(set(weight_map.values()))
    whole = index.name.removesuffix('.index.json')
    suffix = pathlib.PurePath(whole).suffix
    # A name with a folder in it could point anywhere on the disk.
    invalid = [
      name for name in names if pathlib.PurePath(name).name != name or not name.endswith(suffix)
    ]
  if invalid:
    raise errors.make(
      str(index),
      f'a shard named {invalid[0][:100]!r}',
      f'names of {suffix} files beside the index',
      'download the index again',
    )
  if whole not in names and (index.parent / whole).is_file():
    raise errors.make(
      str(index.parent),
      f'{whole}, and an index of other files ({index.name})',
      'one of them',
      'remove the one that is out of date',
    )
  missing = [name for name in names if not (index.parent / name).is_file()]
  if missing:
    raise errors.make(
      str(index),
      f'{len(missing)} of {len(names)} shards missing: {first_names(missing)}',
      'all of them',
      'download the missing files',
    )
  opened = {name: open_file(index.parent / name) for name in names}
  lacking = [key for key, name in weight_map.items() if key not in opened[name]]
  if lacking:
    raise errors.make(
      str(index),
      f'{len(lacking)} keys that their files lack: {first_names(lacking)}',
      'every key in the file that the index names for it',
      'download index and shards from one source',
    )
  by_path = [(index.parent / name, tensors) for name, tensors in opened.items()]
  return join_tensors(index.parent, by_path)


def read_into(file: io.BufferedIOBase, array: np.ndarray) -> None:
  """Fills `array` (uint8[n]) with the next bytes of an open file.

  Raises:
    EOFError: the file ends before the array is full.
  """
  view = memoryview(array)
  while view:
    count = file.readinto(view[:CHUNK])
    if not count:
      raise EOFError(f'{len(view)} bytes are missing')
    view = view[count:]


def read_checked(key: str, tensor: Tensor) -> np.ndarray:
  """Reads a tensor as a C-contiguous array and checks its shape and dtype.

  Raises:
    SphinxError: the array has another shape or dtype than the tensor announces.
  """
  array = tensor.read()
  if array.shape != tensor.shape or array.dtype != tensor.dtype:
    raise errors.make(
      f'tensor {key}',
      f'{array.dtype}{list(array.shape)} from its reader',
      f'the announced {tensor.dtype}{list(tensor.shape)}',
      'fix the reader that made it',
    )
  return np.asarray(array, order='C')


def tensor_bytes(key: str, tensor: Tensor) -> Iterator[memoryview]:
  """Yields the bytes of a tensor (row-major, little-endian) in pieces of `CHUNK` bytes.

  The tensor is in memory once. Raises as `read_checked`.
  """
  view = memoryview(read_checked(key, tensor).reshape(-1).view(np.uint8))
  for start in range(0, len(view), CHUNK):
    yield view[start : start + CHUNK]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path `NAME.partial` and renames it to `path` at the end of the block.

  If the block raises, the temporary file is removed. A killed process leaves `NAME.partial`
  behind, and the next call overwrites it.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + '.partial')
  try:
    yield temporary
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  os.replace(temporary, path)
