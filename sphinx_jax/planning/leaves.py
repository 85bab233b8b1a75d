"""What lies on a device between updates: exact, from the shapes and layouts of a `Program`."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from sphinx_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of the state or the batch; `nbytes` in all, `local` on one device."""

  kind: str  # 'trained', 'frozen', 'optimizer' or 'batch'
  path: str
  shape: tuple[int, ...]
  dtype: str
  nbytes: int
  local: int

  @property
  def replicated(self) -> bool:
    """Whether every device holds all of it."""
    return self.local == self.nbytes


def held(program: Any) -> list[Leaf]:
  """Every array that a compiled update takes (`sphinx_jax.run.Program`), as its layout splits it."""
  parts = {
    'trained': program.state.trained,
    'frozen': program.state.frozen,
    'optimizer': program.state.opt_state,
    'batch': program.batch,
  }
  return [
    _leaf(kind, path, leaf)
    for kind, tree in parts.items()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def _leaf(kind: str, path: tuple, leaf: jax.ShapeDtypeStruct) -> Leaf:
  names = '/'.join(
    str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path
  )
  return Leaf(
    kind,
    names,
    leaf.shape,
    str(np.dtype(leaf.dtype)),
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize,
    local_bytes(leaf),
  )


def local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Bytes of an array on one device, as its layout splits it."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def by_kind(leaves: list[Leaf]) -> dict[str, int]:
  """Bytes on one device of each kind; 'gradients' have the shapes and layouts of what is trained."""
  total = dict.fromkeys(('trained', 'frozen', 'optimizer', 'batch'), 0)
  for leaf in leaves:
    total[leaf.kind] += leaf.local
  return total | {'gradients': total['trained']}


def replicated(leaves: list[Leaf], devices: int) -> list[Leaf]:
  """Leaves over 1 MiB that every one of several devices holds whole, largest first."""
  return sorted(
    (leaf for leaf in leaves if devices > 1 and leaf.replicated and leaf.nbytes > rules.LARGE),
    key=lambda leaf: -leaf.nbytes,
  )
