"""TensorFlow as this package uses it: for tf.data and TFDS on the host, without its noise, devices and threads."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType


@functools.cache
def load() -> ModuleType:
  """The tensorflow module, imported quietly (seconds, so only when needed) and kept off accelerators.

  Where nobody has used TensorFlow before, it also gets one thread per pool: the model's own computation needs the cores.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  with _hidden_stderr():
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # Already in use: its settings stay.
      tf.config.set_visible_devices([], 'GPU')
      tf.config.threading.set_inter_op_parallelism_threads(1)
      tf.config.threading.set_intra_op_parallelism_threads(1)
  return tf


@contextlib.contextmanager
def _hidden_stderr() -> Iterator[None]:
  """Keeps back what C++ writes to stderr before its log level counts; shows it if the body fails."""
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as said:
    os.dup2(said.fileno(), 2)
    try:
      yield
    except BaseException:
      said.seek(0)
      os.write(kept, said.read())
      raise
    finally:
      os.dup2(kept, 2)
      os.close(kept)
