"""An engine of the tiny model, and requests for it."""

import functools
import hashlib
import queue

from jax import monitoring

from sphinx_jax.data import images as image_lib
from sphinx_jax.serving import engine as engines
from tests.generate import small

ROWS, LENGTH = 4, 192
COMPILATION = '/jax/core/compile/backend_compile_duration'

compiled = []  # Names of the programs that this process has compiled or read from the cache.
monitoring.register_event_duration_secs_listener(
  lambda event, *_, **kinds: event == COMPILATION and compiled.append(kinds.get('fun_name'))
)


@functools.cache
def model():
  return small.model(bucket=64)


def image(pixels, of=None):
  """An image as requests have it; `of` is the model that reads it."""
  rule = (of or model()).slot_rule
  return engines.Image(hashlib.sha256(pixels).digest(), rule(image_lib.from_array(pixels)))


class Asked:
  """A request that waits for its answer."""

  def __init__(self, engine, turns, images=(), limit=16, **options):
    self._engine, self.arrived = engine, queue.Queue()
    encoded = engine.model.prompt_of(turns, len(images))
    parts = [image(pixels, engine.model) for pixels in images]
    self.request = engines.Request(encoded, parts, self.arrived.put, limit, **options)
    engine.submit(self.request)
    self.tokens, self.logprobs, self.end, self.error = [], [], None, None

  def wait(self, tokens=None):
    """Waits for the end, or for some tokens; returns the text."""
    while self.end is None and (tokens is None or len(self.tokens) < tokens):
      progress = self.arrived.get(timeout=60)
      self.tokens += progress.tokens
      self.logprobs += progress.logprobs
      self.end, self.error = progress.end, progress.error
    return self._engine.model.text(self.tokens)
