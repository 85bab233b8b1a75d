"""Questions of one class at a time: which classes an annotation allows to ask for, and their boxes (detection, layout)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sphinx_jax.tasks import task as base

# More things than this are asked for by class, as a list of all of them would be too long for most contexts.
MANY = 20
ABSENT_SHARE = 0.2  # Of the questions about one class, where one is known that is not there.


def sort(
  annotation: Mapping, things: Sequence[dict], key: str, crowds: bool = True
) -> tuple[dict[str, list[dict]], list[str]]:
  """({class: its things}, [class that is not there, ...]), where that is sure.

  Args:
    annotation: with 'classes', 'absent', 'partial' where they are known.
    things: objects or blocks.
    key: where a thing says its class.
    crowds: whether a class is asked for that has a crowd beside things of their own; not where they are counted.
  """
  there = {thing[key] for thing in things}
  unsure = set(annotation.get('partial', ()))
  if not crowds:
    unsure |= {thing[key] for thing in things if thing.get('crowd')}
  present: dict[str, list[dict]] = {}
  for thing in base.single(things):
    if thing[key] not in unsure:
      present.setdefault(thing[key], []).append(thing)
  known = annotation['absent'] if 'absent' in annotation else annotation.get('classes', ())
  return present, [name for name in known if name not in there and name not in unsure]


def choose(
  present: Sequence[str], absent: Sequence[str], rng: np.random.Generator, limit: int
) -> list[str]:
  """Up to `limit` different classes, ABSENT_SHARE of them not there. Raises BadExample when none is present."""
  names = base.sample(present, rng, limit, 'class that can be asked for')
  if not absent:
    return names
  others = iter(base.sample(absent, rng, len(names), 'absent classes'))
  return [next(others, name) if rng.random() < ABSENT_SHARE else name for name in names]


def by_class(annotation: Mapping, things: Sequence[dict], rng: np.random.Generator) -> bool:
  """Whether to ask for single classes: always where things may be missing from the list, often where they are many."""
  if 'absent' in annotation or 'partial' in annotation:
    return True
  return 'classes' in annotation and (len(things) > MANY or bool(rng.random() < 0.5))


def turns(
  annotation: Mapping,
  things: Sequence[dict],
  key: str,
  order: Callable,
  rng: np.random.Generator,
  max_turns: int,
  instructions: Sequence[str],
) -> list[base.Turn]:
  """One turn for each of up to max_turns classes: `cup [box; box]`, or NOTHING for one that is not there."""
  present, absent = sort(annotation, things, key)
  result = []
  for name in choose(list(present), absent, rng, max_turns):
    answer, truth = base.labelled_boxes(
      [(name, thing['box']) for thing in sorted(present.get(name, ()), key=order)]
    )
    result.append(
      base.Turn(base.choose(instructions, rng).format(name), answer or base.NOTHING, truth)
    )
  return result
