"""An engine that answers with given texts, at once or when a test lets it go on."""

import threading
import types

from sphinx_jax.serving import engine as engines
from tests.serving import small


class ScriptedEngine:
  """Stands for an engine.

  Attributes:
    script: parts of the next answers: a text, an Event to wait for, an error that ends them, or an
      end ('length').
    requests: those that were asked.
  """

  is_alive, waiting, running, generated, prompted, reused = True, 0, 0, 0, 0, 0

  def __init__(self):
    self.model, self.images = small.model(), engines.VisualCache(1 << 20)
    self.batch = types.SimpleNamespace(rows=4, length=4096)
    self.script, self.requests = [], []
    pieces = {piece: token for token, piece in self.model.tokenizer.pieces().items()}
    self._bytes = [pieces[f'<0x{byte:02X}>'] for byte in range(256)]

  def check(self, prompt):
    del prompt
    return 1000

  def submit(self, request):
    self.requests.append(request)
    threading.Thread(target=self._answer, args=(request, list(self.script)), daemon=True).start()

  def cancel(self, request):
    request.is_cancelled = True

  def tokens_per_second(self):
    return 0.0

  def _answer(self, request, script):
    last = engines.Progress([], [], 'stop')
    for part in script:
      if isinstance(part, threading.Event):
        part.wait(30)
      elif isinstance(part, Exception):
        last = engines.Progress([], [], 'error', part)
      elif part == 'length':
        last = engines.Progress([], [], 'length')
      else:
        tokens = [self._bytes[byte] for byte in part.encode()]
        request.deliver(engines.Progress(tokens, [], None))
    if not request.is_cancelled:
      request.deliver(last)
