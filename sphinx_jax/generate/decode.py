"""Answers to prompts about images: one batched prefill, then a cached decoding loop, all on the device.

Shapes come in buckets (rows: multiples of 4; prompts and caches: multiples of `bucket`), so few programs are compiled and
none silently in the middle of a chat. A cache slot is a position: right-padded prompts need no mask, because a row's
later tokens overwrite its padding slots before any query can see them.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.data import images as pictures
from sphinx_jax.generate import sampling, stop
from sphinx_jax.models import layers, sphinx
from sphinx_jax.parallel import placement


def round_up(number, multiple):
  """The smallest multiple that is not below `number`, as int."""
  return -(-int(number) // multiple) * multiple


class Generator:
  """A model ready to answer.

  Args:
    model_config: the `model` part of a training config.
    params: parameter tree as of `sphinx.init` (any sharding).
    tokenizer: `data.tokenizer.Tokenizer`.
    template: `data.dialog.Template`; its `.prompt(turns, tokenizer)` gives the ids and its `.stop` ends an answer.
    rows: most prompts decoded together.
    bucket: prompt lengths are padded to multiples of it, cache lengths to multiples of twice it.
  Raises:
    SphinxError: the model's vocabulary is smaller than the tokenizer's.
  """

  def __init__(self, model_config, params, tokenizer, template, rows=128, bucket=64):
    vocabulary = model_config.llm.vocab
    if vocabulary < tokenizer.vocab_size:
      raise errors.make(
        'generator',
        f'a tokenizer of {tokenizer.vocab_size} tokens',
        f"at most the model's {vocabulary}",
        'use the tokenizer that the checkpoint carries',
      )
    self.model_config, self.params = model_config, params
    self.tokenizer, self.template = tokenizer, template
    self.rows, self.bucket = rows, bucket
    self.max_length = model_config.llm.get(
      'max_length', sphinx.LLMS[model_config.llm.name].max_length
    )
    self.visual_tokens = sphinx.visual_tokens(model_config)
    self._model = sphinx.build(model_config)
    self._stops = jnp.asarray(
      stop.automaton(template.stop, stop.piece_texts(tokenizer, vocabulary))
    )
    jit = lambda function, **options: jax.jit(
      placement.on_mesh_of(params, function), compiler_options=layers.compiler_options(), **options
    )
    self._encode = jit(functools.partial(self._apply, method='encode'))
    self._prefill = jit(self._prefill_rows)
    self._grow = jax.jit(self._grow_cache, static_argnames=('rows', 'length'))
    self._decode = jit(
      self._decode_rows, static_argnames=('cache_length', 'sample'), donate_argnames='cache'
    )

  def encode(self, images):
    """Visual tokens of images: list of uint8[Y, X, 3] of any size -> compute dtype [len(images), visual_tokens, D]."""
    size = self.model_config.image_size
    pixels = np.stack([pictures.padded_resize(image, size) for image in images])[:, None]
    return self._encode(self.params, pixels)

  def answers(self, prompts, images=None, visual=None, **sampling):
    """Answers every prompt; a row's answer does not depend on the other rows.

    Args:
      prompts: list of turns [(question, answer), ..., (question, None)].
      images, visual, sampling: as in `complete`.
    Returns:
      list[str]: texts up to the template's stop, stripped.
    Raises:
      SphinxError: a prompt leaves no room for an answer in `llm.max_length`.
    """
    return self.complete(
      [self.template.prompt(turns, self.tokenizer) for turns in prompts], images, visual, **sampling
    )

  def complete(
    self,
    prompts,
    images=None,
    visual=None,
    max_new_tokens=256,
    temperature=0.0,
    top_p=1.0,
    seed=0,
    expected=None,
  ):
    """Continues every prompt, to the template's stop or EOS; what a row gets does not depend on the other rows.

    Args:
      prompts: list of token ids, BOS first; an image's tokens come behind BOS.
      images: list of uint8[Y, X, 3] of any size, or None for text only; the same array twice is encoded once.
      visual: instead of `images`, what `encode` gave, one entry a prompt.
      max_new_tokens: int, or one int a prompt.
      temperature: 0 is greedy.
      top_p: share of probability sampled from.
      seed: of the sampling; row i of the call always draws from the same stream.
      expected: rough lengths of the answers, if known; rows of like length are decoded together (speed only).
    Returns:
      list[str]: texts up to the stop, stripped.
    Raises:
      SphinxError: a prompt leaves no room for an answer in `llm.max_length`; another number of images than prompts;
        sampling numbers outside their ranges.
    """
    count = len(prompts)
    if not count:
      return []
    images = images if images is not None else [None] * count
    if len(images) != count:
      raise errors.make(
        'generator',
        f'{len(images)} images for {count} prompts',
        'one a prompt, or None in its place',
        'add them',
      )
    if temperature < 0 or not 0 < top_p <= 1:
      raise errors.make(
        'generator',
        f'temperature={temperature}, top_p={top_p}',
        'temperature >= 0 and 0 < top_p <= 1',
        'change them',
      )
    limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), count)
    rows = [
      self._row(ids, visual is not None or image is not None) for ids, image in zip(prompts, images)
    ]
    lengths = np.array([len(tokens) for tokens, _ in rows])
    limits = np.minimum(limits, self._room(lengths))
    expected = expected if expected is not None else limits
    order = sorted(range(count), key=lambda i: (round_up(lengths[i], self.bucket), expected[i]))
    size = -(
      -count // -(-count // self.rows)
    )  # batches of like size: no nearly empty one at the end
    size = min(round_up(size, 4), self.rows) if count > 1 else 1
    sampler = (seed, temperature, top_p)
    texts = [''] * count

    def decode(chosen):
      padded = np.array(
        chosen + chosen[:1] * (size - len(chosen))
      )  # a short last batch keeps the compiled shape
      pixels = self._visual(padded, images, visual)
      ids = self._batch([rows[i] for i in padded], pixels, limits[padded], padded, sampler)
      for i, row in zip(chosen, ids):
        texts[i] = self._text(row)

    # A decoding loop leaves CPU cores idle, so there two run at once; an accelerator is busy with one.
    with ThreadPoolExecutor(2 if jax.default_backend() == 'cpu' else 1) as pool:
      list(pool.map(decode, [order[begin : begin + size] for begin in range(0, count, size)]))
    return texts

  def _row(self, ids, has_image):
    """One prompt as (tokens, visual_index) with its image tokens behind BOS."""
    slots = self.visual_tokens if has_image else 0
    tokens = [*ids[:1], *[0] * slots, *ids[1:]]
    return tokens, [-1, *range(slots), *[-1] * (len(ids) - 1)]

  def _room(self, lengths):
    room = self.max_length - lengths
    if room.min() < 1:
      raise errors.make(
        'generator',
        f'a prompt of {lengths.max()} positions (image included)',
        f'fewer than llm.max_length={self.max_length}',
        'shorten the conversation',
      )
    return room

  def _visual(self, chosen, images, visual):
    """Visual tokens [B, visual_tokens, D] of the chosen rows, or None if no row has an image."""
    if visual is not None:
      return jnp.asarray(visual)[chosen]
    different = {id(images[i]): images[i] for i in chosen if images[i] is not None}
    if not different:
      return None
    blank = np.zeros(
      (1, 1, 3), np.uint8
    )  # one image for all rows, or as many as rows: two compiled shapes
    padding = [blank] * (len(chosen) - len(different)) if len(different) > 1 else []
    encoded = self.encode([*different.values(), *padding])
    slot = {key: n for n, key in enumerate(different)}
    return encoded[np.array([slot.get(id(images[i]), 0) for i in chosen])]

  def _batch(self, rows, visual, limits, streams, sampler):
    """Token ids int32[B, N] of the answers of one batch; -1 after a row's end."""
    seed, temperature, top_p = sampler
    lengths = np.array([len(tokens) for tokens, _ in rows], np.int32)
    width = min(round_up(lengths.max(), self.bucket), self.max_length)
    cache_length = min(round_up((lengths + limits).max(), 2 * self.bucket), self.max_length)
    tokens = np.zeros((len(rows), width), np.int32)
    visual_index = np.full((len(rows), width), -1, np.int32)
    for b, (row, index) in enumerate(rows):
      tokens[b, : len(row)], visual_index[b, : len(row)] = row, index
    logits, cache = self._prefill(self.params, tokens, visual_index, lengths, visual)
    cache = self._grow(cache, rows=len(rows), length=cache_length)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
      streams.astype(np.uint32)
    )
    out, _ = self._decode(
      self.params,
      cache,
      logits,
      lengths,
      limits,
      keys,
      temperature,
      top_p,
      cache_length=cache_length,
      sample=temperature > 0,
    )
    return np.asarray(out)

  def _apply(self, params, *args, method):
    return self._model.apply({'params': params}, *args, method=method)

  def _prefill_rows(self, params, tokens, visual_index, lengths, visual):
    """-> (logits of each row's last prompt position float32[B, V], cache as long as the prompts)."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    cache = sphinx.init_cache(self.model_config, *tokens.shape)
    logits, cache = self._apply(
      params, tokens, visual_index, positions, visual, cache, method='decode'
    )
    return jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0], cache

  def _grow_cache(self, cache, *, rows, length):
    """The same cache with more slots; apart from prefill, so that its programs do not multiply with cache lengths."""
    empty = sphinx.init_cache(self.model_config, rows, length)
    return jax.tree.map(
      lambda long, part: jax.lax.dynamic_update_slice(long, part, (0,) * part.ndim), empty, cache
    )

  def _decode_rows(
    self, params, cache, logits, lengths, limits, keys, temperature, top_p, *, cache_length, sample
  ):
    """The decoding loop; it ends when every row has stopped. -> (int32[B, cache_length], -1 where stopped; cache).

    The cache is returned only so that its donated memory can be used in place.
    """
    count, vocabulary = logits.shape
    real = jnp.arange(vocabulary) < self.tokenizer.vocab_size
    last = self._stops.shape[0] - 1

    def step(carry):
      n, logits, matched, done, out, cache = carry
      logits = jnp.where(real, logits, -jnp.inf)
      if sample:
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, n)
        token = sampling.nucleus(logits, now, temperature, top_p)
      else:
        token = sampling.greedy(logits)
      out = out.at[:, n].set(jnp.where(done, -1, token))
      matched = self._stops[matched, token]
      done |= (token == self.tokenizer.eos) | (matched == last) | (n + 1 >= limits)
      positions = jnp.minimum(lengths + n, cache_length - 1)[
        :, None
      ]  # a stopped row idles on its last slot
      logits, cache = self._apply(
        params, token[:, None], jnp.full((count, 1), -1), positions, None, cache, method='decode'
      )
      return n + 1, logits[:, 0], matched, done, out, cache

    start = (
      0,
      logits,
      jnp.zeros(count, jnp.int32),
      limits < 1,
      jnp.full((count, cache_length), -1, jnp.int32),
      cache,
    )
    return jax.lax.while_loop(lambda carry: ~carry[3].all(), step, start)[4:]

  def _text(self, ids):
    ids = [int(i) for i in ids if i >= 0]
    ids = ids[: ids.index(self.tokenizer.eos)] if self.tokenizer.eos in ids else ids
    return self.tokenizer.decode(ids).split(self.template.stop)[0].strip()
