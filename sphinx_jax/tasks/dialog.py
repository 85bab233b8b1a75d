"""Dialogs as they are given (LLaVA, ShareGPT): any number of turns about anything, with no metric of their own.

They are not mirrored: an answer may tell what is written in the picture, and left and right mean other things there too
("the right answer", "nothing is left").
"""

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task as base, text


def turns(annotation, rng, max_turns):
  """All turns in one example, whatever max_turns says: each speaks of those before it. A question of None stays None."""
  del rng, max_turns
  if not annotation['turns']:
    raise BadExample('nothing to ask', 'the annotation has no turns')
  return [
    base.Turn(question, answer, {'answer': answer}) for question, answer in annotation['turns']
  ]


TASK = base.Task('dialog', 'none', (), turns, text.score, mirrors=False)
