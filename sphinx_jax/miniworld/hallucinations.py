"""Objects that a scene does not have, in place of some that it has."""

import itertools

import numpy as np

from sphinx_jax.miniworld.draw import COLORS
from sphinx_jax.miniworld.objects import NAMES

SHARE = 0.5  # Of the objects of a scene that are replaced; at least one is.


def replaced(things: list[dict], rng: np.random.Generator) -> list[dict]:
  """Returns the objects of a scene with some of them replaced, each where the other was.

  What takes their place has a color and a name that no object of the scene has together. Half of
  them differ in one of the two from what they replace.

  Args:
    things: the objects, as in the annotation of a scene.
    rng: chooses which, and by what.
  """
  wrong = rng.random(len(things)) < SHARE
  wrong[rng.integers(len(things))] = True
  taken = {(thing['color'], thing['name']) for thing in things}
  result = []
  for thing, is_wrong in zip(things, wrong):
    if is_wrong:
      equal = int(rng.random() < 0.5)
      free = [
        look
        for look in itertools.product(COLORS, NAMES)
        if look not in taken and (look[0] == thing['color']) + (look[1] == thing['name']) == equal
      ]
      color, name = free[rng.integers(len(free))]
      taken.add((color, name))
      thing = {**thing, 'color': color, 'name': name}
    result.append(thing)
  return result
