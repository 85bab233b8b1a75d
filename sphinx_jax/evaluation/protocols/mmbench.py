"""MMBench (arXiv 2307.06281), multiple choice.

A question counts as right if it is answered correctly under every rotation of its choices.
"""

from collections.abc import Mapping, Sequence

from sphinx_jax.core import answers
from sphinx_jax.evaluation.protocols import multiple_choice, scoring


def chosen(answer: str, choices: Mapping[str, str]) -> str | None:
  """Returns the letter of the choice that an answer names, or None.

  The answer names a choice by its letter, or by containing the text of exactly one choice
  (`answers.choice`). The benchmark's own tool asks ChatGPT if neither is found. Here such an answer
  is wrong.

  Args:
    answer: the model's answer.
    choices: {letter: text}.
  """
  return answers.choice(answer, choices)


unread = multiple_choice.unread


def per_example_scores(entries: Sequence[dict], official: bool = False) -> list[float]:
  """Returns 1.0 or 0.0 for every rotation of every question."""
  del official
  return [
    float(chosen(entry['answer'], entry['choices']) == entry['gt_answers']) for entry in entries
  ]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Returns the circular accuracy, overall and by category, in [0, 1].

  Args:
    entries: dicts with 'answer', 'choices' ({letter: text}), 'gt_answers' (a letter), 'group' (the
      same for all rotations of a question), 'rotation' (0 for the original order), 'category' and
      'l2-category' ('' if the file has none).
    official: has no effect, because the SPHINX script does not score MMBench.

  Returns:
    {'accuracy': share of questions right under all rotations, 'accuracy without rotation': the
    same of the original order, '<category>': circular accuracy of each category}.

  Raises:
    SphinxError: there are no entries.
  """
  scoring.require_nonempty('MMBench', entries)
  right, unrotated = {}, {}  # Scores by group.
  for entry, hit in zip(entries, per_example_scores(entries, official)):
    right[entry['group']] = min(hit, right.get(entry['group'], 1.0))
    if entry['rotation'] == 0:
      unrotated[entry['group']] = hit
  result = scoring.mean('accuracy', right.values())
  if unrotated:
    result |= scoring.mean('accuracy without rotation', unrotated.values())
  for key in ('l2-category', 'category'):
    categories = {entry['group']: entry[key] for entry in entries if entry[key]}
    for name in sorted(set(categories.values())):
      in_category = [right[group] for group, category in categories.items() if category == name]
      result |= scoring.mean(name, in_category)
  return result
