"""Memory of the arrays that stay on a device between updates.

It is exact: it follows from the shapes and shardings of a `sphinx_jax.run.Program`.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from sphinx_jax.parallel import rules


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of the state or the batch.

  Attributes:
    kind: 'trained', 'frozen', 'optimizer' or 'batch'.
    path: names in its tree, joined by '/'.
    shape: global shape.
    dtype: name of the dtype.
    nbytes: bytes of the global array.
    local_nbytes: bytes on one device.
  """

  kind: str
  path: str
  shape: tuple[int, ...]
  dtype: str
  nbytes: int
  local_nbytes: int

  @property
  def replicated(self) -> bool:
    """Whether every device has all of it."""
    return self.local_nbytes == self.nbytes


def resident_leaves(program: Any) -> list[Leaf]:
  """Returns every array that the compiled update of a `Program` takes."""
  trees = {
    'trained': program.state.trained,
    'frozen': program.state.frozen,
    'optimizer': program.state.opt_state,
    'batch': program.batch,
  }
  leaves = []
  for kind, tree in trees.items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      leaves.append(
        Leaf(
          kind=kind,
          path=jax.tree_util.keystr(path, simple=True, separator='/'),
          shape=leaf.shape,
          dtype=str(np.dtype(leaf.dtype)),
          nbytes=math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize,
          local_nbytes=local_bytes(leaf),
        )
      )
  return leaves


def local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
  """Returns the bytes of an array on one device, as its sharding splits it."""
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize


def resident_bytes(leaves: list[Leaf]) -> dict[str, int]:
  """Returns the bytes on one device by kind.

  'gradients' is added: they have the shapes and shardings of the trained parameters.
  """
  totals = dict.fromkeys(('trained', 'frozen', 'optimizer', 'batch'), 0)
  for leaf in leaves:
    totals[leaf.kind] += leaf.local_nbytes
  return totals | {'gradients': totals['trained']}


def replicated(leaves: list[Leaf], devices: int) -> list[Leaf]:
  """Returns the leaves over 1 MiB that each of several devices has whole, largest first."""
  if devices == 1:
    return []
  large = [leaf for leaf in leaves if leaf.replicated and leaf.nbytes > rules.LARGE]
  return sorted(large, key=lambda leaf: -leaf.nbytes)
