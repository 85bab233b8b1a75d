"""Dialogs as a dataset has them (LLaVA, ShareGPT): any number of turns about anything, no metric.

They are not mirrored. An answer may read text in the image, and left and right also have other
meanings ("the right answer", "nothing is left").
"""

from typing import Any

import numpy as np

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task, text


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns all turns, whatever max_turns is, because each depends on those before it.

  A question of None stays None.
  """
  del rng, max_turns
  if not annotation['turns']:
    raise BadExample('nothing to ask', 'the annotation has no turns')
  return [
    task.Turn(question, answer, {'answer': answer}) for question, answer in annotation['turns']
  ]


TASK = task.Task('dialog', 'none', (), turns, text.score, mirrors=False)
