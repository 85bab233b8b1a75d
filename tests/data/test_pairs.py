"""Preference pairs in the pipeline: both answers stay in one row and share their image."""

import numpy as np
import pytest

from sphinx_jax.core import batch as contract
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.record import Record
from tests.data.test_pipeline import TOKENIZER, VISUAL, Fake, _equal, _pipeline, _png, _take

ROW = {'batch_size': 4, 'seq_len': 128, 'slots': 2, 'window': 16}


class Pairs(Fake):
  """Dialogs of two turns. Every fifth image is damaged."""

  pairs = True

  def __getitem__(self, index):
    image = b'damaged' if index % 5 == 4 else _png(index)
    turns = (('Q', 'before'), ('R', f'yes{index}' + ' so' * (index % 7)))
    return Record(f'{index}', self.name, (image,), turns, ({}, {}), rejected=f'no{index}')


def pipeline(**rules):
  return _pipeline([Pairs('a', 20)], [1], batch=ROW, pairs=True, **rules)


def answer(batch, b, segment):
  labels = (batch['segments'][b] == segment) & (batch['loss_weight'][b] > 0)
  return TOKENIZER.decode(batch['targets'][b, labels]).split()[0]


def test_answers_of_a_pair_follow_each_other_and_see_the_same_image():
  seen = set()
  for batch, _ in _take(pipeline(), 8):
    contract.check(batch, VISUAL)
    for b, last in enumerate(batch['segments'].max(axis=1)):
      assert last % 2 == 0
      for segment in range(1, last, 2):
        chosen, rejected = (answer(batch, b, segment + i) for i in range(2))
        number = int(chosen.removeprefix('yes'))
        assert rejected == f'no{number}' and number % 5 != 4
        index, other = (
          batch['visual_index'][b, batch['segments'][b] == segment + i] for i in range(2)
        )
        index, other = index[index >= 0], other[other >= 0]
        assert np.array_equal(index, other) and len(index) == VISUAL
        assert (batch['images'][b, index[0] // VISUAL] == number).all()
        seen.add(number)
  assert len(seen) == 16


def test_resuming_at_any_position_gives_the_same_batches():
  whole = _take(pipeline(), 6)
  for i in (0, 3):
    ((batch, position),) = _take(pipeline(), 1, position=whole[i][1])
    assert position == whole[i + 1][1] and _equal(batch, whole[i + 1][0])


def test_an_answer_longer_than_half_a_row_is_skipped():
  whole = pipeline()
  small = _pipeline([Pairs('a', 20)], [1], batch=ROW | {'seq_len': 70}, pairs=True)
  for each in (whole, small):
    _take(each, 2)
  assert not whole.skipped['a', 'too long'] and small.skipped['a', 'too long']


@pytest.mark.parametrize('pairs', [True, False])
def test_pairs_and_other_examples_do_not_mix(pairs):
  sources = [Pairs('a', 20), Fake('b', 10)]
  words = "'b': got conversations.*a section" if pairs else "'a': got preference pairs.*no section"
  with pytest.raises(SphinxError, match=words):
    _pipeline(sources, [0.5, 0.5], pairs=pairs)
