"""Phrase grounding (Flickr30k Entities): does the one box given for a phrase overlap its truth by half? Recall@1.

A phrase such as 'three men' has several true boxes. Papers differ on them, so both readings are given (the names are
MDETR's, arXiv 2104.12763): 'any box' is right where one of them is met, 'merged box' where the box around all of them is.
"""

from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base
from sphinx_jax.evaluation.protocols.rec import THRESHOLD, rec_iou


def any_box(entry: dict, official: bool = False) -> float:
  """1.0 where the first box of the answer meets one of the true boxes at IoU 0.5, else 0.0."""
  best = max(
    rec_iou(entry['answer'], box, entry['width'], entry['height'], official)
    for box in _truth(entry)
  )
  return float(best >= THRESHOLD)


def merged_box(entry: dict, official: bool = False) -> float:
  """1.0 where the first box of the answer meets the box around all the true ones at IoU 0.5, else 0.0."""
  lefts, tops, rights, bottoms = zip(*_truth(entry))
  around = min(lefts), min(tops), max(rights), max(bottoms)
  return float(
    rec_iou(entry['answer'], around, entry['width'], entry['height'], official) >= THRESHOLD
  )


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """1.0 or 0.0 for every phrase, any box."""
  return [any_box(entry, official) for entry in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'recall@1 any box', 'recall@1 merged box'} in [0, 1].

  Args:
    entries: one a phrase, with 'answer', 'width', 'height' and 'gt_answers', its boxes [x1, y1, x2, y2] in pixels.
    official: the answers are read as the SPHINX script reads those of REC.

  Raises:
    SphinxError: no entries, or a phrase without a box.
  """
  return base.mean('recall@1 any box', each(entries, official)) | base.mean(
    'recall@1 merged box', (merged_box(entry, official) for entry in entries)
  )


def _truth(entry):
  return base.listed('phrase grounding', entry['gt_answers'])
