"""Preference pairs of miniworld: captions that fit their scene, and hallucinated ones.

The rejected caption is the chosen one with objects in place of others that are not in the scene.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sphinx_jax.data.record import Record
from sphinx_jax.datasets import entries, miniworld
from sphinx_jax.miniworld import captions, hallucinations


def open_source(entry: Mapping[str, Any], data_dir: str | pathlib.Path) -> 'MiniworldPairs':
  """Opens the source of a mixture entry.

  Args:
    entry: {task: 'caption', split?, seed?}, see `miniworld.Miniworld`.
    data_dir: directory of `miniworld.builder.build`.

  Raises:
    SphinxError: a key is missing or unknown; unknown names or missing data.
  """
  entries.check(entry, 'miniworld_pairs', required=(), optional=('task', 'split', 'seed'))
  return MiniworldPairs(data_dir, entry.get('split', 'train'), entry.get('seed', 0))


class MiniworldPairs(miniworld.Miniworld):
  """Pairs of captions of scenes of objects. Record i is a function of (seed, i) and of the data.

  Args:
    data_dir: directory of `miniworld.builder.build`.
    split: 'train', 'validation' or 'test'.
    seed: chooses the wording of the instruction and the wrong objects.

  Raises:
    SphinxError: unknown names or missing data.
  """

  name = 'miniworld_pairs'
  pairs = True

  def __init__(self, data_dir: str | pathlib.Path, split: str = 'train', seed: int = 0) -> None:
    super().__init__('caption', data_dir, split, seed, domain='synthetic', kinds=('objects',))

  def __getitem__(self, index: int) -> Record:
    """Returns record `index`."""
    annotation, rng = self.annotation(index), np.random.default_rng((self.seed, index, 1))
    things = hallucinations.replaced(annotation['objects'], rng)
    rejected = captions.synthetic({**annotation, 'objects': things}, rng)
    return dataclasses.replace(super().__getitem__(index), rejected=rejected)
