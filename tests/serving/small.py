"""An engine of the tiny model, and requests for it."""

import base64
import contextlib
import functools
import hashlib
import io
import queue
import threading
import time

import openai
from jax import monitoring
from PIL import Image

from sphinx_jax.data import images as image_lib
from sphinx_jax.generate.text_stream import TextStream
from sphinx_jax.serving import api, engine as engines, http
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
  return engines.Image(
    hashlib.sha256(pixels.tobytes()).digest(), rule(image_lib.from_array(pixels))
  )


def text(model, tokens):
  """The answer that tokens are."""
  stream = TextStream(model.tokenizer, model.template)
  return stream.push(tokens) + stream.finish()


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
    return text(self._engine.model, self.tokens)


@contextlib.contextmanager
def serving(engine, name='tiny', **settings):
  """A server on the loopback address; yields its port."""
  app = api.make_app(engine, api.Settings(name, **settings))
  server, listener = http.make_server(app, drain=20), http.bind('127.0.0.1', 0)
  thread = threading.Thread(target=server.run, args=([listener],))
  thread.start()
  while not server.started:
    assert thread.is_alive()
    time.sleep(0.01)
  try:
    yield listener.getsockname()[1]
  finally:
    server.should_exit = True
    thread.join()
    listener.close()


def client(port, key='none', retries=0):
  return openai.OpenAI(
    base_url=f'http://127.0.0.1:{port}/v1', api_key=key, max_retries=retries, timeout=60
  )


def data_url(pixels, form='PNG'):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return f'data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}'


def messages(text, *urls):
  """A question about images that stand in front of it."""
  parts = [{'type': 'image_url', 'image_url': {'url': url}} for url in urls]
  return [{'role': 'user', 'content': [*parts, {'type': 'text', 'text': text}]}]
