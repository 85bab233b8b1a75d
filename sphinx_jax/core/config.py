"""Configs: locked `ml_collections.ConfigDict`s made by `configs/*.py:get_config(arg)`, and their JSON form beside a run."""

import json
import os
from typing import Any

import ml_collections
from etils import epath

from sphinx_jax.core import errors

Path = str | os.PathLike


def lock(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Locks a config and all that is in it, so that a mistyped key dies; returns it."""
  return config.lock()


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Plain nested dictionaries and lists, as JSON would give them back."""
  return json.loads(to_json(config))


def to_json(config: ml_collections.ConfigDict) -> str:
  """The resolved config as JSON text, in the config's own order of keys."""
  return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ml_collections.ConfigDict:
  """A locked config from its JSON text; JSON's lists become tuples, as configs write them."""
  return lock(ml_collections.ConfigDict(_tuples(json.loads(text))))


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


def differing(a: dict[str, Any], b: dict[str, Any], prefix: str = '') -> list[tuple[str, Any, Any]]:
  """(dotted key, value in `a`, value in `b`) of every difference between two plain configs; None where there is none."""
  found = []
  for key in dict.fromkeys([*a, *b]):
    name = f'{prefix}{key}'
    left, right = a.get(key), b.get(key)
    if isinstance(left, dict) and isinstance(right, dict):
      found += differing(left, right, name + '.')
    elif left != right:
      found.append((name, left, right))
  return found


def differing_keys(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """Dotted keys in which two plain configs differ, with both values."""
  return [_line(*each) for each in differing(a, b)]


def _line(key: str, left: Any, right: Any) -> str:
  return f'{key}: {left!r} there, {right!r} here'


def claim(
  workdir: Path, config: ml_collections.ConfigDict, ignore: tuple[str, ...] = ()
) -> epath.Path:
  """Writes the resolved config into a new workdir, or checks that the workdir belongs to this config.

  Args:
    workdir: directory of the run, which may be a gs:// URL; made if absent.
    config: the resolved config.
    ignore: settings ('mesh', 'model.remat') that may change between starts of one run, with all that is under them.

  Returns:
    The workdir as a path.

  Raises:
    SphinxError: when the directory belongs to another config; names the keys that differ.
  """
  workdir = epath.Path(workdir)
  file = workdir / 'config.json'
  mine = to_dict(config)
  if file.exists():
    theirs = json.loads(file.read_text())
    ignored = tuple(f'{name}.' for name in ignore)
    lines = [
      _line(key, *values)
      for key, *values in differing(theirs, mine)
      if not f'{key}.'.startswith(ignored)
    ]
    if lines:
      raise errors.make(
        f"workdir '{workdir}'",
        'a run of another config ('
        + '; '.join(lines[:5])
        + ('; ...' if len(lines) > 5 else '')
        + ')',
        'the config it was started with',
        'give another --workdir, or the flags of that run',
      )
    return workdir
  # A temporary file is what a start that was killed while claiming leaves behind.
  others = [p.name for p in workdir.iterdir() if p.suffix != '.tmp'] if workdir.is_dir() else []
  if others:
    raise errors.make(
      f"workdir '{workdir}'",
      f'a directory without config.json but with {sorted(others)[:3]}',
      'an empty directory or an earlier run',
      'give another --workdir',
    )
  workdir.mkdir(parents=True, exist_ok=True)
  write_whole(file, to_json(config))
  return workdir


def write_whole(file: epath.Path, text: str) -> None:
  """Writes a small file so that it is there whole or not at all."""
  if is_remote(file):
    file.write_text(text)  # An object appears when it is complete.
    return
  temporary = file.with_suffix('.tmp')
  temporary.write_text(text)
  temporary.replace(file)


def is_remote(path: Path) -> bool:
  """Whether a path is that of a bucket: no appending there, and a rename copies."""
  return '://' in os.fspath(path)
