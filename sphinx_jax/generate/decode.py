"""The device programs of generation: prefill, a growing cache, and the decoding loop.

A cache slot is a position. Right-padded prompts therefore need no mask: a row's later tokens
overwrite its padding slots before any query can see them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.data.dialog import Template
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import sampling, stop
from sphinx_jax.models import families, multimodal

CHUNK = 64  # Steps after which the host looks which rows have stopped.
WATCHED_CHUNK = 4  # The same if somebody reads along.
_SMALLEST = 4  # Rows of a batch that is not made smaller.


class Ending(NamedTuple):
  """What ends an answer, and the ids that an answer may contain.

  Attributes:
    stops: int32[states, vocab], transition table of `stop.automaton`; the last state is the stop.
    ends: bool[vocab], the token ids that end a text.
    allowed: bool[vocab], the ids that may be generated. The model may have ids that the tokenizer
      does not know, and ids of images.
  """

  stops: jax.Array
  ends: jax.Array
  allowed: jax.Array


def ending(template: Template, tokenizer: Tokenizer, vocab: int) -> Ending:
  """What ends an answer of a model with `vocab` token ids."""
  stops = np.zeros((2, vocab), np.int32)  # Without a stop text, the last state is never reached.
  if template.stop:
    stops = stop.automaton(template.stop, stop.piece_texts(tokenizer, vocab))
  ids = np.arange(vocab)
  of_images = [tokenizer.specials.get(token, -1) for token in template.image_tokens]
  allowed = (ids < tokenizer.vocab_size) & ~np.isin(ids, of_images)
  ends = np.isin(ids, end_ids(template, tokenizer))
  return Ending(*map(jnp.asarray, (stops, ends, allowed)))


def end_ids(template: Template, tokenizer: Tokenizer) -> list[int]:
  """The token ids that end an answer."""
  found = [tokenizer.specials.get(token) for token in template.stop_tokens]
  return [tokenizer.eos, *(i for i in found if i is not None)]


class Rows(NamedTuple):
  """What the decoding loop knows of the rows of a batch.

  Attributes:
    lengths: int32[B], positions of each prompt.
    limits: int32[B], most new tokens of each row.
    keys: B random keys, one a row.
  """

  lengths: jax.Array
  limits: jax.Array
  keys: jax.Array


class Carry(NamedTuple):
  """State of the decoding loop.

  Attributes:
    step: int32[], number of tokens decoded for every row.
    logits: float32[B, vocab], of the next token.
    stop_state: int32[B], state of each row's stop automaton.
    done: bool[B], rows whose answer is complete.
    tokens: int32[B, N], the answers; -1 after a row's end. N is the number of slots of the cache.
    cache: keys and values, as of `families.init_cache`.
  """

  step: jax.Array
  logits: jax.Array
  stop_state: jax.Array
  done: jax.Array
  tokens: jax.Array
  cache: Any


def prefill(
  module: multimodal.Multimodal,
  params: dict,
  tokens: jax.Array,
  visual_index: jax.Array,
  lengths: jax.Array,
  visual: jax.Array | None,
) -> tuple[jax.Array, Any]:
  """Runs the model over right-padded prompts, see `multimodal.Multimodal.prefill`."""
  return module.apply({'params': params}, tokens, visual_index, lengths, visual, method='prefill')


def begin(
  module: multimodal.Multimodal, cache: Any, logits: jax.Array, limits: jax.Array, *, length: int
) -> Carry:
  """The first state of the loop, with the cache of the prompts in one of `length` slots.

  This is a program of its own, so that the number of prefill programs does not multiply with the
  number of cache lengths.
  """
  rows = len(limits)
  empty = families.init_cache(module.config, rows, length)
  return Carry(
    step=jnp.int32(0),
    logits=logits,
    stop_state=jnp.zeros(rows, jnp.int32),
    done=limits < 1,
    tokens=jnp.full((rows, length), -1, jnp.int32),
    cache=jax.tree.map(
      lambda long, short: jax.lax.dynamic_update_slice(long, short, (0,) * short.ndim), empty, cache
    ),
  )


def decode(
  module: multimodal.Multimodal,
  ending: Ending,
  params: dict,
  carry: Carry,
  rows: Rows,
  temperature: jax.Array,
  top_p: jax.Array,
  until: jax.Array,
  *,
  sample: bool,
) -> Carry:
  """Decodes until every row has stopped (at the stop text, EOS, or its limit), or some steps.

  Args:
    module: from `families.build`.
    ending: what ends an answer.
    params: the module's parameters.
    carry: from `begin` or the call before; its memory is used in place if it is donated.
    rows: of the batch.
    temperature: float32[]; used if `sample`.
    top_p: float32[]; used if `sample`.
    until: int32[], the step at which to stop at the latest.
    sample: whether to sample; greedy otherwise.
  """
  batch_size, cache_length = carry.tokens.shape
  stop_reached = ending.stops.shape[0] - 1
  no_image = jnp.full((batch_size, 1), -1)

  def step(carry: Carry) -> Carry:
    logits = jnp.where(ending.allowed, carry.logits, -jnp.inf)
    if sample:
      step_keys = jax.vmap(jax.random.fold_in, (0, None))(rows.keys, carry.step)
      token = sampling.nucleus(logits, step_keys, temperature, top_p)
    else:
      token = sampling.greedy(logits)
    tokens = carry.tokens.at[:, carry.step].set(jnp.where(carry.done, -1, token))
    stop_state = ending.stops[carry.stop_state, token]
    at_end = ending.ends[token] | (stop_state == stop_reached) | (carry.step + 1 >= rows.limits)
    # A row that is done stays at its last slot.
    positions = jnp.minimum(rows.lengths + carry.step, cache_length - 1)[:, None]
    logits, cache = module.apply(
      {'params': params}, token[:, None], no_image, positions, None, carry.cache, method='decode'
    )
    return Carry(carry.step + 1, logits[:, 0], stop_state, carry.done | at_end, tokens, cache)

  return jax.lax.while_loop(lambda carry: ~carry.done.all() & (carry.step < until), step, carry)


def choose(carry: Carry, rows: Rows, chosen: jax.Array) -> tuple[Carry, Rows]:
  """The state of some rows, int32[b], of a batch."""
  of_rows = carry._replace(step=None, cache=None), rows
  of_rows, rows = jax.tree.map(lambda field: field[chosen], of_rows)
  cache = jax.tree.map(lambda slots: slots[:, chosen], carry.cache)
  return of_rows._replace(step=carry.step, cache=cache), rows


def decode_all(
  decode_some: Callable[[Carry, Rows, int], Carry],
  choose_rows: Callable[[Carry, Rows, np.ndarray], tuple[Carry, Rows]],
  carry: Carry,
  rows: Rows,
  watch: Callable[[np.ndarray], None] | None = None,
) -> np.ndarray:
  """Decodes in chunks of steps, between which rows that have stopped leave the batch.

  The size of the batch is halved when half of its rows have stopped, so few sizes are compiled.

  Args:
    decode_some: `decode` with all other arguments.
    choose_rows: `choose`, compiled.
    carry: from `begin`.
    rows: of the batch.
    watch: called after each chunk, which is shorter then, with the answers so far.

  Returns:
    Answers int32[B, N], -1 after a row's end.
  """
  answers = np.full(carry.tokens.shape, -1, np.int32)
  running, done, until = np.arange(len(answers)), np.zeros(len(answers), bool), 0
  while not done.all():
    size = _batch_size(len(running), np.sum(~done))
    if size < len(running):
      chosen = np.argsort(done, kind='stable')[:size]  # First those that go on.
      running = running[chosen]
      carry, rows = choose_rows(carry, rows, chosen.astype(np.int32))
    until += CHUNK if watch is None else WATCHED_CHUNK
    carry = decode_some(carry, rows, until)
    done = np.asarray(carry.done)
    answers[running] = np.asarray(carry.tokens)
    if watch is not None:
      watch(answers)
  return answers


def _batch_size(size: int, going_on: int) -> int:
  """The size of a batch without rows that have stopped: halved as often as the others fit."""
  while size > _SMALLEST and going_on <= size // 2:
    size = max(size // 2, _SMALLEST)
  return size
