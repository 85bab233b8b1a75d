"""SPHINX: packed rows of images and text in, logits out.

Combines the embedding mix (`mix/embeddings.py`) and the scale mix (`mix/scales.py`) with the
language model.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sphinx_jax.core import errors, tables
from sphinx_jax.mix import embeddings, scales
from sphinx_jax.models import layers, multimodal, pixels
from sphinx_jax.parallel import placement

ENCODERS = tables.Table(
  'encoder',
  {
    'clip': 'sphinx_jax.models.encoders.clip:Clip',
    'convnext': 'sphinx_jax.models.encoders.convnext:ConvNext',
    'dinov2': 'sphinx_jax.models.encoders.dinov2:DinoV2',
    'qformer': 'sphinx_jax.models.encoders.qformer:QFormer',
    'siglip': 'sphinx_jax.models.encoders.siglip:Siglip',
  },
)

# Order of concatenation (docs/official_sphinx.md, "Tokens of a view"); the official models have no
# SigLIP.
CHANNEL_ORDER = ('clip', 'convnext', 'dinov2', 'siglip')
# Images are normalized with CLIP's statistics; an encoder with other statistics renormalizes.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_NORM_EPS = 1e-5


class Projection(nn.Module):
  """Linear and layer norm from encoder channels [..., E] to the model width [..., D]."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = layers.Dense((self.width,), ('visual', 'embed'), dtype=self.dtype, name='linear')(x)
    return layers.LayerNorm(_NORM_EPS, 'embed', self.dtype, name='norm')(x)


class Encoders(nn.Module):
  """All encoders of the mix: images -> tokens of every view, before projection."""

  config: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array | None, list[jax.Array]]:
    """Encodes all views of images.

    Args:
      images: float32[B,Y,X,3], CLIP-normalized.

    Returns:
      Query tokens [B,V,Q,W], or None without a Q-Former, and a list of channel-mixed tokens
      [B,V,L,E]: first of the global view (V = 1), then of the sub-images if there are any. Pooled
      sub-images have fewer tokens each.
    """
    config = self.config
    encoded = {name: self._encode(name, images) for name in _present(config)}
    features = {name: encoded[name] for name in CHANNEL_ORDER if name in encoded}
    finest = max(feature_map.shape[2] for _, feature_map in features.values())
    mixed = [_mix_channels(features, slice(0, 1), finest, pool=1)]
    if config.grid > 1:
      mixed.append(_mix_channels(features, slice(1, None), finest, config.pool))
    return encoded.get('qformer'), mixed

  def _encode(self, name: str, images: jax.Array) -> Any:
    """One encoder's output for all views, each array [B,V,...]."""
    config, module = self.config, _encoder(self.config, name)
    shown = config.get('shown', 'both')
    views = scales.views(images, config.grid, module.view, config.half_round, shown)
    # Views are spread over all devices, those that share a row's arithmetic included.
    spread = placement.constrain(_merge(views), ('views', None, None, None))
    return jax.tree.map(lambda out: out.reshape(*views.shape[:2], *out.shape[1:]), module(spread))


def _mix_channels(
  features: Mapping[str, tuple[jax.Array, jax.Array]], views: slice, size: int, pool: int
) -> jax.Array:
  """Channel mix of some views: class tokens [B,V,E] and feature maps [B,V,G,G,E] -> [B,V,L,E]."""
  pairs = []
  for class_token, feature_map in features.values():
    aligned = embeddings.align(_merge(feature_map[:, views]), size)
    pairs.append((_merge(class_token[:, views]), embeddings.pool(aligned, pool)))
  tokens = embeddings.channel_mix(pairs)
  batch = next(iter(features.values()))[0].shape[0]
  return tokens.reshape(batch, -1, *tokens.shape[1:])


def _merge(x: jax.Array) -> jax.Array:
  """[B,N,...] -> [B*N,...]."""
  return x.reshape(-1, *x.shape[2:])


class Sphinx(multimodal.Multimodal):
  """The model.

  Parameters: encoders, visual_proj, qformer_proj, start_img, end_img, llm; llm alone if the config
  has no encoders.
  """

  @classmethod
  def parts(cls, config: Any) -> dict[str, type[nn.Module]]:
    used = (name for name, settings in config.encoders.items() if settings is not None)
    return super().parts(config) | {f'encoders.{name}': ENCODERS[name] for name in used}

  @classmethod
  def sees_images(cls, config: Any) -> bool:
    return bool(config.encoders)

  @classmethod
  def visual_tokens(cls, config: Any) -> int:
    used = {name: _encoder(config, name) for name in _present(config)}
    side = max(used[name].side for name in CHANNEL_ORDER if name in used)
    queries = used['qformer'].queries if 'qformer' in used else config.get('class_repeats', 0)
    length = lambda side: 1 + queries + 1 + side**2 + 1  # Start, queries, class, patches, end.
    sub_images = config.grid**2 if config.grid > 1 else 0
    return length(side) + sub_images * length(side // config.pool)

  @classmethod
  def views(cls, config: Any, slot: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """One entry for each size of views; its caption names the encoders of that size."""
    encoders_by_size: dict[int, list[str]] = {}
    for name, encoder in config.encoders.items():
      if encoder is not None:  # An encoder that a config leaves out.
        encoders_by_size.setdefault(encoder.view, []).append(name)
    shown = []
    for size, names in encoders_by_size.items():
      views = np.asarray(scales.views(slot[None].astype(np.float32), config.grid, size))[0]
      caption = f'{", ".join(names)}: {len(views)} x {size} pixels'
      shown.append((caption, np.clip(np.round(views), 0, 255).astype(np.uint8)))
    return shown

  def setup(self) -> None:
    config = self.config
    dtype = jnp.dtype(config.dtype)
    width = config.llm.width
    if config.encoders:
      self.encoders = Encoders(config)
      self.visual_proj = Projection(width, dtype)
      if 'qformer' in _present(config):
        self.qformer_proj = Projection(width, dtype)
      small = nn.initializers.normal(0.02)
      self.start_img = layers.param(self, 'start_img', small, (width,), ('embed',))
      self.end_img = layers.param(self, 'end_img', small, (width,), ('embed',))
    self.llm = multimodal.language_model(config)

  def encode(
    self, images: jax.Array, image_size: jax.Array | None = None, length: int | None = None
  ) -> jax.Array:
    """Visual tokens of images.

    Args:
      images: uint8[B,N,Y,X,3], padded squares, Y = X = image_size.
      image_size: int32[B,N,2]; only whether a slot has an image. Padding belongs to the image.
      length: unused; all images are of one size.

    Returns:
      [B,N*visual_tokens,D]: for every view a start token, the view's tokens, and an end token.

    Raises:
      SphinxError: a model without encoders, or images of another size.
    """
    del length
    with layers.counted(None if image_size is None else image_size[..., 0] > 0):
      return self._project(*self._encode(images), rows=images.shape[0])

  @classmethod
  def feature_params(cls, config: Any) -> str | None:
    return 'encoders' if cls.sees_images(config) else None

  @classmethod
  def encoder_names(cls, config: Any) -> tuple[str, ...]:
    return _present(config) if cls.sees_images(config) else ()

  @classmethod
  def encoder(cls, config: Any, name: str) -> nn.Module:
    return _encoder(config, name)

  @classmethod
  def normalized(cls, config: Any, images: jax.Array) -> jax.Array:
    return pixels.normalize(images, MEAN, STD)

  @classmethod
  def encoder_views(cls, config: Any, name: str, images: jax.Array) -> jax.Array:
    view, grid = config.encoders[name].view, config.grid
    return scales.views(cls.normalized(config, images), grid, view, config.half_round)

  def features(self, images: jax.Array) -> Any:
    merged = self._encode(images)
    return jax.tree.map(lambda x: x.reshape(*images.shape[:2], *x.shape[1:]), merged)

  def project(self, features: Any) -> jax.Array:
    rows = jax.tree.leaves(features)[0].shape[0]
    return self._project(*jax.tree.map(_merge, features), rows=rows)

  def _encode(self, images: jax.Array) -> tuple[jax.Array | None, list[jax.Array]]:
    """Result of `Encoders` for images uint8[B,N,Y,X,3]: arrays [B*N,V,...]."""
    rows, count, size = images.shape[:3]
    if not self.config.encoders:
      raise errors.make(
        'images',
        f'{rows * count} of them',
        'none: this model is a language model alone',
        'leave them out',
      )
    if size != self.config.image_size:
      raise errors.make(
        'images',
        f'{size} pixels',
        f'model.image_size, {self.config.image_size}',
        'resize them to it',
      )
    return self.encoders(pixels.normalize(_merge(images), MEAN, STD))

  def _project(self, queries: jax.Array | None, mixed: list[jax.Array], rows: int) -> jax.Array:
    """Visual tokens [B,N*L,D] of a result of `Encoders` for the images of B rows."""
    if queries is not None:
      queries = self.qformer_proj(queries)
    parts, first_view = [], 0
    for tokens in mixed:
      tokens, views = _merge(self.visual_proj(tokens)), tokens.shape[1]
      view_queries = None
      if queries is not None:
        view_queries = _merge(queries[:, first_view : first_view + views])
      elif repeats := self.config.get('class_repeats', 0):
        view_queries = embeddings.class_tokens(tokens, repeats)
      tokens = embeddings.sequence_mix(view_queries, tokens)
      tokens = _with_edges(self.start_img, tokens, self.end_img)
      parts.append(tokens.reshape(-1, views * tokens.shape[-2], tokens.shape[-1]))
      first_view += views
    visual = jnp.concatenate(parts, axis=1).reshape(rows, -1, parts[0].shape[-1])
    return placement.constrain(visual, ('batch', None, None))


def _with_edges(start: jax.Array, tokens: jax.Array, end: jax.Array) -> jax.Array:
  """Tokens [B,L,D] between a start and an end token [D]: [B,L+2,D]."""
  batch, _, width = tokens.shape
  edges = [jnp.broadcast_to(edge.astype(tokens.dtype), (batch, 1, width)) for edge in (start, end)]
  return jnp.concatenate([edges[0], tokens, edges[1]], axis=1)


def _present(config: Any) -> tuple[str, ...]:
  """Names of a config's encoders, in the order of ENCODERS. Raises SphinxError for other names."""
  for name in config.encoders:
    if name not in ENCODERS:
      raise errors.unknown('encoder', name, ENCODERS)
  names = tuple(name for name in ENCODERS if config.encoders.get(name) is not None)
  if not set(names) & set(CHANNEL_ORDER):
    raise errors.make(
      'encoders',
      f'{names}',
      f'at least one of {", ".join(CHANNEL_ORDER)}',
      'add it to model.encoders',
    )
  return names


def _encoder(config: Any, name: str) -> nn.Module:
  shared = dict(
    dtype=jnp.dtype(config.dtype),
    remat=config.remat,
    unroll=config.scan_unroll,
    half_round=config.half_round,
    image_mean=MEAN,
    image_std=STD,
  )
  settings = dict(config.encoders[name].items())
  return multimodal.make(f'encoder {name}', ENCODERS[name], settings, shared, name)
