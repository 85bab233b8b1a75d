"""Makes one scene from its number: (seed, split, kind, index) -> image and annotation.

It needs numpy and Pillow only.
"""

import dataclasses
import io
import json
from typing import Any

import numpy as np
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.miniworld import captions, draw, figures, objects, pages, words

SPLITS = ('train', 'validation', 'test')
# Kind -> (drawing function, its list in the annotation).
_DRAW = {
  'objects': (objects.draw, 'objects'),
  'words': (words.draw, 'words'),
  'page': (pages.draw, 'blocks'),
  'figure': (figures.draw, 'people'),
}
KINDS = tuple(_DRAW)
SCALED = ('objects', 'words')  # Kinds whose things may be drawn smaller.


@dataclasses.dataclass(frozen=True)
class Scene:
  """One drawn scene.

  Attributes:
    id: for example 'train_objects/000012'.
    pixels: uint8[Y,X,3].
    annotation: the lists 'objects', 'words', 'blocks' and 'people' that tasks read
      (tasks/task.py), of which only one is filled, with boxes in [0, 1]; 'kind', 'caption_real' and
      'caption_synthetic'.
  """

  id: str
  pixels: np.ndarray
  annotation: dict[str, Any]

  def png(self) -> bytes:
    """The image as a PNG file."""
    return png(self.pixels)


def png(pixels: np.ndarray) -> bytes:
  """An image uint8[Y,X,3] as a PNG file."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG', compress_level=2)
  return file.getvalue()


def make(
  kind: str, split: str, index: int, seed: int = 0, size: int = 64, scale: float = 1.0
) -> Scene:
  """Makes scene `index` of a split. It depends on the arguments alone.

  Args:
    kind: one of KINDS.
    split: one of SPLITS.
    index: number of the scene.
    seed: seed of the dataset.
    size: edge of the image in pixels.
    scale: size of objects and words, as a factor of the usual one.

  Raises:
    SphinxError: an unknown kind or split.
  """
  if kind not in _DRAW:
    raise errors.unknown('scene kind', kind, KINDS)
  if split not in SPLITS:
    raise errors.unknown('split', split, SPLITS)
  rng = np.random.default_rng((seed, SPLITS.index(split), KINDS.index(kind), index))
  draw_things, list_name = _DRAW[kind]
  canvas, things = draw_things(rng, size, scale) if kind in SCALED else draw_things(rng, size)
  pixels = canvas.finish(draw.background(rng, size))
  annotation = {'kind': kind, 'objects': [], 'words': [], 'blocks': [], 'people': []}
  annotation[list_name] = things
  annotation['caption_real'] = captions.real(annotation, rng)
  annotation['caption_synthetic'] = captions.synthetic(annotation, rng)
  return Scene(f'{split}_{kind}/{index:06d}', pixels, annotation)


def rows(
  kind: str,
  split: str,
  start: int,
  stop: int,
  seed: int = 0,
  size: int = 64,
  scale: float = 1.0,
) -> list[dict]:
  """Scenes start to stop-1 as they are stored: {'id', 'image' (PNG bytes), 'annotation' (JSON)}."""
  scenes = (make(kind, split, index, seed, size, scale) for index in range(start, stop))
  return [
    {'id': scene.id, 'image': scene.png(), 'annotation': json.dumps(scene.annotation)}
    for scene in scenes
  ]
