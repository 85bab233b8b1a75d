"""The choices of one request: from its messages to pieces of text."""

import asyncio
import dataclasses
import functools
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, NamedTuple

from sphinx_jax.data.dialog import Encoded
from sphinx_jax.data.record import MARK
from sphinx_jax.generate import messages as messages_lib, stop
from sphinx_jax.generate.model import Model
from sphinx_jax.generate.text_stream import TextStream
from sphinx_jax.serving import api_errors, protocol
from sphinx_jax.serving.engine import Engine, Image, Logprob, Progress, Request

# Below it the likeliest token has all of the probability, and quotients are no numbers.
_GREEDY_TEMPERATURE = 1e-4
_BYTE = re.compile('<0x([0-9A-F]{2})>')


class Event(NamedTuple):
  """News of a choice.

  Attributes:
    index: of the choice.
    text: its next piece.
    tokens: number of new tokens.
    logprobs: entries of the API for tokens whose text is out.
    end: 'stop' or 'length'; None: it goes on.
  """

  index: int
  text: str
  tokens: int
  logprobs: list[dict[str, Any]]
  end: str | None


class Prompts:
  """Turns the messages of requests into prompts, in any thread.

  Args:
    model: that reads them.
    length: most positions of a prompt.
  """

  def __init__(self, model: Model, length: int) -> None:
    self._model, self._length = model, length
    longest = max(map(len, model.tokenizer.pieces().values()))
    self._characters = longest * length

  def encode(self, request: protocol.ChatRequest) -> Encoded:
    """Tokenizes messages as the model was trained: a single image stands where its template has it.

    Raises:
      SphinxError: roles that are not in turns; text that is too long or looks like an image.
    """
    images = len(request.urls)
    if request.characters > self._characters:  # Too many tokens in any case.
      raise api_errors.make(
        'messages',
        f'{request.characters} characters',
        f'fewer than {self._length} tokens',
        'shorten the conversation',
      )
    messages = protocol.plain_messages(request)
    texts = [part['text'] for m in messages for part in m['content'] if 'text' in part]
    if images and any(MARK in text for text in texts):
      raise api_errors.make(
        'messages', f'{MARK} in a text', 'a part of the type image_url for every image', 'remove it'
      )
    asked = messages_lib.read(messages)
    template = self._model.template
    if asked.system is not None:
      template = dataclasses.replace(template, system=asked.system)
    slots = [self._model.slot_rule.count] * images
    return template.prompt(asked.turns, self._model.tokenizer, slots, asked.begin, 'loose')


class Completion:
  """The choices of one request, which are answered together.

  Args:
    engine: that answers.
    request: as the client sent it.
    prompt: from `Prompts`.
    images: of the messages.
    client: who asks.
    limit: most tokens of an answer.
    deadline: `time.monotonic()` at which it is given up.
    names: text of tokens, for log-probabilities.
  """

  def __init__(
    self,
    engine: Engine,
    request: protocol.ChatRequest,
    prompt: Encoded,
    images: Sequence[Image],
    client: str,
    limit: int,
    deadline: float,
    names: 'TokenNames',
  ) -> None:
    self._engine, self._asked, self._names, self._deadline = engine, request, names, deadline
    wanted = request.max_completion_tokens or request.max_tokens or limit
    self.prompt_tokens = len(prompt.ids) + len(prompt.images_at) * engine.model.visual_tokens
    loop, self._arrived = asyncio.get_running_loop(), asyncio.Queue()
    temperature = request.temperature or 0.0

    def make(index: int) -> Request:
      def deliver(progress: Progress) -> None:
        loop.call_soon_threadsafe(self._arrived.put_nowait, (index, progress))

      return Request(
        prompt,
        images,
        deliver,
        min(wanted, limit),
        temperature if temperature >= _GREEDY_TEMPERATURE else 0.0,
        1.0 if request.top_p is None else request.top_p,
        secrets.randbits(32) if request.seed is None else request.seed,
        stream=index,
        logprobs=bool(request.logprobs),
        client=client,
      )

    self._requests = [make(index) for index in range(request.n or 1)]

  async def events(self) -> AsyncIterator[Event]:
    """Asks the engine, and yields events until all choices have ended.

    If the iteration ends early, the choices are cancelled and their rows are free.

    Raises:
      ApiError: the time is over.
      Exception: what failed in the engine.
    """
    choices = [_Choice(self._engine.model, self._asked, self._names) for _ in self._requests]
    open_ones = dict(enumerate(self._requests))
    try:
      for request in self._requests:
        self._engine.submit(request)
      while open_ones:
        index, progress = await self._next()
        if index not in open_ones:  # It came while its request was cancelled.
          continue
        if progress.error is not None:
          raise progress.error
        event = choices[index].read(index, progress)
        if event.end is not None:
          self._engine.cancel(open_ones.pop(index))
        yield event
    finally:
      for request in open_ones.values():
        self._engine.cancel(request)

  async def _next(self) -> tuple[int, Progress]:
    try:
      return await asyncio.wait_for(self._arrived.get(), self._deadline - time.monotonic())
    except TimeoutError:
      raise late() from None


def late() -> api_errors.ApiError:
  """The error of a request whose time is over."""
  return api_errors.make(
    'request', 'no answer in time', 'fewer tokens', 'lower max_tokens', status=504, kind='timeout'
  )


class _Choice:
  """One answer while it is generated."""

  def __init__(self, model: Model, asked: protocol.ChatRequest, names: 'TokenNames') -> None:
    self._stream = TextStream(model.tokenizer, model.template, asked.stops)
    self._asked, self._names = asked, names
    # Log-probabilities that wait for the text of their tokens, with the text's length behind them.
    self._held: list[tuple[int, dict[str, Any]]] = []

  def read(self, index: int, progress: Progress) -> Event:
    """Reads what has come."""
    stream, end, before = self._stream, progress.end, self._stream.count
    text = ''.join(self._push(progress))
    if stream.is_stopped:
      end = 'stop'
    if end is not None:
      text += stream.finish()
      end = 'stop' if stream.is_stopped else end  # The last character may complete a stop text.
    settled = stream.settled
    out = [entry for length, entry in self._held if length <= settled]
    self._held = [(length, entry) for length, entry in self._held if length > settled]
    return Event(index, text, stream.count - before, out, end)

  def _push(self, progress: Progress) -> Iterator[str]:
    stream = self._stream
    if not self._asked.logprobs:
      yield stream.push(progress.tokens)
      return
    for token, logprob in zip(progress.tokens, progress.logprobs):
      yield stream.push([token])
      if token not in stream.end_ids:
        entry = self._names.entry(token, logprob, self._asked.top_logprobs or 0)
        self._held.append((stream.length, entry))
      if stream.is_stopped:
        break


class TokenNames:
  """The entries of tokens in the log-probabilities of the API.

  Args:
    model: whose tokens they are.
  """

  def __init__(self, model: Model) -> None:
    self._pieces = model.tokenizer.pieces()
    self._text = functools.lru_cache(1 << 16)(
      lambda token: stop.continuation(model.tokenizer, [token])
    )

  def entry(self, token: int, logprob: Logprob, top: int) -> dict[str, Any]:
    """The entry of a chosen token, with the `top` likeliest ones."""
    others = [self._one(i, value) for i, value in logprob.top[:top] if value > float('-inf')]
    return {**self._one(token, logprob.logprob), 'top_logprobs': others}

  def _one(self, token: int, logprob: float) -> dict[str, Any]:
    text = self._text(token) or self._pieces.get(token, '')
    byte = _BYTE.fullmatch(self._pieces.get(token, ''))
    code = [int(byte[1], 16)] if byte else list(text.encode('utf-8', 'replace'))
    return {'token': text, 'logprob': logprob, 'bytes': code}
