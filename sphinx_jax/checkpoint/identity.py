"""What identifies the weights that gave answers: a text to read, and hashes to compare."""

from typing import Any

from sphinx_jax.checkpoint import merged, store
from sphinx_jax.checkpoint.foreign import hub


def describe(checkpoint: str, adapter: str | None = None) -> str:
  """Returns the text that identifies a checkpoint in run.json and in the report.

  Args:
    checkpoint: a run, one of its checkpoints, or a place of released weights; or BASE+ADAPTER.
    adapter: a run or a folder with an adapter of it.
  """
  base, joined = merged.split(checkpoint)
  step = f' at step {store.load_meta(base)["step"]}' if store.is_checkpoint(base) else ''
  return f'{store.absolute_path(base)}{step}{_with_adapter(adapter or joined)}'


def _with_adapter(adapter: str | None) -> str:
  if not adapter:
    return ''
  step = f' at step {store.load_meta(adapter)["step"]}' if store.is_checkpoint(adapter) else ''
  return f' with adapter {store.absolute_path(adapter)}{step}'


def of_weights(checkpoint: str, adapter: str | None = None) -> Any:
  """Returns JSON that changes if other weights take the place of a checkpoint or a folder.

  Args:
    checkpoint: as for `describe`.
    adapter: as for `describe`.
  """
  base, joined = merged.split(checkpoint)
  adapter = adapter or joined
  if adapter is None:
    return _identity(base)
  if not any(map(store.is_checkpoint, (base, adapter))):
    return hub.identity(base, adapter)
  return {'weights': _identity(base), 'adapter': _identity(adapter)}


def _identity(place: str) -> Any:
  return store.identity(place) if store.is_checkpoint(place) else hub.identity(place)
