"""Pins the private part of jax that parallel/kv_store.py uses."""

import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
# jax.distributed starts once in a process, before the devices. So this is a process of its own.
PROGRAM = """
import sys, time
import jax
from sphinx_jax.parallel import kv_store

assert (kv_store.process_count(), kv_store.process_index()) == (1, 0)
jax.distributed.initialize(f'127.0.0.1:{sys.argv[1]}', num_processes=1, process_id=0)
assert (kv_store.process_count(), kv_store.process_index()) == (1, 0)
assert kv_store.get('key') is None
began = time.monotonic()
assert kv_store.wait('key', 0.5) is None
assert 0.4 < time.monotonic() - began < 20
assert kv_store.set_once('key', 'first')
assert not kv_store.set_once('key', 'second')
assert kv_store.get('key') == kv_store.wait('key', 100) == 'first'
"""


def test_jax_still_has_the_key_value_store_that_we_import():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  run = subprocess.run(
    [sys.executable, '-c', PROGRAM, str(port)], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr


def test_no_other_file_imports_private_modules_of_jax():
  importers = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'sphinx_jax').rglob('*.py')
    if 'jax._src' in path.read_text()
  ]
  assert importers == ['sphinx_jax/parallel/kv_store.py']
