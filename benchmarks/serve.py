"""Times the server at several numbers of streams, or lets it bear many requests, some hostile.

    python -m benchmarks.serve
    python -m benchmarks.serve --model=mini
    python -m benchmarks.serve --model=mini --soak=10000
    python -m benchmarks.serve --model=mini --flood=10000

A model of random weights is served in a process of its own. `llama` is a language model of --width
and --layers, and beside it HF transformers answers the same prompts in static batches of as many
rows. `mini` is the model of configs/mini.py, asked about images. Answers have between the two
numbers of --tokens tokens, so that a static batch waits for its longest one. Both sides and the
clients share the cores. Beside other programs torch can be faster with --torch_threads=1, as its
threads wait for each other in every layer. The line "one" is the same requests, each sent when the
one before it is complete.

With --soak, so many requests are sent by --clients. A tenth is cancelled at some point, and a
twentieth is hostile. Every other one must get the greedy answer that it gets alone. One that
differs where the two likeliest tokens of the lone answer are closer than 1e-4 is a near tie.

With --flood, so many connections are open at once, with a small request each. Each must get an
answer or a status that asks it to wait, and a request after them is answered.
"""

import argparse
import asyncio
import base64
import dataclasses
import functools
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any

import httpx2
import numpy as np
from PIL import Image

from benchmarks import llama_folder, sides

TEXTS = (
  'red circle',
  'blue square',
  'What is the color of the shape?',
  'one two three',
  'Where is the green triangle, and what is left of it?',
  'Detect all objects.',
)
_TIE = 1e-4  # In log-probability.


def tokenizer() -> Any:
  from sphinx_jax.data import tokenizer as tokenizers

  return tokenizers.Tokenizer(tokenizers.train(TEXTS * 20, 340))


def make_llama(options: dict) -> Any:
  """A language model of random weights. Its tokenizer is small, its vocabulary is not."""
  import sphinx_jax
  from sphinx_jax.data import dialog
  from sphinx_jax.generate.model import Model

  loaded = sphinx_jax.load(options['folder'])
  return Model(loaded.config, loaded.params, tokenizer(), dialog.Template())


def make_mini(options: dict) -> Any:
  """The model of configs/mini.py with random weights, large enough for answers to differ."""
  import jax

  from sphinx_jax.core import cli
  from sphinx_jax.data import dialog
  from sphinx_jax.generate.model import Model
  from sphinx_jax.models import families

  del options
  config = cli.load_config('mini').stage2.model
  pieces = tokenizer()
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.llm.vocab, config.dtype = pieces.vocab_size, 'float32'
  rng = np.random.default_rng(1)
  draw = lambda leaf: rng.normal(0, 1.5 * max(leaf.shape[0], 4) ** -0.5, leaf.shape)
  params = jax.tree.map(
    lambda leaf: draw(leaf).astype(np.float32), families.abstract_params(config)
  )
  return Model(config, params, pieces, dialog.Template())


MAKERS = {'llama': make_llama, 'mini': make_mini}


def _serve(options: dict, pipe: Connection) -> None:
  """The process of the server. It answers 'memory' with its bytes; None ends it."""
  import threading

  import psutil

  from sphinx_jax.serving import api, engine as engines, http

  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: sides.THREADS])
  model = MAKERS[options['model']](options)
  engine = engines.Engine(model, options['slots'], options['length'])
  seconds = engine.warm_up()
  engine.start()
  settings = api.Settings('random', queue=options['queue'])
  server = http.make_server(api.make_app(engine, settings), drain=5)
  listener = http.bind('127.0.0.1', 0)
  thread = threading.Thread(target=server.run, args=([listener],))
  thread.start()
  while not server.started:
    time.sleep(0.01)
  pipe.send((listener.getsockname()[1], seconds))
  while pipe.recv() is not None:
    pipe.send(psutil.Process().memory_info().rss)
  server.should_exit = True
  thread.join()
  engine.stop()


@dataclasses.dataclass
class Ask:
  """A request: question, number of an image or None, and tokens of the answer."""

  question: str
  image: int | None
  tokens: int

  def body(self, **more: Any) -> dict:
    parts = [{'type': 'text', 'text': self.question}]
    if self.image is not None:
      parts.insert(0, {'type': 'image_url', 'image_url': {'url': image(self.image)}})
    return dict(
      model='random',
      messages=[{'role': 'user', 'content': parts}],
      max_tokens=self.tokens,
      temperature=0,
      **more,
    )


@functools.cache
def image(number: int) -> str:
  """An image of random blocks, as a data URL."""
  rng = np.random.default_rng(number)
  pixels = rng.integers(0, 256, (4, 4 + number % 5, 3), np.uint8).repeat(24, 0).repeat(24, 1)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def asks(options: dict, count: int, seed: int = 0) -> list[Ask]:
  rng = random.Random(seed)
  least, most = map(int, options['tokens'].split(','))
  return [
    Ask(
      ' '.join(rng.choices(TEXTS, k=rng.randint(1, 6))),
      rng.randrange(8) if options['model'] == 'mini' else None,
      rng.randint(least, most),
    )
    for _ in range(count)
  ]


class Load:
  """Clients of a server.

  Args:
    port: of the server, at the loopback address.
  """

  def __init__(self, port: int) -> None:
    self._url = f'http://127.0.0.1:{port}/v1/chat/completions'
    self._client = httpx2.AsyncClient(
      timeout=120, limits=httpx2.Limits(max_connections=None), trust_env=False
    )

  async def close(self) -> None:
    await self._client.aclose()

  async def stream(self, ask: Ask, leave_after: int | None = None) -> tuple[str, int, float]:
    """Text, tokens and seconds to the first of them; leaves after so many pieces."""
    began, first, text, tokens, pieces = time.perf_counter(), None, '', 0, 0
    body = ask.body(stream=True, stream_options={'include_usage': True})
    async with self._client.stream('POST', self._url, json=body) as response:
      if response.status_code in (429, 503):  # Too many requests, or connections.
        raise Full(float(response.headers.get('retry-after', 1)))
      assert response.status_code == 200, await response.aread()
      async for line in response.aiter_lines():
        if not line.startswith('data: {'):
          continue
        chunk = json.loads(line[6:])
        assert 'error' not in chunk, chunk
        if chunk['choices'] and 'content' in chunk['choices'][0]['delta']:
          text += chunk['choices'][0]['delta']['content']
          pieces += 1
          # The first chunk has the role, and comes with the first token.
          first = first or time.perf_counter() - began
          if leave_after is not None and pieces > leave_after:
            return text, tokens, first
        if chunk.get('usage'):
          tokens = chunk['usage']['completion_tokens']
    return text, tokens, first

  async def post(self, content: bytes) -> tuple[int, dict]:
    """Status and JSON value of a body."""
    headers = {'Content-Type': 'application/json'}
    response = await self._client.post(self._url, content=content, headers=headers)
    return response.status_code, response.json()


class Full(Exception):
  """The server has no room; the argument is the seconds to wait."""


async def throughput(port: int, requests: list[Ask], streams: int, run: str = '') -> dict:
  """Answers requests with so many streams at a time.

  Questions begin with `run`, so that the server has no more of them in its cache than the system
  prompt, however often they were asked before.
  """
  requests = [dataclasses.replace(ask, question=run + ask.question) for ask in requests]
  load, waiting, answers, firsts, tokens = Load(port), list(enumerate(requests)), {}, [], 0

  async def worker() -> None:
    nonlocal tokens
    while waiting:
      number, ask = waiting.pop(0)
      answers[number], count, first = await load.stream(ask)
      tokens += count
      firsts.append(first)

  began = time.perf_counter()
  await asyncio.gather(*(worker() for _ in range(streams)))
  seconds = time.perf_counter() - began
  await load.close()
  ordered = sorted(firsts)
  return dict(
    rate=tokens / seconds,
    tokens=tokens,
    p50=statistics.median(ordered),
    p99=ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)],
    answers=[answers[i] for i in range(len(requests))],
  )


def make_ours(port: int, options: dict, requests: list[Ask]) -> tuple:
  """Clients of the server, as the side of `sides.measure` beside HF."""
  del options
  runs = itertools.count()
  ask = lambda streams, run: asyncio.run(throughput(port, requests, streams, run))
  return lambda streams: ask(streams, f'{next(runs)} of '), ask(len(requests), '')['answers']


def make_torch(options: dict, requests: list[Ask]) -> tuple:
  """HF `generate` in static batches of rows padded on the left."""
  import torch
  from transformers import LlamaForCausalLM, LogitsProcessorList

  from sphinx_jax.data import dialog

  torch.set_num_threads(options['torch_threads'])
  model = LlamaForCausalLM.from_pretrained(options['folder'], dtype=torch.float32).eval()
  pieces, template = tokenizer(), dialog.Template()
  prompts = [template.prompt([(ask.question, None)], pieces).ids for ask in requests]
  # Other ids have no text, and the server does not generate them.
  known = lambda ids, scores: torch.cat(
    [scores[:, : pieces.vocab_size], scores[:, pieces.vocab_size :].fill_(-torch.inf)], 1
  )

  def answer(size: int) -> list[str]:
    texts = []
    for begin in range(0, len(prompts), size):
      batch, asked = prompts[begin : begin + size], requests[begin : begin + size]
      width = max(map(len, batch))
      ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
      mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
      with torch.inference_mode():
        out = model.generate(
          ids,
          attention_mask=mask,
          max_new_tokens=max(ask.tokens for ask in asked),
          do_sample=False,
          eos_token_id=None,
          pad_token_id=0,
          logits_processor=LogitsProcessorList([known]),
        )[:, width:].tolist()
      texts += [
        pieces.decode((row[: row.index(2)] if 2 in row else row)[: ask.tokens])
        for row, ask in zip(out, asked)
      ]
    return [text.split(template.stop)[0].strip() for text in texts]

  return answer, answer(len(prompts))


HOSTILE = (
  lambda good: good[: len(good) // 2],
  lambda good: good.replace(b'"messages": [', b'"messages": [[[', 1),
  lambda good: b'[' * 10_000,
  lambda good: good.replace(b'"role"', b'"r\xff"'),
  lambda good: good.replace(b'"max_tokens": ', b'"max_tokens": -'),
  lambda good: good.replace(b'"random"', b'{"a": 1}'),
  lambda good: _with_url('file:///etc/passwd'),
  lambda good: _with_url('http://169.254.169.254/latest/meta-data'),
  lambda good: _with_url('http://127.0.0.1/metrics'),
  lambda good: _with_url('data:image/png;base64,' + 'A' * 400),
  lambda good: _with_url(image(0)[:-50]),
  lambda good: json.dumps(Ask('\ufdfa\u0301' * 4000, None, 4).body()).encode(),
)


def _with_url(url: str) -> bytes:
  body = Ask('red', None, 4).body()
  body['messages'][0]['content'].append({'type': 'image_url', 'image_url': {'url': url}})
  return json.dumps(body).encode()


class Lone:
  """The answers that requests get alone, and how close their likeliest tokens were."""

  def __init__(self) -> None:
    self._answers: dict[str, tuple[str, list[tuple[int, float]]]] = {}

  async def learn(self, load: Load, ask: Ask) -> None:
    key = repr(ask)
    if key in self._answers:
      return
    body = json.dumps(ask.body(logprobs=True, top_logprobs=2)).encode()
    status, answer = await load.post(body)
    assert status == 200, answer
    margins, length = [], 0
    choice = answer['choices'][0]
    for entry in choice['logprobs']['content']:
      best, second = (other['logprob'] for other in entry['top_logprobs'])
      margins.append((length, best - second))
      length += len(entry['token'])
    self._answers[key] = choice['message']['content'], margins

  def compare(self, ask: Ask, text: str) -> str:
    """'same', 'tie' or 'wrong'."""
    expected, margins = self._answers[repr(ask)]
    if text == expected:
      return 'same'
    common = len(os.path.commonprefix([text, expected]))
    # White space in front of the answer and bytes of characters shift the place a little.
    near = min((margin for at, margin in margins if at <= common + 8), default=1.0)
    return 'tie' if near < _TIE else 'wrong'


async def soak(port: int, options: dict, count: int, workers: int, memory: Any = None) -> dict:
  """Sends requests, some of them cancelled or hostile; returns what became of them.

  Args:
    port: of the server.
    options: of `asks`.
    count: requests.
    workers: requests at a time.
    memory: returns the bytes of the server, now.
  """
  load, lone, found, sizes = Load(port), Lone(), Counter(), []
  pool, rng = asks(options, 40), random.Random(1)
  for ask in pool:
    await lone.learn(load, ask)
  left = count

  async def one() -> None:
    nonlocal left
    if memory is not None and left % max(count // 10, 1) == 0:
      sizes.append(memory())
    left -= 1
    ask, draw = rng.choice(pool), rng.random()
    if draw < 0.05:
      content = rng.choice(HOSTILE)(json.dumps(ask.body()).encode())
      status, answer = await load.post(content)
      is_refused = 400 <= status < 500 and 'error' in answer
      found['hostile, refused' if is_refused else 'hostile, NOT refused'] += 1
      return
    while True:
      try:
        if draw < 0.1:
          await load.stream(ask, leave_after=rng.randrange(3))
          found['cancelled in the stream'] += 1
        elif draw < 0.15:
          task = asyncio.ensure_future(load.stream(ask))
          await asyncio.sleep(rng.random() * 0.05)
          task.cancel()
          await asyncio.gather(task, return_exceptions=True)
          found['cancelled anywhere'] += 1
        else:
          text, _, _ = await load.stream(ask)
          found[f'answered, {lone.compare(ask, text)}'] += 1
        return
      except Full as full:
        found['no room, sent again'] += 1
        await asyncio.sleep(full.args[0] / 10)

  async def worker() -> None:
    while left > 0:
      try:
        await one()
      except Exception as error:
        found[f'LOST: {type(error).__name__} {error}'[:100]] += 1

  began = time.perf_counter()
  await asyncio.gather(*(worker() for _ in range(workers)))
  await load.close()
  return dict(found=found, seconds=time.perf_counter() - began, memory=sizes)


async def flood(port: int, options: dict, count: int, seconds: float = 120.0) -> Counter:
  """Opens connections at once, each with a request; returns the number of each outcome.

  Args:
    port: of the server.
    options: of `asks`.
    count: connections.
    seconds: in which all of them must end.
  """
  (ask,) = asks(options, 1)
  body = json.dumps(dataclasses.replace(ask, tokens=1).body()).encode()
  head = (
    'POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n'
    f'Content-Length: {len(body)}\r\nConnection: close\r\n\r\n'
  )

  async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    writer.write(head.encode() + body)
    status = (await reader.read()).split(b' ', 2)
    writer.close()
    return status[1].decode() if len(status) > 1 else 'closed without a response'

  async def all_at_once() -> list:
    opening = (asyncio.open_connection('127.0.0.1', port) for _ in range(count))
    opened = await asyncio.gather(*opening, return_exceptions=True)
    streams = [one for one in opened if not isinstance(one, BaseException)]
    failed = [one for one in opened if isinstance(one, BaseException)]
    sending = (send(*one) for one in streams)
    return failed + await asyncio.gather(*sending, return_exceptions=True)

  outcomes = await asyncio.wait_for(all_at_once(), seconds)
  return Counter(one if isinstance(one, str) else type(one).__name__ for one in outcomes)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  numbers = dict(width=512, layers=8, vocab=32000, slots=16, length=384)
  numbers |= dict(requests=32, repeats=3, queue=128, clients=48, torch_threads=sides.THREADS)
  for name, default in numbers.items():
    parser.add_argument(f'--{name}', type=int, default=default, help='%(default)s')
  parser.add_argument('--model', default='llama', choices=MAKERS, help='%(default)s')
  parser.add_argument('--tokens', default='16,64', help='least and most tokens (%(default)s)')
  parser.add_argument('--streams', default='1,4,16,64', help='%(default)s')
  parser.add_argument('--soak', type=int, default=0, help='requests; 0 times streams instead')
  parser.add_argument('--flood', type=int, default=0, help='connections at once')
  options = vars(parser.parse_args())
  os.environ['JAX_PLATFORMS'] = 'cpu'
  context = multiprocessing.get_context('spawn')
  with tempfile.TemporaryDirectory() as folder:
    options['folder'] = folder
    if options['model'] == 'llama':
      llama_folder.write(folder, options, initializer_range=0.05)
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(options, other), daemon=True)
    process.start()
    other.close()  # Now `pipe.recv` raises when the process dies.
    port, seconds = pipe.recv()
    print(f'{options["model"]}, {options["slots"]} slots; warm-up {seconds:.0f} s', flush=True)
    if options['soak']:
      report_soak(options, port, pipe)
    elif options['flood']:
      report_flood(options, port)
    else:
      report(options, port)
    pipe.send(None)
    process.join()


def report_soak(options: dict, port: int, pipe: Connection) -> None:
  def memory() -> int:
    pipe.send('memory')
    return pipe.recv()

  done = asyncio.run(soak(port, options, options['soak'], options['clients'], memory))
  for name, count in sorted(done['found'].items()):
    print(f'{count:7} {name}')
  mib = [size >> 20 for size in done['memory']]
  page = httpx2.get(f'http://127.0.0.1:{port}/metrics', trust_env=False).text
  used = re.findall(r'^sphinx_jax_(queue|slots_used) (\S+)', page, re.MULTILINE)
  print(f'{done["seconds"]:.0f} s; MiB of the server over time: {mib}; afterwards {dict(used)}')


def report_flood(options: dict, port: int) -> None:
  began = time.perf_counter()
  found = asyncio.run(flood(port, options, options['flood']))
  seconds = time.perf_counter() - began
  for name, count in sorted(found.items()):
    print(f'{count:7} {name}')
  (ask,) = asks(options, 1, seed=1)
  began = time.perf_counter()
  answer = httpx2.post(
    f'http://127.0.0.1:{port}/v1/chat/completions', json=ask.body(), timeout=60, trust_env=False
  )
  print(f'{seconds:.0f} s; afterwards {answer.status_code} in {time.perf_counter() - began:.1f} s')


def report(options: dict, port: int) -> None:
  """Prints a line for every number of streams, and one of HF for each."""
  requests = asks(options, options['requests'])
  lines = {}
  print(f'{"streams":>9}{"tokens/s":>10}{"first token: p50":>18}{"p99, ms":>9}', flush=True)
  for streams in map(int, options['streams'].split(',')):
    done = asyncio.run(throughput(port, requests, streams, f'{streams} streams '))
    lines[streams] = done
    name = 'one' if streams == 1 else streams
    print(
      f'{name:>9}{done["rate"]:10.1f}{1e3 * done["p50"]:18.0f}{1e3 * done["p99"]:9.0f}   '
      f'{done["rate"] / next(iter(lines.values()))["rate"]:.2f} times the first line',
      flush=True,
    )
  if options['model'] != 'llama':
    return
  works = [streams for streams in lines if streams > 1]
  makers = [functools.partial(make_ours, port), make_torch]
  ours, theirs = sides.measure(makers, (options, requests), options['repeats'], works)
  same = sum(a == b for a, b in zip(ours.result, theirs.result))
  print(f'beside static batches of transformers, in turns; {same} of {len(requests)} answers equal')
  for streams, own, other in zip(works, ours.seconds, theirs.seconds):
    own, other = statistics.median(own), statistics.median(other)
    tokens = lines[streams]['tokens']
    print(
      f'{streams:>9}{tokens / own:10.1f}   transformers {tokens / other:.1f} tokens/s: the server '
      f'has {other / own:.2f} times as many; load average {os.getloadavg()[0]:.1f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
