"""Leases of pieces of work: one process at a time, and nobody waits for a dead one for ever."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from sphinx_jax.core import leases
from tests.checkpoint import bucket


def _hold(folder, ready):
  with leases.claimed(folder, 'work', 100) as is_mine:
    ready.put(is_mine)
    time.sleep(100)


@pytest.fixture
def holder(tmp_path):
  """Another process that has the lease of 'work'."""
  context = multiprocessing.get_context('spawn')
  ready = context.Queue()
  process = context.Process(target=_hold, args=(tmp_path, ready))
  process.start()
  assert ready.get(timeout=60)
  yield process
  process.kill()
  process.join()


def test_a_lease_keeps_others_out_and_ends_with_its_process(tmp_path, holder):
  with leases.claimed(tmp_path, 'work', 100) as is_mine:
    assert not is_mine
  with leases.claimed(tmp_path, 'other', 100) as is_mine:
    assert is_mine
  os.kill(holder.pid, signal.SIGKILL)
  holder.join()
  assert json.loads((tmp_path / 'work.json').read_text())['until'] > time.time()
  with leases.claimed(tmp_path, 'work', 100) as is_mine:
    assert is_mine
  assert not (tmp_path / 'work.json').exists()


def _lease(until, host='elsewhere'):
  return json.dumps({'id': 'theirs', 'host': host, 'process': 1, 'until': until})


def test_the_lease_of_another_machine_ends_with_its_time(tmp_path):
  (tmp_path / 'work.json').write_text(_lease(time.time() + 100))
  with leases.claimed(tmp_path, 'work', 100) as is_mine:
    assert not is_mine
  (tmp_path / 'work.json').write_text(_lease(time.time() - 1))
  with leases.claimed(tmp_path, 'work', 100) as is_mine:
    assert is_mine


def test_a_lease_is_renewed_while_the_work_goes_on(tmp_path):
  read = lambda: json.loads((tmp_path / 'work.json').read_text())['until']
  with leases.claimed(tmp_path, 'work', 0.4):
    first = read()
    time.sleep(0.5)
    assert read() > first and read() > time.time()


def test_a_lease_that_another_machine_took_over_stays_with_it(tmp_path):
  with leases.claimed(tmp_path, 'work', 0.4):
    (tmp_path / 'work.json').write_text(_lease(time.time() + 100))
    time.sleep(0.3)
  assert json.loads((tmp_path / 'work.json').read_text())['id'] == 'theirs'


def test_the_last_of_two_that_write_into_a_bucket_at_once_has_the_lease(tmp_path, monkeypatch):
  with bucket.bucket(tmp_path):
    file = tmp_path / 'b' / 'leases' / 'work.json'
    monkeypatch.setattr(leases, '_SETTLE_SECONDS', 0.0)
    with leases.claimed('gs://b/leases', 'work', 100) as is_mine:
      assert is_mine and file.exists()
      with leases.claimed('gs://b/leases', 'work', 100) as is_second:
        assert not is_second
    assert not file.exists()
    monkeypatch.setattr(time, 'sleep', lambda _: file.write_text(_lease(time.time() + 100)))
    with leases.claimed('gs://b/leases', 'work', 100) as is_mine:
      assert not is_mine
