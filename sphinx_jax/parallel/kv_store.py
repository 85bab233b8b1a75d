"""The key-value store and the process numbers of jax.distributed.

This is the only file that imports a private module of jax: the store's client has no public name,
and `jax.process_count()` initializes the devices, which is too early before processes have compared
their settings. Orbax imports the same client. tests/parallel/test_kv_store.py calls every method
that is used here, so a new jax that changes one of them fails there first.
"""

import jax
from jax._src import distributed

_PREFIX = 'sphinx_jax'


def process_count() -> int:
  """The number of processes; 1 without jax.distributed."""
  return distributed.global_state.num_processes


def process_index() -> int:
  """The index of this process; 0 without jax.distributed."""
  return distributed.global_state.process_id


def set_once(key: str, value: str) -> bool:
  """Sets a value for all processes. Returns False if the key already has one, which stays."""
  try:
    distributed.global_state.client.key_value_set(f'{_PREFIX}/{key}', value)
  except jax.errors.JaxRuntimeError as error:
    if 'ALREADY_EXISTS' not in str(error):
      raise
    return False
  return True


def get(key: str) -> str | None:
  """Returns the value of a key, or None if it has none."""
  try:
    return distributed.global_state.client.key_value_try_get(f'{_PREFIX}/{key}')
  except jax.errors.JaxRuntimeError as error:
    if 'NOT_FOUND' not in str(error):
      raise
    return None


def wait(key: str, seconds: float) -> str | None:
  """Returns the value of a key as soon as it has one, or None after the given time."""
  try:
    return distributed.global_state.client.blocking_key_value_get(
      f'{_PREFIX}/{key}', int(1000 * seconds)
    )
  except jax.errors.JaxRuntimeError as error:
    if 'DEADLINE_EXCEEDED' not in str(error):
      raise
    return None
