"""What linear probes read out of frozen encoders: kinds, colors and boxes of objects, and letters.

    python -m benchmarks.probes --data=workdir/mini/data workdir/mini/encoders OTHER_CHECKPOINT
    python -m benchmarks.probes --data=DIR --encoders=clip,dinov2 --images=500 CHECKPOINT

Every checkpoint is compared with random encoders of its config. A probe is a ridge regression of
what an encoder makes of one place: its cell (of a Q-Former, its queries) at the center of an object
or word, in the global view and in the sub-image there. It is trained on images of the training
split and scored on as many of the test split. Scores of kind and color are accuracies, that of
boxes is the explained share of the variance of their four edges, seen from the center of the cell,
and that of text is the area under the ROC curve of the letters that occur in a word (0.5 is
chance).
"""

import argparse
import pathlib

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
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # The best on a fifth of the training images is taken.
_LETTERS = 'abcdefghijklmnopqrstuvwxyz'
# Probe -> the list of an annotation that it is about.
PROBES = {'kind': 'objects', 'color': 'objects', 'box': 'objects', 'text': 'words'}


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


def features(
  config: FrozenConfigDict, name: str, params: dict, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What an encoder makes of every place: (global view, sub-images side by side).

  Returns:
    Both float32[N,G,G,E], G cells along a side; of a Q-Former all queries of a view are one cell.
  """

  @jax.jit
  def encode(batch: jax.Array) -> jax.Array:
    views = families.encoder_views(config, name, batch)
    merged = views.reshape(-1, *views.shape[2:])
    output = families.encoder(config, name).apply({'params': params}, merged)
    cells = output[1] if isinstance(output, tuple) else output.reshape(len(merged), 1, 1, -1)
    return cells.reshape(*views.shape[:2], *cells.shape[1:])

  parts = []
  for begin in range(0, len(pixels), _BATCH):
    batch = pixels[begin : begin + _BATCH]
    padded = np.resize(batch, (_BATCH, *batch.shape[1:]))
    parts.append(np.asarray(encode(padded))[: len(batch)])
  cells = np.concatenate(parts)
  count, _, side, _, width = cells.shape
  grid = config.grid
  fine = cells[:, 1:].reshape(count, grid, grid, side, side, width)
  fine = fine.transpose(0, 1, 3, 2, 4, 5).reshape(count, grid * side, grid * side, width)
  return cells[:, 0], fine


def at(maps: tuple[np.ndarray, np.ndarray], things: list[tuple[int, dict]]) -> np.ndarray:
  """The features float32[things,F] of the place of every (number of its image, thing)."""
  rows = []
  for number, thing in things:
    x, y = places.center(thing['box'])
    rows.append(np.concatenate([cells[number, _cell(y, cells), _cell(x, cells)] for cells in maps]))
  return np.stack(rows)


def _cell(coordinate: float, cells: np.ndarray) -> int:
  return min(int(coordinate * cells.shape[1]), cells.shape[1] - 1)


def targets(name: str, things: list[tuple[int, dict]], side: int) -> np.ndarray:
  """float64[things,outputs]; `side` is the number of cells along an image, for boxes."""
  if name == 'box':
    centers = [np.floor(np.array(places.center(thing['box'])) * side) for _, thing in things]
    corners = np.array([thing['box'] for _, thing in things])
    return corners - np.tile((np.stack(centers) + 0.5) / side, 2)
  choices = {'kind': list(objects.NAMES), 'color': list(COLORS), 'text': _LETTERS}[name]
  of_thing = {
    'kind': lambda thing: [thing['name']],
    'color': lambda thing: [thing['color']],
    'text': lambda thing: thing['text'].lower(),
  }[name]
  return np.array([[float(choice in of_thing(thing)) for choice in choices] for _, thing in things])


def score(name: str, predicted: np.ndarray, truth: np.ndarray) -> float:
  """The score of a probe, see above."""
  if name in ('kind', 'color'):
    return float((predicted.argmax(axis=1) == truth.argmax(axis=1)).mean())
  if name == 'box':
    return float(1 - ((predicted - truth) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum())
  areas = []
  for values, labels in zip(predicted.T, truth.T > 0):
    positive, negative = labels.sum(), (~labels).sum()
    if positive and negative:
      ranks = np.argsort(np.argsort(values, kind='stable')) + 1
      areas.append((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))
  return float(np.mean(areas))


def probe(
  name: str, train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray
) -> float:
  """The score of a ridge regression, whose strength is chosen on a fifth of the images."""
  mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
  train, test = ((x.astype(np.float64) - mean) / deviation for x in (train, test))

  def predict(x: np.ndarray, y: np.ndarray, ridge: float, of: np.ndarray) -> np.ndarray:
    gram = x.T @ x / len(x) + ridge * np.eye(x.shape[1])
    return of @ np.linalg.solve(gram, x.T @ (y - y.mean(axis=0)) / len(x)) + y.mean(axis=0)

  first = len(train) * 4 // 5
  chosen = max(
    _RIDGES,
    key=lambda ridge: score(
      name, predict(train[:first], labels[:first], ridge, train[first:]), labels[first:]
    ),
  )
  return score(name, predict(train, labels, chosen, test), truth)


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
      for key, kind in PROBES.items():
        sides = []
        for split in ('train', 'test'):
          maps, annotations = found[split, kind], scenes[split, kind][1]
          things = [
            (number, thing)
            for number, annotation in enumerate(annotations)
            for thing in annotation[kind]
          ]
          sides += [at(maps, things), targets(key, things, maps[1].shape[1])]
        row.append(f'{probe(key, *sides):.3f}')
      rows.append(row)
  print(table(rows, align='ll' + 'r' * len(PROBES)))


if __name__ == '__main__':
  main()
