"""Continuous batching: a thread that owns the device, and gives free rows to waiting requests.

Between two calls of the decoding program, finished and cancelled requests leave their rows and
waiting ones are prefilled into them. The call after that decodes one token, so that a new request
has its first one soon; later calls decode several.
"""

import dataclasses
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sphinx_jax.core import batch as batches, errors
from sphinx_jax.core.progress import log
from sphinx_jax.data.dialog import Encoded
from sphinx_jax.data.slots import Slots
from sphinx_jax.generate import running_batch
from sphinx_jax.generate.model import Model
from sphinx_jax.generate.running_batch import Prompt, RunningBatch, Sampling, Wants
from sphinx_jax.serving import api_errors
from sphinx_jax.serving.fair_queue import FairQueue

_RATE_SECONDS = 10.0  # Over which tokens a second are averaged.
_STOPS = api_errors.ApiError('the server stops', status=503, kind='server_error')


class Image(NamedTuple):
  """An image of a request.

  Attributes:
    digest: hash of its file.
    slots: from `Model.read_image`; None: `visual` is given.
    visual: its visual tokens [L,D], if they were kept.
  """

  digest: bytes
  slots: Slots | None = None
  visual: np.ndarray | None = None


class Logprob(NamedTuple):
  """The log-probability of a token at temperature 1, and the likeliest tokens with theirs."""

  logprob: float
  top: list[tuple[int, float]]


class Progress(NamedTuple):
  """What has become of a request.

  Attributes:
    tokens: new token ids.
    logprobs: of them, if the request wants them.
    end: why it ended: 'stop', 'length', or 'error'; None: it goes on.
    error: what failed.
  """

  tokens: list[int]
  logprobs: list[Logprob]
  end: str | None
  error: Exception | None = None


@dataclasses.dataclass(eq=False)
class Request:
  """A prompt to answer.

  Attributes:
    prompt: from `Model.prompt_of` or a template.
    images: in the order of their places.
    deliver: called from the engine's thread with every `Progress`; the last one has an end. It is
      not called after `Engine.cancel`.
    limit: most new tokens.
    temperature: 0 takes the likeliest token.
    top_p: share of the probability sampled from.
    seed: for sampling, an int64.
    stream: which of the random streams of this seed; answers to one prompt have one each.
    logprobs: whether log-probabilities are wanted.
    client: who asks, for the fair queue.
  """

  prompt: Encoded
  images: Sequence[Image]
  deliver: Callable[[Progress], None]
  limit: int
  temperature: float = 0.0
  top_p: float = 1.0
  seed: int = 0
  stream: int = 0
  logprobs: bool = False
  client: str = ''
  is_cancelled: bool = dataclasses.field(default=False, init=False)


class VisualCache:
  """Visual tokens of images by the hash of their files, those used last.

  Args:
    limit: bytes.
  """

  def __init__(self, limit: int) -> None:
    self._limit, self._bytes = limit, 0
    self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
    self._lock = threading.Lock()
    self.hits = self.misses = 0

  def get(self, digest: bytes) -> np.ndarray | None:
    """The visual tokens [L,D] of an image, or None."""
    with self._lock:
      visual = self._kept.get(digest)
      if visual is not None:
        self._kept.move_to_end(digest)
        self.hits += 1
      return visual

  def put(self, digest: bytes, visual: np.ndarray) -> None:
    """Keeps the visual tokens of an image that was encoded."""
    with self._lock:
      self.misses += 1
      if digest in self._kept or visual.nbytes > self._limit:
        return
      self._kept[digest] = visual
      self._bytes += visual.nbytes
      while self._bytes > self._limit:
        self._bytes -= self._kept.popitem(last=False)[1].nbytes


@dataclasses.dataclass(eq=False)
class _Row:
  """A row of the batch.

  Attributes:
    request: who has it; None: it is free.
    content: int64[N], a number for each position of the cache that it has: the token, or a number
      below 0 for a visual token of an image.
    used: when it was last given to a request.
  """

  request: Request | None = None
  content: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  used: float = 0.0


class Engine:
  """Answers requests of any thread, several at a time.

  Args:
    model: from `sphinx_jax.load`.
    rows: requests that are decoded together.
    length: most positions of a prompt and its answer; None: as the model.
    image_bytes: memory for visual tokens of images that may come again.
    steps: most tokens of a row between two looks at the queue.

  Attributes:
    model: as given.
    batch: the running batch.
    images: visual tokens that are kept.
    generated, prompted: tokens since the start.
    reused: positions of prompts that were taken from the cache of a row.
  """

  def __init__(
    self,
    model: Model,
    rows: int,
    length: int | None = None,
    image_bytes: int = 1 << 28,
    steps: int = running_batch.STEPS,
  ) -> None:
    self.model, self.batch = model, RunningBatch(model, rows, length)
    self.images = VisualCache(image_bytes)
    self._steps = steps
    self._rows = [_Row() for _ in range(rows)]
    self._waiting: FairQueue[Request] = FairQueue()
    self._condition = threading.Condition()
    self._is_stopping = False
    self._recent: deque[tuple[float, int]] = deque()
    self.generated = self.prompted = self.reused = 0
    self._thread = threading.Thread(target=self._run, name='engine', daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def warm_up(self) -> float:
    """Compiles all programs before the thread starts. Returns the seconds that it took."""
    began = time.monotonic()
    if self.model.visual_tokens:
      self.model.compile_encoder()
    self.batch.compile()
    return time.monotonic() - began

  def check(self, prompt: Encoded) -> int:
    """Returns how many tokens an answer to a prompt may have.

    Raises:
      SphinxError: the prompt leaves no room for an answer.
    """
    length = len(prompt.ids) + len(prompt.images_at) * self.model.visual_tokens
    room = self.batch.length - length
    if room < 1:
      raise errors.make(
        'prompt',
        f'{length} tokens (images included)',
        f'fewer than {self.batch.length}',
        'shorten the conversation',
      )
    return room

  def submit(self, request: Request) -> None:
    """Puts a request into the queue. Its prompt must have passed `check`.

    Raises:
      ApiError: the engine stops.
    """
    with self._condition:
      if self._is_stopping:
        raise _STOPS
      self._waiting.push(request.client, request)
      self._condition.notify()

  def cancel(self, request: Request) -> None:
    """Ends a request that nobody waits for. Its row is free before the next step."""
    with self._condition:
      request.is_cancelled = True
      self._waiting.discard(request.client, request)

  def stop(self) -> None:
    """Ends the thread after the current step; requests that run or wait get an error."""
    with self._condition:
      self._is_stopping = True
      self._condition.notify()
    if self._thread.ident is not None:
      self._thread.join()

  @property
  def waiting(self) -> int:
    """Requests in the queue."""
    return len(self._waiting)

  @property
  def running(self) -> int:
    """Rows in use."""
    return sum(row.request is not None for row in self._rows)

  @property
  def is_alive(self) -> bool:
    """Whether the thread runs."""
    return self._thread.is_alive()

  def tokens_per_second(self) -> float:
    """Tokens of the last ten seconds, for each of them."""
    begin = time.monotonic() - _RATE_SECONDS
    return sum(count for at, count in list(self._recent) if at > begin) / _RATE_SECONDS

  def _run(self) -> None:
    while True:
      with self._condition:
        while not (self._is_stopping or len(self._waiting) or self.running):
          self._condition.wait()
        if self._is_stopping:
          break
      try:
        self._free_cancelled()
        has_new = self._admit()
        if self.running:
          self._advance(1 if has_new else self._steps)
      except Exception as error:  # Such as memory of the device that does not suffice.
        log.exception('the running batch failed')
        self._fail(error)
        self.batch.reset()
    self._fail(_STOPS)

  def _free_cancelled(self) -> None:
    for row in self._rows:
      if row.request is not None and row.request.is_cancelled:
        row.request = None

  def _admit(self) -> bool:
    """Gives free rows to waiting requests. Returns whether there was one."""
    has_new = False
    while self.running < len(self._rows):
      with self._condition:
        if not len(self._waiting):
          break
        request = self._waiting.pop()
      try:
        prompt = self._read(request)
      except Exception as error:  # Such as an image for which there is no memory.
        log.exception('a prompt could not be read')
        self._deliver(request, Progress([], [], 'error', error))
        continue
      self._seat(request, *prompt)
      has_new = True
    return has_new

  def _read(self, request: Request) -> tuple[Prompt, np.ndarray]:
    """The prompt of a request, and the content int64[T] of its positions."""
    encoded = request.prompt
    fields = batches.interleave(encoded.ids, encoded.images_at, self.model.visual_tokens)
    tokens, visual_index = fields
    content = tokens.astype(np.int64)
    if not request.images:
      return Prompt(tokens, visual_index, None), content
    visual = [self._visual(image) for image in request.images]
    numbers = np.concatenate(
      [_numbers(image.digest, len(part)) for image, part in zip(request.images, visual)]
    )
    content = np.where(visual_index >= 0, numbers[visual_index], content)
    return Prompt(tokens, visual_index, np.concatenate(visual)), content

  def _visual(self, image: Image) -> np.ndarray:
    """Visual tokens of an image, encoded if need be."""
    if image.visual is not None:
      return image.visual
    visual = self.images.get(image.digest)
    if visual is None:
      visual = self.model.encode_slots(image.slots)
      self.images.put(image.digest, visual)
    return visual

  def _seat(self, request: Request, prompt: Prompt, content: np.ndarray) -> None:
    """Prefills a prompt into a free row, behind the longest beginning that some row has of it."""
    common = [_common(row.content, content) for row in self._rows]
    source = int(np.argmax(common))
    begin = min(common[source], len(content) - 1)
    free = [i for i, row in enumerate(self._rows) if row.request is None]
    # The row of the conversation itself, if most of it goes on; otherwise the one unused longest.
    number = min(free, key=lambda i: self._rows[i].used)
    if source in free and 2 * begin > len(self._rows[source].content):
      number = source
    sampled = Sampling(
      limit=min(request.limit, self.batch.length - len(content)),
      key=running_batch.make_key(request.seed, request.stream),
      temperature=request.temperature,
      top_p=request.top_p,
    )
    row = self._rows[number]
    if self.batch.width(len(content) - begin) < self.batch.width(len(content)):
      rest = Prompt(prompt.tokens[begin:], prompt.visual_index[begin:], prompt.visual)
      self.batch.extend(number, source, begin, _without_unused(rest), sampled)
      self.reused += begin
    else:
      self.batch.join(number, prompt, sampled)
    row.request, row.content, row.used = request, content, time.monotonic()
    self.prompted += len(content)

  def _advance(self, count: int) -> None:
    running = np.array([row.request is not None for row in self._rows])
    requests = [row.request for row in self._rows if row.request is not None]
    wants = Wants(
      sample=any(request.temperature > 0 for request in requests),
      logprobs=any(request.logprobs for request in requests),
    )
    out = self.batch.advance(running, count, wants)
    new = int((out.tokens >= 0).sum())
    self.generated += new
    self._note_rate(new)
    for number in np.flatnonzero(running):
      row = self._rows[number]
      tokens = out.tokens[:, number]
      tokens = tokens[tokens >= 0]
      # A row writes to its last position even if it does not run.
      row.content = np.concatenate([row.content, tokens])[: self.batch.length - 1]
      request, end = row.request, int(out.end[number])
      logprobs = _logprobs(out, number, len(tokens)) if request.logprobs else []
      if end:
        row.request = None
      reason = {running_batch.STOPPED: 'stop', running_batch.AT_LIMIT: 'length'}.get(end)
      self._deliver(request, Progress(tokens.tolist(), logprobs, reason))

  def _note_rate(self, count: int) -> None:
    now = time.monotonic()
    self._recent.append((now, count))
    while self._recent[0][0] < now - _RATE_SECONDS:
      self._recent.popleft()

  def _deliver(self, request: Request, progress: Progress) -> None:
    if request.is_cancelled:
      return
    try:
      request.deliver(progress)
    except Exception:  # Of the caller's code; other requests go on.
      log.exception('tokens could not be delivered')

  def _fail(self, error: Exception) -> None:
    """Ends all requests that run, and those that wait if the engine stops."""
    requests = [row.request for row in self._rows if row.request is not None]
    self._rows = [_Row() for _ in self._rows]
    with self._condition:
      while self._is_stopping and len(self._waiting):
        requests.append(self._waiting.pop())
    for request in requests:
      self._deliver(request, Progress([], [], 'error', error))


def _numbers(digest: bytes, count: int) -> np.ndarray:
  """Numbers below 0, int64[count], for the visual tokens of an image; others than of any image."""
  first = int.from_bytes(digest[:6], 'big') << 14  # 62 bits; an image has up to 16384 tokens.
  return -1 - (first + np.arange(count, dtype=np.int64))


def _common(content: np.ndarray, other: np.ndarray) -> int:
  """How many positions two prompts begin with in common."""
  length = min(len(content), len(other))
  differ = np.flatnonzero(content[:length] != other[:length])
  return int(differ[0]) if len(differ) else length


def _without_unused(rest: Prompt) -> Prompt:
  """The same prompt without visual tokens in front of those that it has."""
  used = rest.visual_index[rest.visual_index >= 0]
  if not len(used):
    return rest._replace(visual=None)
  first = used[0]
  index = np.where(rest.visual_index >= 0, rest.visual_index - first, -1).astype(np.int32)
  return rest._replace(visual_index=index, visual=rest.visual[first:])


def _logprobs(out: running_batch.Tokens, row: int, count: int) -> list[Logprob]:
  return [
    Logprob(
      float(out.logprobs[i, row]),
      list(zip(out.top[i, row].tolist(), out.top_logprobs[i, row].tolist())),
    )
    for i in range(count)
  ]
