"""A loaded model: logits, continuations, answers. `sphinx_jax.load` returns one."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sphinx_jax.core import batch as batches, errors
from sphinx_jax.data import images as images_lib
from sphinx_jax.data.dialog import Template, Turn
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import decode, stop
from sphinx_jax.models import families, layers, multimodal
from sphinx_jax.parallel import placement

BATCH_SIZE = 128  # Most prompts decoded together, unless a call gives another number.


class _Prompt(NamedTuple):
  """A prompt as the model reads it: int32[T] each, from `core.batch.interleave`."""

  tokens: np.ndarray
  visual_index: np.ndarray


class Model:
  """A model with its weights, ready to answer.

  Shapes come in buckets: batch sizes are multiples of 4, prompt lengths multiples of `bucket`, and
  cache lengths multiples of twice that. So few programs are compiled, and none unexpectedly in the
  middle of a chat.

  Args:
    config: the model config (`config.model` of a run).
    params: parameter tree as of `families.init`, any dtype and sharding.
    tokenizer: None for weights that come without one; only `logits` and `encode` work then.
    template: dialog template; its stop text ends every answer.
    bucket: prompt lengths are padded to multiples of it.
    alpha: what happens to transparent pixels of image files, as in training (`images.decode`).

  Raises:
    SphinxError: the tokenizer has more tokens than the model.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    params: dict,
    tokenizer: Tokenizer | None,
    template: Template,
    bucket: int = 64,
    alpha: str = 'drop',
  ) -> None:
    vocab = config.llm.vocab
    if tokenizer is not None and vocab < tokenizer.vocab_size:
      raise errors.make(
        'model',
        f'a tokenizer of {tokenizer.vocab_size} tokens',
        f"at most the model's {vocab}",
        'use the tokenizer that the checkpoint carries',
      )
    self._config, self._params, self._tokenizer = config, params, tokenizer
    self._template, self._bucket = template, bucket
    self.alpha = alpha
    module = families.build(config)
    self._logits = self._compiled(functools.partial(_logits, module))
    self._encode = self._compiled(functools.partial(_encode, module))
    if tokenizer is None:
      return
    stops = stop.automaton(template.stop, stop.piece_texts(tokenizer, vocab))
    ending = decode.Ending(jnp.asarray(stops), tokenizer.eos, tokenizer.vocab_size)
    self._prefill = self._compiled(functools.partial(decode.prefill, module))
    self._grow = jax.jit(
      functools.partial(decode.grow, module), static_argnames=('batch_size', 'length')
    )
    self._decode = self._compiled(
      functools.partial(decode.decode, module, ending),
      static_argnames=('cache_length', 'sample'),
      donate_argnames='cache',
    )

  def _compiled(self, function: Callable, **options: Any) -> Callable:
    """`jax.jit` of a function whose first argument is sharded like `self.params`."""
    on_mesh = placement.on_mesh_of(self._params, function)
    return jax.jit(on_mesh, compiler_options=layers.compiler_options(), **options)

  @property
  def config(self) -> ml_collections.ConfigDict:
    """The model config."""
    return self._config

  @property
  def params(self) -> dict:
    """The parameter tree."""
    return self._params

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer. Raises SphinxError for weights without one."""
    if self._tokenizer is None:
      raise errors.make(
        'model',
        'weights without a tokenizer',
        'a tokenizer.model to make text with',
        'put it beside the weights, or convert them with --tokenizer=FILE',
      )
    return self._tokenizer

  @property
  def template(self) -> Template:
    """The dialog template."""
    return self._template

  @functools.cached_property
  def visual_tokens(self) -> int:
    """Positions of one image in a sequence; 0 for a language model alone."""
    return families.visual_tokens(self._config)

  @property
  def max_length(self) -> int:
    """Most positions of a sequence, image and answer included."""
    default = multimodal.LLMS[self._config.llm.name].max_length
    return self._config.llm.get('max_length', default)

  def logits(self, tokens: np.ndarray, images: np.ndarray | None = None) -> jax.Array:
    """Logits of whole sequences; those at index t predict token t + 1.

    Args:
      tokens: int32[B,T], BOS first. What follows a row's end does not change what is before.
      images: uint8[B,Y,X,3], one a row, of any size (padded to a square and resized as in
        training), or None. An image's tokens stand behind BOS, so the logits at index 0 come from
        the last of them (docs/official_sphinx.md, "Sequence").

    Returns:
      float32[B,T,vocab].

    Raises:
      SphinxError: tokens that the model does not have; not one image a row; arrays that are no
        images; images for a model without encoders.
    """
    tokens = self._check_tokens(tokens)
    rows, length = tokens.shape
    if images is None:
      pixels = np.zeros((rows, 0, 1, 1, 3), np.uint8)
    elif len(images) != rows:
      raise errors.make(
        'logits',
        f'{len(images)} images for {rows} rows',
        'one image a row, or None',
        'call once for each kind',
      )
    else:
      pixels = self._pixels(images)
    prompts = [self._prompt(row, images is not None) for row in tokens]
    sequence = np.stack([prompt.tokens for prompt in prompts])
    visual_index = np.stack([prompt.visual_index for prompt in prompts])
    positions = np.broadcast_to(np.arange(sequence.shape[1], dtype=np.int32), sequence.shape)
    segments = np.ones_like(sequence)
    logits = self._logits(
      self._params, sequence, visual_index, positions, segments, jnp.asarray(pixels)
    )
    return logits[:, sequence.shape[1] - length :]

  def _check_tokens(self, tokens: np.ndarray) -> np.ndarray:
    tokens, vocab = np.asarray(tokens), self._config.llm.vocab
    is_batch = tokens.ndim == 2 and tokens.size and tokens.dtype.kind in 'iu'
    if is_batch and tokens.min() >= 0 and tokens.max() < vocab:
      return tokens
    values = f' of {tokens.min()} to {tokens.max()}' if tokens.size else ''
    raise errors.make(
      'logits',
      f'tokens {tokens.dtype}{list(tokens.shape)}{values}',
      f'whole numbers [rows, positions] of 0 to {vocab - 1}',
      'encode the text with model.tokenizer',
    )

  def _pixels(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8[B,1,Y,X,3]: images padded to squares of the model's size, one a row."""
    size = self._config.image_size
    return np.stack([images_lib.padded_resize(image, size) for image in images])[:, None]

  def encode(self, images: Sequence[np.ndarray], *, params: dict | None = None) -> jax.Array:
    """Visual tokens of images.

    Args:
      images: uint8[Y,X,3] of any size.
      params: used in place of the model's own, see `complete`.

    Returns:
      [len(images), visual_tokens, D] in the compute dtype.

    Raises:
      SphinxError: arrays that are no images; a model without encoders.
    """
    return self._encode(self._params if params is None else params, self._pixels(images))

  def generate(
    self,
    prompts: Sequence[str],
    images: Sequence[np.ndarray | None] | None = None,
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
  ) -> list[str]:
    """Continues texts as they are, without a dialog around them.

    Args:
      prompts: texts. BOS, and the tokens of the prompt's image, come before them.
      images: one uint8[Y,X,3] of any size a prompt, or None for a prompt without one.
      max_new_tokens: most tokens of a continuation, one number or one a prompt. Every row counts
        for itself (docs/official_sphinx.md, "Generation", describes the official code).
      temperature: 0 takes the likeliest token.
      top_p: share of the probability sampled from.
      seed: random seed for sampling. Row i of a call always draws from the same stream.
      batch_size: most prompts decoded together.

    Returns:
      Continuations up to EOS or the template's stop, stripped.

    Raises:
      SphinxError: no tokenizer; one text in place of a list; otherwise as `complete`.
    """
    if isinstance(prompts, str):
      raise errors.make('generate', 'one text', 'a list of texts', f'write [{prompts[:20]!r}]')
    ids = [self.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    return self.complete(
      ids,
      images,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      top_p=top_p,
      seed=seed,
      batch_size=batch_size,
    )

  def chat(self, turns: Sequence[Turn], image: np.ndarray | None = None, **options: Any) -> str:
    """Answers the last question of a dialog about one image.

    Args:
      turns: [(question, answer), ..., (question, None)].
      image: uint8[Y,X,3] of any size, or None.
      options: `max_new_tokens`, `temperature`, `top_p`, `seed` and others, as in `complete`.

    Returns:
      The answer, stripped.

    Raises:
      SphinxError: as `answers`.
    """
    return self.answers([turns], [image], **options)[0]

  def answers(
    self,
    dialogs: Sequence[Sequence[Turn]],
    images: Sequence[np.ndarray | None] | None = None,
    **options: Any,
  ) -> list[str]:
    """Answers the last question of every dialog; an answer does not depend on the other dialogs.

    Args:
      dialogs: turns as in `chat`.
      images: one uint8[Y,X,3] of any size a dialog, or None for a dialog without one.
      options: as in `complete`.

    Returns:
      Answers up to the template's stop, stripped.

    Raises:
      SphinxError: as `complete`; not the last question alone is open; or a question or an answer is
        no text.
    """
    for turns in dialogs:
      if not _has_open_question(turns):
        raise errors.make(
          'chat',
          repr(turns)[:60],
          'turns that end with an open question',
          "for instance [('What is this?', None)]",
        )
      for text in itertools.chain.from_iterable(turns):
        if not isinstance(text, str | None):  # NaN would be asked as 'nan'.
          raise errors.make('chat', f'{text!r:.80} in the turns', 'a text', 'correct it')
    ids = [self._template.prompt(turns, self.tokenizer).ids for turns in dialogs]
    return self.complete(ids, images, **options)

  def complete(
    self,
    ids: Sequence[Sequence[int]],
    images: Sequence[np.ndarray | None] | None = None,
    *,
    visual: jax.Array | None = None,
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    expected: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    params: dict | None = None,
  ) -> list[str]:
    """Continues token ids; what a prompt gets does not depend on the other prompts.

    Args:
      ids: token ids of every prompt, BOS first. An image's tokens come behind BOS.
      images: one uint8[Y,X,3] of any size a prompt, or None for a prompt without one. The same
        array object twice is encoded once.
      visual: result of `encode`, one entry a prompt, in place of `images`.
      max_new_tokens: as in `generate`.
      temperature: as in `generate`.
      top_p: as in `generate`.
      seed: as in `generate`.
      expected: rough lengths of the answers, if known. Rows of similar length are decoded
        together, which is faster; results do not change.
      batch_size: most prompts decoded together.
      params: parameters used in place of the model's own. They have the same shapes, dtypes and
        shardings, so that nothing is compiled again.

    Returns:
      Continuations up to EOS or the template's stop, stripped.

    Raises:
      SphinxError: no tokenizer; a prompt that leaves no room in llm.max_length (no prompt is cut
        silently); not one image a prompt; sampling numbers outside their ranges.
    """
    tokenizer = self.tokenizer
    count = len(ids)
    if not count:
      return []
    images = [None] * count if images is None else images
    if len(images) != count:
      raise errors.make(
        'generate',
        f'{len(images)} images for {count} prompts',
        'one a prompt, or None in its place',
        'add them',
      )
    # Seeds are int64.
    if not (0 <= temperature < math.inf and 0 < top_p <= 1 and -(2**63) <= seed < 2**63):
      raise errors.make(
        'generate',
        f'temperature={temperature}, top_p={top_p}, seed={seed}',
        'temperature >= 0 and finite, 0 < top_p <= 1, a seed of 64 bits',
        'change them',
      )
    params = self._params if params is None else params
    prompts = [
      self._prompt(row, visual is not None or image is not None) for row, image in zip(ids, images)
    ]
    lengths = np.array([len(prompt.tokens) for prompt in prompts], np.int32)
    limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), count)
    limits = np.minimum(limits, self._room(lengths))
    expected = limits if expected is None else expected
    order = sorted(range(count), key=lambda i: (round_up(lengths[i], self._bucket), expected[i]))
    size = _even_batch_size(count, batch_size)
    texts = [''] * count

    def complete_batch(chosen: list[int]) -> None:
      padding = chosen[:1] * (size - len(chosen))  # A short last batch keeps the compiled shape.
      rows = np.array(chosen + padding)
      tokens = self._decode_batch(
        params,
        [prompts[i] for i in rows],
        self._visual(params, rows, images, visual),
        limits[rows],
        streams=rows,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
      )
      for i, row in zip(chosen, tokens):
        texts[i] = _text(tokenizer, self._template.stop, row)

    # The decoding loop leaves CPU cores idle, so two batches run at once there. An accelerator is
    # busy with one.
    with ThreadPoolExecutor(2 if jax.default_backend() == 'cpu' else 1) as pool:
      list(pool.map(complete_batch, [order[i : i + size] for i in range(0, count, size)]))
    return texts

  def _prompt(self, ids: Sequence[int], has_image: bool) -> _Prompt:
    return _Prompt(*batches.interleave(ids, (1,) if has_image else (), self.visual_tokens))

  def _room(self, lengths: np.ndarray) -> np.ndarray:
    """Most new tokens of prompts of these lengths, int32[B]."""
    room = self.max_length - lengths
    if room.min() < 1:
      raise errors.make(
        'generate',
        f'a prompt of {lengths.max()} positions (image included)',
        f'fewer than llm.max_length={self.max_length}',
        'shorten the conversation',
      )
    return room

  def _visual(
    self,
    params: dict,
    rows: np.ndarray,
    images: Sequence[np.ndarray | None],
    visual: jax.Array | None,
  ) -> jax.Array | None:
    """Visual tokens [B, visual_tokens, D] of the chosen rows, or None if no row has an image."""
    if visual is not None:
      return jnp.asarray(visual)[rows]
    distinct = {id(images[i]): images[i] for i in rows if images[i] is not None}
    if not distinct:
      return None
    # Only two shapes are compiled: one image for all rows, or as many images as rows.
    blanks = len(rows) - len(distinct) if len(distinct) > 1 else 0
    encoded = self.encode(
      [*distinct.values(), *[np.zeros((1, 1, 3), np.uint8)] * blanks], params=params
    )
    slots = {key: slot for slot, key in enumerate(distinct)}
    return encoded[np.array([slots.get(id(images[i]), 0) for i in rows])]

  def _decode_batch(
    self,
    params: dict,
    prompts: Sequence[_Prompt],
    visual: jax.Array | None,
    limits: np.ndarray,
    *,
    streams: np.ndarray,
    seed: int,
    temperature: float,
    top_p: float,
  ) -> np.ndarray:
    """Token ids int32[B, N] of the answers of one batch; -1 after a row's end."""
    lengths = np.array([len(prompt.tokens) for prompt in prompts], np.int32)
    width = min(round_up(lengths.max(), self._bucket), self.max_length)
    cache_length = min(round_up((lengths + limits).max(), 2 * self._bucket), self.max_length)
    tokens = np.zeros((len(prompts), width), np.int32)
    visual_index = np.full((len(prompts), width), -1, np.int32)
    for row, prompt in enumerate(prompts):
      tokens[row, : lengths[row]] = prompt.tokens
      visual_index[row, : lengths[row]] = prompt.visual_index
    logits, cache = self._prefill(params, tokens, visual_index, lengths, visual)
    cache = self._grow(cache, batch_size=len(prompts), length=cache_length)
    key = jax.random.key(seed)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(streams.astype(np.uint32))
    answers, _ = self._decode(
      params,
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
    return np.asarray(answers)


def _has_open_question(turns: Any) -> bool:
  """Whether these are pairs of which the last, and no other, has no answer yet."""
  if not isinstance(turns, list | tuple):
    return False
  if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns):
    return False
  return [answer is None for _, answer in turns] == [False] * (len(turns) - 1) + [True]


def round_up(number: int, multiple: int) -> int:
  """The smallest multiple that is not below `number`."""
  return -(-int(number) // multiple) * multiple


def _even_batch_size(count: int, most: int) -> int:
  """Size of batches of `count` prompts, so that the last one is not nearly empty."""
  if count == 1:
    return 1
  batch_count = -(-count // most)
  return min(round_up(-(-count // batch_count), 4), most)


def _logits(module: multimodal.Multimodal, params: dict, *fields: jax.Array) -> jax.Array:
  return module.apply({'params': params}, *fields)


def _encode(module: multimodal.Multimodal, params: dict, images: jax.Array) -> jax.Array:
  return module.apply({'params': params}, images, method='encode')


def _text(tokenizer: Tokenizer, stop_text: str, tokens: np.ndarray) -> str:
  """The text of one row of `decode.decode`, up to EOS or the stop text."""
  ids = [int(token) for token in tokens if token >= 0]
  if tokenizer.eos in ids:
    ids = ids[: ids.index(tokenizer.eos)]
  return tokenizer.decode(ids).split(stop_text)[0].strip()
