"""Phrase grounding (Flickr30k Entities): Recall@1 at IoU 0.5 of the one box given for a phrase.

A phrase like 'three men' has several true boxes, and papers score them differently. Both variants
are reported, under MDETR's names (arXiv 2104.12763). 'any box' counts a match with one of the true
boxes, 'merged box' counts a match with their bounding box.
"""

from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import box_forms, scoring
from sphinx_jax.evaluation.protocols.rec import THRESHOLD, rec_iou


def any_box(entry: dict, official: bool = False) -> float:
  """Returns 1.0 if the first box of the answer has IoU >= 0.5 with a true box, else 0.0."""
  best = max(_iou(entry, box, official) for box in _true_boxes(entry))
  return float(best >= THRESHOLD)


def merged_box(entry: dict, official: bool = False) -> float:
  """Returns 1.0 if the first box has IoU >= 0.5 with the box around the true ones, else 0.0."""
  lefts, tops, rights, bottoms = zip(*_true_boxes(entry))
  bounds = min(lefts), min(tops), max(rights), max(bottoms)
  return float(_iou(entry, bounds, official) >= THRESHOLD)


def unread(entries: Sequence[dict]) -> dict[str, int]:
  """Counts the answers without a box, and those with numbers of an unknown scale."""
  return box_forms.count_unread((entry, entry['width'], entry['height']) for entry in entries)


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every phrase, in the 'any box' variant."""
  return [any_box(entry, official) for entry in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'recall@1 any box', 'recall@1 merged box'}, in [0, 1].

  Args:
    entries: one a phrase, with 'answer', 'width', 'height' and 'gt_answers', the boxes
      [x1, y1, x2, y2] of the phrase in pixels, and optionally 'boxes' (`form` of `rec.rec_iou`).
    official: parse the answers as the SPHINX script parses those of REC.

  Raises:
    SphinxError: there are no entries, or a phrase has no box.
  """
  any_scores = per_example_scores(entries, official)
  merged_scores = [merged_box(entry, official) for entry in entries]
  return {
    **scoring.mean('recall@1 any box', any_scores),
    **scoring.mean('recall@1 merged box', merged_scores),
  }


def _iou(entry: dict, box: Sequence[float], official: bool) -> float:
  form = entry.get('boxes', 'square')
  return rec_iou(entry['answer'], box, entry['width'], entry['height'], official, form)


def _true_boxes(entry: dict) -> list[Sequence[float]]:
  return scoring.as_list('phrase grounding', entry['gt_answers'])
