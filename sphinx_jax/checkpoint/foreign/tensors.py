"""What every foreign file is opened as: names with shapes and dtypes, and a way to read each tensor alone."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a file that is not read yet.

  Attributes:
    shape: its sizes.
    dtype: as stored; bfloat16 is ml_dtypes.bfloat16.
    read: reads it into fresh memory; raises SphinxError where the file is damaged.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes at the stored dtype."""
    return math.prod(self.shape) * self.dtype.itemsize
