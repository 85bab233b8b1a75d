"""The device programs of generation: prefill, a growing cache, and the decoding loop.

A cache slot is a position. Right-padded prompts therefore need no mask: a row's later tokens
overwrite its padding slots before any query can see them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.data.dialog import Template
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import sampling, stop
from sphinx_jax.models import families, multimodal


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


class Carry(NamedTuple):
  """State of the decoding loop.

  Attributes:
    step: int32[], number of tokens decoded for every row.
    logits: float32[B, vocab], of the next token.
    stop_state: int32[B], state of each row's stop automaton.
    done: bool[B], rows whose answer is complete.
    tokens: int32[B, N], the answers; -1 after a row's end.
    cache: keys and values, as of `families.init_cache`.
  """

  step: jax.Array
  logits: jax.Array
  stop_state: jax.Array
  done: jax.Array
  tokens: jax.Array
  cache: dict


def prefill(
  module: multimodal.Multimodal,
  params: dict,
  tokens: jax.Array,
  visual_index: jax.Array,
  lengths: jax.Array,
  visual: jax.Array | None,
) -> tuple[jax.Array, dict]:
  """Runs the model over right-padded prompts.

  Args:
    module: from `families.build`.
    params: its parameters.
    tokens: int32[B, T].
    visual_index: int32[B, T], as of `core.batch.interleave`.
    lengths: int32[B], positions of each prompt.
    visual: visual tokens [B, visual_tokens, D], or None for text alone.

  Returns:
    Logits float32[B, vocab] at each row's last prompt position, and a cache of T slots.
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  cache = families.init_cache(module.config, *tokens.shape)
  logits, cache = module.apply(
    {'params': params}, tokens, visual_index, positions, visual, cache, method='decode'
  )
  last = (lengths - 1)[:, None, None]
  return jnp.take_along_axis(logits, last, axis=1)[:, 0], cache


def grow(module: multimodal.Multimodal, cache: dict, *, batch_size: int, length: int) -> dict:
  """Copies a cache of `batch_size` rows into one of `length` slots.

  This is a program of its own, so that the number of prefill programs does not multiply with the
  number of cache lengths.
  """
  empty = families.init_cache(module.config, batch_size, length)
  return jax.tree.map(
    lambda long, short: jax.lax.dynamic_update_slice(long, short, (0,) * short.ndim), empty, cache
  )


def decode(
  module: multimodal.Multimodal,
  ending: Ending,
  params: dict,
  cache: dict,
  logits: jax.Array,
  lengths: jax.Array,
  limits: jax.Array,
  keys: jax.Array,
  temperature: jax.Array,
  top_p: jax.Array,
  *,
  cache_length: int,
  sample: bool,
) -> tuple[jax.Array, dict]:
  """Decodes until every row has stopped: at the stop text, EOS, or its limit.

  Args:
    module: from `families.build`.
    ending: what ends an answer.
    params: the module's parameters.
    cache: of the prompts, with `cache_length` slots.
    logits: float32[B, vocab] of the first new token.
    lengths: int32[B], positions of each prompt.
    limits: int32[B], most new tokens of each row.
    keys: B random keys, one a row.
    temperature: float32[]; used if `sample`.
    top_p: float32[]; used if `sample`.
    cache_length: slots of the cache.
    sample: whether to sample; greedy otherwise.

  Returns:
    Answers int32[B, cache_length], -1 after a row's end, and the cache. The cache is returned only
    so that its donated memory can be used in place.
  """
  batch_size = logits.shape[0]
  stop_reached = ending.stops.shape[0] - 1
  no_image = jnp.full((batch_size, 1), -1)

  def step(carry: Carry) -> Carry:
    logits = jnp.where(ending.allowed, carry.logits, -jnp.inf)
    if sample:
      step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, carry.step)
      token = sampling.nucleus(logits, step_keys, temperature, top_p)
    else:
      token = sampling.greedy(logits)
    tokens = carry.tokens.at[:, carry.step].set(jnp.where(carry.done, -1, token))
    stop_state = ending.stops[carry.stop_state, token]
    at_end = ending.ends[token] | (stop_state == stop_reached) | (carry.step + 1 >= limits)
    # A row that is done stays at its last slot.
    positions = jnp.minimum(lengths + carry.step, cache_length - 1)[:, None]
    logits, cache = module.apply(
      {'params': params}, token[:, None], no_image, positions, None, carry.cache, method='decode'
    )
    return Carry(carry.step + 1, logits[:, 0], stop_state, carry.done | at_end, tokens, cache)

  start = Carry(
    step=0,
    logits=logits,
    stop_state=jnp.zeros(batch_size, jnp.int32),
    done=limits < 1,
    tokens=jnp.full((batch_size, cache_length), -1, jnp.int32),
    cache=cache,
  )
  end = jax.lax.while_loop(lambda carry: ~carry.done.all(), step, start)
  return end.tokens, end.cache
