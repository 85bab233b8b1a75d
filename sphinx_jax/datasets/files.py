"""Access to the files of datasets, with errors that name the reader and the file.

`who` is the reader as messages show it: "source 'coco'" or "benchmark 'mmbench_dev'".
"""

import contextlib
import contextvars
import functools
import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from sphinx_jax.core import errors, files
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample, Unread

# More files than these are identified by names and sizes alone.
_HASHED_FILES = 64
# `read_image` or `leave_image`.
ImageOf = Callable[[str, Path | bytes | Unread], bytes | Path | Unread]
_opened: contextvars.ContextVar[list[Path] | None] = contextvars.ContextVar('opened', default=None)


@contextlib.contextmanager
def opened_files() -> Iterator[dict[str, str]]:
  """Yields a dict that gets, at the end of the block, the files that readers opened in it.

  Its keys are paths, its values size and hash (`core.files.quick_hash`). Of very many files it has
  one entry with a hash of their sizes. Images are not recorded.
  """
  token = _opened.set([])
  result: dict[str, str] = {}
  try:
    yield result
    paths = sorted({path for path in _opened.get() if path.is_file()})
    if len(paths) <= _HASHED_FILES:
      result |= {str(path): files.quick_hash(path) for path in paths}
    else:
      sizes = '\n'.join(f'{path} {path.stat().st_size}' for path in paths)
      digest = xxhash.xxh3_64_hexdigest(sizes.encode(errors='surrogateescape'))
      result[f'{len(paths)} files from {paths[0]} on'] = digest
  finally:
    _opened.reset(token)


def record_opened(*paths: Path) -> None:
  """Adds files to those that `opened_files` yields, if it is active."""
  opened = _opened.get()
  if opened is not None:
    opened.extend(paths)


def changed_files(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """Describes the differences between two results of `opened_files`; nothing if one is empty."""
  if not before or not now:
    return []
  return [
    f"'{path}' ({before.get(path, 'absent')} then, {now.get(path, 'absent')} now)"
    for path in dict.fromkeys([*before, *now])
    if before.get(path) != now.get(path)
  ]


def find(who: str, root: Path, *choices: str) -> Path:
  """Returns the first of some paths under `root` that exists, as it is or with the ending '.gz'.

  Raises:
    SphinxError: none exists; the message lists all of them.
  """
  for choice in choices:
    for name in (choice, f'{choice}.gz'):
      if (root / name).exists():
        record_opened(root / name)
        return root / name
  raise errors.make(
    who,
    f'none of {", ".join(choices)} in {str(root)!r}',
    'the published files',
    "check root; the expected tree is in the reader's docstring",
  )


def list_files(who: str, root: Path, files: str | Sequence[str], pattern: str) -> list[Path]:
  """Returns the files of a dataset that consists of many files of one kind, sorted by path.

  Args:
    who: the reader, for messages.
    root: a directory, or the only file.
    files: a glob pattern ('0000*.tar', '**/*.tar'), or a list of patterns and names, relative to
      root. '' selects all files.
    pattern: the glob pattern of all files of the dataset.

  Raises:
    SphinxError: a pattern is malformed or matches no file.
  """
  if root.is_file():
    record_opened(root)
    return [root]
  selected: set[Path] = set()
  for wanted in [files or pattern] if isinstance(files, str) else files:
    try:
      matching = [path for path in [*root.glob(wanted), root / wanted] if path.is_file()]
    except (NotImplementedError, OSError, TypeError, ValueError) as error:
      raise errors.make(
        who, f'files {wanted!r} ({error})', 'patterns relative to root', 'correct files'
      ) from error
    if not matching:
      raise errors.make(
        who,
        f'no file {wanted!r} in {str(root)!r}',
        'the files of the dataset',
        'check root and files',
      )
    selected.update(matching)
  record_opened(*selected)
  return sorted(selected)


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
  """Switches off the cyclic garbage collector.

  Creating millions of objects takes half the time without it.
  """
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


def read_json(
  who: str, path: Path, kind: type = object, hook: Callable[[dict], Any] | None = None
) -> Any:
  """Returns the value of a JSON file.

  Args:
    who: the reader, for messages.
    path: the file.
    kind: the expected type (list, dict).
    hook: replaces every JSON object by a smaller value as soon as it is parsed.

  Raises:
    SphinxError: the file is missing, empty, not JSON, or holds another type.
  """
  try:
    data = files.read_bytes(path)
  except OSError as error:
    raise errors.make(
      who, f'{error.strerror or error} for {str(path)!r}', 'a readable file', 'check root'
    ) from error
  try:
    with gc_paused():
      value = json.loads(data, object_hook=hook)
  except (ValueError, RecursionError) as error:
    raise errors.make(
      who,
      f'{str(path)!r}, which is {files.not_json(data, error)}',
      'the published file',
      'download it again',
    ) from error
  if not isinstance(value, kind):
    raise errors.make(
      who,
      f'a {type(value).__name__} in {str(path)!r}',
      f'a {kind.__name__}',
      'check that it is the published file',
    )
  return value


def read_json_list(
  who: str, path: Path, key: str, hook: Callable[[dict], Any] | None = None
) -> list[Any]:
  """Returns the list under `key` in a JSON file. Raises SphinxError like `read_json`."""
  records = read_json(who, path, dict, hook).get(key)
  if not isinstance(records, list):
    raise errors.make(
      who, f"no list '{key}' in {str(path)!r}", 'the published file', 'download it again'
    )
  return records


def read_image(name: str, image: Path | bytes) -> bytes:
  """Returns the encoded image of an item or a question.

  Args:
    name: id of the item, for messages.
    image: the file, or its bytes.

  Raises:
    BadExample: 'missing image', 'empty image'.
  """
  try:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
  except (OSError, ValueError) as error:
    raise BadExample('missing image', f'{name}: {error}') from error
  if not data:
    file = image if isinstance(image, Path) else 'the image'
    raise BadExample('empty image', f'{name}: {file} has 0 bytes')
  return data


def leave_image(name: str, image: Path | bytes | Unread) -> bytes | Unread:
  """Returns an encoded image, or how to read a file, which is only looked for.

  Args:
    name: id of the item, for messages.
    image: the file, its bytes, or how to read it.

  Raises:
    BadExample: as `read_image`.
  """
  if isinstance(image, Unread):
    return image
  if isinstance(image, bytes):
    return read_image(name, image)
  try:
    is_empty = image.stat().st_size == 0
  except (OSError, ValueError) as error:
    raise BadExample('missing image', f'{name}: {error}') from error
  if is_empty:
    raise BadExample('empty image', f'{name}: {image} has 0 bytes')
  return Unread(functools.partial(read_image, name, image), functools.partial(_size, name, image))


def _size(name: str, image: Path) -> tuple[int, int]:
  try:
    return images.head_size(image)
  except OSError as error:
    raise BadExample('missing image', f'{name}: {error}') from error


def image_folder(root: Path, images: str, *usual: str) -> Path:
  """Returns the directory of the images.

  Args:
    root: root of the dataset.
    images: the setting of this name, relative to root; '' if it is not set.
    usual: directories in use, relative to root. The first that exists is taken. If none exists, the
      first is taken, so that every image is counted as missing.
  """
  if images:
    return root / images
  for name in usual:
    if (root / name).is_dir():
      return root / name
  return root / usual[0]


def coco_image_folder(root: Path, images: str, name: str) -> Path:
  """Returns COCO's image directory `name`, for a dataset that uses COCO's images.

  It is in root, root/images, root/coco or root/../coco; or in root/{images}.
  """
  parents = ('', 'images/', 'coco/', '../coco/')
  return image_folder(root, images and f'{images}/{name}', *(parent + name for parent in parents))
