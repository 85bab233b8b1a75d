"""REC: the goldens of the official script, and where our parsing of answers differs from it."""

import json
import math
import pathlib

import pytest

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PROTOCOLS, rec

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / 'golden/eval/rec.json').read_text())
# Boxes that the script does not find: unclosed, in double brackets, over two lines.
DIFFERENT = {
  'refcoco_11_height640_width640',
  'refcoco_14_height640_width640',
  'refcoco_15_height640_width640',
}
TRUTH = (64, 128, 320, 384)  # (0.1, 0.2, 0.5, 0.6) of 640.


@pytest.mark.parametrize('sample', GOLDEN['samples'], ids=lambda sample: sample['answer'])
def test_official_scores_are_the_goldens_and_ours_differ_only_as_listed(sample):
  arguments = sample['answer'], sample['gt_answers'], *rec.image_size(sample['question_id'])
  golden = math.nan if sample['iou'] is None else sample['iou']
  assert rec.rec_iou(*arguments, official=True) == pytest.approx(golden, abs=1e-7, nan_ok=True)
  assert rec.rec_accuracy(*arguments, official=True) == sample['correct']
  differs = sample['question_id'] in DIFFERENT
  assert rec.rec_iou(*arguments) == pytest.approx(1.0 if differs else golden, abs=1e-6)
  assert rec.rec_accuracy(*arguments) == (1.0 if differs else sample['correct'])


@pytest.mark.parametrize(
  'case', GOLDEN['expand2square'], ids=lambda case: f'{case["w"]}x{case["h"]}'
)
def test_padding_is_the_goldens(case):
  assert list(boxes.expand_to_square(case['box'], case['w'], case['h'])) == case['out']


@pytest.mark.parametrize(
  'width, height', [(640, 427), (333, 500), (500, 500), (101, 50), (17, 300)]
)
def test_the_true_box_written_as_text_scores_one(width, height):
  box = (0.1 * width, 0.2 * height, 0.7 * width, 0.8 * height)
  answer = coordinates.format_box(boxes.pad_box(box, width, height), decimals=6)
  for official in (False, True):
    assert rec.rec_iou(answer, box, width, height, official) == pytest.approx(1, abs=1e-3)
  assert rec.rec_accuracy(answer, box, height, width) == (width == height)  # The sizes matter.


def test_an_overlap_of_exactly_one_half_is_right():
  for official in (False, True):
    assert rec.rec_accuracy('[0, 0, 0.5, 0.5]', (0, 0, 64, 32), 64, 64, official) == 1
    assert rec.rec_accuracy('[0, 0, 0.5, 0.5]', (0, 0, 64, 33), 64, 64, official) == 0


@pytest.mark.parametrize(
  'answer, box, overlap',
  [
    ('no box', (5, 5, 5, 5), math.nan),
    ('[0.5, 0.2, 0.1, 0.6]', TRUTH, math.nan),  # The union is 0, because an area is negative.
    ('[nan, 0.2, 0.5, 0.6]', TRUTH, math.nan),
    ('[-inf, 0, inf, inf]', TRUTH, 0),
    ('[0, 0, 1e40, 1e40]', TRUTH, 0),
    ('[0.9, 0.2, 0.1, 0.6]', TRUTH, -0.0),
  ],
)
def test_difference_an_official_overlap_may_be_nan_and_is_then_wrong(answer, box, overlap):
  assert repr(rec.rec_iou(answer, box, 640, 640, official=True)) == repr(float(overlap))
  assert rec.rec_iou(answer, box, 640, 640) == 0
  assert (
    rec.rec_accuracy(answer, box, 640, 640)
    == rec.rec_accuracy(answer, box, 640, 640, official=True)
    == 0
  )


@pytest.mark.parametrize(
  'answer',
  ['[] [0.1, 0.2, 0.5, 0.6]', '[1] [0.1, 0.2, 0.5, 0.6]', '[0.1, 0.2, 0.5, 0.6; 0.9, 0.9, 1, 1]'],
)
def test_difference_ours_takes_the_first_bracket_with_a_box(answer):
  assert rec.rec_accuracy(answer, TRUTH, 640, 640) == 1
  assert rec.rec_accuracy(answer, TRUTH, 640, 640, official=True) == 0


def test_difference_only_decimal_numbers_are_coordinates():
  assert rec.rec_accuracy('[1e-1, 0.2, 0.5, 0.6]', TRUTH, 640, 640, official=True) == 1
  assert rec.rec_accuracy('[1e-1, 0.2, 0.5, 0.6]', TRUTH, 640, 640) == 0


def test_sizes_come_from_the_question_id():
  assert (
    rec.image_size('refcoco_1_height480_width640')
    == rec.image_size('height480_width640')
    == (640, 480)
  )
  with pytest.raises(SphinxError, match='height480_width640'):
    rec.image_size('1234')


def test_the_protocol_counts_hits():
  entries = [
    {
      'answer': '[0.10, 0.325, 0.50, 0.725]',
      'question_id': 'height480_width640',
      'gt_answers': list(TRUTH),
    },
    {
      'answer': '[0.1, 0.2, 0.5, 0.6]',
      'question_id': 'height480_width640',
      'gt_answers': [600, 0, 640, 40],
    },
  ]
  assert (
    PROTOCOLS['miou0.5'](entries)
    == PROTOCOLS['miou0.5'](entries, official=True)
    == {'miou0.5': 0.5}
  )
