"""The common form of opened foreign files: tensors that are read one by one."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a file, not read yet.

  Attributes:
    shape: sizes of its dimensions.
    dtype: the stored dtype; bfloat16 is ml_dtypes.bfloat16.
    read: reads the tensor into new memory; raises SphinxError if the file is damaged.
    read_rows: reads the part of some rows, a slice of the first dimension; None: it is only read as
      a whole.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  read_rows: Callable[[slice], np.ndarray] | None = None

  @property
  def nbytes(self) -> int:
    """Bytes at the stored dtype."""
    return math.prod(self.shape) * self.dtype.itemsize
