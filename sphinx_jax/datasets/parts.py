"""Datasets of many alike files (tars, parquet, text): which of them are read, and each as a part of a build."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors


def listed(name: str, root: Path, files: str | Sequence[str], pattern: str) -> list[Path]:
  """The files of a dataset, in the order of their names.

  Args:
    name: of the source, for messages.
    root: folder, or the only file.
    files: a pattern such as '0000*.tar' or '**/*.tar', or a list of patterns and names, relative to root; '': all.
    pattern: of all files of the dataset.

  Raises:
    SphinxError: a pattern that no file has.
  """
  if root.is_file():
    return [root]
  found: set[Path] = set()
  for wanted in [files or pattern] if isinstance(files, str) else files:
    try:
      matching = [path for path in [*root.glob(wanted), root / wanted] if path.is_file()]
    except (NotImplementedError, OSError, TypeError, ValueError) as error:
      raise errors.make(
        f"source '{name}'",
        f'files {wanted!r} ({error})',
        'patterns relative to root',
        'correct files',
      ) from error
    if not matching:
      raise errors.make(
        f"source '{name}'",
        f'no file {wanted!r} in {str(root)!r}',
        'the files of the dataset',
        'check root and files',
      )
    found.update(matching)
  return sorted(found)


def each(name: str, root: Path, settings: Mapping[str, Any], pattern: str) -> list[dict]:
  """The settings that open one file each, for a build in which every file is a shard."""
  return [
    {**settings, 'files': [path.relative_to(root).as_posix()] if path != root else ''}
    for path in listed(name, root, settings.get('files', ''), pattern)
  ]
