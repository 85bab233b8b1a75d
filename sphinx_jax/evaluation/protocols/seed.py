"""SEED-Bench (arXiv 2307.16125), questions about images: accuracy, overall and by question type."""

from collections.abc import Sequence

from sphinx_jax.core import answers
from sphinx_jax.evaluation.protocols import multiple_choice, scoring

# Names by 'question_type_id'. Types 10 to 12 are about videos.
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


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every question."""
  del official
  named = [answers.choice(entry['answer'], entry.get('choices')) for entry in entries]
  return [float(letter == entry['gt_answers']) for letter, entry in zip(named, entries)]


unread = multiple_choice.unread


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns {'accuracy', and the accuracy of each question type that occurs}, in [0, 1].

  The choice is read from the generated text. For models that do not follow instructions, the
  benchmark itself ranks the choices by their likelihood instead.

  Args:
    entries: dicts with 'answer', 'gt_answers' (a letter), 'question_type_id' and 'choices'
      ({letter: text}; without it, only letters name a choice).
    official: has no effect, because the SPHINX script does not score SEED-Bench.

  Raises:
    SphinxError: there are no entries.
  """
  scores = per_example_scores(entries, official)
  types = [int(entry['question_type_id']) for entry in entries]
  result = scoring.mean('accuracy', scores)
  for number, name in TYPES.items():
    of_type = [value for value, type_id in zip(scores, types) if type_id == number]
    if of_type:
      result |= scoring.mean(name, of_type)
  return result
