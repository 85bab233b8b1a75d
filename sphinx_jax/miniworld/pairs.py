"""Pairs of scenes that differ in one thing. The second is drawn when the first is read."""

import io

import numpy as np
from PIL import Image

from sphinx_jax.miniworld import draw, objects, scene
from sphinx_jax.miniworld.draw import COLORS

_ASPECTS = 1.45  # A thing is replaced by one whose box has about its shape.
# One thing leaves, changes its color, or changes its kind.
_CHANGES = ('gone', 'color', 'color', 'name', 'name')


def pair(
  things: list[dict], image: bytes, rng: np.random.Generator
) -> tuple[tuple[bytes, bytes], tuple[list[dict], list[dict]]]:
  """Makes a pair of a scene of objects. Half of the pairs begin with the changed scene.

  Args:
    things: the objects of the scene.
    image: the scene as a PNG file.
    rng: chooses the change.

  Returns:
    (images, lists of objects), both of the first and the second scene.
  """
  size = Image.open(io.BytesIO(image)).width
  changed = change(things, rng)
  canvas, changed = objects.redraw(changed, rng, size)
  pixels = canvas.finish(draw.background(rng, size))
  made = [(image, things), (scene.png(pixels), changed)]
  if rng.random() < 0.5:
    made.reverse()
  images, lists = zip(*made)
  return images, lists


def change(things: list[dict], rng: np.random.Generator) -> list[dict]:
  """Returns the things with one of them gone, in another color, or of another kind.

  No two things of the result have the same color and name. The only thing of a scene stays.
  """
  number, kind = int(rng.integers(len(things))), _CHANGES[rng.integers(len(_CHANGES))]
  others = [thing for i, thing in enumerate(things) if i != number]
  if kind == 'gone' and others:
    return others
  thing = things[number]
  taken = {(other['color'], other['name']) for other in things}
  variants = [{**thing, 'color': color} for color in COLORS]
  if kind == 'name':
    ratio = lambda name: objects.ASPECT[name] / objects.ASPECT[thing['name']]
    names = [name for name in objects.NAMES if 1 / _ASPECTS < ratio(name) < _ASPECTS]
    variants = [{**thing, 'name': name} for name in names] if len(names) > 1 else variants
  free = [other for other in variants if (other['color'], other['name']) not in taken]
  return [*things[:number], free[rng.integers(len(free))], *things[number + 1 :]]
