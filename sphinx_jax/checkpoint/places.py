"""Where checkpoints lie: local folders and gs:// URLs, for etils.epath and for tensorstore."""

import os
from typing import Any

from etils import epath

from sphinx_jax.core import errors

_SCHEME = '://'


def path(directory: str | os.PathLike) -> epath.Path:
  """A directory as a path, absolute where it is local."""
  found = epath.Path(directory)
  return found if is_remote(found) else found.expanduser().absolute()


def is_remote(directory: str | os.PathLike) -> bool:
  """Whether it is a URL: a place of objects, where folders are only names and cannot be renamed."""
  return _SCHEME in os.fspath(directory)


def kvstore(directory: str | os.PathLike) -> dict[str, Any]:
  """tensorstore's key-value store of a directory.

  Raises:
    SphinxError: a URL of another scheme.
  """
  scheme, url, rest = os.fspath(directory).rstrip('/').partition(_SCHEME)
  if not url:
    return {'driver': 'file', 'path': f'{scheme}/'}
  if scheme != 'gs':
    raise errors.unknown('scheme of a URL', scheme, ['gs'])
  bucket, _, name = rest.partition('/')
  return {'driver': 'gcs', 'bucket': bucket, 'path': f'{name}/'}
