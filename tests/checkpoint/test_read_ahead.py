import threading

import pytest

from sphinx_jax.checkpoint.read_ahead import MAX_BYTES, read_ahead


def test_values_come_in_order_and_the_next_is_read_meanwhile():
  second = threading.Event()
  reads = [(1, lambda: 0), (1, lambda: second.set() or 1), (1, lambda: 2)]
  values = read_ahead(reads)
  assert next(values) == 0
  assert second.wait(10)  # It is read before it is asked for.
  assert list(values) == [1, 2]


def test_large_values_are_read_one_at_a_time():
  held, most = [], []

  def read():
    held.append(1)
    most.append(len(held))
    return len(most)

  got = []
  for value in read_ahead([(MAX_BYTES, read)] * 4):
    got.append(value)
    held.pop()
  assert got == [1, 2, 3, 4] and max(most) == 1


def test_an_error_is_raised_when_its_value_is_due():
  def broken():
    raise OSError('damaged')

  values = read_ahead([(1, lambda: 0), (1, broken), (1, lambda: 2)])
  assert next(values) == 0
  with pytest.raises(OSError, match='damaged'):
    next(values)


def test_as_many_reads_run_as_there_are_threads():
  together = threading.Barrier(4, timeout=10)  # It breaks unless four reads run at once.
  reads = [(1, together.wait) for _ in range(4)]
  assert sorted(read_ahead([(1, lambda: 9), *reads], threads=4)) == [0, 1, 2, 3, 9]
