"""What linear probes read out of frozen encoders: kinds, colors and places of objects, and letters.

    python -m benchmarks.probes --data=workdir/mini/data workdir/mini/encoders OTHER_CHECKPOINT
    python -m benchmarks.probes --data=DIR --encoders=clip,dinov2 --images=500 CHECKPOINT

Every checkpoint is compared with random encoders of its config. A probe is a ridge regression of
all class tokens, cells and queries that the language model would read: of the kinds, colors and
places (a grid of 4 x 4 cells) that occur in a scene of objects, and of the letters in a scene of
words. Trained on images of the training split, it is scored on as many of the test split by the
area under the ROC curve, mean over labels: 0.5 is chance, 1 is perfect.
"""

import argparse
import pathlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np
from ml_collections import FrozenConfigDict

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import load_bundle
from sphinx_jax.core.text import table
from sphinx_jax.data import images
from sphinx_jax.miniworld import objects, places
from sphinx_jax.miniworld.draw import COLORS
from sphinx_jax.miniworld.reader import StoredScenes
from sphinx_jax.models import families
from sphinx_jax.parallel import placement

_BATCH = 64
_RIDGES = (1e-1, 1.0, 1e1, 1e2, 1e3)  # The best on a fifth of the training images is taken.
_CELLS = 4  # Of the grid of places, along each side.
_LETTERS = 'abcdefghijklmnopqrstuvwxyz'
# Probe -> kind of its scenes, number of labels, and the labels that an annotation has.
PROBES = {
  'kind': ('objects', len(objects.NAMES), lambda scene: _of(scene, 'name', objects.NAMES)),
  'color': ('objects', len(COLORS), lambda scene: _of(scene, 'color', list(COLORS))),
  'place': (
    'objects',
    _CELLS**2,
    lambda scene: [_cell(thing['box']) for thing in scene['objects']],
  ),
  'text': (
    'words',
    len(_LETTERS),
    lambda scene: [
      _LETTERS.index(letter)
      for word in scene['words']
      for letter in word['text'].lower()
      if letter in _LETTERS
    ],
  ),
}


def _of(scene: dict, key: str, names: list[str]) -> list[int]:
  return [list(names).index(thing[key]) for thing in scene['objects']]


def _cell(box: list[float]) -> int:
  x, y = (min(int(value * _CELLS), _CELLS - 1) for value in places.center(box))
  return y * _CELLS + x


def read(data: pathlib.Path, split: str, kind: str, count: int, size: int) -> tuple:
  """Images uint8[N,Y,X,3] and annotations of the first scenes of a kind."""
  scenes = StoredScenes(data, split, (kind,))
  chosen = [scenes[index] for index in range(min(count, len(scenes)))]
  pixels = np.stack([images.square(scene.image, size) for scene in chosen])
  return pixels, [scene.annotation for scene in chosen]


def fresh(config: FrozenConfigDict, name: str) -> dict:
  """Random parameters of an encoder."""
  view = config.encoders[name].view

  def init(key: jax.Array) -> dict:
    encoder = families.encoder(config, name)
    return nn.unbox(encoder.init(key, jax.numpy.zeros((1, view, view, 3))))

  options = placement.fast_compile_options()
  return jax.jit(init, compiler_options=options)(jax.random.key(0))['params']


def features(config: FrozenConfigDict, name: str, params: dict, pixels: np.ndarray) -> np.ndarray:
  """What an encoder makes of images: float32[N,F]."""

  @jax.jit
  def encode(batch: jax.Array) -> list[jax.Array]:
    views = families.encoder_views(config, name, batch)
    merged = views.reshape(-1, *views.shape[2:])
    return jax.tree.leaves(families.encoder(config, name).apply({'params': params}, merged))

  def batches() -> Iterator[np.ndarray]:
    for begin in range(0, len(pixels), _BATCH):
      batch = pixels[begin : begin + _BATCH]
      padded = np.resize(batch, (_BATCH, *batch.shape[1:]))
      parts = [np.asarray(part).reshape(_BATCH, -1) for part in encode(padded)]
      yield np.concatenate(parts, axis=1)[: len(batch)]

  return np.concatenate(list(batches()))


def area(scores: np.ndarray, labels: np.ndarray) -> float:
  """The area under the ROC curve, mean over labels that occur and are not everywhere."""
  areas = []
  for score, label in zip(scores.T, labels.T):
    positive, negative = label.sum(), (~label).sum()
    if positive and negative:
      ranks = np.empty(len(score))
      ranks[np.argsort(score, kind='stable')] = np.arange(1, len(score) + 1)
      areas.append((ranks[label].sum() - positive * (positive + 1) / 2) / (positive * negative))
  return float(np.mean(areas))


def probe(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
  """The score of a ridge regression, whose strength is chosen on a fifth of the images."""
  mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-3
  scale = deviation * np.sqrt(train.shape[1])
  train, test = (train - mean) / scale, (test - mean) / scale
  targets = labels.astype(np.float64) - labels.mean(axis=0)
  gram = (train @ train.T).astype(np.float64)

  def fit(rows: slice, ridge: float) -> np.ndarray:
    part = gram[rows, rows]
    return np.linalg.solve(part + ridge * 1e-2 * np.eye(len(part)), targets[rows])

  first, held = slice(None, len(train) * 4 // 5), slice(len(train) * 4 // 5, None)
  best = max(_RIDGES, key=lambda ridge: area(gram[held, first] @ fit(first, ridge), labels[held]))
  return area((test @ train.T) @ fit(slice(None), best), truth)


def multi_hot(annotations: list[dict], name: str) -> np.ndarray:
  """bool[N,labels] of a probe."""
  _, count, labels_of = PROBES[name]
  hot = np.zeros((len(annotations), count), bool)
  for row, annotation in zip(hot, annotations):
    row[labels_of(annotation)] = True
  return hot


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--data', type=pathlib.Path, required=True, help='of the mini recipe')
  parser.add_argument('--encoders', default='', help='names with commas; all if absent')
  parser.add_argument('--images', type=int, default=1000, help='of each kind and split')
  parser.add_argument('checkpoints', nargs='+', help='of the step encoders, or of any stage')
  options = parser.parse_args()

  rows = [['encoder', 'weights', *PROBES]]
  config = FrozenConfigDict(load_bundle(options.checkpoints[0]).config.model.to_dict())
  part = families.feature_params(config)
  names = families.encoder_names(config)
  weights = {'random': {name: fresh(config, name) for name in names}}
  weights |= {path: store.load_params(path)[part] for path in options.checkpoints}
  scenes = {
    (split, kind): read(options.data, split, kind, options.images, config.image_size)
    for kind in ('objects', 'words')
    for split in ('train', 'test')
  }
  for name in options.encoders.split(',') if options.encoders else names:
    for label, params in weights.items():
      if name not in params:
        continue
      found = {
        key: features(config, name, params[name], pixels) for key, (pixels, _) in scenes.items()
      }
      row = [name, label]
      for key, (kind, _, _) in PROBES.items():
        sides = [
          side
          for split in ('train', 'test')
          for side in (found[split, kind], multi_hot(scenes[split, kind][1], key))
        ]
        row.append(f'{probe(*sides):.3f}')
      rows.append(row)
  print(table(rows, align='ll' + 'r' * len(PROBES)))


if __name__ == '__main__':
  main()
