"""TensorFlow for tf.data, tf.summary and TFDS on the host: off accelerators, with few threads."""

import contextlib
import functools
import os
from types import ModuleType


@functools.cache
def load() -> ModuleType:
  """Imports TensorFlow, keeps it off accelerators and returns it.

  The import takes 4 s or more, so call this only when TensorFlow is needed. `run.open_data` calls
  it in a background thread, which imports while XLA compiles. Each of TensorFlow's thread pools
  gets one thread, because the model needs the cores. If TensorFlow is in use already, its settings
  stay.

  Without a CUDA driver TensorFlow 2.21 logs "Could not find cuda drivers" twice during the import.
  No setting silences these lines. Redirecting stderr would, but would also catch other threads'
  output.
  """
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'  # JAX sets 1, which logs errors for absent GPUs.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # Unused here, and logged.
  os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # So Keras, unused here, is not imported.
  import tensorflow as tf

  with contextlib.suppress(RuntimeError):  # In use already.
    tf.config.set_visible_devices([], 'GPU')
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
  return tf
