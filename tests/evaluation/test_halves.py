"""The halves of held-out data have nothing in common, and together are all of it."""

import types

import pytest

from sphinx_jax.core import errors
from sphinx_jax.evaluation import halves


def test_batches_and_records_are_divided():
  assert halves.of_batches({'real': [0, 1, 2]}, halves.CHOICE) == {'real': [0, 2]}
  assert halves.of_batches({'real': [0, 1, 2]}, halves.REPORT) == {'real': [1]}
  for count in (4, 5):
    whole = Records(range(count))
    own, other = (halves.Half(whole, half) for half in (halves.CHOICE, halves.REPORT))
    records = [[half[i] for i in range(len(half))] for half in (own, other)]
    assert sorted(sum(records, [])) == list(range(count)) and records[0] == [*range(0, count, 2)]
    assert own.files == whole.files


class Records(list):
  name = 'records'
  files = types.MappingProxyType({'a.json': 'hash'})


def test_one_batch_cannot_be_divided():
  with pytest.raises(errors.SphinxError, match="'real': got 1 batches"):
    halves.of_batches({'real': [0]}, halves.CHOICE)
