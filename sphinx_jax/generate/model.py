"""A loaded model as a researcher uses it: logits, continuations, answers. `sphinx_jax.load` makes it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.data import images as pictures
from sphinx_jax.data.dialog import Template, Turn
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate.decode import Generator
from sphinx_jax.models import layers, sphinx
from sphinx_jax.parallel import placement


class Model:
  """A model with its weights.

  Args:
    config: the model config.
    params: parameter tree as of `sphinx.init`, any dtype and sharding.
    tokenizer: or None, and then only `logits` works.
    template: of dialogs.

  Attributes:
    config, params, tokenizer: as given.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    params: dict,
    tokenizer: Tokenizer | None,
    template: Template,
  ):
    self.config, self.params, self.tokenizer = config, params, tokenizer
    self._generator = None if tokenizer is None else Generator(config, params, tokenizer, template)
    self._visual_tokens = sphinx.visual_tokens(config)
    model = sphinx.build(config)
    apply = lambda params, *fields: model.apply({'params': params}, *fields)
    self._apply = jax.jit(
      placement.on_mesh_of(params, apply), compiler_options=layers.compiler_options()
    )

  @property
  def generator(self) -> Generator:
    """What decodes under `generate` and `chat`. Raises SphinxError for weights without a tokenizer."""
    if self._generator is None:
      raise errors.make(
        'model',
        'weights without a tokenizer',
        'a tokenizer.model to make text with',
        'put it beside the weights, or convert them with --tokenizer=FILE',
      )
    return self._generator

  def logits(self, tokens: np.ndarray, images: np.ndarray | None = None) -> jax.Array:
    """Logits of whole sequences; those at index t predict token t + 1.

    Args:
      tokens: int32[B,T], BOS first; what follows a row's end does not change what is before.
      images: uint8[B,Y,X,3], one a row, of any size (padded to a square and resized as in training), or None. An image's
        tokens stand behind BOS, so the logits at index 0 come from its last one (FACTS "Sequence").

    Returns:
      float32[B,T,vocab].

    Raises:
      SphinxError: tokens that are no ids of the model; another number of images than rows, no pictures, or images for a model
        without encoders.
    """
    tokens, vocab = np.asarray(tokens), self.config.llm.vocab
    if (
      tokens.ndim != 2
      or not tokens.size
      or tokens.dtype.kind not in 'iu'
      or tokens.min() < 0
      or tokens.max() >= vocab
    ):
      raise errors.make(
        'logits',
        f'tokens {tokens.dtype}{list(tokens.shape)}'
        + (f' of {tokens.min()} to {tokens.max()}' if tokens.size else ''),
        f'whole numbers [rows, positions] of 0 to {vocab - 1}',
        'encode the text with model.tokenizer',
      )
    rows, length = tokens.shape
    words = 0 if images is None else self._visual_tokens
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
      pixels = np.stack(
        [pictures.padded_resize(image, self.config.image_size) for image in images]
      )[:, None]
    sequence = np.zeros((rows, words + length), np.int32)
    sequence[:, 0], sequence[:, 1 + words :] = tokens[:, 0], tokens[:, 1:]
    index = np.full_like(sequence, -1)
    index[:, 1 : 1 + words] = np.arange(words)
    positions = np.broadcast_to(np.arange(words + length, dtype=np.int32), sequence.shape)
    return self._apply(
      self.params, sequence, index, positions, np.ones_like(sequence), jnp.asarray(pixels)
    )[:, words:]

  def generate(
    self,
    prompts: Sequence[str],
    images: Sequence[np.ndarray | None] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
  ) -> list[str]:
    """Continues texts as they are, without a dialog around them.

    Args:
      prompts: texts; BOS, and the tokens of the prompt's image, come before them.
      images: one uint8[Y,X,3] of any size a prompt, or None where it has none.
      max_new_tokens: most tokens of a continuation; each row has its own count (FACTS "Generation" tells of the official).
      temperature: 0 takes the likeliest token.
      top_p: share of the probability sampled from.
      seed: of the sampling.

    Returns:
      Continuations up to EOS or the dialog's stop, stripped.

    Raises:
      SphinxError: no tokenizer; one text in place of a list; a prompt that leaves no room in llm.max_length (nothing is cut away silently).
    """
    if isinstance(prompts, str):
      raise errors.make('generate', 'one text', 'a list of texts', f'write [{prompts[:20]!r}]')
    ids = [self.generator.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    return self.generator.complete(
      ids, images, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )

  def chat(self, turns: Sequence[Turn], image: np.ndarray | None = None, **sampling) -> str:
    """The answer to the last question of a dialog about one image.

    Args:
      turns: [(question, answer), ..., (question, None)].
      image: uint8[Y,X,3] of any size, or None.
      sampling: as in `generate`.

    Raises:
      SphinxError: no question is open; otherwise as `generate`.
    """
    if isinstance(turns, str) or not turns or turns[-1][1] is not None:
      raise errors.make(
        'chat',
        repr(turns)[:60],
        'turns that end with an open question',
        "for instance [('What is this?', None)]",
      )
    return self.generator.answers([list(turns)], [image], **sampling)[0]
