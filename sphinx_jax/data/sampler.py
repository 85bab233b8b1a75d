"""The task mixture as a tf.data dataset, the first stage of the pipeline.

It is thin: tf.data counts the windows, `Mixture.lookup` orders the examples, and the pipeline reads
and packs them. TensorFlow is imported here, in the pipeline's thread, while XLA compiles.
"""

from typing import TYPE_CHECKING

import numpy as np

from sphinx_jax.core import tensorflow
from sphinx_jax.mix.tasks import Mixture

if TYPE_CHECKING:
  import tensorflow as tf

COLUMNS = ('position', 'task', 'example', 'epoch')


def make_dataset(
  mixture: Mixture, window: int, first: int = 0, examples: int | None = None
) -> 'tf.data.Dataset':
  """Returns a tf.data dataset over the global order of examples, one element per window.

  Args:
    mixture: the order of examples.
    window: positions of a window.
    first: number of the first window. Starting late costs nothing.
    examples: end of the order, or None for an endless one. The last window may be short.

  Returns:
    A dataset of {'position', 'task', 'example', 'epoch'}, each int64[window].
  """
  tf = tensorflow.load()

  def look_up(number: np.ndarray) -> list[np.ndarray]:
    begin, end = number * window, (number + 1) * window
    if examples is not None:
      end = min(end, examples)
    positions = np.arange(begin, end, dtype=np.int64)
    return [positions, *(column.astype(np.int64) for column in mixture.lookup(positions))]

  def to_columns(number: 'tf.Tensor') -> dict[str, 'tf.Tensor']:
    columns = tf.numpy_function(look_up, [number], [tf.int64] * len(COLUMNS), stateful=False)
    return dict(zip(COLUMNS, columns))

  last = np.iinfo(np.int64).max // window if examples is None else -(-examples // window)
  options = tf.data.Options()
  # The model and the pipeline's own threads need the cores.
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  options.autotune.enabled = False
  return tf.data.Dataset.range(first, last).map(to_columns).with_options(options)
