"""SPHINX: packed rows of images and text in, logits out.

Combines the embedding mix (`mix/embeddings.py`) and the scale mix (`mix/scales.py`) with the
language model.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from sphinx_jax.core import errors, tables
from sphinx_jax.mix import embeddings, scales
from sphinx_jax.models import attention, layers
from sphinx_jax.parallel import placement

ENCODERS = tables.Table(
  'encoder',
  {
    'clip': 'sphinx_jax.models.encoders.clip:Clip',
    'convnext': 'sphinx_jax.models.encoders.convnext:ConvNext',
    'dinov2': 'sphinx_jax.models.encoders.dinov2:DinoV2',
    'qformer': 'sphinx_jax.models.encoders.qformer:QFormer',
  },
)
LLMS = tables.Table('llm', {'llama': 'sphinx_jax.models.llms.llama:Llama'})

# Order of concatenation (docs/official_sphinx.md, "Tokens of a view").
CHANNEL_ORDER = ('clip', 'convnext', 'dinov2')
# Images are normalized with CLIP's statistics; an encoder with other statistics renormalizes.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_NORM_EPS = 1e-5


def normalize(images: jax.Array) -> jax.Array:
  """uint8[...,3] pixels -> float32[...,3], `(x / 255 - MEAN) / STD`."""
  scaled = _divide(images.astype(jnp.float32), 255)
  return _divide(scaled - jnp.asarray(MEAN, jnp.float32), STD)


def _divide(x: jax.Array, by: float | tuple[float, ...]) -> jax.Array:
  # XLA turns division by a broadcast constant into a product with its rounded reciprocal, and
  # half_round would then round some pixels the other way. The barrier hides the constant.
  divisor = jnp.broadcast_to(jnp.asarray(by, jnp.float32), x.shape)
  return x / jax.lax.optimization_barrier(divisor)


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
    views = scales.views(images, config.grid, module.view, config.half_round)
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


class Sphinx(nn.Module):
  """The model.

  Parameters: encoders, visual_proj, qformer_proj, start_img, end_img, llm; llm alone if the config
  has no encoders.
  """

  config: ml_collections.FrozenConfigDict

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
    self.llm = _llm(config)

  def __call__(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    images: jax.Array,
  ) -> jax.Array:
    """Logits of packed rows. Fields are described in core/batch.py.

    Args:
      tokens: int32[B,T].
      visual_index: int32[B,T].
      positions: int32[B,T].
      segments: int32[B,T].
      images: uint8[B,N,Y,X,3]; N may be 0.

    Returns:
      float32[B,T,vocab].
    """
    return self.lm_head(self.hidden_states(tokens, visual_index, positions, segments, images))

  def hidden_states(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    images: jax.Array,
  ) -> jax.Array:
    """Last hidden states [B,T,D] of packed rows; arguments as in `__call__`."""
    visual = self.encode(images) if images.shape[1] else None
    embedded = self._embed(tokens, visual_index, visual)
    return self.llm.hidden_states(embedded, positions, segments)[0]

  def lm_head(self, hidden_states: jax.Array) -> jax.Array:
    """Logits float32[B,T,vocab] of hidden states [B,T,D]."""
    return self.llm.lm_head(hidden_states)

  def encode(self, images: jax.Array) -> jax.Array:
    """Visual tokens of images.

    Args:
      images: uint8[B,N,Y,X,3], Y = X = image_size.

    Returns:
      [B,N*visual_tokens,D]: for every view a start token, the view's tokens, and an end token.

    Raises:
      SphinxError: a model without encoders, or images of another size.
    """
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
    queries, mixed = self.encoders(normalize(_merge(images)))
    if queries is not None:
      queries = self.qformer_proj(queries)
    parts, first_view = [], 0
    for tokens in mixed:
      tokens, views = self.visual_proj(tokens), tokens.shape[1]
      view_queries = None
      if queries is not None:
        view_queries = _merge(queries[:, first_view : first_view + views])
      tokens = embeddings.sequence_mix(view_queries, _merge(tokens))
      tokens = _with_edges(self.start_img, tokens, self.end_img)
      parts.append(tokens.reshape(rows * count, -1, tokens.shape[-1]))
      first_view += views
    visual = jnp.concatenate(parts, axis=1).reshape(rows, -1, parts[0].shape[-1])
    return placement.constrain(visual, ('batch', None, None))

  def decode(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    positions: jax.Array,
    visual: jax.Array | None,
    cache: dict,
  ) -> tuple[jax.Array, dict]:
    """Prefill or continuation of one sequence a row.

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

  def _embed(
    self, tokens: jax.Array, visual_index: jax.Array, visual: jax.Array | None
  ) -> jax.Array:
    """Embeddings [B,T,D]: visual tokens where `visual_index` >= 0, text elsewhere."""
    text = self.llm.embed(tokens)
    if visual is None:
      return text
    image = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
    return jnp.where(visual_index[..., None] >= 0, image, text)


def _with_edges(start: jax.Array, tokens: jax.Array, end: jax.Array) -> jax.Array:
  """Tokens [B,L,D] between a start and an end token [D]: [B,L+2,D]."""
  batch, _, width = tokens.shape
  edges = [jnp.broadcast_to(edge.astype(tokens.dtype), (batch, 1, width)) for edge in (start, end)]
  return jnp.concatenate([edges[0], tokens, edges[1]], axis=1)


def build(config: ml_collections.ConfigDict, platform: str | None = None) -> Sphinx:
  """The module of a model config (`config.model` of a run).

  Args:
    config: the model config. Its `attention` is a kernel of models/attention.py or 'auto'.
    platform: where the module will run ('cpu', 'gpu', 'tpu'); None: JAX's default backend.

  Raises:
    SphinxError: an unknown encoder, LLM, or setting of one of them.
  """
  kernel = attention.choose(config.attention, platform or jax.default_backend())
  return Sphinx(ml_collections.FrozenConfigDict({**config.to_dict(), 'attention': kernel}))


def apply(
  model: Sphinx, params: dict, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """Runs the model up to the logits, which the loss computes in chunks.

  Args:
    model: from `build`.
    params: its parameters.
    batch: see core/batch.py.

  Returns:
    Hidden states [B,T,D], and the lm_head: hidden states [B,t,D] -> logits float32[B,t,vocab].
  """
  fields = [batch[name] for name in ('tokens', 'visual_index', 'positions', 'segments', 'images')]
  hidden_states = model.apply({'params': params}, *fields, method='hidden_states')
  return hidden_states, lambda part: model.apply({'params': params}, part, method='lm_head')


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


def _make(
  kind: str, module: type[nn.Module], settings: Any, shared: dict[str, Any], name: str
) -> nn.Module:
  """A module from its settings, and from those shared settings that it has a field for."""
  fields = set(module.__dataclass_fields__) - {'parent', 'name'}
  for setting in settings:
    if setting not in fields:
      raise errors.unknown(f'setting of {kind}', setting, fields - set(shared))
  shared = {key: value for key, value in shared.items() if key in fields}
  return module(**shared, **settings, name=name)


def _encoder(config: Any, name: str) -> nn.Module:
  shared = dict(
    dtype=jnp.dtype(config.dtype),
    remat=config.remat,
    unroll=config.scan_unroll,
    half_round=config.half_round,
    image_mean=MEAN,
    image_std=STD,
  )
  return _make(f'encoder {name}', ENCODERS[name], dict(config.encoders[name].items()), shared, name)


def _llm(config: Any) -> nn.Module:
  settings = {key: value for key, value in config.llm.items() if key != 'name'}
  shared = dict(
    dtype=jnp.dtype(config.dtype),
    remat=config.remat,
    unroll=config.scan_unroll,
    attention=config.attention,
  )
  return _make(f'llm {config.llm.name}', LLMS[config.llm.name], settings, shared, 'llm')


# Settings of speed, memory and rounding, and those that the shapes of the parameters show.
_INCIDENTAL = {
  *('dtype', 'remat', 'attention', 'scan_unroll', 'unroll', 'half_round'),
  *('max_length', 'multiple_of', 'ffn_multiplier', 'parent', 'name'),
}


def settings_of_weights(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The settings that decide what a model's weights mean, with defaults, to compare two models.

  Args:
    config: the model config.

  Returns:
    Nested dictionaries like the config.
  """

  def complete(module: type[nn.Module], settings: Any) -> dict[str, Any]:
    defaults = {
      field.name: field.default
      for field in dataclasses.fields(module)
      if field.default is not dataclasses.MISSING
    }
    return kept({**defaults, **settings})

  def kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _INCIDENTAL}

  plain = config.to_dict()
  encoders = {name: part for name, part in plain.pop('encoders').items() if part is not None}
  llm = plain.pop('llm')
  llm_settings = complete(LLMS[llm['name']], llm)
  if llm_settings['kv_heads'] is None:
    llm_settings['kv_heads'] = llm_settings['heads']
  return {
    **kept(plain),
    'encoders': {name: complete(ENCODERS[name], part) for name, part in encoders.items()},
    'llm': {'name': llm['name'], **llm_settings},
  }


def visual_tokens(config: ml_collections.ConfigDict) -> int:
  """Sequence positions of one image: start, tokens and end of every view; 0 without encoders.

  The official code calls this number image_words.
  """
  if not config.encoders:
    return 0
  return _visual_tokens(ml_collections.FrozenConfigDict(config))


@functools.cache
def _visual_tokens(config: ml_collections.FrozenConfigDict) -> int:
  images = jax.ShapeDtypeStruct((1, 1, config.image_size, config.image_size, 3), jnp.uint8)
  module = build(config)

  def encode(images: jax.Array) -> jax.Array:
    return module.init_with_output(jax.random.key(0), images, method='encode')[0]

  return jax.eval_shape(encode, images).shape[1]


def init(config: ml_collections.ConfigDict, rng: jax.Array) -> dict:
  """Float32 parameters as plain nested dictionaries."""
  return jax.jit(lambda rng: nn.unbox(_boxed_params(config, rng)))(rng)


def abstract_params(config: ml_collections.ConfigDict) -> dict:
  """Shapes and dtypes of `init`, without computing anything."""
  return nn.unbox(_abstract(ml_collections.FrozenConfigDict(config)))


def logical_axes(config: ml_collections.ConfigDict) -> dict:
  """The tree of `init` with a tuple of logical names (see layers.py) for every parameter."""
  return jax.tree.map(
    lambda box: tuple(box.names),
    _abstract(ml_collections.FrozenConfigDict(config)),
    is_leaf=lambda box: isinstance(box, nn.LogicallyPartitioned),
  )


@functools.cache
def _abstract(config: ml_collections.FrozenConfigDict) -> dict:
  """Shapes and logical names of the parameters; cached, as tracing a large model takes a second."""
  return jax.eval_shape(lambda rng: _boxed_params(config, rng), jax.random.key(0))


def init_cache(config: ml_collections.ConfigDict, rows: int, length: int) -> dict:
  """An empty cache of `rows` sequences of up to `length` positions, for `decode`."""
  return _llm(config).init_cache(rows, length)


def _boxed_params(config: ml_collections.ConfigDict, rng: jax.Array) -> dict:
  """Parameters in flax boxes with their logical names."""
  field = jnp.zeros((1, 1), jnp.int32)
  images_per_row = 1 if config.encoders else 0
  images = jnp.zeros((1, images_per_row, config.image_size, config.image_size, 3), jnp.uint8)
  return build(config, 'cpu').init(rng, field, field, field, field, images)['params']
