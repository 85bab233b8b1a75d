"""TensorFlow for tf.data and TFDS on the host: no log noise, accelerators or extra threads."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType


@functools.cache
def load() -> ModuleType:
  """Imports TensorFlow quietly, keeps it off accelerators and returns it.

  The import takes seconds, so call this only when TensorFlow is needed. Each of its thread pools
  gets one thread, because the model needs the cores. If TensorFlow is in use already, its settings
  stay.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  with _hidden_stderr():
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # In use already.
      tf.config.set_visible_devices([], 'GPU')
      tf.config.threading.set_inter_op_parallelism_threads(1)
      tf.config.threading.set_intra_op_parallelism_threads(1)
  return tf


@contextlib.contextmanager
def _hidden_stderr() -> Iterator[None]:
  """Holds back stderr, where C++ writes before its log level is set. Shows it if the body fails."""
  sys.stderr.flush()
  stderr = os.dup(2)
  with tempfile.TemporaryFile() as captured:
    os.dup2(captured.fileno(), 2)
    try:
      yield
    except BaseException:
      captured.seek(0)
      os.write(stderr, captured.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)
