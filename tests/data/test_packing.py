"""Packing: which examples share a row, and literal values of every field of the batch."""

import io

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core import batch as contract
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import packing
from sphinx_jax.data.packing import Example


def _png(value, size=4):
  file = io.BytesIO()
  Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, 'PNG')
  return file.getvalue()


def _example(ids, trained, image=None, task=0):
  weights = np.array([i in trained for i in ids], np.float32)
  return Example(
    np.array(ids, np.int32), weights, () if image is None else (image,), task, id=str(ids)
  )


def _never(example, error):
  raise AssertionError(f'{example.id}: {error}')


def test_a_small_batch_literally():
  rows = [
    [_example([1, 10, 11, 12], {12}), _example([1, 20, 21], {20, 21}, _png(7), task=2)],
    [_example([1, 30], {30}, _png(9)), _example([1, 40], {40}, _png(8))],
  ]
  batch = packing.assemble(
    rows, seq_len=11, slots=2, image_size=4, visual_tokens=3, report_bad=_never
  )
  want = {
    'tokens': [[1, 10, 11, 12, 1, 0, 0, 0, 20, 21, 0], [1, 0, 0, 0, 30, 1, 0, 0, 0, 40, 0]],
    'targets': [[10, 11, 12, 0, 0, 0, 0, 20, 21, 0, 0], [0, 0, 0, 30, 0, 0, 0, 0, 40, 0, 0]],
    'loss_weight': [[0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0]],
    'positions': [[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]],
    'segments': [[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0]],
    'visual_index': [
      [-1, -1, -1, -1, -1, 0, 1, 2, -1, -1, -1],
      [-1, 0, 1, 2, -1, -1, 3, 4, 5, -1, -1],
    ],
    'task': [[0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0], [0] * 11],
  }
  contract.check(batch, visual_tokens=3)
  for name, value in want.items():
    assert batch[name].tolist() == value, name
  assert batch['images'][:, :, 0, 0, 0].tolist() == [[7, 0], [9, 8]]


def test_an_unreadable_image_leaves_padding_and_the_rest_of_the_row():
  good, bad = _example([1, 20, 21], {21}, _png(7)), _example([1, 10, 11], {11}, b'no image')
  reported = []
  arguments = dict(seq_len=11, slots=2, image_size=4, visual_tokens=3)
  batch = packing.assemble(
    [[bad, good]],
    **arguments,
    report_bad=lambda example, error: reported.append((example, error.reason)),
  )
  alone = packing.assemble([[good]], **arguments, report_bad=_never)
  assert reported == [(bad, 'unreadable image')]
  for name in contract.FIELDS:
    assert np.array_equal(batch[name], alone[name]), name


def test_an_empty_row_is_padding():
  batch = packing.assemble(
    [[]], seq_len=5, slots=1, image_size=4, visual_tokens=3, report_bad=_never
  )
  contract.check(batch, visual_tokens=3)
  assert (batch['visual_index'] == -1).all()
  assert not any(batch[name].any() for name in contract.FIELDS if name != 'visual_index')


@pytest.mark.parametrize(
  'lengths, has_image, rows',
  [
    ([5, 5, 5, 5], [False] * 4, [[0, 1], [2, 3]]),
    ([3, 7, 6, 4], [False] * 4, [[0, 1], [2, 3]]),
    ([2, 2, 2, 2], [True] * 4, [[0, 1], [2, 3]]),  # Two image slots per row.
    ([2, 2, 2, 2], [True, True, True, False], [[0, 1, 3], [2]]),
    # 6 + 2 + 2 fills the row; 6 + 3 would leave one position free.
    ([6, 5, 2, 2, 3], [False] * 5, [[0, 2, 3], [1, 4]]),
    # An example with an image first, because text fits anywhere.
    ([7, 3, 3], [True, True, False], [[0, 1], [2]]),
    ([4, 4, 4, 6, 6], [True] * 3 + [False] * 2, [[0, 3], [1, 4], [2]]),
    ([10], [True], [[0]]),
    ([], [], []),
  ],
)
def test_plan(lengths, has_image, rows):
  assert packing.plan(lengths, has_image, seq_len=10, slots=2) == rows


def test_plan_uses_every_example_once_within_the_capacity():
  draw = np.random.default_rng(0)
  lengths, has_image = draw.integers(1, 60, 256).tolist(), (draw.random(256) < 0.7).tolist()
  rows = packing.plan(lengths, has_image, seq_len=60, slots=3)
  assert sorted(i for row in rows for i in row) == list(range(256))
  assert all(
    sum(lengths[i] for i in row) <= 60 and sum(has_image[i] for i in row) <= 3 for row in rows
  )
  assert [row[0] for row in rows] == sorted(row[0] for row in rows)
  assert sum(lengths) / (60 * len(rows)) > 0.95


def test_plan_fills_rows_of_a_mixture_like_that_of_stage_2():
  """Images of 291 positions, six per row of 2048, and texts from short answers to long dialogs.

  A few texts have no image.
  """
  draw = np.random.default_rng(0)
  texts = (
    np.concatenate(
      [
        draw.lognormal(np.log(median), spread, count)
        for median, spread, count in (
          (60, 0.4, 500),
          (150, 0.6, 300),
          (350, 0.6, 164),
          (450, 0.7, 60),
        )
      ]
    ).astype(int)
    + 10
  )
  has_image = np.arange(1024) < 964
  order = draw.permutation(1024)
  lengths, has_image = np.minimum(texts + 291 * has_image, 2048)[order], has_image[order]
  rows = packing.plan(lengths.tolist(), has_image.tolist(), seq_len=2048, slots=6)
  assert sorted(i for row in rows for i in row) == list(range(1024))
  assert lengths.sum() / (2048 * len(rows)) > 0.98


def test_loss_weighting_sets_how_the_sum_grows_with_the_answer():
  answers = [np.array([0.0] + [1.0] * n, np.float32) for n in (1, 4, 100)]
  sums = {
    rule: [packing.weigh(answer, rule).sum() for answer in answers]
    for rule in packing.LOSS_WEIGHTING
  }
  assert np.allclose(np.divide(sums['token'], sums['token'][0]), [1, 4, 100])
  assert np.allclose(np.divide(sums['sqrt'], sums['sqrt'][0]), [1, 2, 10])
  assert np.allclose(np.divide(sums['example'], sums['example'][0]), [1, 1, 1])
  assert all(packing.weigh(answer, 'sqrt')[0] == 0 for answer in answers)
  with pytest.raises(SphinxError, match="did you mean 'sqrt'"):
    packing.weigh(answers[0], 'sqrtt')


def test_rows_exceed_neither_their_slots_nor_their_patches():
  rng = np.random.default_rng(0)
  examples = [
    Example(np.ones(9, np.int32), np.ones(9), (b'',) * n, 0, patches=n and int(rng.integers(1, 60)))
    for n in rng.integers(0, 4, 200)
  ]
  needs, total = packing.needs(examples, slots=4, patch_limit=80)
  rows = packing.plan([9] * len(examples), needs, 60, total)
  slots, patches = np.transpose(
    [[sum(len(examples[i].images) for i in row), sum(examples[i].patches for i in row)]
     for row in rows]
  )  # fmt: skip
  assert max(slots) == 4 and 70 < max(patches) <= 80 and sorted(sum(rows, [])) == list(range(200))
