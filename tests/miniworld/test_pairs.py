"""Pairs of scenes: one thing is changed, and the rest stays where it is."""

import io

import numpy as np
from PIL import Image

from sphinx_jax.miniworld import objects, pairs, scene


def look(thing):
  return thing['color'], thing['name']


def made(index):
  first = scene.make('objects', 'train', index)
  rng = np.random.default_rng(index)
  return first, *pairs.pair(first.annotation['objects'], first.png(), rng)


def test_a_pair_has_the_scene_itself_and_one_change():
  kinds, firsts = set(), 0
  for index in range(60):
    original, images, lists = made(index)
    at = images.index(original.png())
    firsts += at == 0
    before, after = lists[at], lists[1 - at]
    assert before == original.annotation['objects']
    gone, new = ({*map(look, a)} - {*map(look, b)} for a, b in ((before, after), (after, before)))
    assert len(gone) == 1 and len(new) == len(after) - len(before) + 1
    assert len({*map(look, after)}) == len(after)
    kinds.add((len(new), bool(new) and [*gone][0][0] == [*new][0][0]))
  assert kinds == {(0, False), (1, False), (1, True)} and 15 < firsts < 45


def test_pairs_are_the_same_each_time():
  assert made(3)[1:] == made(3)[1:]


def test_things_are_drawn_again_where_they_were():
  for index in range(60):
    things = scene.make('objects', 'train', index).annotation['objects']
    _, drawn = objects.redraw(things, np.random.default_rng(0), 64)
    for thing, again in zip(things, drawn):
      assert np.abs(np.subtract(thing['box'], again['box'])).max() < 0.02
      assert look(thing) == look(again)


def test_what_replaces_a_thing_is_in_its_box_and_seen():
  for index in range(60):
    original, images, lists = made(index)
    at = 1 - images.index(original.png())
    pixels = np.asarray(Image.open(io.BytesIO(images[at])), np.float32)
    boxes = {look(thing): thing['box'] for thing in original.annotation['objects']}
    for thing in lists[at]:
      x1, y1, x2, y2 = thing['box']
      assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
      if look(thing) not in boxes:
        assert any(
          np.all(np.subtract((x1, y1), box[:2]) > -0.02)
          and np.all(np.subtract((x2, y2), box[2:]) < 0.02)
          for box in boxes.values()
        )
      cut = pixels[round(y1 * 64) : round(y2 * 64), round(x1 * 64) : round(x2 * 64)]
      assert np.ptp(cut, axis=-1).max() > 60  # The ground is gray.
