"""Questions about one class at a time, for detection, layout and counting."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.tasks import task

# With more objects, single classes are asked for: a list of all objects would be too long for most
# contexts.
MANY = 20
ABSENT_SHARE = 0.2  # Of the questions about one class, if an absent class is known.


def split_classes(
  annotation: Mapping[str, Any],
  things: Sequence[dict[str, Any]],
  key: str,
  with_crowds: bool = True,
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
  """Returns the classes that are surely in the image with their things, and the absent ones.

  Args:
    annotation: may have 'classes', 'absent', 'partial'.
    things: objects or blocks.
    key: key of a thing's class.
    with_crowds: whether to keep a class with a crowd and single things. It cannot be counted.

  Returns:
    ({class: its things}, [absent class, ...]).
  """
  seen = {thing[key] for thing in things}
  unsure = set(annotation.get('partial', ()))
  if not with_crowds:
    unsure |= {thing[key] for thing in things if thing.get('crowd')}
  present: dict[str, list[dict[str, Any]]] = {}
  for thing in task.without_crowds(things):
    if thing[key] not in unsure:
      present.setdefault(thing[key], []).append(thing)
  candidates = annotation['absent'] if 'absent' in annotation else annotation.get('classes', ())
  return present, [name for name in candidates if name not in seen and name not in unsure]


def choose_classes(
  present: Sequence[str], absent: Sequence[str], rng: np.random.Generator, limit: int
) -> list[str]:
  """Returns up to `limit` different classes, of which ABSENT_SHARE are absent.

  Raises:
    BadExample: no class is present.
  """
  names = task.sample(present, rng, limit, 'class that can be asked for')
  if not absent:
    return names
  absent_names = iter(task.sample(absent, rng, len(names), 'absent classes'))
  return [next(absent_names, name) if rng.random() < ABSENT_SHARE else name for name in names]


def asks_by_class(
  annotation: Mapping[str, Any], things: Sequence[dict[str, Any]], rng: np.random.Generator
) -> bool:
  """Whether to ask for single classes.

  Always if the list of things may be incomplete or has more than MANY. Otherwise in half of the
  cases. Never if the classes are unknown.
  """
  if 'absent' in annotation or 'partial' in annotation:
    return True
  return 'classes' in annotation and (len(things) > MANY or bool(rng.random() < 0.5))


def class_turns(
  annotation: Mapping[str, Any],
  things: Sequence[dict[str, Any]],
  key: str,
  order: Callable[[dict[str, Any]], Any],
  rng: np.random.Generator,
  max_turns: int,
  instructions: Sequence[str],
) -> list[task.Turn]:
  """Returns one turn for each of up to max_turns classes.

  The answer is `cup [box; box]`, or NOTHING for an absent class.

  Args:
    annotation: may have 'classes', 'absent', 'partial'.
    things: objects or blocks.
    key: key of a thing's class.
    order: sort key of the things in an answer.
    rng: random generator.
    max_turns: the largest number of turns.
    instructions: phrasings with '{}' for the class.
  """
  present, absent = split_classes(annotation, things, key)
  turns = []
  for name in choose_classes(list(present), absent, rng, max_turns):
    pairs = [(name, thing['box']) for thing in sorted(present.get(name, ()), key=order)]
    answer, truth = task.format_labeled_boxes(pairs)
    instruction = task.choose(instructions, rng).format(name)
    turns.append(task.Turn(instruction, answer or task.NOTHING, truth))
  return turns
