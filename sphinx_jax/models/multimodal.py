"""What the model families share: a language model over packed rows of text and visual tokens."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sphinx_jax.core import errors, tables
from sphinx_jax.models import grouped, layers
from sphinx_jax.models.adapters import Blocks

LLMS = tables.Table(
  'llm',
  {
    'llama': 'sphinx_jax.models.llms.llama:Llama',
    'mixtral': 'sphinx_jax.models.llms.mixtral:Mixtral',
  },
)


class Multimodal(nn.Module):
  """A model of some family: its subclass makes `llm`, and `encode`s images.

  Attributes:
    config: the model config.
  """

  config: ml_collections.FrozenConfigDict

  @classmethod
  def parts(cls, config: Any) -> dict[str, type[nn.Module]]:
    """Dotted section of the model config -> the module whose settings it has."""
    return {'llm': LLMS[config.llm.name]}

  @classmethod
  def dialog(cls, specials: Collection[str]) -> dict[str, str]:
    """Arguments of `data.dialog.Template` for released weights with these special tokens."""
    return {}

  @classmethod
  def slot_rule(cls, config: Any) -> dict[str, Any]:
    """How an image becomes slots of a batch: arguments of `data.slots.make`."""
    return {'kind': 'square', 'size': config.image_size}

  @classmethod
  def image_token(cls, config: Any) -> int | None:
    """The token id that stands for a visual token among ids; None: images stand behind BOS."""
    return None

  @classmethod
  def canvas(cls, config: Any) -> int:
    """Edge in pixels of a canvas that holds any image."""
    return config.image_size

  @classmethod
  def patch_limit(cls, config: Any) -> tuple[int, Callable[[int, int], int]] | None:
    """How many patches a row may have, for families that pack patches in training.

    Returns:
      The most patches of all images of a row, and a function of the rows and columns of pixels of
      an image that counts its patches; None: every image has a canvas of its own.
    """
    return None

  @classmethod
  def encoded_length(cls, config: Any, height: int, width: int) -> int | None:
    """The argument `length` of `encode` for a single image; None: the family does not use it.

    Args:
      config: the model config.
      height: rows of pixels of the image.
      width: its columns.
    """
    return None

  @classmethod
  def encoded_lengths(cls, config: Any) -> list[int | None]:
    """All values of `encoded_length`."""
    return [None]

  @classmethod
  def sees_images(cls, config: Any) -> bool:
    """Whether a model of this config has encoders of images."""
    return True

  @classmethod
  def visual_tokens(cls, config: Any) -> int:
    """Visual tokens of one image, L, of a config that sees images.

    It is the length of what `encode` returns, without tracing the encoders, which takes a second.
    """
    raise NotImplementedError

  @classmethod
  def views(cls, config: Any, slot: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """What the encoders see of an image slot, for people: [(caption, uint8[V,Y,X,3]), ...].

    Args:
      config: the model config.
      slot: uint8[Y,X,3].
    """
    height, width = slot.shape[:2]
    return [(f'{width} x {height} pixels', slot[None])]

  def encode(
    self, images: jax.Array, image_size: jax.Array | None = None, length: int | None = None
  ) -> jax.Array:
    """Visual tokens [B,N*L,D] of images uint8[B,N,Y,X,3], L of each image.

    Args:
      images: each in the upper left corner of its canvas.
      image_size: int32[B,N,2], rows and columns of each image; None: the whole canvas.
      length: most patches of all images of a row, of families that pack them; None: as in training.
    """
    raise NotImplementedError

  @classmethod
  def feature_params(cls, config: Any) -> str | None:
    """The parameters that `features` reads, a name at the top of the tree; None: no `features`."""
    return None

  def features(self, images: jax.Array) -> Any:
    """What the encoders make of images, a tree of arrays [B,N,...].

    It is a function of each image alone, so it can be kept for images that are seen again.

    Args:
      images: uint8[B,N,Y,X,3].
    """
    raise NotImplementedError

  def project(self, features: Any) -> jax.Array:
    """The rest of `encode`: visual tokens [B,N*L,D] of what `features` returned."""
    raise NotImplementedError

  @classmethod
  def encoder_names(cls, config: Any) -> tuple[str, ...]:
    """Names under `feature_params` of the encoders that can be trained alone; (): none."""
    return ()

  @classmethod
  def encoder(cls, config: Any, name: str) -> nn.Module:
    """The module of one of `encoder_names`, with this name: normalized views -> features."""
    raise NotImplementedError

  @classmethod
  def normalized(cls, config: Any, images: jax.Array) -> jax.Array:
    """Images uint8[B,Y,X,3] as float32, as encoders take them."""
    raise NotImplementedError

  @classmethod
  def encoder_views(cls, config: Any, name: str, images: jax.Array) -> jax.Array:
    """The normalized views [B,V,y,x,3] of images uint8[B,Y,X,3] that an encoder sees."""
    raise NotImplementedError

  def __call__(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    images: jax.Array,
    image_size: jax.Array | None = None,
  ) -> jax.Array:
    """Logits of packed rows. Fields are described in core/batch.py.

    Args:
      tokens: int32[B,T].
      visual_index: int32[B,T].
      positions: int32[B,T].
      segments: int32[B,T].
      images: uint8[B,N,Y,X,3]; N may be 0.
      image_size: int32[B,N,2], or None, see `encode`.

    Returns:
      float32[B,T,vocab].
    """
    states = self.hidden_states(tokens, visual_index, positions, segments, images, image_size)
    with layers.counted(segments > 0):
      return self.lm_head(states)

  def hidden_states(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    images: jax.Array | None,
    image_size: jax.Array | None = None,
    visual: jax.Array | None = None,
  ) -> jax.Array:
    """Last hidden states [B,T,D] of packed rows.

    Arguments as in `__call__`; `visual` is a result of `encode`, in place of images.
    """
    if images is not None and images.shape[1]:
      visual = self.encode(images, image_size)
    embedded = self._embed(tokens, visual_index, visual)
    embedded = layers.neftune(self, embedded, segments)
    return self.llm.hidden_states(embedded, positions, segments)[0]

  def lm_head(self, hidden_states: jax.Array) -> jax.Array:
    """Logits float32[B,T,vocab] of hidden states [B,T,D]."""
    return self.llm.lm_head(hidden_states)

  def lm_head_matrices(self) -> Blocks:
    """The matrix of the LM head [D,vocab] in the compute dtype, as blocks of its columns."""
    return self.llm.lm_head_matrices()

  def decode(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    positions: jax.Array,
    visual: jax.Array | None,
    cache: Any,
  ) -> tuple[jax.Array, Any]:
    """Continuation of one sequence a row.

    Keys and values of row b are written to slots positions[b,0] onwards, which must fit the cache.
    A query at position p sees slots <= p, so what follows a right-padded prompt overwrites the
    padding.

    Args:
      tokens: int32[B,T].
      visual_index: int32[B,T].
      positions: int32[B,T], consecutive in a row.
      visual: result of `encode`, or None.
      cache: from `init_cache` or the call before.

    Returns:
      Logits float32[B,T,vocab] and the new cache.
    """
    embedded = self._embed(tokens, visual_index, visual)
    hidden_states, cache = self.llm.hidden_states(embedded, positions, cache=cache)
    return self.llm.lm_head(hidden_states), cache

  def prefill(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    lengths: jax.Array,
    visual: jax.Array | None,
  ) -> tuple[jax.Array, Any]:
    """The first call of a sequence a row: right-padded prompts.

    Args:
      tokens: int32[B,T].
      visual_index: int32[B,T].
      lengths: int32[B], positions of each prompt.
      visual: result of `encode`, or None.

    Returns:
      Logits float32[B,vocab] at each row's last position, and a cache of T slots.
    """
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    embedded = self._embed(tokens, visual_index, visual)
    cache = self.llm.init_cache(rows, length)
    states, cache = self.llm.hidden_states(embedded, positions, segments, cache)
    # The LM head of all positions takes a third of the time of short prompts.
    last = jnp.take_along_axis(states, (lengths - 1)[:, None, None], axis=1)
    return self.llm.lm_head(last)[:, 0], cache

  def extend(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    begins: jax.Array,
    lengths: jax.Array,
    visual: jax.Array | None,
    cache: Any,
  ) -> tuple[jax.Array, Any]:
    """A prefill behind positions that the cache has: `decode` of right-padded prompts.

    Args:
      tokens: int32[B,T], the rest of each prompt.
      visual_index: int32[B,T].
      begins: int32[B], positions of each row that the cache has.
      lengths: int32[B], positions of the rest, without padding.
      visual: result of `encode`, or None.
      cache: from `init_cache` or the call before. Padding behind its last slot is not written.

    Returns:
      Logits float32[B,vocab] at each row's last position, and the new cache.
    """
    positions = begins[:, None] + jnp.arange(tokens.shape[1])
    embedded = self._embed(tokens, visual_index, visual)
    states, cache = self.llm.hidden_states(embedded, positions, cache=cache)
    last = jnp.take_along_axis(states, (lengths - 1)[:, None, None], axis=1)
    return self.llm.lm_head(last)[:, 0], cache

  def _embed(
    self, tokens: jax.Array, visual_index: jax.Array, visual: jax.Array | None
  ) -> jax.Array:
    """Embeddings [B,T,D]: visual tokens where `visual_index` >= 0, text elsewhere."""
    text = self.llm.embed(tokens)
    if visual is None:
      return text
    image = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
    return jnp.where(visual_index[..., None] >= 0, image, text)


def make(
  kind: str, module: type[nn.Module], settings: Any, shared: dict[str, Any], name: str
) -> nn.Module:
  """A module from its settings, and from those shared settings that it has a field for.

  Raises:
    SphinxError: a setting that the module does not have.
  """
  fields = set(module.__dataclass_fields__) - {'parent', 'name'}
  for setting in settings:
    if setting not in fields:
      raise errors.unknown(f'setting of {kind}', setting, fields - set(shared))
  shared = {key: value for key, value in shared.items() if key in fields}
  return module(**shared, **settings, name=name)


def language_model(config: Any) -> nn.Module:
  """The language model of a model config, named 'llm'."""
  settings = {key: value for key, value in config.llm.items() if key != 'name'}
  shared = dict(
    dtype=jnp.dtype(config.dtype),
    remat=config.remat,
    unroll=config.scan_unroll,
    attention=config.attention,
    separate=config.get('separate', False),
    grouped=config.get('grouped', grouped.AUTO),
  )
  return make(f'llm {config.llm.name}', LLMS[config.llm.name], settings, shared, 'llm')


def model_config(settings: Mapping[str, Any], dtype: str) -> ml_collections.ConfigDict:
  """A model config from the settings of a model, with usual choices of how it is computed.

  Args:
    settings: sections and numbers of the family.
    dtype: compute dtype.
  """
  computed = dict(dtype=dtype, remat='none', attention='auto', scan_unroll=1)
  return ml_collections.ConfigDict({**computed, **settings})
