"""Where checkpoints lie, for tensorstore: local folders and gs:// URLs."""

import os
from typing import Any

from sphinx_jax.core import config as config_lib, errors


def kvstore(directory: str | os.PathLike) -> dict[str, Any]:
  """tensorstore's key-value store of a directory.

  Raises:
    SphinxError: a URL of another scheme.
  """
  text = os.fspath(directory).rstrip('/')
  if not config_lib.is_remote(text):
    return {'driver': 'file', 'path': f'{text}/'}
  scheme, _, rest = text.partition('://')
  if scheme != 'gs':
    raise errors.unknown('scheme of a URL', scheme, ['gs'])
  bucket, _, name = rest.partition('/')
  return {'driver': 'gcs', 'bucket': bucket, 'path': f'{name}/'}
