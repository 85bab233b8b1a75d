"""A loaded model: logits, continuations, answers. `sphinx_jax.load` returns one."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sphinx_jax.core import batch as batches, errors
from sphinx_jax.data import dialog, images as images_lib, slots as slots_lib
from sphinx_jax.data.dialog import Encoded, Template, Turn
from sphinx_jax.data.record import BadExample
from sphinx_jax.data.slots import Slots
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import ahead, decode, messages as messages_lib
from sphinx_jax.generate.text_stream import TextStream
from sphinx_jax.models import families, layers, multimodal
from sphinx_jax.parallel import placement

BATCH_SIZE = 128  # Most prompts decoded together, unless a call gives another number.


# An image: an array uint8[Y,X,3] of any size, or what `Model.read_image` made of a file.
OneImage = np.ndarray | Slots
# The images of one row: one, several, or None.
Images = OneImage | Sequence[OneImage] | None


class _Prompt(NamedTuple):
  """A prompt as the model reads it: int32[T] each, from `core.batch.interleave`."""

  tokens: np.ndarray
  visual_index: np.ndarray


class Model:
  """A model with its weights, ready to answer.

  Shapes come in buckets: batch sizes are multiples of 4 and halves of them (decode.decode_all),
  prompt lengths multiples of `bucket`, and cache lengths multiples of twice that. So few programs
  are compiled, and none unexpectedly in the middle of a chat.

  Args:
    config: the model config (`config.model` of a run).
    params: parameter tree as of `families.init`, any dtype and sharding.
    tokenizer: None for weights that come without one; only `logits` and `encode` work then.
    template: dialog template; its stop text ends every answer.
    bucket: prompt lengths are padded to multiples of it.
    alpha: what happens to transparent pixels of image files, as in training (`images.decode`).

  Attributes:
    alpha: as given.
    bucket: as given.
    slot_rule: how an image becomes slots.
    module: the flax module, for programs of one's own.
    ending: what ends an answer; absent without a tokenizer.

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
    self._template = template
    self.alpha, self.bucket = alpha, bucket
    family = families.family(config)
    self._image_token = family.image_token(config)
    self._canvas = (family.canvas(config),) * 2
    self._encoded_length = functools.partial(family.encoded_length, config)
    self.slot_rule = slots_lib.make(**family.slot_rule(config))
    self._separate = placement.is_on_one_cpu(params)
    self._weights = self._for_decoding(params)
    self.module = module = families.build(config, separate=self._separate)
    self._logits = self.compiled(functools.partial(_logits, module))
    self._encode = self.compiled(functools.partial(_encode, module), static_argnames='length')
    if tokenizer is None:
      return
    self.ending = ending = decode.ending(template, tokenizer, vocab)
    self._choose = jax.jit(decode.choose)
    self._programs = ahead.Programs(
      self.compiled(functools.partial(decode.prefill, module)),
      jax.jit(functools.partial(decode.begin, module), static_argnames='length'),
      self.compiled(
        functools.partial(decode.decode, module, ending),
        static_argnames='sample',
        donate_argnames='carry',
      ),
    )
    embedded = jax.ShapeDtypeStruct((config.llm.width,), config.dtype)
    self._compiler = ahead.Compiler(self._programs, self._weights, embedded)

  def _for_decoding(self, params: dict) -> dict:
    return families.for_decoding(self._config, params) if self._separate else params

  def compiled(self, function: Callable, **options: Any) -> Callable:
    """`jax.jit` of a function whose first argument is sharded like `self.params`.

    Args:
      function: of arrays.
      options: of `jax.jit`.
    """
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
  def weights(self) -> dict:
    """The parameters as `module` reads them: those of decoder layers apart on a CPU."""
    return self._weights

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
    return families.max_length(self._config)

  def logits(self, tokens: np.ndarray, images: Sequence[Images] | None = None) -> jax.Array:
    """Logits of whole sequences; those at index t predict token t + 1.

    Args:
      tokens: int32[B,T], BOS first. What follows a row's end does not change what is before.
      images: for every row an array uint8[Y,X,3] of any size, a list of them, or None; None: no
        row has one. The visual tokens of SPHINX stand behind BOS, so the logits at index 0 come
        from the last of them (docs/official_sphinx.md, "Sequence"). `tokens` of a family with an
        image token have one of it for every visual token, see `encode`.

    Returns:
      float32[B,T,vocab].

    Raises:
      SphinxError: tokens that the model does not have; not one entry of images a row; image tokens
        that disagree with the images; arrays that are no images; images for a model without
        encoders.
    """
    tokens = self._check_tokens(tokens)
    rows = self._rows('logits', images, len(tokens))
    prompts = [self._place(row, len(of_row)) for row, of_row in zip(tokens, rows)]
    lengths = np.array([len(prompt.tokens) for prompt in prompts])
    sequence, visual_index = _pad(prompts, lengths.max())
    positions = np.broadcast_to(np.arange(lengths.max(), dtype=np.int32), sequence.shape)
    segments = np.ones_like(sequence)
    visual = self._visual(self._weights, rows)
    logits = self._logits(self._weights, sequence, visual_index, positions, segments, visual)
    first = lengths - tokens.shape[1]  # Visual tokens behind BOS have no token of their own.
    if not first.any():
      return logits
    return jnp.take_along_axis(
      logits, (first[:, None] + np.arange(tokens.shape[1]))[..., None], axis=1
    )

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

  def _rows(self, who: str, images: Sequence[Images] | None, count: int) -> list[list[np.ndarray]]:
    """The images of every row, as lists."""
    images = [None] * count if images is None else images
    if len(images) != count:
      raise errors.make(
        who,
        f'{len(images)} images for {count} {"rows" if who == "logits" else "prompts"}',
        'one entry for each: an image, a list of images, or None',
        'add them',
      )
    return [
      [] if of_row is None else [of_row] if _is_one(of_row) else list(of_row) for of_row in images
    ]

  def encode(
    self, content: str | Sequence, images: Images = None, parse_special: bool = True
  ) -> list[int] | jax.Array:
    """Token ids of a text or of messages with images, as `logits` takes them.

    Args:
      content: a text, in which `<image>` stands for an image of a family with an image token.
        Or messages, as for `prompt`. Or images, as for `encode_images`.
      images: of the text or the messages.
      parse_special: whether special tokens written in the text become their ids.

    Returns:
      Ids, BOS first. One image token stands for every visual token. Visual tokens of SPHINX have no
      ids. For images, the result of `encode_images`.

    Raises:
      SphinxError: not as many marks as images; arrays that are no images; messages as for `prompt`.
    """
    if not isinstance(content, str) and not _are_messages(content):
      return self.encode_images(content)
    (of_row,) = self._rows('encode', [images], 1)
    slots = self._slots(len(of_row))
    if isinstance(content, str):
      encoded = self._template.continuation(content, self.tokenizer, slots, parse_special)
    else:
      template, asked = self._asked(content)
      if slots and template.count_marks(asked.turns, len(slots)) == 0:
        raise errors.make(
          'encode',
          f'{len(slots)} images and 0 {dialog.MARK} marks',
          'one mark for every image',
          "add a part {'type': 'image'} where the image stands",
        )
      if parse_special:  # As transformers, which tokenizes the rendered text.
        text = self.prompt(content)
        encoded = template.continuation(text, self.tokenizer, slots, parse_special)
      else:
        encoded = template.prompt(asked.turns, self.tokenizer, slots, asked.begin)
    return self._with_image_tokens(encoded).ids

  def encode_dialog(self, turns: Sequence[Turn], images: int = 0, marks: str = 'text') -> Encoded:
    """A dialog as it is trained on, with token ids as `logits` takes them.

    Args:
      turns: (question, answer) pairs.
      images: their number, at most 1 for SPHINX.
      marks: what `<image>` in the turns is, see `record.MARKS`.
    """
    slots = self._slots(images)
    return self._with_image_tokens(self._template.encode(turns, self.tokenizer, slots, marks))

  def _with_image_tokens(self, encoded: Encoded) -> Encoded:
    """A dialog with one image token for every visual token, for a family that has them."""
    if self._image_token is None:
      return encoded
    ids = list(encoded.ids)
    for at in reversed(encoded.images_at):
      ids[at:at] = [self._image_token] * self.visual_tokens
    places = np.repeat(np.array(encoded.images_at, int), self.visual_tokens)
    return Encoded(ids, np.insert(encoded.weights, places, 0.0), encoded.images_at)

  def prompt(self, messages: messages_lib.Messages) -> str:
    """The text of a chat that asks for the next answer, with `<image>` for images.

    Args:
      messages: [{'role': 'user', 'content': ...}, ...] as of OpenAI and HF transformers. Content is
        a text, or a list of parts {'type': 'text', 'text': ...} and {'type': 'image'}. If the last
        message is the assistant's, its text is the beginning of the answer.

    Raises:
      SphinxError: roles that are not in turns; messages that cannot be read; a base model, which
        continues plain text.
    """
    template, asked = self._asked(messages)
    return template.render(asked.turns, open_ended=True) + asked.begin

  def _asked(self, messages: messages_lib.Messages) -> tuple[Template, messages_lib.Asked]:
    """The template with the system message and images where their parts are, and what is asked."""
    if not self._template.has_turns:
      raise errors.make(
        'prompt',
        'messages for a base model, which has no token for the end of a turn',
        'a text that it continues',
        "write for instance generate(['<image>In this image, we see'], [image])",
      )
    asked = messages_lib.read(messages)
    system = self._template.system if asked.system is None else asked.system
    return dataclasses.replace(self._template, system=system, images='inline'), asked

  def encode_images(self, images: Sequence[Images], *, params: dict | None = None) -> jax.Array:
    """Visual tokens of the images of several rows.

    Args:
      images: for every row an array uint8[Y,X,3] of any size, a list of them, or None.
      params: used in place of the model's own, see `complete`.

    Returns:
      [len(images), N * visual_tokens, D] in the compute dtype, N the most slots of a row.

    Raises:
      SphinxError: arrays that are no images; a model without encoders.
    """
    rows = self._rows('encode', images, len(images))
    weights = self._weights if params is None else self._for_decoding(params)
    return self._visual(weights, rows)

  def _slots(self, images: int) -> list[int]:
    """The number of slots of every one of some images."""
    return [self.slot_rule.count] * images

  def _visual(self, params: dict, rows: Sequence[Sequence[np.ndarray]]) -> jax.Array | None:
    """Visual tokens [B, N * visual_tokens, D] of rows, or None if no row has an image.

    An image that several rows share is encoded once.
    """
    distinct = {id(image): image for images in rows for image in images}
    if not distinct:
      return None
    slots = {key: self._read_slots(image) for key, image in distinct.items()}
    numbers, flat = {}, []
    for key, of_image in slots.items():
      numbers[key] = range(len(flat), len(flat) + len(of_image))
      flat += of_image
    encoded = self._encode_slots(params, flat, len(rows))
    index = [[n for image in images for n in numbers[id(image)]] for images in rows]
    most = max(map(len, index))
    index = np.array([row + [0] * (most - len(row)) for row in index])
    return _take(encoded, index).reshape(len(rows), -1, encoded.shape[-1])

  def read_image(self, data: bytes) -> Slots:
    """Decodes an image file as the model sees it, which takes less memory than its pixels.

    Raises:
      BadExample: an unreadable image.
    """
    return self.slot_rule.read(data, alpha=self.alpha)

  def encode_slots(self, slots: Slots) -> np.ndarray:
    """Visual tokens of one image [slots * visual_tokens, D], in the compute dtype, on the host.

    The slots are encoded one by one, so that few programs are needed: those of `compile_encoder`.

    Args:
      slots: from `read_image`.
    """
    parts = []
    for slot in slots.pixels:
      length = self._encoded_length(*slot.shape[:2])
      pixels, sizes = slots_lib.on_canvas([slot], self._canvas)
      parts.append(self._encode(self._weights, pixels[:, None], sizes[:, None], length=length))
    return np.concatenate([np.asarray(part)[0] for part in parts])

  def compile_encoder(self) -> None:
    """Compiles all programs of `encode_slots`, by calling them."""
    pixels = np.zeros((1, 1, *self._canvas, 3), np.uint8)
    sizes = np.array([[self._canvas]], np.int32)
    for length in families.family(self._config).encoded_lengths(self._config):
      jax.block_until_ready(self._encode(self._weights, pixels, sizes, length=length))

  def _read_slots(self, image: OneImage) -> Sequence[np.ndarray]:
    if isinstance(image, Slots):
      return image.pixels
    try:
      return self.slot_rule(images_lib.from_array(image)).pixels
    except BadExample as error:
      raise errors.make('image', error.message, 'an image that can be split', 'crop it') from None

  def _encode_slots(self, params: dict, slots: Sequence[np.ndarray], rows: int) -> jax.Array:
    """Visual tokens [len(slots), visual_tokens, D]; slots of one encoded length go together."""
    groups: dict[int | None, list[int]] = {}
    for i, slot in enumerate(slots):
      groups.setdefault(self._encoded_length(*slot.shape[:2]), []).append(i)
    parts = []
    for length, members in groups.items():
      # Few shapes are compiled: one image, as many images as rows, or a multiple of 4.
      count = len(members)
      if count > 1:
        count = rows if count <= rows else round_up(count, 4)
      pixels, sizes = slots_lib.on_canvas([slots[i] for i in members], self._canvas, count)
      visual = self._encode(params, pixels[:, None], sizes[:, None], length=length)
      parts.append(visual[: len(members)])
    order = np.argsort([i for members in groups.values() for i in members])
    return _take(jnp.concatenate(parts), order)

  def generate(
    self,
    prompts: Sequence[str],
    images: Sequence[Images] | None = None,
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    parse_special: bool = False,
  ) -> list[str]:
    """Continues texts as they are, without a dialog around them.

    Args:
      prompts: texts. BOS comes before them. A single image of SPHINX stands behind BOS; several,
        and those of other families, where `<image>` is.
      images: for every prompt an array uint8[Y,X,3] of any size, a list of them, or None.
      max_new_tokens: most tokens of a continuation, one number or one a prompt. Every row counts
        for itself (docs/official_sphinx.md, "Generation", describes the official code).
      temperature: 0 takes the likeliest token.
      top_p: share of the probability sampled from.
      seed: random seed for sampling. Row i of a call always draws from the same stream.
      batch_size: most prompts decoded together.
      parse_special: whether special tokens written in a prompt become their ids.

    Returns:
      Continuations up to EOS or the template's stop, stripped.

    Raises:
      SphinxError: no tokenizer; one text in place of a list; otherwise as `complete`.
    """
    if isinstance(prompts, str):
      raise errors.make('generate', 'one text', 'a list of texts', f'write [{prompts[:20]!r}]')
    rows = self._rows('generate', images, len(prompts))
    encoded = [
      self._template.continuation(prompt, self.tokenizer, self._slots(len(of_row)), parse_special)
      for prompt, of_row in zip(prompts, rows)
    ]
    return self.complete(
      encoded,
      rows,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
      top_p=top_p,
      seed=seed,
      batch_size=batch_size,
    )

  def chat(
    self,
    turns: Sequence[Turn],
    image: np.ndarray | None = None,
    images: Sequence[np.ndarray] | None = None,
    **options: Any,
  ) -> str:
    """Answers the last question of a dialog.

    Args:
      turns: [(question, answer), ..., (question, None)].
      image: uint8[Y,X,3] of any size, or None.
      images: several of them, in place of `image`; `<image>` in the turns marks where they stand.
      options: `max_new_tokens`, `temperature`, `top_p`, `seed` and others, as in `complete`.

    Returns:
      The answer, stripped.

    Raises:
      SphinxError: as `answers`.
    """
    return self.answers([turns], [image if images is None else images], **options)[0]

  def answers(
    self,
    dialogs: Sequence[Sequence[Turn]],
    images: Sequence[Images] | None = None,
    *,
    visual: jax.Array | None = None,
    **options: Any,
  ) -> list[str]:
    """Answers the last question of every dialog; an answer does not depend on the other dialogs.

    Args:
      dialogs: turns as in `chat`.
      images: for every dialog an array uint8[Y,X,3] of any size, a list of them, or None.
      visual: result of `encode_images`, one entry a dialog, in place of `images`.
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
    rows = self._rows('chat', images, len(dialogs))
    counts = [len(of_row) for of_row in rows]
    if visual is not None:
      counts = [visual.shape[1] // self.visual_tokens // self.slot_rule.count] * len(dialogs)
    prompts = [self.prompt_of(turns, count) for turns, count in zip(dialogs, counts)]
    return self.complete(prompts, rows, visual=visual, **options)

  def compile_ahead(
    self,
    turns: Sequence[Turn],
    images: int,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    **_: Any,
  ) -> None:
    """Begins to compile, in threads, what the answer to a dialog needs beside encoded images.

    Call it before `encode_images`; `answers` with images does so by itself.

    Args:
      turns: as in `chat`.
      images: their number.
      max_new_tokens: as in `generate`.
      temperature: as in `generate`.
      _: other options of `answers`, which need no other programs.
    """
    prompt = self.prompt_of(turns, images)
    tokens, _ = batches.interleave(prompt.ids, prompt.images_at, self.visual_tokens)
    lengths = np.array([len(tokens)], np.int32)
    limits = np.minimum(max_new_tokens, self._room(lengths))
    self._compile_ahead(lengths, limits, images, temperature)

  def prompt_of(
    self, turns: Sequence[Turn], images: int, begin: str = '', marks: str = 'text'
  ) -> Encoded:
    """Tokenizes a dialog about some images that asks for the last turn's answer.

    Args:
      turns: as in `chat`.
      images: their number.
      begin: the beginning of the answer.
      marks: what `<image>` in the turns is, see `record.MARKS`.
    """
    return self._template.prompt(turns, self.tokenizer, self._slots(images), begin, marks)

  def complete(
    self,
    prompts: Sequence[Encoded | Sequence[int]],
    images: Sequence[Images] | None = None,
    *,
    visual: jax.Array | None = None,
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    streams: Sequence[int] | None = None,
    expected: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
    params: dict | None = None,
    deliver: Callable[[str], None] | None = None,
  ) -> list[str]:
    """Continues token ids; what a prompt gets does not depend on the other prompts.

    Args:
      prompts: from `prompt_of` or a method of `template`; or ids alone, BOS first, whose images
        stand behind BOS.
      images: for every prompt an array uint8[Y,X,3] of any size, a list of them, or None. The same
        array object twice is encoded once.
      visual: result of `encode_images`, one entry a prompt, in place of `images`.
      max_new_tokens: as in `generate`.
      temperature: as in `generate`.
      top_p: as in `generate`.
      seed: as in `generate`.
      streams: number of each prompt's random stream, below 2**32; None: its index.
      expected: rough lengths of the answers, if known. Rows of similar length are decoded
        together, which is faster; results do not change.
      batch_size: most prompts decoded together.
      params: parameters used in place of the model's own. They have the same shapes, dtypes and
        shardings, so that nothing is compiled again.
      deliver: of a single prompt: called with pieces of its text as soon as they are decoded. They
        are its beginning: what may be a part of the stop text is only in the result.

    Returns:
      Continuations up to EOS or the template's stop, stripped.

    Raises:
      SphinxError: no tokenizer; a prompt that leaves no room in llm.max_length (no prompt is cut
        silently); not one image a prompt; sampling numbers outside their ranges; several prompts to
        deliver.
    """
    tokenizer = self.tokenizer
    count = len(prompts)
    if not count:
      return []
    if deliver is not None and count > 1:
      raise errors.make('generate', f'{count} prompts to deliver', 'one', 'ask one by one')
    images = self._rows('generate', images, count)
    # Seeds are int64.
    if not (0 <= temperature < math.inf and 0 < top_p <= 1 and -(2**63) <= seed < 2**63):
      raise errors.make(
        'generate',
        f'temperature={temperature}, top_p={top_p}, seed={seed}',
        'temperature >= 0 and finite, 0 < top_p <= 1, a seed of 64 bits',
        'change them',
      )
    params = self._weights if params is None else self._for_decoding(params)
    placed = []
    for prompt, of_row in zip(prompts, images):
      if not isinstance(prompt, Encoded):
        given = len(of_row) * self.slot_rule.count
        if visual is not None:
          given = visual.shape[1] // self.visual_tokens
        prompt = Encoded(prompt, None, (1,) * given)
      fields = batches.interleave(prompt.ids, prompt.images_at, self.visual_tokens)
      placed.append(_Prompt(*fields))
    lengths = np.array([len(prompt.tokens) for prompt in placed], np.int32)
    limits = np.broadcast_to(np.asarray(max_new_tokens, np.int32), count)
    limits = np.minimum(limits, self._room(lengths))
    expected = limits if expected is None else expected
    streams = np.arange(count) if streams is None else np.asarray(streams)
    order = sorted(range(count), key=lambda i: (round_up(lengths[i], self.bucket), expected[i]))
    size = _even_batch_size(count, batch_size)
    texts = [''] * count

    def complete_batch(chosen: list[int]) -> None:
      padding = chosen[:1] * (size - len(chosen))  # A short last batch keeps the compiled shape.
      rows = np.array(chosen + padding)
      most = max(len(images[i]) for i in rows)
      self._compile_ahead(lengths[rows], limits[rows], most, temperature)
      tokens = self._decode_batch(
        params,
        [placed[i] for i in rows],
        self._visual(params, [images[i] for i in rows])
        if visual is None
        else jnp.asarray(visual)[rows],
        limits[rows],
        streams=streams[rows],
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        watch=None if deliver is None else self._reader(deliver),
      )
      for i, row in zip(chosen, tokens):
        texts[i] = _text(tokenizer, self._template, row)

    # The decoding loop leaves CPU cores idle, so two batches run at once there. An accelerator is
    # busy with one.
    with ThreadPoolExecutor(2 if jax.default_backend() == 'cpu' else 1) as pool:
      list(pool.map(complete_batch, [order[i : i + size] for i in range(0, count, size)]))
    return texts

  def _reader(self, deliver: Callable[[str], None]) -> Callable[[np.ndarray], None]:
    """A function of the tokens so far int32[1, N] that delivers the text that is new."""
    stream, read = TextStream(self.tokenizer, self._template), 0

    def watch(answers: np.ndarray) -> None:
      nonlocal read
      new = answers[0, read:]
      new = new[new >= 0].tolist()
      read += len(new)
      if piece := stream.push(new):
        deliver(piece)

    return watch

  def _place(self, ids: np.ndarray, images: int) -> _Prompt:
    """Ids of `logits` with visual tokens: behind BOS, or where the image tokens are."""
    slots = images * self.slot_rule.count
    if self._image_token is None:
      return _Prompt(*batches.interleave(ids, (1,) * slots, self.visual_tokens))
    is_visual = ids == self._image_token
    if is_visual.sum() != slots * self.visual_tokens:
      raise errors.make(
        'logits',
        f'{images} images ({slots} slots of {self.visual_tokens} visual tokens) and '
        f'{is_visual.sum()} image tokens',
        'one image token for every visual token',
        'make the ids with model.encode(text, images)',
      )
    visual_index = np.where(is_visual, np.cumsum(is_visual) - 1, -1).astype(np.int32)
    return _Prompt(np.where(is_visual, 0, ids).astype(np.int32), visual_index)

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

  def _padded(self, lengths: np.ndarray, limits: np.ndarray) -> tuple[int, int]:
    """Positions of padded prompts, and slots of their cache."""
    width = round_up(lengths.max(), self.bucket)
    slots = round_up((lengths + limits).max(), 2 * self.bucket)
    return min(width, self.max_length), min(slots, self.max_length)

  def _compile_ahead(
    self, lengths: np.ndarray, limits: np.ndarray, images: int, temperature: float
  ) -> None:
    """Begins to compile the programs of a batch whose rows have up to that many images."""
    if images and placement.only_device(self._params) is not None:
      visual_tokens = images * self.slot_rule.count * self.visual_tokens
      padded = self._padded(lengths, limits)
      self._compiler.begin(ahead.Size(len(lengths), *padded, visual_tokens, temperature > 0))

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
    watch: Callable[[np.ndarray], None] | None,
  ) -> np.ndarray:
    """Token ids int32[B, N] of the answers of one batch; -1 after a row's end."""
    lengths = np.array([len(prompt.tokens) for prompt in prompts], np.int32)
    width, slots = self._padded(lengths, limits)
    tokens, visual_index = _pad(prompts, width)
    logits, cache = self._programs.prefill(params, tokens, visual_index, lengths, visual)
    key = jax.random.key(seed)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(streams.astype(np.uint32))
    carry = self._programs.begin(cache, logits, limits, length=slots)

    def decode_some(carry: decode.Carry, rows: decode.Rows, until: int) -> decode.Carry:
      return self._programs.decode(
        params, carry, rows, temperature, top_p, np.int32(until), sample=temperature > 0
      )

    rows = decode.Rows(lengths, limits, keys)
    return decode.decode_all(decode_some, self._choose, carry, rows, watch)


def _are_messages(content: Sequence) -> bool:
  return bool(len(content)) and all(isinstance(item, Mapping) for item in content)


def _is_one(images: Images) -> bool:
  """Whether this is one image, and not a list of them."""
  return isinstance(images, Slots) or getattr(images, 'ndim', 0) >= 2


def _has_open_question(turns: Any) -> bool:
  """Whether these are pairs of which the last, and no other, has no answer yet."""
  if not isinstance(turns, list | tuple):
    return False
  if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns):
    return False
  return [answer is None for _, answer in turns] == [False] * (len(turns) - 1) + [True]


@jax.jit
def _take(x: jax.Array, index: np.ndarray) -> jax.Array:
  """x[index] as one program instead of five, which a first answer waits for."""
  return x[index]


def round_up(number: int, multiple: int) -> int:
  """The smallest multiple that is not below `number`."""
  return -(-int(number) // multiple) * multiple


def _even_batch_size(count: int, most: int) -> int:
  """Size of batches of `count` prompts, so that the last one is not nearly empty."""
  if count == 1:
    return 1
  batch_count = -(-count // most)
  return min(round_up(-(-count // batch_count), 4), most)


def _pad(prompts: Sequence[_Prompt], length: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and visual index int32[B,length] of right-padded prompts."""
  tokens = np.zeros((len(prompts), length), np.int32)
  visual_index = np.full((len(prompts), length), -1, np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, : len(prompt.tokens)] = prompt.tokens
    visual_index[row, : len(prompt.tokens)] = prompt.visual_index
  return tokens, visual_index


def _logits(
  module: multimodal.Multimodal,
  params: dict,
  tokens: jax.Array,
  visual_index: jax.Array,
  positions: jax.Array,
  segments: jax.Array,
  visual: jax.Array | None,
) -> jax.Array:
  states = module.apply(
    {'params': params},
    tokens,
    visual_index,
    positions,
    segments,
    None,
    visual=visual,
    method='hidden_states',
  )
  return module.apply({'params': params}, states, method='lm_head')


def _encode(
  module: multimodal.Multimodal,
  params: dict,
  images: jax.Array,
  image_size: jax.Array,
  length: int | None,
) -> jax.Array:
  return module.apply({'params': params}, images, image_size, length, method='encode')


def _text(tokenizer: Tokenizer, template: Template, tokens: np.ndarray) -> str:
  """The text of one row of `decode.decode`, up to its end."""
  ids = [int(token) for token in tokens if token >= 0]
  ends = decode.end_ids(template, tokenizer)
  ids = ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
  text = tokenizer.decode(ids)
  return (text.split(template.stop)[0] if template.stop else text).strip()
