"""Checkpoints of runs: Orbax, asynchronous, one layout, each restorable alone and onto any mesh.

A run's directory holds `checkpoints/STEP/{params,opt_state,meta}`. `params` is the whole parameter tree, trained and
frozen; `meta` is JSON with what inference and resumption need (resolved config, tokenizer, dialog, data position, and the
parents and coefficients of a mixed checkpoint). A save that was interrupted is not a checkpoint.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sphinx_jax.core import errors, trees

LAYOUT = 1  # Version of the layout on disk; raised when an older reader would misread it.
FOLDER = 'checkpoints'
_CHUNK = 64 << 20  # Bytes at most, of a layer that is packed together.

logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname or record.levelno >= logging.ERROR)

Path = str | pathlib.Path


class Store:
  """The checkpoints of one run, for saving and for going on.

  Args:
    directory: the run's directory (holding `checkpoints/`); made if absent.
    keep: number of newest checkpoints kept.
  """

  def __init__(self, directory: Path, keep: int = 2):
    self._root = pathlib.Path(directory).absolute() / FOLDER
    self._manager = ocp.CheckpointManager(
        self._root, options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True))

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, params: Mapping, opt_state: Any, meta: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint and returns once the arrays are copied from the devices.

    Args:
      step: updates done.
      params: the whole parameter tree.
      opt_state: the optimizer's state, or None where there is no run to go on with (a mixed checkpoint).
      meta: JSON-able; `layout` and `step` are added.
    """
    # A chunk a layer, as `stream` reads them: in one chunk, each layer read would unpack the whole stack.
    by_layer = ocp.SaveArgs(chunk_byte_size=_CHUNK, shard_axes=(0,))
    cuts = jax.tree.map(lambda leaf: by_layer if leaf.ndim > 2 else ocp.SaveArgs(), params)
    items = {'params': ocp.args.StandardSave(params, save_args=cuts),
             'meta': ocp.args.JsonSave({'layout': LAYOUT, 'step': step, **meta})}
    if opt_state is not None:
      items['opt_state'] = ocp.args.StandardSave(opt_state)
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def restore(self, step: int, params: Mapping, opt_state: Any) -> tuple[dict, Any, dict]:
    """Reads a checkpoint of this run back onto the given layouts.

    Args:
      step: from `latest`.
      params, opt_state: trees of ShapeDtypeStruct with sharding.

    Returns:
      (params, opt_state, meta).

    Raises:
      SphinxError: leaves that differ, another layout version.
    """
    directory = self._root / str(step)
    restored = load_params(directory, params)
    return restored, _reader().restore(directory / 'opt_state', opt_state), load_meta(directory)

  def wait(self) -> None:
    """Returns when the save under way is complete on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends the background threads."""
    self._manager.close()

  def __enter__(self) -> 'Store':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def latest(directory: Path) -> int | None:
  """The newest complete step of a run's directory, or None where there is none."""
  root = pathlib.Path(directory).absolute() / FOLDER
  steps = [int(path.name) for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
  return max(steps, default=None)


def load_meta(directory: Path) -> dict:
  """The meta of a checkpoint: `layout`, `step`, `config`, `tokenizer` (base64), `dialog`, ...

  Args:
    directory: a run's directory (its newest checkpoint is read) or one step's.

  Raises:
    SphinxError: the directory is not a checkpoint, or of another layout version.
  """
  place = locate(directory)
  try:
    meta = json.loads((place / 'meta' / 'metadata').read_text())
  except (OSError, ValueError):
    raise _not_one(place, 'a folder without readable meta') from None
  if meta.get('layout') != LAYOUT:
    raise errors.make(f"checkpoint '{place}'", f'layout version {meta.get("layout")}', f'{LAYOUT}',
                      'read it with the version of sphinx_jax that wrote it')
  return meta


def load_params(directory: Path, expected: Mapping | None = None) -> dict:
  """The parameters of a checkpoint.

  Args:
    directory: a run's directory (its newest checkpoint is read) or one step's.
    expected: tree of ShapeDtypeStruct with sharding. Leaves are compared by path and shape, and cast to its dtypes (a
      frozen parameter may be at rest in another precision than a trained one). None: everything as stored, on the first
      device.

  Returns:
    Tree of jax.Array.

  Raises:
    SphinxError: as `check`.
  """
  place = locate(directory)
  if expected is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    expected = trees.unflatten({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
                                for path, leaf in stored(place).items()})
  check(place, expected)
  return _reader().restore(place / 'params', expected)


def check(directory: Path, expected: Mapping) -> None:
  """Compares the parameters of a checkpoint with what a model expects, without reading them.

  Args:
    directory: a run's directory or one step's.
    expected: tree of ShapeDtypeStruct.

  Raises:
    SphinxError: the directory is not a checkpoint, or of another layout version; leaves that are missing, extra or of
      another shape, all named.
  """
  place = locate(directory)
  _compare(expected, stored(place), place)


def stored(place: pathlib.Path, item: str = 'params') -> dict[str, Any]:
  """Path -> shape and dtype of what is on disk in one step's folder; nothing for another item that it does not hold.

  Raises:
    SphinxError: no readable parameters, or of another layout version.
  """
  load_meta(place)
  if item != 'params' and not (place / item).is_dir():
    return {}
  found = _reader().metadata(place / item).item_metadata
  if found is None:
    raise _not_one(place, f'a folder without readable {item}')
  return trees.flatten(found.tree)


def _compare(expected: Mapping, stored: Mapping[str, Any], place: pathlib.Path) -> None:
  """Names every leaf that differs; between float dtypes it may."""
  want = trees.flatten(expected)

  def dtype(path: str, leaf: Any) -> Any:
    other = want.get(path, leaf).dtype
    both = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.issubdtype(other, jnp.floating)
    return other if both else leaf.dtype

  lines = trees.difference(expected, trees.unflatten(
      {path: jax.ShapeDtypeStruct(leaf.shape, dtype(path, leaf)) for path, leaf in stored.items()}))
  if lines:
    raise errors.make(f"checkpoint '{place}'", f'{len(lines)} differences: ' + '; '.join(lines),
                      'the parameters of the model config',
                      'use the config the checkpoint was made with')


def locate(directory: Path) -> pathlib.Path:
  """The folder of one step, from itself or from the directory of its run.

  Raises:
    SphinxError: there is none.
  """
  directory = pathlib.Path(directory).absolute()
  if (directory / 'params').is_dir():
    return directory
  if not directory.is_dir():
    raise _not_one(directory, 'nothing there')
  step = latest(directory)
  if step is None:
    raise _not_one(directory, f'a folder with {sorted(path.name for path in directory.iterdir())[:4]}')
  return directory / FOLDER / str(step)


def _not_one(directory: pathlib.Path, got: str) -> errors.SphinxError:
  return errors.make(f"checkpoint '{directory}'", got, f"a run's directory with {FOLDER}/STEP, or one STEP folder",
                     'check the path, or wait for the first save')


def _reader() -> ocp.StandardCheckpointer:
  return ocp.StandardCheckpointer()
