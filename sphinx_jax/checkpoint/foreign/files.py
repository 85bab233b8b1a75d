"""What the formats share: plain reads into prepared memory, files that appear only when whole, and errors for damage."""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

CHUNK = (
  1 << 18
)  # Bytes a read or write: stays in the processor's cache while its checksum is taken.


@contextlib.contextmanager
def damage(path) -> Iterator[None]:
  """Turns whatever a broken file makes its parser raise into one clear error that names the file."""
  try:
    yield
  except errors.SphinxError:
    raise
  except Exception as error:  # A damaged file can make a parser raise anything.
    raise errors.make(
      str(path),
      f'a damaged or incomplete file ({type(error).__name__}: {str(error)[:200]})',
      'a complete checkpoint file',
      'download or copy it again',
    ) from error


def some(names: list[str]) -> str:
  """The first few names of a list, for a message."""
  return ', '.join(str(name)[:100] for name in names[:5]) + (', ...' if len(names) > 5 else '')


def join(
  folder: pathlib.Path, opened: Iterable[tuple[pathlib.Path, dict[str, Tensor]]]
) -> dict[str, Tensor]:
  """The tensors of several opened files of one model. Raises SphinxError for a key that two of them hold."""
  joined, origin = {}, {}
  for path, tensors in opened:
    if twice := sorted(joined.keys() & tensors.keys()):
      raise errors.make(
        str(folder),
        f'{len(twice)} keys both in {origin[twice[0]]} and in {path.name}: {some(twice)}',
        'every key once',
        'remove the file that does not belong here',
      )
    joined.update(tensors)
    origin.update(dict.fromkeys(tensors, path.name))
  return joined


def fill(file, array: np.ndarray) -> None:
  """Reads the next bytes of an open file into all of `array` (one-dimensional uint8); EOFError where it ends before."""
  view = memoryview(array)
  while view:
    count = file.readinto(view[:CHUNK])
    if not count:
      raise EOFError(f'{len(view)} bytes are missing')
    view = view[count:]


def content(key: str, tensor: Tensor) -> Iterator[memoryview]:
  """Reads one tensor and yields its bytes (row-major, little-endian) in pieces; it is in memory once."""
  array = tensor.read()
  if array.shape != tensor.shape or array.dtype != tensor.dtype:
    raise errors.make(
      f'tensor {key}',
      f'{array.dtype}{list(array.shape)} when it was read',
      f'{tensor.dtype}{list(tensor.shape)} as announced',
      'mend the reader that made it',
    )
  view = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  for start in range(0, len(view), CHUNK):
    yield view[start : start + CHUNK]


@contextlib.contextmanager
def whole(path) -> Iterator[pathlib.Path]:
  """A temporary path beside `path`, renamed to it at the end of a `with` block that did not raise, removed otherwise.

  A process that is killed leaves only `NAME.partial`, which the next try overwrites.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(path.name + '.partial')
  try:
    yield temporary
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  os.replace(temporary, path)
