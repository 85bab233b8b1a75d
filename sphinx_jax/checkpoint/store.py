"""Checkpoints of runs: Orbax, asynchronous, one layout, each restorable alone and onto any mesh.

A run's directory holds `checkpoints/STEP/{params,opt_state,meta}`. `params` is the whole parameter tree, trained and
frozen; `meta` is JSON with what inference and resumption need (resolved config, tokenizer, dialog, data position, and the
parents and coefficients of a mixed checkpoint). A save that was interrupted is not a checkpoint. Nothing here deletes one
that is damaged: it is moved aside, as `STEP.damaged`.
"""

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sphinx_jax.checkpoint import fingerprint
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.core.progress import log
from sphinx_jax.parallel import hosts

LAYOUT = 1  # Version of the layout on disk; raised when an older reader would misread it.
FOLDER = 'checkpoints'
DAMAGED = '.damaged'
_PASSING = (
  'RESOURCE_EXHAUSTED',
  'UNAVAILABLE',
  'DEADLINE_EXCEEDED',
)  # Of the network or the memory, not of the bytes.
_CHUNK = 64 << 20  # Bytes at most, of a layer that is packed together.

logging.getLogger('absl').addFilter(
  lambda record: 'orbax' not in record.pathname or record.levelno >= logging.ERROR
)

Path = str | os.PathLike


class Damaged(errors.SphinxError):
  """A checkpoint that is not what was saved."""


class Store:
  """The checkpoints of one run, for saving and for going on. Every process of the run has one.

  Args:
    directory: the run's directory (holding `checkpoints/`); made if absent.
    keep: number of newest checkpoints kept.
    keep_every: checkpoints of every step that this divides are kept too; 0: of none.
  """

  def __init__(self, directory: Path, keep: int = 2, keep_every: int = 0):
    self._root = whole_path(directory) / FOLDER
    policies = [preservation_policy.LatestN(keep)]
    if keep_every:
      policies.append(preservation_policy.EveryNSteps(keep_every))
    with self._writing():
      self._manager = ocp.CheckpointManager(
        self._root,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
          cleanup_tmp_directories=True,
        ),
      )

  def latest(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, params: Mapping, opt_state: Any, meta: Mapping[str, Any]) -> None:
    """Starts writing a checkpoint and returns once the arrays are copied from the devices.

    Args:
      step: updates done.
      params: the whole parameter tree.
      opt_state: the optimizer's state, or None where there is no run to go on with (a mixed checkpoint).
      meta: JSON-able; `layout`, `step` and `fingerprints` are added.

    Raises:
      SphinxError: this save, or the one before it, could not be written: a full disk. Earlier ones are as they were.
    """
    # A chunk a layer, as `stream` reads them: in one chunk, each layer read would unpack the whole stack.
    by_layer = ocp.SaveArgs(chunk_byte_size=_CHUNK, shard_axes=(0,))
    by_rows = ocp.SaveArgs(
      chunk_byte_size=_CHUNK
    )  # A table that were one chunk would be unpacked whole for each of its parts.
    cuts = jax.tree.map(lambda leaf: by_layer if leaf.ndim > 2 else by_rows, params)
    meta = {
      'layout': LAYOUT,
      'step': step,
      **meta,
      'fingerprints': fingerprint.of(_together(params, opt_state)),
    }
    items = {
      'params': ocp.args.StandardSave(params, save_args=cuts),
      'meta': ocp.args.JsonSave(fingerprint.seal(meta)),
    }
    if opt_state is not None:
      items['opt_state'] = ocp.args.StandardSave(opt_state)
    with self._writing():
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def newest(self, params: Mapping, opt_state: Any) -> tuple[dict, Any, dict] | None:
    """The newest checkpoint that is whole, as `restore` gives it; None where the run has none yet.

    Newer ones that are damaged are named in the log and, once a whole one is found, moved aside: a run that goes on from
    an earlier step saves their steps again.

    Raises:
      SphinxError: all are damaged; what `restore` says of a checkpoint that is not.
    """
    found, aside = hosts.broadcast([sorted(self._manager.all_steps(), reverse=True), self._aside()])
    damaged = []
    for step in found:
      try:
        restored = self.restore(step, params, opt_state)
      except Damaged as error:
        log.warning('%s', error)
        damaged.append(step)
        continue
      if damaged:
        hosts.on_process_0(lambda: [self._set_aside(step) for step in damaged])
        self._manager.reload()
      return restored
    if found or aside:
      raise errors.make(
        f"checkpoints in '{self._root}'",
        f'{len(found) + len(aside)}, all of them damaged',
        'one that is whole',
        'nothing was deleted: restore them from a copy, or start anew in another --workdir',
      )
    return None

  def _aside(self) -> list[str]:
    return (
      sorted(path.name for path in self._root.iterdir() if DAMAGED in path.name)
      if self._root.is_dir()
      else []
    )

  def _set_aside(self, step: int) -> None:
    taken = self._aside()
    names = (f'{step}{DAMAGED}{number or ""}' for number in itertools.count())
    name = next(name for name in names if name not in taken)
    _move(self._root / str(step), self._root / name)
    log.warning("the damaged checkpoint of step %d is kept as '%s'", step, self._root / name)

  def restore(self, step: int, params: Mapping, opt_state: Any) -> tuple[dict, Any, dict]:
    """Reads a checkpoint of this run back onto the given layouts, on all processes or on none.

    Args:
      step: of a checkpoint.
      params, opt_state: trees of ShapeDtypeStruct with sharding.

    Returns:
      (params, opt_state, meta).

    Raises:
      Damaged: it is not what was saved.
      SphinxError: it is, but of other leaves or another layout version.
    """
    place, expected = self._root / str(step), _together(params, opt_state)
    restored, meta, trouble = None, {}, ''
    try:
      meta = _read_meta(place)
      if 'fingerprints' not in meta:
        raise _damaged(place, 'meta without fingerprints')
      self._check(place, meta['fingerprints'], expected)
      restored = {item: _read(place / item, tree) for item, tree in expected.items()}
    except Damaged as error:
      trouble = str(error)
    except (errors.SphinxError, MemoryError, PermissionError, ConnectionError, TimeoutError):
      raise
    except Exception as error:  # Whatever Orbax and its layers make of bytes that are not theirs.
      if any(word in str(error) for word in _PASSING):
        raise
      trouble = str(
        _damaged(
          place, f'{type(error).__name__} {str(error).splitlines()[0] if str(error) else ""}'[:200]
        )
      )
    troubles = [trouble for trouble in hosts.all_gather(trouble) if trouble]
    if troubles:
      raise Damaged(troubles[0])
    found = fingerprint.of(restored)
    other = [path for path, number in meta['fingerprints'].items() if found[path] != number]
    if other:
      raise _damaged(place, f'other bits in {len(other)} arrays: {", ".join(other[:3])}')
    return restored['params'], restored.get('opt_state'), meta

  def _check(self, place: epath.Path, prints: Mapping[str, str], expected: Mapping) -> None:
    """What was saved, by the sealed meta, against what is wanted: a difference is no damage."""
    want, have = (
      fingerprint.shapes(expected),
      {path: text.rpartition(' ')[0] for path, text in prints.items()},
    )
    lines = [
      f'{path}: {have.get(path, "nothing")}, expected {want.get(path, "nothing")}'
      for path in dict.fromkeys([*want, *have])
      if want.get(path) != have.get(path)
    ]
    if lines:
      raise errors.make(
        f"checkpoint '{place}'",
        f'{len(lines)} differences: ' + '; '.join(lines[:20]),
        'the arrays of the config',
        'use the code and config the run was started with',
      )

  def wait(self) -> None:
    """Returns when the save under way is complete on disk."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends the background threads."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says of what goes wrong inside where it did and how much room there is."""
    try:
      yield
    except errors.SphinxError:
      raise
    except Exception as error:
      raise errors.unwritten(self._root, error) from error

  def __enter__(self) -> 'Store':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def _move(source: epath.Path, target: epath.Path) -> None:
  if not config_lib.is_remote(source):
    source.rename(target)
    return
  _copy(source, target)  # A bucket has no folders to rename.
  source.rmtree()


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    _copy(path, target / path.name) if path.is_dir() else path.copy(target / path.name)


def _together(params: Any, opt_state: Any) -> dict[str, Any]:
  return {'params': params} | ({} if opt_state is None else {'opt_state': opt_state})


def whole_path(directory: Path) -> epath.Path:
  """An absolute path; a gs:// URL stays one."""
  return epath.Path(directory if config_lib.is_remote(directory) else os.path.abspath(directory))


def latest(directory: Path) -> int | None:
  """The newest complete step of a run's directory, or None where there is none."""
  root = whole_path(directory) / FOLDER
  found = [path for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
  # In a bucket, a save under way has its final name already, and only Orbax's mark is missing.
  return max(
    (int(path.name) for path in found if ocp.utils.is_checkpoint_finalized(path)), default=None
  )


def load_meta(directory: Path) -> dict:
  """The meta of a checkpoint: `layout`, `step`, `config`, `tokenizer` (base64), `dialog`, ...

  Args:
    directory: a run's directory (its newest checkpoint is read) or one step's.

  Raises:
    SphinxError: the directory is not a checkpoint, or of another layout version.
  """
  return _read_meta(locate(directory))


def _read_meta(place: epath.Path) -> dict:
  """The meta of one step.

  Raises:
    Damaged: it is not what was saved.
    SphinxError: another layout version.
  """
  try:
    meta = json.loads((place / 'meta' / 'metadata').read_text())
    layout = meta.get('layout')
  except (OSError, ValueError, AttributeError):
    raise _damaged(place, 'a folder without readable meta') from None
  # A converted or mixed checkpoint has no seal; one that a run saved has fingerprints too.
  if (fingerprint.SEAL in meta or 'fingerprints' in meta) and not fingerprint.is_sealed(meta):
    raise _damaged(place, 'a meta that was changed')
  if layout != LAYOUT:
    raise errors.make(
      f"checkpoint '{place}'",
      f'layout version {layout}',
      f'{LAYOUT}',
      'read it with the version of sphinx_jax that wrote it',
    )
  return {name: value for name, value in meta.items() if name != fingerprint.SEAL}


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
    expected = trees.unflatten(
      {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
        for path, leaf in stored(place).items()
      }
    )
  check(place, expected)
  return _read(place / 'params', expected)


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


def check_tokenizers(who: str, directories: Sequence[Path], metas: Sequence[Mapping]) -> None:
  """Refuses checkpoints, by their metas, that carry another tokenizer than the first.

  Raises:
    SphinxError: naming `who` and the first directory that does.
  """
  for directory, meta in zip(directories[1:], metas[1:]):
    if meta.get('tokenizer') != metas[0].get('tokenizer'):
      raise errors.make(
        f"{who}, input '{directory}'",
        'another tokenizer',
        f"that of '{directories[0]}'",
        'take checkpoints of one tokenizer',
      )


def stored(place: epath.Path, item: str = 'params') -> dict[str, Any]:
  """Path -> shape and dtype of what is on disk in one step's folder; nothing for another item that it does not hold.

  Raises:
    SphinxError: no readable parameters, or of another layout version.
  """
  load_meta(place)
  if item != 'params' and not (place / item).is_dir():
    return {}
  found = ocp.StandardCheckpointer().metadata(place / item).item_metadata
  if found is None:
    raise _damaged(place, f'a folder without readable {item}')
  return trees.flatten(found.tree)


def _compare(expected: Mapping, stored: Mapping[str, Any], place: epath.Path) -> None:
  """Names every leaf that differs; between float dtypes it may."""
  want = trees.flatten(expected)

  def dtype(path: str, leaf: Any) -> Any:
    other = want.get(path, leaf).dtype
    both = jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.issubdtype(other, jnp.floating)
    return other if both else leaf.dtype

  lines = trees.difference(
    expected,
    trees.unflatten(
      {path: jax.ShapeDtypeStruct(leaf.shape, dtype(path, leaf)) for path, leaf in stored.items()}
    ),
  )
  if lines:
    raise errors.make(
      f"checkpoint '{place}'",
      f'{len(lines)} differences: ' + '; '.join(lines),
      'the parameters of the model config',
      'use the config the checkpoint was made with',
    )


def locate(directory: Path) -> epath.Path:
  """The folder of one step, from itself or from the directory of its run.

  Raises:
    SphinxError: there is none.
  """
  directory = whole_path(directory)
  if (directory / 'params').is_dir():
    return directory
  if not directory.is_dir():
    raise _not_one(directory, 'nothing there')
  step = latest(directory)
  if step is None:
    raise _not_one(
      directory, f'a folder with {sorted(path.name for path in directory.iterdir())[:4]}'
    )
  return directory / FOLDER / str(step)


def _not_one(directory: epath.Path, got: str) -> errors.SphinxError:
  return errors.make(
    f"checkpoint '{directory}'",
    got,
    f"a run's directory with {FOLDER}/STEP, or one STEP folder",
    'check the path, or wait for the first save',
  )


def _damaged(place: epath.Path, got: str) -> Damaged:
  return Damaged(
    errors.make(f"checkpoint '{place}'", got, 'what was saved', 'take an earlier one, or a copy')
  )


def _read(place: epath.Path, expected: Any) -> Any:
  """One item onto given layouts. A handler and no Checkpointer, which has all processes wait for one that failed."""
  return ocp.StandardCheckpointHandler().restore(place, args=ocp.args.StandardRestore(expected))
