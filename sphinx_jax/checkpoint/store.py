"""Checkpoints of runs, saved asynchronously by Orbax and restored onto any mesh.

A run's directory holds `checkpoints/STEP/{params,opt_state,meta}`. `params` is the whole parameter
tree, trainable and frozen. `meta` is JSON with what inference and resumption need: the bundle
(checkpoint/bundle.py), the data position, and for a mixed checkpoint its parents and coefficients.
A save that was interrupted is not a checkpoint. A damaged checkpoint is never deleted: it is
renamed to `STEP.damaged`.
"""

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from sphinx_jax.checkpoint import fingerprint
from sphinx_jax.core import errors, files, paths, trees
from sphinx_jax.core.progress import log
from sphinx_jax.parallel import hosts

# The version of the format on disk, `layout` in the meta. Raise it when older code would misread a
# newer checkpoint.
FORMAT_VERSION = 1
FOLDER = 'checkpoints'
DAMAGED = '.damaged'
# Words in errors of the network or of memory: they do not mean that the checkpoint is damaged.
_TRANSIENT_ERRORS = ('RESOURCE_EXHAUSTED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED')
_CHUNK_BYTES = 64 << 20
_WAIT = 'check the path, or wait for the first save'

logging.getLogger('absl').addFilter(
  lambda record: 'orbax' not in record.pathname or record.levelno >= logging.ERROR
)

Path = str | os.PathLike


class Damaged(errors.SphinxError):
  """The bytes of a checkpoint are not what was saved."""


class Store:
  """Saves and restores the checkpoints of one run. Every process of the run has one.

  Args:
    directory: the run's directory, which holds `checkpoints/`; made if absent.
    keep: number of newest checkpoints to keep.
    keep_every: also keep the checkpoints whose step is a multiple of this; 0: none.
  """

  def __init__(self, directory: Path, keep: int = 2, keep_every: int = 0) -> None:
    self._root = absolute_path(directory) / FOLDER
    policies = [preservation_policy.LatestN(keep)]
    if keep_every:
      policies.append(preservation_policy.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
      cleanup_tmp_directories=True,
    )
    with self._explain_write_errors():
      self._manager = ocp.CheckpointManager(self._root, options=options)

  def latest(self) -> int | None:
    """Returns the newest complete step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, params: Mapping, opt_state: Any, meta: Mapping[str, Any]) -> None:
    """Starts to write a checkpoint; returns when the arrays are copied from the devices.

    Args:
      step: number of updates done.
      params: the whole parameter tree.
      opt_state: the optimizer state, or None if no run can resume from it (a mixed checkpoint).
      meta: JSON-able; `layout` (the format version), `step` and `fingerprints` are added.

    Raises:
      SphinxError: this save, or the one before it, could not be written, for example because the
        disk is full. Earlier checkpoints are intact.
    """
    # One chunk per layer, because checkpoint/stream.py reads single layers: in one large chunk each
    # of these reads would decompress the whole stack. Large tables are cut for the same reason.
    by_layer = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,))
    by_rows = ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)
    save_args = jax.tree.map(lambda leaf: by_layer if leaf.ndim > 2 else by_rows, params)
    meta = {
      'layout': FORMAT_VERSION,
      'step': step,
      **meta,
      'fingerprints': fingerprint.fingerprint_tree(_items(params, opt_state)),
    }
    items = {
      'params': ocp.args.StandardSave(params, save_args=save_args),
      'meta': ocp.args.JsonSave(fingerprint.seal(meta)),
    }
    if opt_state is not None:
      items['opt_state'] = ocp.args.StandardSave(opt_state)
    with self._explain_write_errors():
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)

  def restore_newest(self, params: Mapping, opt_state: Any) -> tuple[dict, Any, dict] | None:
    """Restores the newest undamaged checkpoint, or returns None if the run has none yet.

    Newer damaged checkpoints are logged. When an undamaged one is found, they are renamed, because
    the run will save their steps again.

    Args:
      params, opt_state: as in `restore`.

    Returns:
      As `restore`.

    Raises:
      SphinxError: all checkpoints are damaged, or `restore` refuses an undamaged one.
    """
    listed = [sorted(self._manager.all_steps(), reverse=True), self._damaged_names()]
    steps, damaged_names = hosts.broadcast(listed)
    damaged_steps: list[int] = []
    for step in steps:
      try:
        restored = self.restore(step, params, opt_state)
      except Damaged as error:
        log.warning('%s', error)
        damaged_steps.append(step)
        continue
      if damaged_steps:
        hosts.on_process_0(lambda: self._rename_damaged(damaged_steps))
        self._manager.reload()
      return restored
    if steps or damaged_names:
      raise errors.make(
        f"checkpoints in '{self._root}'",
        f'{len(steps) + len(damaged_names)}, all of them damaged',
        'at least one undamaged checkpoint',
        'nothing was deleted: restore them from a copy, or start a new run in another --workdir',
      )
    return None

  def _damaged_names(self) -> list[str]:
    """Returns the names of the folders of damaged checkpoints."""
    if not self._root.is_dir():
      return []
    return sorted(path.name for path in self._root.iterdir() if DAMAGED in path.name)

  def _rename_damaged(self, steps: list[int]) -> None:
    for step in steps:
      taken = self._damaged_names()
      names = (f'{step}{DAMAGED}{number or ""}' for number in itertools.count())
      name = next(name for name in names if name not in taken)
      _move(self._root / str(step), self._root / name)
      log.warning("the damaged checkpoint of step %d is kept as '%s'", step, self._root / name)

  def restore(self, step: int, params: Mapping, opt_state: Any) -> tuple[dict, Any, dict]:
    """Restores a checkpoint of this run onto the given shardings.

    Either all processes succeed or all raise.

    Args:
      step: step of the checkpoint.
      params, opt_state: trees of ShapeDtypeStruct with sharding.

    Returns:
      (params, opt_state, meta).

    Raises:
      Damaged: the checkpoint is not what was saved.
      SphinxError: it is intact, but has other leaves or another format version.
    """
    folder = self._root / str(step)
    expected = _items(params, opt_state)
    restored, meta, damage = None, {}, ''
    try:
      with explain_damage(folder):
        meta = _read_meta(folder)
        if 'fingerprints' not in meta:
          raise _damaged(folder, 'a meta without fingerprints')
        _check_shapes(folder, meta['fingerprints'], expected)
        restored = {item: _restore_item(folder / item, tree) for item, tree in expected.items()}
    except Damaged as error:
      damage = str(error)
    all_damage = [text for text in hosts.all_gather(damage) if text]
    if all_damage:
      raise Damaged(all_damage[0])
    prints = fingerprint.fingerprint_tree(restored)
    changed = [path for path, saved in meta['fingerprints'].items() if prints[path] != saved]
    if changed:
      raise _damaged(folder, f'other bits in {len(changed)} arrays: {", ".join(changed[:3])}')
    return restored['params'], restored.get('opt_state'), meta

  def wait(self) -> None:
    """Returns when the current save is complete on disk."""
    with self._explain_write_errors():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the current save and ends the background threads."""
    with self._explain_write_errors():
      self._manager.close()

  @contextlib.contextmanager
  def _explain_write_errors(self) -> Iterator[None]:
    """Re-raises write errors with the directory and the free disk space."""
    try:
      yield
    except errors.SphinxError:
      raise
    except Exception as error:
      raise errors.write_failed(self._root, error) from error

  def __enter__(self) -> 'Store':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def absolute_path(directory: Path) -> epath.Path:
  """Returns an absolute path, with the home folder for `~`; a gs:// URL stays as it is."""
  directory = paths.expand(os.fspath(directory))
  return epath.Path(directory if files.is_remote(directory) else os.path.abspath(directory))


def latest(directory: Path) -> int | None:
  """Returns the newest complete step of a run's directory, or None if it holds no checkpoint."""
  root = absolute_path(directory) / FOLDER
  folders = [path for path in root.iterdir() if path.name.isdigit()] if root.is_dir() else []
  # In a bucket an unfinished save already has its final name; only Orbax's mark is missing.
  steps = (int(path.name) for path in folders if ocp.utils.is_checkpoint_finalized(path))
  return max(steps, default=None)


def is_checkpoint(directory: Path) -> bool:
  """Whether a directory is a run or checkpoint of sphinx_jax, and not of another library."""
  return latest(directory) is not None or (epath.Path(directory) / 'params').is_dir()


def locate(directory: Path) -> epath.Path:
  """Returns the folder of one step.

  Args:
    directory: a run's directory (its newest checkpoint) or one step's.

  Raises:
    SphinxError: there is no checkpoint.
  """
  directory = absolute_path(directory)
  if (directory / 'params').is_dir():
    if not ocp.utils.is_checkpoint_finalized(directory):
      raise _no_checkpoint(directory, 'a save that was not finished')
    return directory
  if not directory.is_dir():
    raise _no_checkpoint(directory, 'no such directory')
  step = latest(directory)
  if step is None:
    names = sorted(path.name for path in directory.iterdir())
    is_foreign = any(name.endswith(('.safetensors', '.pth', '.bin')) for name in names)
    do = 'import it first (python -m sphinx_jax.convert)' if is_foreign else _WAIT
    raise _no_checkpoint(directory, f'a folder with {names[:4]}', do)
  return directory / FOLDER / str(step)


def load_meta(directory: Path) -> dict:
  """Returns the meta of a checkpoint: `layout`, `step`, the keys of its bundle, and others.

  Args:
    directory: a run's directory (its newest checkpoint is read) or one step's.

  Raises:
    SphinxError: the directory is no checkpoint, or has another format version.
  """
  return _read_meta(locate(directory))


def identity(directory: Path) -> str:
  """Returns a hash of a checkpoint's meta, which has the fingerprints of a run's arrays.

  Args:
    directory: a run's directory (its newest checkpoint) or one step's.

  Raises:
    SphinxError: as `load_meta`.
  """
  return identity_of(load_meta(directory))


def identity_of(meta: Mapping) -> str:
  """Returns the `identity` of a checkpoint with this meta."""
  return fingerprint.seal(meta)[fingerprint.SEAL]


def _read_meta(folder: epath.Path) -> dict:
  """Returns the meta of one step.

  Raises:
    Damaged: it is not what was saved.
    SphinxError: it has another format version.
  """
  try:
    meta = ocp.JsonCheckpointHandler().restore(folder / 'meta')
    version = meta.get('layout')
  except (OSError, ValueError, AttributeError):
    raise _damaged(folder, 'a folder without a readable meta') from None
  # Only a run's own checkpoint has fingerprints and a seal; a converted or mixed one has neither.
  has_seal = fingerprint.SEAL in meta or 'fingerprints' in meta
  if has_seal and not fingerprint.is_sealed(meta):
    raise _damaged(folder, 'a meta that was changed')
  if version != FORMAT_VERSION:
    raise errors.make(
      f"checkpoint '{folder}'",
      f'format version {version}',
      f'{FORMAT_VERSION}',
      'read it with the version of sphinx_jax that wrote it',
    )
  return {name: value for name, value in meta.items() if name != fingerprint.SEAL}


def load_params(directory: Path, expected: Mapping | None = None) -> dict:
  """Loads the parameters of a checkpoint.

  Args:
    directory: a run's directory (its newest checkpoint is read) or one step's.
    expected: tree of ShapeDtypeStruct with sharding. Paths and shapes must match. Values are cast
      to its dtypes, as a frozen parameter may be stored in another precision than a trainable one.
      None: the stored dtypes, on the first device.

  Returns:
    Tree of jax.Array.

  Raises:
    SphinxError: as `check`, or the arrays are damaged.
  """
  folder = locate(directory)
  if expected is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    structs = {
      path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
      for path, leaf in stored_leaves(folder).items()
    }
    expected = trees.unflatten(structs)
  else:
    check(folder, expected)
  with explain_damage(folder):
    return _restore_item(folder / 'params', expected)


@contextlib.contextmanager
def explain_damage(folder: epath.Path) -> Iterator[None]:
  """Re-raises what the libraries raise on damaged bytes of a checkpoint as `Damaged`."""
  try:
    yield
  except (errors.SphinxError, MemoryError, PermissionError, ConnectionError, TimeoutError):
    raise
  except Exception as error:  # Orbax and its libraries raise anything on damaged bytes.
    if any(word in str(error) for word in _TRANSIENT_ERRORS):
      raise
    first_line = (str(error).splitlines() or [''])[0]
    raise _damaged(folder, f'{type(error).__name__} {first_line}'[:200]) from error


def check(directory: Path, expected: Mapping) -> None:
  """Compares the parameters of a checkpoint with those a model expects, without reading them.

  A floating-point leaf may have any floating-point dtype.

  Args:
    directory: a run's directory or one step's.
    expected: tree of ShapeDtypeStruct.

  Raises:
    SphinxError: the directory is no checkpoint, has another format version, or has leaves that are
      missing, extra or of another shape; all of them are named.
  """
  folder = locate(directory)
  leaves = stored_leaves(folder)
  wanted = trees.flatten(expected)
  structs = {
    path: jax.ShapeDtypeStruct(leaf.shape, _comparable_dtype(leaf.dtype, wanted.get(path, leaf)))
    for path, leaf in leaves.items()
  }
  lines = trees.differences(expected, trees.unflatten(structs))
  if lines:
    raise errors.make(
      f"checkpoint '{folder}'",
      f'{len(lines)} differences: ' + '; '.join(lines),
      'the parameters of the model config',
      'use the config the checkpoint was made with',
    )


def stored_leaves(folder: epath.Path, item: str = 'params') -> dict[str, Any]:
  """Returns path -> shape and dtype of the arrays of one step, without reading them.

  Args:
    folder: the folder of one step.
    item: an item of the checkpoint. An absent one, other than 'params', has no leaves.

  Raises:
    SphinxError: the parameters are unreadable, or the checkpoint has another format version.
  """
  load_meta(folder)
  if item != 'params' and not (folder / item).is_dir():
    return {}
  metadata = ocp.StandardCheckpointer().metadata(folder / item).item_metadata
  if metadata is None:
    raise _damaged(folder, f'a folder without readable {item}')
  return trees.flatten(metadata.tree)


def _comparable_dtype(stored: Any, wanted: Any) -> Any:
  """Returns the wanted leaf's dtype if both dtypes are floating-point, else the stored dtype."""
  both_floating = jnp.issubdtype(stored, jnp.floating) and jnp.issubdtype(
    wanted.dtype, jnp.floating
  )
  return wanted.dtype if both_floating else stored


def _check_shapes(folder: epath.Path, prints: Mapping[str, str], expected: Mapping) -> None:
  """Compares dtypes and shapes of a checkpoint with the expected ones.

  Args:
    folder: the folder of one step.
    prints: path -> fingerprint, from the sealed meta, so a difference is not damage.
    expected: item -> tree of ShapeDtypeStruct.

  Raises:
    SphinxError: they differ.
  """
  wanted = fingerprint.shapes(expected)
  saved = {path: text.rpartition(' ')[0] for path, text in prints.items()}
  lines = [
    f'{path}: {saved.get(path, "nothing")}, expected {wanted.get(path, "nothing")}'
    for path in dict.fromkeys([*wanted, *saved])
    if wanted.get(path) != saved.get(path)
  ]
  if lines:
    raise errors.make(
      f"checkpoint '{folder}'",
      f'{len(lines)} differences: ' + '; '.join(lines[:20]),
      'the arrays of the config',
      'use the code and config the run was started with',
    )


def _items(params: Any, opt_state: Any) -> dict[str, Any]:
  items = {'params': params}
  if opt_state is not None:
    items['opt_state'] = opt_state
  return items


def _restore_item(folder: epath.Path, expected: Any) -> Any:
  """Restores one item onto given shardings.

  It uses a handler and not a Checkpointer, which would wait for a process that failed.
  """
  return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(expected))


def _no_checkpoint(directory: epath.Path, got: str, do: str = _WAIT) -> errors.SphinxError:
  return errors.make(
    f"checkpoint '{directory}'",
    got,
    f"a run's directory with {FOLDER}/STEP, or one STEP folder",
    do,
  )


def _damaged(folder: epath.Path, got: str) -> Damaged:
  return Damaged(
    errors.make(f"checkpoint '{folder}'", got, 'what was saved', 'use an earlier one, or a copy')
  )


def _move(source: epath.Path, target: epath.Path) -> None:
  if not files.is_remote(source):
    source.rename(target)
    return
  _copy(source, target)  # A bucket has no folders to rename.
  source.rmtree()


def _copy(source: epath.Path, target: epath.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      path.copy(target / path.name)
