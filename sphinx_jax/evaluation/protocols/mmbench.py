"""MMBench (arXiv 2307.06281): a question counts when it is answered rightly under every rotation of its choices."""

from collections.abc import Sequence

from sphinx_jax.evaluation.protocols import scoring as base
from sphinx_jax.evaluation.protocols.multiple_choice import choice_letter


def chosen(answer: str, choices: dict[str, str]) -> str | None:
  """The letter of the choice an answer names: by its letter, or else by the text of exactly one choice; else None.

  The benchmark's own tool asks ChatGPT where neither is found; here such an answer is wrong.

  Args:
    answer: what the model says.
    choices: {letter: text}.
  """
  letter = choice_letter(answer)
  if letter is not None:
    return letter if letter in choices else None
  named = [letter for letter, text in choices.items() if text.lower() in answer.lower()]
  return named[0] if len(named) == 1 else None


def each(entries: Sequence[dict], official: bool = False) -> list[float]:
  """1.0 or 0.0 for every rotation of every question."""
  del official
  return [float(chosen(e['answer'], e['choices']) == e['gt_answers']) for e in entries]


def score(entries: Sequence[dict], official: bool = False) -> dict[str, float]:
  """Circular accuracy, overall and by category, all in [0, 1].

  Args:
    entries: with 'answer', 'choices' ({letter: text}), 'gt_answers' (a letter), 'group' (the same for all rotations of a
      question), 'rotation' (0 for the question as it is), 'category' and 'l2-category' ('' where the file has none).
    official: makes no difference, the SPHINX script has no MMBench.

  Returns:
    {'accuracy': share of questions right under all rotations, 'accuracy without rotation', and for each category
    '<category>': its circular accuracy}.

  Raises:
    SphinxError: no entries.
  """
  base.some('MMBench', entries)
  right, first = {}, {}
  for entry, hit in zip(entries, each(entries, official)):
    right[entry['group']] = min(hit, right.get(entry['group'], 1.0))
    if entry['rotation'] == 0:
      first[entry['group']] = hit
  result = base.mean('accuracy', right.values())
  if first:
    result |= base.mean('accuracy without rotation', first.values())
  for key in ('l2-category', 'category'):
    groups = {entry['group']: entry[key] for entry in entries if entry[key]}
    for name in sorted(set(groups.values())):
      result |= base.mean(
        name, (right[group] for group, category in groups.items() if category == name)
      )
  return result
