"""Compiled programs on disk, so that a program that was compiled once starts at once.

It is JAX's persistent compilation cache in a folder of the user's cache directory. JAX bounds its
size, and locks it for processes that use it together. This file chooses the folder and clears away
what killed processes left.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import shutil
import time

import filelock

from sphinx_jax.core.progress import log

_SETTINGS = {
  'jax_compilation_cache_max_size': 2 * 2**30,  # Bytes. Programs that were not used lately go.
  'jax_persistent_cache_min_compile_time_secs': 0.1,
}
_MAX_PROGRAMS = 1000  # JAX looks at all of them whenever it adds one.
_LOCK_SECONDS = 1.0
_UNUSED_SECONDS = 60 * 86400  # After that the folder of another version or processor is deleted.
# Names of JAX: a program, the time of its last use, which is written last, and the lock of both.
_PROGRAM, _USED, _LOCK = '-cache', '-atime', '.lockfile'


def enable() -> None:
  """Turns the cache on for this process.

  It does nothing if the user has chosen a folder (JAX_COMPILATION_CACHE_DIR) or turned JAX's cache
  off (JAX_ENABLE_COMPILATION_CACHE=0). A folder that cannot be written is logged: programs are then
  compiled at every start.
  """
  import jax  # Here, because the entry points that compile nothing do without it.

  if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
    return
  try:
    parent = _cache_home() / 'sphinx_jax' / 'programs'
    folder = parent / _machine(jax.__version__)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with filelock.FileLock(folder / _LOCK, timeout=_LOCK_SECONDS):
      _clear(folder)
    _delete_unused(parent)
  except filelock.Timeout:
    pass  # Another process uses it now. The next start clears it.
  except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home.
    log.info('compiled programs are not kept for the next start: %s', error)
    return
  jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
  for name, value in _SETTINGS.items():
    if name.upper() not in os.environ:
      jax.config.update(name, value)


def _cache_home() -> pathlib.Path:
  """The user's cache directory: XDG_CACHE_HOME, else ~/.cache, on macOS too."""
  chosen = os.environ.get('XDG_CACHE_HOME', '')
  return pathlib.Path(chosen) if os.path.isabs(chosen) else pathlib.Path.home() / '.cache'


def _machine(version: str) -> str:
  """A name for a version of JAX on processors with the same instructions.

  A home may be shared by machines whose processors differ. A program for AVX512 must not run on a
  processor without it, and JAX's own key does not hold every feature of the processor.
  """
  parts = [platform.system(), platform.machine(), processor()]
  return f'jax-{version}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}'


def processor() -> str:
  """The instructions that the processor has, as text."""
  with contextlib.suppress(OSError), open('/proc/cpuinfo') as file:
    for line in file:
      if line.startswith(('flags', 'Features')):  # x86, ARM.
        return line
  return platform.processor()


def _clear(folder: pathlib.Path) -> None:
  """Deletes half-written programs, and those used longest ago if there are too many.

  A process that is killed while it writes leaves a program without a time of use. JAX would never
  replace it, and from then on fail whenever it looks for the programs used longest ago.
  """
  names = os.listdir(folder)
  programs, used = (
    {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    for suffix in (_PROGRAM, _USED)
  )
  delete = programs ^ used
  if len(programs & used) > _MAX_PROGRAMS:
    by_use = sorted(programs & used, key=lambda name: (folder / f'{name}{_USED}').stat().st_mtime)
    delete |= set(by_use[:-_MAX_PROGRAMS])
  for name in delete:
    for suffix in (_PROGRAM, _USED):
      (folder / f'{name}{suffix}').unlink(missing_ok=True)
  os.utime(folder)


def _delete_unused(parent: pathlib.Path) -> None:
  """Deletes the folders of versions and processors that were not used for long."""
  for folder in parent.iterdir():
    if time.time() - folder.stat().st_mtime > _UNUSED_SECONDS:
      shutil.rmtree(folder, ignore_errors=True)
