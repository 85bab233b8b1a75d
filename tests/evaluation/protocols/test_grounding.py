"""Phrase grounding: any of several true boxes, and their bounding box."""

import pytest

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS

LEFT, RIGHT = [0, 50, 100, 150], [300, 50, 400, 150]
AROUND = [0, 50, 400, 150]


def entry(box, truth):
  answer = coordinates.format_box(boxes.pad_box(box, 400, 200), 6) if box else 'nothing'
  return {'answer': answer, 'width': 400, 'height': 200, 'gt_answers': truth}


@pytest.mark.parametrize(
  'box, truth, any_box, merged',
  [
    (LEFT, [LEFT], 1, 1),
    (RIGHT, [LEFT], 0, 0),
    (LEFT, [LEFT, RIGHT], 1, 0),
    (RIGHT, [LEFT, RIGHT], 1, 0),
    (AROUND, [LEFT, RIGHT], 0, 1),
    (None, [LEFT], 0, 0),
  ],
)
def test_both_variants_for_several_boxes(box, truth, any_box, merged):
  line = entry(box, truth)
  assert PROTOCOLS['phrase_grounding']([line]) == {
    'recall@1 any box': any_box,
    'recall@1 merged box': merged,
  }
  assert PROTOCOLS['phrase_grounding']([line], official=True) == PROTOCOLS['phrase_grounding'](
    [line]
  )
  assert PER_EXAMPLE['phrase_grounding']([line]) == [any_box]


def test_a_phrase_without_a_box_is_an_error():
  with pytest.raises(SphinxError, match='no true answer'):
    PROTOCOLS['phrase_grounding']([entry(LEFT, [])])
