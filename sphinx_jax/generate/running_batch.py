"""A batch that rows join and leave while it runs: the device programs of continuous batching.

The batch has a fixed number of rows, each with a cache of a fixed length. A prompt is prefilled
straight into a free row, padded to one of a few lengths. A step decodes a token of every row that
runs. So there is one program a padded length and one for steps, and nothing is compiled later.

A row that has ended keeps its keys and values until another prompt takes it. A prompt that begins
as a row does, such as the next turn of a conversation, copies them and prefills its rest alone.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from sphinx_jax.core import errors
from sphinx_jax.generate import decode, sampling
from sphinx_jax.generate.model import Model, round_up
from sphinx_jax.models import families, multimodal
from sphinx_jax.parallel import placement

STEPS = 8  # Most steps of a call. More would keep rows that end early waiting for the others.
TOP = 20  # Likeliest tokens whose log-probabilities are computed, as many as OpenAI's API allows.
STOPPED, AT_LIMIT = 1, 2  # Why a row ended.


class Sampling(NamedTuple):
  """How the tokens of a row are chosen, and how many.

  Attributes:
    limit: int32[], most new tokens.
    key: random key of the row.
    temperature: float32[]; 0 takes the likeliest token.
    top_p: float32[] in (0, 1].
  """

  limit: Any
  key: jax.Array
  temperature: Any
  top_p: Any


class State(NamedTuple):
  """State of the batch between steps.

  Attributes:
    cache: keys and values of N positions, as of `families.init_cache`.
    logits: float32[B,vocab], of the next token.
    positions: int32[B], positions that the cache has.
    step: int32[B], tokens that were generated.
    stop_state: int32[B], state of each row's stop automaton.
    end: int32[B], why a row ended: STOPPED, AT_LIMIT, or 0.
    rows: `Sampling` with arrays [B].
  """

  cache: Any
  logits: jax.Array
  positions: jax.Array
  step: jax.Array
  stop_state: jax.Array
  end: jax.Array
  rows: Sampling


class Wants(NamedTuple):
  """What a call of `advance` computes beside greedy tokens: bool[] each."""

  sample: Any
  logprobs: Any


class Tokens(NamedTuple):
  """What `advance` returns of STEPS steps.

  Attributes:
    tokens: int32[STEPS,B]; -1 where a row did not run.
    logprobs: float32[STEPS,B], log-probabilities of the tokens at temperature 1.
    top: int32[STEPS,B,TOP], the likeliest tokens.
    top_logprobs: float32[STEPS,B,TOP].
    end: int32[B], why a row ended, or 0.
  """

  tokens: Any
  logprobs: Any
  top: Any
  top_logprobs: Any
  end: Any


def init(module: multimodal.Multimodal, vocab: int, rows: int, length: int) -> State:
  """The state of a batch whose rows are all free."""
  count = lambda: jnp.zeros(rows, jnp.int32)
  return State(
    cache=families.init_cache(module.config, rows, length),
    logits=jnp.zeros((rows, vocab), jnp.float32),
    positions=count(),
    step=count(),
    stop_state=count(),
    end=count(),
    rows=Sampling(
      limit=count(),
      key=jax.random.split(jax.random.key(0), rows),
      temperature=jnp.zeros(rows, jnp.float32),
      top_p=jnp.ones(rows, jnp.float32),
    ),
  )


def join(
  module: multimodal.Multimodal,
  params: dict,
  state: State,
  tokens: jax.Array,
  visual_index: jax.Array,
  visual: jax.Array | None,
  length: jax.Array,
  row: jax.Array,
  sampled: Sampling,
) -> State:
  """Prefills a prompt into a row.

  Args:
    module: from `families.build`.
    params: its parameters.
    state: of the batch; its memory is used in place if it is donated.
    tokens: int32[1,T], padded.
    visual_index: int32[1,T].
    visual: [1,T,D], visual tokens and padding; None for a language model alone.
    length: int32[], positions without padding.
    row: int32[].
    sampled: of this prompt.
  """
  method = 'prefill'
  logits, cache = module.apply(
    {'params': params}, tokens, visual_index, length[None], visual, method=method
  )
  return _put(state, row, cache, logits, length, sampled)


def extend(
  module: multimodal.Multimodal,
  params: dict,
  state: State,
  tokens: jax.Array,
  visual_index: jax.Array,
  visual: jax.Array | None,
  begin: jax.Array,
  length: jax.Array,
  source: jax.Array,
  row: jax.Array,
  sampled: Sampling,
) -> State:
  """Prefills the rest of a prompt into a row, behind the first positions of the row `source`.

  Args:
    module, params, state, visual, row, sampled: as in `join`.
    tokens: int32[1,T], the rest, padded.
    visual_index: int32[1,T].
    begin: int32[], positions that are taken from `source`.
    length: int32[], positions of the rest without padding.
    source: int32[], may be `row`.
  """
  cache = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, source, 1, 1), state.cache)
  logits, cache = module.apply(
    {'params': params},
    tokens,
    visual_index,
    begin[None],
    length[None],
    visual,
    cache,
    method='extend',
  )
  return _put(state, row, cache, logits, begin + length, sampled)


def _put(
  state: State,
  row: jax.Array,
  cache: Any,
  logits: jax.Array,
  positions: jax.Array,
  sampled: Sampling,
) -> State:
  """The state with a prefilled prompt in a row. `cache` may have fewer positions."""
  set_row = lambda field, value: field.at[row].set(value)
  return State(
    cache=jax.tree.map(
      lambda long, short: jax.lax.dynamic_update_slice(long, short, (0, row, 0, 0, 0)),
      state.cache,
      cache,
    ),
    logits=set_row(state.logits, logits[0]),
    positions=set_row(state.positions, positions),
    step=set_row(state.step, 0),
    stop_state=set_row(state.stop_state, 0),
    end=set_row(state.end, 0),
    rows=jax.tree.map(set_row, state.rows, sampled),
  )


def advance(
  module: multimodal.Multimodal,
  ending: decode.Ending,
  params: dict,
  state: State,
  running: jax.Array,
  count: jax.Array,
  wants: Wants,
) -> tuple[State, Tokens]:
  """Decodes some tokens of every row that runs, until all have ended.

  Args:
    module, params: as in `join`.
    ending: what ends an answer.
    state: of the batch; its memory is used in place if it is donated.
    running: bool[B], rows that have a prompt and were not cancelled.
    count: int32[], steps, at most STEPS.
    wants: what is computed.
  """
  rows, length = len(state.positions), jax.tree.leaves(state.cache)[0].shape[3]
  no_image, stop_reached = jnp.full((rows, 1), -1), ending.stops.shape[0] - 1
  out = Tokens(
    tokens=jnp.full((STEPS, rows), -1, jnp.int32),
    logprobs=jnp.zeros((STEPS, rows), jnp.float32),
    top=jnp.zeros((STEPS, rows, TOP), jnp.int32),
    top_logprobs=jnp.zeros((STEPS, rows, TOP), jnp.float32),
    end=None,
  )
  of_rows = state.rows

  def choose(state: State, logits: jax.Array) -> jax.Array:
    greedy = sampling.greedy(logits)

    def sample() -> jax.Array:
      keys = jax.vmap(jax.random.fold_in)(of_rows.key, state.step)
      is_sampled = of_rows.temperature > 0
      temperature = jnp.where(is_sampled, of_rows.temperature, 1.0)
      drawn = sampling.nucleus(logits, keys, temperature[:, None], of_rows.top_p[:, None])
      return jnp.where(is_sampled, drawn, greedy)

    return jax.lax.cond(wants.sample, sample, lambda: greedy)

  def note_logprobs(out: Tokens, i: jax.Array, logits: jax.Array, token: jax.Array) -> Tokens:
    logprobs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logprobs, token[:, None], axis=1)[:, 0]
    values, top = jax.lax.top_k(logprobs, min(TOP, logprobs.shape[1]))
    padding = ((0, 0), (0, TOP - top.shape[1]))
    return out._replace(
      logprobs=out.logprobs.at[i].set(chosen),
      top=out.top.at[i].set(jnp.pad(top, padding)),
      top_logprobs=out.top_logprobs.at[i].set(jnp.pad(values, padding, constant_values=-jnp.inf)),
    )

  def step(carry: tuple[jax.Array, State, Tokens]) -> tuple[jax.Array, State, Tokens]:
    i, state, out = carry
    runs = running & (state.end == 0)
    logits = jnp.where(ending.allowed, state.logits, -jnp.inf)
    token = choose(state, logits)
    out = out._replace(tokens=out.tokens.at[i].set(jnp.where(runs, token, -1)))
    out = jax.lax.cond(wants.logprobs, lambda: note_logprobs(out, i, logits, token), lambda: out)
    stop_state = ending.stops[state.stop_state, token]
    stopped = ending.ends[token] | (stop_state == stop_reached)
    end = jnp.where(stopped, STOPPED, jnp.where(state.step + 1 >= of_rows.limit, AT_LIMIT, 0))
    # A row that does not run writes behind what it has, which nobody sees.
    at = jnp.minimum(state.positions, length - 1)[:, None]
    logits, cache = module.apply(
      {'params': params}, token[:, None], no_image, at, None, state.cache, method='decode'
    )
    go_on = lambda new, old: jnp.where(runs, new, old)
    state = State(
      cache=cache,
      logits=jnp.where(runs[:, None], logits[:, 0], state.logits),
      positions=go_on(state.positions + 1, state.positions),
      step=go_on(state.step + 1, state.step),
      stop_state=go_on(stop_state, state.stop_state),
      end=go_on(end, state.end),
      rows=of_rows,
    )
    return i + 1, state, out

  def goes_on(carry: tuple[jax.Array, State, Tokens]) -> jax.Array:
    i, state, _ = carry
    return (i < count) & jnp.any(running & (state.end == 0))

  _, state, out = jax.lax.while_loop(goes_on, step, (jnp.int32(0), state, out))
  return state, out._replace(end=state.end)


class Prompt(NamedTuple):
  """A prompt of T positions, or its rest, as the model reads it.

  Attributes:
    tokens: int32[T].
    visual_index: int32[T], index into `visual`, -1 for text.
    visual: [L,D], visual tokens of all images, or None.
  """

  tokens: np.ndarray
  visual_index: np.ndarray
  visual: np.ndarray | None


class RunningBatch:
  """The state of a batch and its compiled programs. One thread at a time may use it.

  Args:
    model: from `sphinx_jax.load`.
    rows: prompts that are decoded together.
    length: most positions of a prompt and its answer; None: as the model.

  Attributes:
    rows: as given.
    length: positions of a row.
    widths: the lengths to which prompts are padded, ascending.

  Raises:
    SphinxError: the length is over that of the model, or there is no row.
  """

  def __init__(self, model: Model, rows: int, length: int | None = None) -> None:
    length = model.max_length if length is None else length
    if not 2 <= length <= model.max_length or rows < 1:
      raise errors.make(
        'running batch',
        f'{rows} rows of {length} positions',
        f"at least one row, of 2 to the model's {model.max_length} positions",
        'change them',
      )
    self.rows, self.length, self._model = rows, length, model
    self.widths = _widths(model.bucket, length)
    module, vocab = model.module, model.config.llm.vocab
    make = functools.partial(init, module, vocab, rows, length)
    with_mesh = placement.on_mesh_of(model.params, make)
    self._shardings = _shardings(model.params, jax.eval_shape(with_mesh))
    self._make = jax.jit(with_mesh, out_shardings=self._shardings)
    program = lambda function, outputs: model.compiled(
      function, donate_argnames='state', out_shardings=outputs
    )
    self._join = program(functools.partial(join, module), self._shardings)
    self._extend = program(functools.partial(extend, module), self._shardings)
    everywhere = self._shardings.logits
    self._advance = program(
      functools.partial(advance, module, model.ending), (self._shardings, everywhere)
    )
    self.reset()

  def reset(self) -> None:
    """Makes all rows free. It also recovers from a program that failed, which loses the state."""
    self._state = None  # Its memory is free before the new one is made.
    self._state = self._make()

  def width(self, length: int) -> int:
    """The length to which a prompt is padded."""
    return next(width for width in self.widths if width >= length)

  def join(self, row: int, prompt: Prompt, sampled: Sampling) -> None:
    """Prefills a prompt into a row."""
    self._state = self._join(*self._join_arguments(row, prompt, sampled))

  def extend(self, row: int, source: int, begin: int, rest: Prompt, sampled: Sampling) -> None:
    """Prefills the rest of a prompt into a row, behind the first `begin` positions of `source`."""
    self._state = self._extend(*self._extend_arguments(row, source, begin, rest, sampled))

  def advance(self, running: np.ndarray, count: int, wants: Wants) -> Tokens:
    """Decodes up to `count` tokens of the rows bool[B]; returns arrays of numpy."""
    self._state, out = self._advance(*self._advance_arguments(running, count, wants))
    if not wants.logprobs:  # They are not moved to the host.
      return Tokens(np.asarray(out.tokens), None, None, None, np.asarray(out.end))
    return Tokens(*map(np.asarray, out))

  def compile(self) -> None:
    """Compiles all programs, in threads, and runs each once. Every row is free afterwards."""
    sampled, none = Sampling(1, make_key(0, 0), 0.0, 1.0), np.zeros(self.rows, bool)
    prompts = [
      Prompt(np.zeros(width, np.int32), np.full(width, -1, np.int32), None) for width in self.widths
    ]
    programs = [(self._advance, self._advance_arguments(none, STEPS, Wants(False, False)))]
    for prompt in prompts:
      programs.append((self._join, self._join_arguments(0, prompt, sampled)))
      programs.append((self._extend, self._extend_arguments(0, 0, 0, prompt, sampled)))
    with ThreadPoolExecutor() as pool:
      # Later calls find them compiled.
      list(pool.map(lambda program: program[0].trace(*program[1]).lower().compile(), programs))
    for prompt in prompts:
      self.join(0, prompt, sampled)
      self.extend(0, 0, 0, prompt, sampled)
    self.advance(none, STEPS, Wants(True, True))
    self.reset()

  def _join_arguments(self, row: int, prompt: Prompt, sampled: Sampling) -> tuple:
    numbers = map(np.int32, (len(prompt.tokens), row))
    fields = self._padded(prompt)
    return self._model.weights, self._state, *fields, *numbers, _sampling(sampled)

  def _extend_arguments(
    self, row: int, source: int, begin: int, rest: Prompt, sampled: Sampling
  ) -> tuple:
    numbers = map(np.int32, (begin, len(rest.tokens), source, row))
    fields = self._padded(rest)
    return self._model.weights, self._state, *fields, *numbers, _sampling(sampled)

  def _advance_arguments(self, running: np.ndarray, count: int, wants: Wants) -> tuple:
    wants = Wants(*map(np.bool_, wants))
    return self._model.weights, self._state, running, np.int32(count), wants

  def _padded(self, prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Arguments of `join`: tokens and visual index int32[1,T], visual tokens [1,T,D]."""
    length = len(prompt.tokens)
    width = self.width(length)
    tokens = np.zeros((1, width), np.int32)
    visual_index = np.full((1, width), -1, np.int32)
    tokens[0, :length], visual_index[0, :length] = prompt.tokens, prompt.visual_index
    if not self._model.visual_tokens:
      return tokens, visual_index, None
    config = self._model.config
    visual = np.zeros((1, width, config.llm.width), jnp.dtype(config.dtype))
    if prompt.visual is not None:
      visual[0, : len(prompt.visual)] = prompt.visual
    return tokens, visual_index, visual


def make_key(seed: int, stream: int) -> jax.Array:
  """The random key of an answer: that of row `stream` of a call of `Model.complete`."""
  return jax.random.fold_in(jax.random.key(seed), np.uint32(stream))


def _sampling(sampled: Sampling) -> Sampling:
  """The same with dtypes that no value of Python changes."""
  limit, key, temperature, top_p = sampled
  return Sampling(np.int32(limit), key, np.float32(temperature), np.float32(top_p))


def _widths(bucket: int, length: int) -> tuple[int, ...]:
  """Multiples of `bucket` that grow by a third, the last one being `length`."""
  widths, width = [], bucket
  while width < length:
    widths.append(width)
    width = round_up(-(-width * 4 // 3), bucket)
  return (*widths, length)


def _shardings(params: dict, state: State) -> State:
  """The sharding of every array of a state. The cache of a head is where its weights are.

  They are fixed, so that no program gets its arguments in two ways, and is compiled twice.
  """
  mesh = placement.mesh_of(params)
  if mesh is None:
    device = placement.only_device(params) or jax.local_devices()[0]
    return jax.tree.map(lambda _: SingleDeviceSharding(device), state)

  def of_cache(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    is_split = leaf.shape[2] % mesh.shape['tensor'] == 0
    return NamedSharding(mesh, PartitionSpec(None, None, 'tensor' if is_split else None))

  whole = jax.tree.map(lambda _: placement.replicated(mesh), state)
  return whole._replace(cache=jax.tree.map(of_cache, state.cache))
