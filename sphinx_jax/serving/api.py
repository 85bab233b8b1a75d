"""The OpenAI API over HTTP, as a FastAPI app around an engine."""

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastapi
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.serving import (
  api_errors,
  completion as completion_lib,
  images as images_lib,
  page_routes,
  places,
  protocol,
)
from sphinx_jax.serving.completion import Completion, Event, Prompts, TokenNames
from sphinx_jax.serving.engine import Engine
from sphinx_jax.serving.fetch import Allowed
from sphinx_jax.serving.metrics import Metrics

_THREADS = 4  # That tokenize, and as many that read images.
_LAST_SECONDS = 2.0  # To read the end of an answer that took all of its time.
_CLIENT_GONE = 499  # As nginx has it: nobody reads this status.


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of a server.

  Attributes:
    name: of the model in the API.
    fingerprint: what changes if the model gets other weights.
    queue: answers that may wait for a slot.
    max_tokens: most tokens of an answer.
    max_choices: most answers of a request (`n`).
    body_bytes: most bytes of a request.
    body_seconds: in which a request must have come.
    seconds: in which an answer must be complete, its time in the queue included.
    images: limits of images.
    allow_hosts: hosts that images may be read from, see `fetch.Allowed`.
    keys: API keys, one of which a request must have; empty: none is asked for.
    cors_origins: origins of web pages that may use the server.
    boxes: a key of `box_forms.FORMS`, for coordinates in answers without a mark of their scale.
  """

  name: str
  fingerprint: str = ''
  queue: int = 128
  max_tokens: int = 4096
  max_choices: int = 8
  body_bytes: int = 32 << 20
  body_seconds: float = 20.0
  seconds: float = 300.0
  images: images_lib.Limits = images_lib.Limits()
  allow_hosts: Sequence[str] = ()
  keys: Sequence[str] = ()
  cors_origins: Sequence[str] = ()
  boxes: str = 'square'


class Admission:
  """Bounds the answers that wait and run.

  Args:
    slots: answers that run together.
    queue: answers that may wait.
  """

  def __init__(self, slots: int, queue: int) -> None:
    self._slots, self._capacity = slots, slots + queue
    self._taken = 0
    self._seconds = 1.0  # Of an answer, averaged.

  def enter(self, count: int = 1) -> None:
    """Takes places. Raises ApiError with the status 429 if there are not enough."""
    if count > self._capacity:
      raise api_errors.make(
        'request', f'{count} answers', f'at most {self._capacity}', 'ask for fewer'
      )
    if self._taken + count > self._capacity:
      wait = round(min(max(self._taken * self._seconds / self._slots, 1), 60))
      raise api_errors.make(
        'server',
        f'{self._taken} requests that wait or run',
        f'at most {self._capacity}',
        f'try again in {wait} s',
        status=429,
        kind='rate_limit_error',
        headers={'Retry-After': str(wait)},
      )
    self._taken += count

  def leave(self, count: int, seconds: float | None = None) -> None:
    """Gives places back; `seconds` are those of an answer that was given."""
    self._taken -= count
    if seconds is not None:
      self._seconds += 0.1 * (seconds - self._seconds)


class Api:
  """The handlers, and what they share.

  Args:
    engine: that answers.
    settings: of the server.
  """

  def __init__(self, engine: Engine, settings: Settings) -> None:
    self._engine, self._settings = engine, settings
    self._admission = Admission(engine.batch.rows, settings.queue)
    self._metrics = Metrics(engine)
    self._prompts = Prompts(engine.model, engine.batch.length)
    self._names = TokenNames(engine.model)
    self._reader = images_lib.Reader(
      engine.model, engine.images, Allowed(settings.allow_hosts), settings.images
    )
    self._texts = ThreadPoolExecutor(_THREADS, 'texts')
    self._images = ThreadPoolExecutor(_THREADS, 'images')
    self._created = int(time.time())

  async def check_key(self, request: fastapi.Request) -> None:
    """Raises ApiError for a request without one of the keys, if there are some."""
    given = request.headers.get('authorization', '').removeprefix('Bearer ').encode()
    keys = self._settings.keys
    if keys and not any([hmac.compare_digest(given, key.encode()) for key in keys]):
      raise api_errors.make(
        'request',
        'no valid API key',
        'the header Authorization: Bearer KEY',
        'send the key of this server',
        status=401,
        kind='authentication_error',
      )

  async def models(self) -> Response:
    """`GET /v1/models`"""
    return JSONResponse({'object': 'list', 'data': [self._entry()]})

  async def model(self, name: str) -> Response:
    """`GET /v1/models/NAME`"""
    self._check_model(name)
    return JSONResponse(self._entry())

  def _entry(self) -> dict[str, Any]:
    return dict(
      id=self._settings.name,
      object='model',
      created=self._created,
      owned_by='sphinx_jax',
      # Beyond OpenAI's, for `evaluate --server`.
      style=self._engine.model.template.style,
      fingerprint=self._settings.fingerprint,
    )

  async def health(self) -> Response:
    """`GET /health`"""
    return JSONResponse({'status': 'ok'}) if self._engine.is_alive else Response(status_code=503)

  async def metrics(self) -> Response:
    """`GET /metrics`"""
    page, content_type = self._metrics.page()
    return Response(page, media_type=content_type)

  async def chat(self, request: fastapi.Request) -> Response:
    """`POST /v1/chat/completions`"""
    began, stack = time.monotonic(), contextlib.ExitStack()
    try:
      return await self._chat(request, began, stack)
    except ClientDisconnect:
      self._leave(stack, _CLIENT_GONE)
      return Response(status_code=_CLIENT_GONE)
    except BaseException as error:
      self._leave(stack, api_errors.status(error))
      raise

  async def _chat(
    self, request: fastapi.Request, began: float, stack: contextlib.ExitStack
  ) -> Response:
    """Answers a request. What `stack` has is left when the response is complete."""
    self._enter(stack, 1)
    asked = protocol.parse(await self._body(request))
    self._check_model(asked.model)
    count = asked.n or 1
    if count > self._settings.max_choices:
      raise api_errors.make(
        'n', str(count), f'at most {self._settings.max_choices}', 'ask for fewer answers'
      )
    self._enter(stack, count - 1)
    urls = asked.urls
    if len(urls) > self._settings.images.count:
      raise api_errors.make(
        'messages', f'{len(urls)} images', f'at most {self._settings.images.count}', 'send fewer'
      )
    if urls and not self._engine.model.visual_tokens:
      raise api_errors.make(
        'messages', 'an image for a language model', 'text only', 'remove the image'
      )
    loop = asyncio.get_running_loop()
    deadline = began + self._settings.seconds
    prompt = await loop.run_in_executor(self._texts, self._prompts.encode, asked)
    room = self._engine.check(prompt)
    read = [loop.run_in_executor(self._images, self._reader.read, url) for url in urls]
    try:
      images = await asyncio.wait_for(asyncio.gather(*read), deadline - time.monotonic())
    except TimeoutError:
      raise completion_lib.late() from None
    completion = Completion(
      self._engine,
      asked,
      prompt,
      [one.image for one in images],
      request.client.host if request.client else '',
      min(room, self._settings.max_tokens),
      deadline,
      self._names,
    )
    upright = self._engine.model.slot_rule.upright
    content = functools.partial(
      places.to_json,
      frames=[one.frame for one in images],
      upright=upright,
      form=self._settings.boxes,
    )
    answer = _Answer(asked, completion, content, self._settings.name)
    events = self._timed(completion.events(), began)
    if asked.stream:
      # An error until the first token has its own status.
      first = await _until_gone(request, anext(events))
      leave = functools.partial(self._leave, stack)
      return _Stream(answer.stream(first, events), events, deadline, leave)
    body = await _until_gone(request, answer.whole(events))
    self._leave(stack, 200)
    return JSONResponse(body)

  def _leave(self, stack: contextlib.ExitStack, status: int) -> None:
    stack.close()
    self._metrics.requests.labels(status).inc()

  def _enter(self, stack: contextlib.ExitStack, count: int) -> None:
    self._admission.enter(count)
    stack.callback(self._admission.leave, count)

  async def _timed(self, events: AsyncIterator[Event], began: float) -> AsyncIterator[Event]:
    """The same events; notes when the first token and the last one came."""
    is_first = True
    async with contextlib.aclosing(events):
      async for event in events:
        if is_first:
          self._metrics.first_token.observe(time.monotonic() - began)
        is_first = False
        yield event
    seconds = time.monotonic() - began
    self._metrics.seconds.observe(seconds)
    self._admission.leave(0, seconds)

  def _check_model(self, name: str) -> None:
    if name != self._settings.name:
      raise api_errors.make(
        'model', ascii(name)[:100], self._settings.name, 'see /v1/models', status=404
      )

  async def _body(self, request: fastapi.Request) -> bytes:
    """The body of a request, within its limits.

    A page of another origin can send plain text without asking, but not JSON.
    """
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
      raise api_errors.make(
        'request', kind or 'no content type', 'application/json', 'set Content-Type', status=415
      )
    limit, body = self._settings.body_bytes, bytearray()
    try:
      async with asyncio.timeout(self._settings.body_seconds):
        async for chunk in request.stream():
          body += chunk
          if len(body) > limit:
            raise api_errors.make(
              'request', f'more than {limit} bytes', 'a smaller body', 'resize images', status=413
            )
    except TimeoutError:
      raise api_errors.make(
        'request', 'no end of the body', 'all of it soon', 'send it again', status=408
      ) from None
    return bytes(body)


class _Answer:
  """The responses to a request, whole or as a stream."""

  def __init__(
    self,
    asked: protocol.ChatRequest,
    completion: Completion,
    to_json: Callable[[str], str],
    name: str,
  ) -> None:
    self._asked, self._completion, self._to_json = asked, completion, to_json
    self._is_json = asked.response_format is not None and asked.response_format.type != 'text'
    self._head = dict(id=f'chatcmpl-{uuid.uuid4().hex}', created=int(time.time()), model=name)
    self._tokens = 0

  async def whole(self, events: AsyncIterator[Event]) -> dict[str, Any]:
    """The body of a response."""
    count = self._asked.n or 1
    texts, ends, logprobs = [''] * count, [''] * count, [[] for _ in range(count)]
    async with contextlib.aclosing(events):
      async for event in events:
        self._tokens += event.tokens
        texts[event.index] += event.text
        ends[event.index] = event.end
        logprobs[event.index] += event.logprobs
    choices = [
      dict(
        index=i,
        message=dict(role='assistant', content=self._content(texts[i]), refusal=None),
        logprobs={'content': logprobs[i], 'refusal': None} if self._asked.logprobs else None,
        finish_reason=ends[i],
      )
      for i in range(count)
    ]
    return dict(self._head, object='chat.completion', choices=choices, usage=self._usage())

  async def stream(self, first: Event, events: AsyncIterator[Event]) -> AsyncIterator[str]:
    """The lines of a response that comes as server-sent events."""
    texts = [''] * (self._asked.n or 1)
    for index in range(len(texts)):
      yield self._chunk(index, {'role': 'assistant', 'content': ''}, [], None)
    async with contextlib.aclosing(events):
      event: Event | None = first
      while event is not None:
        self._tokens += event.tokens
        text = event.text
        if self._is_json:  # It can be written when the answer is complete.
          texts[event.index] += text
          text = self._content(texts[event.index]) if event.end else ''
        if text or event.logprobs:
          yield self._chunk(event.index, {'content': text}, event.logprobs, None)
        if event.end:
          yield self._chunk(event.index, {}, [], event.end)
        event = await anext(events, None)
    options = self._asked.stream_options
    if options is not None and options.include_usage:
      yield _line(dict(self._head, object='chat.completion.chunk', choices=[], usage=self._usage()))
    yield 'data: [DONE]\n\n'

  def _chunk(self, index: int, delta: dict[str, Any], logprobs: list[Any], end: str | None) -> str:
    choice = dict(
      index=index,
      delta=delta,
      logprobs={'content': logprobs, 'refusal': None} if logprobs else None,
      finish_reason=end,
    )
    return _line(dict(self._head, object='chat.completion.chunk', choices=[choice]))

  def _content(self, text: str) -> str:
    return self._to_json(text) if self._is_json else text

  def _usage(self) -> dict[str, int]:
    prompt = self._completion.prompt_tokens
    return dict(
      prompt_tokens=prompt, completion_tokens=self._tokens, total_tokens=prompt + self._tokens
    )


class _Stream(StreamingResponse):
  """Server-sent events. An error in the middle becomes the last one.

  Args:
    lines: the response.
    events: what it is made of, which has begun.
    deadline: `time.monotonic()` at which a client must have read all of it.
    leave: called with the status when the client has it, or is gone.
  """

  def __init__(
    self,
    lines: AsyncIterator[str],
    events: AsyncIterator[Event],
    deadline: float,
    leave: Callable[[int], None],
  ) -> None:
    super().__init__(self._guarded(), media_type='text/event-stream')
    self._lines, self._events, self._deadline = lines, events, deadline
    self._leave, self._status = leave, _CLIENT_GONE

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    try:
      # The last event may be that the time is over, so there is a little more.
      async with asyncio.timeout(self._deadline + _LAST_SECONDS - time.monotonic()):
        await super().__call__(scope, receive, send)
    except TimeoutError:
      log.info('a client did not read its answer in time')  # The server closes the connection.
    finally:
      self._leave(self._status)
      await self._lines.aclose()
      await self._events.aclose()  # The lines do so only if they have begun.

  async def _guarded(self) -> AsyncIterator[str]:
    try:
      async for line in self._lines:
        yield line
      self._status = 200
    except Exception as error:
      self._status = api_errors.status(error)
      if self._status == 500:
        log.exception('a stream failed')
      yield _line(api_errors.body(error))


def _line(value: dict[str, Any]) -> str:
  """A server-sent event."""
  return f'data: {json.dumps(value, ensure_ascii=False, separators=(",", ":"))}\n\n'


async def _until_gone(request: fastapi.Request, answer: Any) -> Any:
  """Awaits an answer, and cancels it when the client is gone. Raises ClientDisconnect then."""

  async def watch() -> None:
    while (await request.receive())['type'] != 'http.disconnect':
      pass

  tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(watch())]
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if tasks[0].done():
      return tasks[0].result()
    raise ClientDisconnect
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def make_app(engine: Engine, settings: Settings) -> fastapi.FastAPI:
  """The app of a server, to be run by an ASGI server or mounted in another app.

  Args:
    engine: started.
    settings: of the server.

  Raises:
    SphinxError: a wrong entry of `allow_hosts`, or a base model, which has no turns.
  """
  if not engine.model.template.has_turns:
    raise errors.make(
      'serve',
      'a base model, which continues plain text',
      'a model for chats',
      'tune it on dialogs first',
    )
  api = Api(engine, settings)
  app = fastapi.FastAPI(title='sphinx_jax', docs_url=None, redoc_url=None, openapi_url=None)
  if settings.cors_origins:
    app.add_middleware(
      CORSMiddleware,
      allow_origins=list(settings.cors_origins),
      allow_methods=['GET', 'POST'],
      allow_headers=['authorization', 'content-type'],
    )
  with_key = [fastapi.Depends(api.check_key)]

  def route(path: str, handler: Callable, method: str = 'GET', is_open: bool = False) -> None:
    app.add_api_route(
      path, handler, methods=[method], dependencies=[] if is_open else with_key, response_model=None
    )

  route('/v1/chat/completions', api.chat, 'POST')
  route('/v1/models', api.models)
  route('/v1/models/{name:path}', api.model)
  route('/health', api.health, is_open=True)
  route('/metrics', api.metrics)
  page_routes.add(
    app,
    model=settings.name,
    images=settings.images.count if engine.model.visual_tokens else 0,
    body_bytes=settings.body_bytes,
    max_tokens=settings.max_tokens,
    needs_key=bool(settings.keys),
  )

  @app.exception_handler(errors.SphinxError)
  async def refuse(_: fastapi.Request, error: errors.SphinxError) -> Response:
    headers = getattr(error, 'headers', None)
    return JSONResponse(api_errors.body(error), api_errors.status(error), headers)

  @app.exception_handler(HTTPException)
  async def refuse_path(request: fastapi.Request, error: HTTPException) -> Response:
    wrong = api_errors.make(
      'request',
      ascii(f'{request.method} {request.url.path}')[1:101],
      'POST /v1/chat/completions, GET /v1/models, /health or /metrics',
      'correct it',
      status=error.status_code,
    )
    return JSONResponse(api_errors.body(wrong), error.status_code, error.headers)

  @app.exception_handler(Exception)
  async def fail(_: fastapi.Request, error: Exception) -> Response:
    return JSONResponse(api_errors.body(error), 500)

  return app
