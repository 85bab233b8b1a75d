import os
import pathlib
import subprocess
import sys
import time

import filelock
import jax
import jax.monitoring
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sphinx_jax.core import compile_cache, compile_log, progress

NAMES = ('jax_compilation_cache_dir', *compile_cache._SETTINGS)


@pytest.fixture
def parent(tmp_path, monkeypatch):
  """The folder of all caches of a user who has chosen nothing."""
  before = {name: jax.config.values[name] for name in NAMES}
  for name in NAMES:
    monkeypatch.delenv(name.upper(), raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setitem(compile_cache._SETTINGS, 'jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()
  yield tmp_path / 'sphinx_jax' / 'programs'
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def enabled() -> pathlib.Path:
  compile_cache.enable()
  return pathlib.Path(jax.config.jax_compilation_cache_dir)


def test_a_program_compiles_once_for_all_starts(parent):
  folder, hits = enabled(), []
  assert folder.parent == parent and folder.stat().st_mode & 0o77 == 0

  def count(event: str, **_: object) -> None:
    hits.extend([event] if event == '/jax/compilation_cache/cache_hits' else [])

  jax.monitoring.register_event_listener(count)
  try:
    for start in range(2):
      jax.jit(lambda x: jnp.sin(x) * 41.25)(jnp.ones(3)).block_until_ready()
      assert len(hits) == 0 or start
      jax.clear_caches()
  finally:
    jax.monitoring.unregister_event_listener(count)
  assert hits and list(folder.glob('*-cache'))


def test_a_folder_of_the_user_stays(parent, tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  assert enabled() == tmp_path / 'mine' and not parent.exists()


def test_processors_with_other_instructions_do_not_share_programs(parent, monkeypatch):
  folders = {enabled()}
  for processor in ('flags: avx2', 'flags: avx2 avx512f'):
    monkeypatch.setattr(compile_cache, 'processor', lambda text=processor: text)
    jax.config.update('jax_compilation_cache_dir', None)
    folders.add(enabled())
  assert len(folders) == 3 and set(parent.iterdir()) == folders


def test_what_a_killed_process_left_is_cleared(parent, monkeypatch):
  monkeypatch.setattr(compile_cache, '_MAX_PROGRAMS', 2)
  folder = parent / compile_cache._machine(jax.__version__)
  folder.mkdir(parents=True)
  for age, name in enumerate('abc'):
    (folder / f'{name}-cache').write_bytes(b'program')
    (folder / f'{name}-atime').write_bytes(b'\0' * 8)
    os.utime(folder / f'{name}-atime', (0, 1e9 - age))
  (folder / 'half-cache').write_bytes(b'prog')
  old = parent / 'jax-0.1'
  old.mkdir()
  os.utime(old, (0, time.time() - 90 * 86400))

  with filelock.FileLock(folder / '.lockfile'):  # A process that may be writing it.
    monkeypatch.setattr(compile_cache, '_LOCK_SECONDS', 0.01)
    assert enabled() == folder and (folder / 'half-cache').exists()
  jax.config.update('jax_compilation_cache_dir', None)
  enabled()
  left = {file.name for file in folder.iterdir() if file.name != '.lockfile'}
  assert left == {'a-cache', 'a-atime', 'b-cache', 'b-atime'}
  assert not old.exists()


def test_a_folder_that_cannot_be_written_is_no_error(parent, caplog, monkeypatch):
  caplog.set_level('INFO', 'sphinx_jax')
  monkeypatch.setattr(progress.log, 'propagate', True)
  parent.parent.write_text('a file in the way')
  compile_cache.enable()
  assert jax.config.jax_compilation_cache_dir is None
  assert 'compiled programs are not kept for the next start' in caplog.text


def test_entry_points_turn_it_on_unless_told_otherwise(tmp_path):
  code = (
    'import jax; from sphinx_jax.core import cli; '
    'cli.run(lambda: print(jax.config.jax_compilation_cache_dir))'
  )
  env = {name: value for name, value in os.environ.items() if name.lower() not in NAMES}
  for flags, expected in (([], str(tmp_path)), (['--nocache'], 'None')):
    done = subprocess.run(
      [sys.executable, '-c', code, *flags],
      env=env | {'XDG_CACHE_HOME': str(tmp_path)},
      capture_output=True,
      text=True,
      timeout=120,
    )
    assert done.stdout.startswith(expected), done.stderr


def test_a_long_compilation_is_logged_and_a_short_one_is_not(caplog, monkeypatch):
  monkeypatch.setattr(progress.log, 'propagate', True)
  caplog.set_level('INFO', 'sphinx_jax')
  for seconds, lines in ((0.01, 2), (60.0, 0)):
    monkeypatch.setattr(compile_log, '_FIRST_SECONDS', seconds)
    monkeypatch.setattr(compile_log, '_NEXT_SECONDS', 0.05)
    caplog.clear()
    event = compile_log._COMPILATION
    compile_log._on_start(event, time.time() - 11, fun_name='jit(_encode)')
    time.sleep(0.2)
    compile_log._on_end(event, 0.2)
    logged = len(caplog.messages)
    time.sleep(0.1)
    assert logged == len(caplog.messages) >= lines and (lines or not logged)
    assert all(line == "compiling 'encode': 11 s ..." for line in caplog.messages)
