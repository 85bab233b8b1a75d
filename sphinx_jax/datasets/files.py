"""Reading the files that datasets come in, with errors that name source and file."""

import contextlib
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors


def find(name: str, root: Path, *choices: str) -> Path:
  """The first of some paths under `root` that is there. Raises SphinxError naming all of them."""
  for choice in choices:
    if (root / choice).exists():
      return root / choice
  raise errors.make(
    f"source '{name}'",
    f'none of {", ".join(choices)} in {str(root)!r}',
    'the official files',
    'check root; the expected tree is in the docstring of the source',
  )


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
  """Making millions of objects takes half the time when Python does not look for cycles among them again and again."""
  collects = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if collects:
      gc.enable()


def read_json(
  name: str, path: Path, kind: type = object, hook: Callable[[dict], Any] | None = None
) -> Any:
  """The value of a JSON file; `hook` turns each object into what is kept of it, before the next is read.

  Raises SphinxError when it is missing, empty, no JSON, or not of this kind (list, dict).
  """
  try:
    with without_collection():
      value = json.loads(path.read_bytes(), object_hook=hook)
  except OSError as error:
    raise errors.make(
      f"source '{name}'", f'{error.strerror} for {str(path)!r}', 'a readable file', 'check root'
    ) from error
  except (ValueError, RecursionError) as error:
    raise errors.make(
      f"source '{name}'",
      f'{str(path)!r}, which is no JSON ({error})',
      'the official file',
      'download it again',
    ) from error
  if not isinstance(value, kind):
    raise errors.make(
      f"source '{name}'",
      f'a {type(value).__name__} in {str(path)!r}',
      f'a {kind.__name__}',
      'check that it is the official file',
    )
  return value


def listed(name: str, path: Path, key: str, hook: Callable[[dict], Any] | None = None) -> list:
  """The list under `key` of a JSON file. Raises SphinxError as read_json does, or when there is none."""
  records = read_json(name, path, dict, hook).get(key)
  if not isinstance(records, list):
    raise errors.make(
      f"source '{name}'",
      f"no list '{key}' in {str(path)!r}",
      'the official file',
      'download it again',
    )
  return records


def folder(root: Path, images: str, *usual: str) -> Path:
  """Where pictures are: in the setting `images` (relative to root) if it is given, else in the first of the usual folders
  that is there, else in the first of them, and are counted as missing one by one."""
  if images:
    return root / images
  return next((root / place for place in usual if (root / place).is_dir()), root / usual[0])


def coco_folder(root: Path, images: str, name: str) -> Path:
  """COCO's folder `name` of pictures: in root, root/images, root/coco or root/../coco, or in root/{images}."""
  return folder(
    root,
    images and f'{images}/{name}',
    *(f'{place}{name}' for place in ('', 'images/', 'coco/', '../coco/')),
  )
