"""One scene from its number: (seed, split, kind, index) -> picture and annotation, with numpy and Pillow only."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.miniworld import captions, draw, figures, objects, pages, words

SPLITS = ('train', 'validation', 'test')
_DRAW = {  # kind -> (drawing function, its list in the annotation)
  'objects': (objects.draw, 'objects'),
  'words': (words.draw, 'words'),
  'page': (pages.draw, 'blocks'),
  'figure': (figures.draw, 'people'),
}
KINDS = tuple(_DRAW)


@dataclasses.dataclass(frozen=True)
class Scene:
  """id: "train_objects/000012", picture: uint8[Y, X, 3], annotation: JSON dict of CONTRACT form, boxes in [0, 1]."""

  id: str
  picture: np.ndarray
  annotation: dict

  def png(self) -> bytes:
    out = io.BytesIO()
    Image.fromarray(self.picture).save(out, 'PNG', compress_level=2)
    return out.getvalue()


def make(kind: str, split: str, index: int, seed: int = 0, size: int = 64) -> Scene:
  """Scene `index` of a split; the same for the same arguments, whatever else was drawn before.

  kind: one of KINDS, split: one of SPLITS, size: pixels a side. Raises SphinxError for an unknown kind or split.
  """
  if kind not in _DRAW:
    raise errors.unknown('scene kind', kind, KINDS)
  if split not in SPLITS:
    raise errors.unknown('split', split, SPLITS)
  rng = np.random.default_rng((seed, SPLITS.index(split), KINDS.index(kind), index))
  drawing, field = _DRAW[kind]
  canvas, things = drawing(rng, size)
  picture = canvas.finish(draw.background(rng, size))
  annotation = {'kind': kind, 'objects': [], 'words': [], 'blocks': [], 'people': []} | {
    field: things
  }
  annotation['caption_real'] = captions.real(annotation, rng)
  annotation['caption_synthetic'] = captions.synthetic(annotation, rng)
  return Scene(f'{split}_{kind}/{index:06d}', picture, annotation)


def rows(kind: str, split: str, start: int, stop: int, seed: int = 0, size: int = 64) -> list[dict]:
  """Scenes start..stop-1 as they are stored: [{"id", "image": PNG bytes, "annotation": JSON text}]."""
  scenes = (make(kind, split, index, seed, size) for index in range(start, stop))
  return [
    {'id': made.id, 'image': made.png(), 'annotation': json.dumps(made.annotation)}
    for made in scenes
  ]
