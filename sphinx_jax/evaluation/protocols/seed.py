"""SEED-Bench (arXiv 2307.16125), pictures only: accuracy of four choices, overall and by what is asked."""

from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base
from sphinx_jax.evaluation.protocols.multiple_choice import multiple_choice

# By 'question_type_id'; 10 to 12 are asked about videos.
TYPES = {
  1: 'scene understanding',
  2: 'instance identity',
  3: 'instance attribute',
  4: 'instance location',
  5: 'instance counting',
  6: 'spatial relation',
  7: 'instance interaction',
  8: 'visual reasoning',
  9: 'text recognition',
}


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """1.0 or 0.0 for every question."""
  del official
  return [multiple_choice(e['answer'], e['gt_answers']) for e in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """{'accuracy', and by type: its accuracy} in [0, 1] of entries with 'answer', 'gt_answers' (a letter), 'question_type_id'.

  The letter is read from the text the model writes. The benchmark ranks the choices by their likelihood instead for models
  that do not follow instructions. `official` makes no difference. Raises SphinxError without entries.
  """
  hits = each(entries, official)
  result = base.mean('accuracy', hits)
  for number, name in TYPES.items():
    some = [hit for entry, hit in zip(entries, hits) if int(entry['question_type_id']) == number]
    if some:
      result |= base.mean(name, some)
  return result
