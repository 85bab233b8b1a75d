"""Reads a finished build of miniworld."""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sphinx_jax.core import errors

NAME = 'miniworld'
VERSION = '1.0.8'
TEXT = 'text'  # The kind of what has no image.


class StoredScene(NamedTuple):
  """A scene, or a text, as it was built.

  Attributes:
    id: for example 'train_objects/000012'.
    image: PNG bytes, None for a text.
    annotation: the scene's annotation (scene.Scene), or {'kind': 'text', 'text': ...}.
  """

  id: str
  image: bytes | None
  annotation: dict


class StoredScenes:
  """Random access to the built scenes of one split.

  Scenes of several kinds are interleaved in proportion to their numbers, so that any stretch of
  them holds all kinds.

  Args:
    data_dir: directory of `builder.build`.
    split: 'train', 'validation' or 'test'.
    kinds: kinds of scenes, or ('text',).

  Raises:
    SphinxError: there is no finished build.
  """

  def __init__(self, data_dir: str | pathlib.Path, split: str, kinds: Sequence[str]) -> None:
    self._split = split
    self._parts = _open_parts(pathlib.Path(data_dir), split, kinds)
    order = sorted(
      ((row + 0.5) / len(part), number, row)
      for number, part in enumerate(self._parts)
      for row in range(len(part))
    )
    self._order = np.array([(number, row) for _, number, row in order], np.int32)

  def __len__(self) -> int:
    return len(self._order)

  def __getitem__(self, index: int) -> StoredScene:
    if not 0 <= index < len(self):
      raise IndexError(f'scene {index} of {len(self)}')  # Ends iteration.
    number, row = (int(value) for value in self._order[index])
    stored = self._parts[number][row]
    if 'text' in stored:
      annotation = {'kind': TEXT, 'text': stored['text'].decode()}
      return StoredScene(f'{self._split}_text/{row:06d}', None, annotation)
    return StoredScene(stored['id'].decode(), stored['image'], json.loads(stored['annotation']))


def location(data_dir: str | pathlib.Path, config: str) -> pathlib.Path:
  """The directory of a finished build of a TFDS config ('scenes' or 'text')."""
  return pathlib.Path(data_dir) / NAME / config / VERSION


def _open_parts(data_dir: pathlib.Path, split: str, kinds: Sequence[str]) -> list[Sequence[dict]]:
  """Returns the rows of each kind, with images left as PNG bytes."""
  import tensorflow_datasets as tfds  # Takes a second, so only if it is needed.

  is_text = tuple(kinds) == (TEXT,)
  directory = location(data_dir, 'text' if is_text else 'scenes')
  if not (directory / 'dataset_info.json').exists():
    raise errors.make(
      'miniworld',
      f'data_dir={str(data_dir)!r} without {directory.relative_to(data_dir)}',
      'a finished build there',
      'correct data_dir, or build it with sphinx_jax.miniworld.builder.build(data_dir)',
    )
  builder = tfds.builder_from_directory(directory)
  if is_text:
    return [builder.as_data_source(split)]
  decoders = {'image': tfds.decode.SkipDecoding()}
  return [builder.as_data_source(f'{split}_{kind}', decoders=decoders) for kind in kinds]
