"""Configs as JSON: written beside a run and into its checkpoints, compared, and read back.

A config is a locked `ml_collections.ConfigDict` that a `get_config(arg)` in configs/ returns.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
from etils import epath

from sphinx_jax.core import errors, files, paths, renames

Path = str | os.PathLike


class Difference(NamedTuple):
  """A setting with another value in each of two configs; an absent setting has the value None."""

  key: str  # Dotted: 'optimizer.lr'.
  first: Any
  second: Any

  def __str__(self) -> str:
    return f'{self.key}: {self.first!r} there, {self.second!r} here'


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns nested dictionaries and lists, as JSON has them: tuples become lists."""
  return json.loads(to_json(config))


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns the resolved config as JSON text, keys in the config's own order."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ml_collections.ConfigDict:
  """Returns the locked config of a JSON text.

  Lists become tuples, as config files write them. Old names are replaced, and settings that were
  added later get their defaults (core/renames.py).
  """
  return ml_collections.ConfigDict(renames.upgrade_config(_tuples(json.loads(text)))).lock()


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


def differences(
  first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = ''
) -> list[Difference]:
  """Returns every setting in which two plain configs differ."""
  different = []
  for key in dict.fromkeys([*first, *second]):
    left, right = first.get(key), second.get(key)
    if isinstance(left, dict) and isinstance(right, dict):
      different += differences(left, right, f'{prefix}{key}.')
    elif left != right:
      different.append(Difference(f'{prefix}{key}', left, right))
  return different


def claim(
  workdir: Path, config: ml_collections.ConfigDict, ignore: tuple[str, ...] = ()
) -> epath.Path:
  """Writes the config into a new workdir, or checks that an existing workdir has the same config.

  Args:
    workdir: directory of the run, which may be a gs:// URL. It is created if absent.
    config: the resolved config.
    ignore: settings or sections ('mesh', 'model.remat') that may change between starts of a run.

  Returns:
    The workdir as a path.

  Raises:
    SphinxError: the directory belongs to another config (the message has the differing settings),
      it has files but no config.json, or it cannot be made or written.
  """
  workdir = epath.Path(workdir)
  file = workdir / 'config.json'
  if not file.exists() and paths.is_empty(workdir):
    paths.make_folder(workdir, 'workdir')
    files.write_atomic(file, to_json(config))
    return workdir
  if not file.exists():  # Asked again, as another process may have written it just now.
    raise errors.make(
      f"workdir '{workdir}'",
      f'a directory without config.json but with {sorted(p.name for p in workdir.iterdir())[:3]}',
      'an empty directory or an earlier run',
      'give another --workdir',
    )
  stored = renames.upgrade_config(_read(file))
  _check_same(workdir, renames.upgrade_config(to_dict(config)), stored, ignore)
  return workdir


def _read(file: epath.Path) -> dict[str, Any]:
  """Returns the config in a file.

  Raises:
    SphinxError: it is not the JSON of a config.
  """
  config = files.read_json(file)
  if not isinstance(config, dict):
    raise errors.make(f"file '{file}'", f'{config!r}', 'the JSON of a config', 'restore it')
  return config


def _check_same(
  workdir: epath.Path, config: dict[str, Any], stored: dict[str, Any], ignore: tuple[str, ...]
) -> None:
  ignored = tuple(f'{name}.' for name in ignore)
  different = [
    str(difference)
    for difference in differences(stored, config)
    if not f'{difference.key}.'.startswith(ignored)
  ]
  if different:
    shown = '; '.join(different[:5]) + ('; ...' if len(different) > 5 else '')
    raise errors.make(
      f"workdir '{workdir}'",
      f'a run of another config ({shown})',
      'the config it was started with',
      'give another --workdir, or the flags of that run',
    )
