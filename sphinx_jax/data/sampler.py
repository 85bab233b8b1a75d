"""The task mix as a tf.data dataset: the thin front of the pipeline; reading and packing happen behind it."""

import numpy as np

from sphinx_jax.core import tensorflow as quiet_tensorflow
from sphinx_jax.mix.tasks import Mixture

COLUMNS = ('position', 'task', 'example', 'epoch')


def dataset(mixture: Mixture, window: int, first: int = 0, examples: int | None = None):
  """A tf.data dataset over the global order, one element per window of positions.

  Args:
    mixture: the law.
    window: positions per element.
    first: number of the first window; starting late costs nothing.
    examples: end of the order, or None for an endless one; the last window may be short.

  Returns:
    tf.data.Dataset of {'position', 'task', 'example', 'epoch'}, each int64[window].
  """
  tf = quiet_tensorflow.load()
  end = np.iinfo(np.int64).max // window if examples is None else -(-examples // window)

  def look_up(number: np.ndarray) -> tuple[np.ndarray, ...]:
    stop = (number + 1) * window
    positions = np.arange(
      number * window, stop if examples is None else min(stop, examples), dtype=np.int64
    )
    return positions, *(column.astype(np.int64) for column in mixture.lookup(positions))

  def to_columns(number):
    columns = tf.numpy_function(look_up, [number], [tf.int64] * len(COLUMNS), stateful=False)
    return {name: tf.ensure_shape(column, [None]) for name, column in zip(COLUMNS, columns)}

  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  options.autotune.enabled = False
  options.deterministic = True
  return tf.data.Dataset.range(first, end).map(to_columns).with_options(options)
