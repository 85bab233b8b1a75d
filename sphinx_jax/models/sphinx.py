"""SPHINX: images and text of packed rows in, logits out. The four mixes' two inner ones, embeddings and scales, meet here."""

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

CHANNEL_ORDER = ('clip', 'convnext', 'dinov2')  # Of the concatenation (FACTS "Tokens of a view").
# CLIP's statistics are the image's: every view carries them, other encoders re-normalise.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_NORM_EPS = 1e-5


def normalise(images: jax.Array) -> jax.Array:
  """uint8[...,3] pixels -> float32[...,3], `(x / 255 - MEAN) / STD`."""
  # XLA turns division by a broadcast number into a product with its rounded reciprocal, and half_round would then round
  # some pixels the other way; it does not see through the barrier.
  divide = lambda x, by: (
    x / jax.lax.optimization_barrier(jnp.broadcast_to(jnp.asarray(by, jnp.float32), x.shape))
  )
  return divide(divide(images.astype(jnp.float32), 255) - jnp.asarray(MEAN, jnp.float32), STD)


class Projection(nn.Module):
  """Linear and layer norm from encoder channels [..., E] to the model width [..., D]."""

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = layers.Dense((self.width,), ('visual', 'embed'), dtype=self.dtype, name='linear')(x)
    return layers.LayerNorm(_NORM_EPS, 'embed', self.dtype, name='norm')(x)


class Encoders(nn.Module):
  """All encoders of the mix: images -> the tokens of every view, before projection."""

  config: ml_collections.FrozenConfigDict

  @nn.compact
  def __call__(self, images: jax.Array) -> tuple[jax.Array | None, list[jax.Array]]:
    """float32[B,Y,X,3] CLIP-normalised -> query tokens [B,V,Q,W] or None, and channel-mixed tokens [B,V',L,E] of the
    global view (V' = 1) and of the sub-images, which may have fewer tokens each."""
    config = self.config
    encoded = {name: self._encode(name, images) for name in _present(config)}
    grid = max(pair[1].shape[2] for name, pair in encoded.items() if name in CHANNEL_ORDER)
    count = 1 + (config.grid**2 if config.grid > 1 else 0)
    mixed = []
    for views, size in ((slice(0, 1), 1), (slice(1, count), config.pool))[: 1 if count == 1 else 2]:
      pairs = []
      for name in (name for name in CHANNEL_ORDER if name in encoded):
        cls, cells = (_merge(part[:, views]) for part in encoded[name])
        pairs.append((cls, embeddings.pool(embeddings.align(cells, grid), size)))
      tokens = embeddings.channel_mix(pairs)
      mixed.append(tokens.reshape(images.shape[0], -1, *tokens.shape[1:]))
    return encoded.get('qformer'), mixed

  def _encode(self, name: str, images: jax.Array) -> Any:
    config, module = self.config, _encoder(self.config, name)
    views = scales.views(images, config.grid, module.view, config.half_round)
    split = lambda out: out.reshape(*views.shape[:2], *out.shape[1:])
    # Over all devices, those of one row's arithmetic too: each encodes its own views.
    return jax.tree.map(
      split, module(placement.constrain(_merge(views), ('views', None, None, None)))
    )


def _merge(x: jax.Array) -> jax.Array:
  return x.reshape(-1, *x.shape[2:])


class Sphinx(nn.Module):
  """The model. Parameters: encoders, visual_proj, qformer_proj, start_img, end_img, llm; without encoders, llm only."""

  config: ml_collections.FrozenConfigDict

  def setup(self):
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
    """Logits of packed rows: `head` of `states`; fields as in core/batch.py.

    Args:
      tokens: int32[B,T].
      visual_index: int32[B,T].
      positions: int32[B,T].
      segments: int32[B,T].
      images: uint8[B,N,Y,X,3]; N may be 0.

    Returns:
      float32[B,T,vocab].
    """
    return self.head(self.states(tokens, visual_index, positions, segments, images))

  def states(
    self,
    tokens: jax.Array,
    visual_index: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    images: jax.Array,
  ) -> jax.Array:
    """What `head` reads, [B,T,D], of packed rows; arguments as `__call__`."""
    visual = self.encode(images) if images.shape[1] else None
    return self.llm.states(self._embed(tokens, visual_index, visual), positions, segments)[0]

  def head(self, states: jax.Array) -> jax.Array:
    """Logits float32[B,T,vocab] of states [B,T,D]."""
    return self.llm.head(states)

  def encode(self, images: jax.Array) -> jax.Array:
    """uint8[B,N,Y,X,3] -> visual tokens [B,N*visual_tokens,D]: of every view, a start token, its tokens, an end token."""
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
    queries, mixed = self.encoders(normalise(_merge(images)))
    if queries is not None:
      queries = self.qformer_proj(queries)
    parts, done = [], 0
    for tokens in mixed:
      tokens, views = self.visual_proj(tokens), tokens.shape[1]
      own = None if queries is None else _merge(queries[:, done : done + views])
      tokens = embeddings.sequence_mix(own, _merge(tokens))
      edge = lambda token: jnp.broadcast_to(
        token.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1])
      )
      tokens = jnp.concatenate([edge(self.start_img), tokens, edge(self.end_img)], axis=1)
      parts.append(tokens.reshape(rows * count, -1, tokens.shape[-1]))
      done += views
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

    Keys and values of row b are written to slots positions[b,0] onwards, which must fit the cache; a query at position
    p sees slots <= p, so what follows a right-padded prompt overwrites the padding.

    Args:
      tokens: int32[B,T].
      visual_index: int32[B,T].
      positions: int32[B,T], consecutive in a row.
      visual: what `encode` gave, or None.
      cache: from `init_cache` or the call before.

    Returns:
      logits float32[B,T,vocab] and the new cache.
    """
    states, cache = self.llm.states(
      self._embed(tokens, visual_index, visual), positions, cache=cache
    )
    return self.llm.head(states), cache

  def _embed(
    self, tokens: jax.Array, visual_index: jax.Array, visual: jax.Array | None
  ) -> jax.Array:
    text = self.llm.embed(tokens)
    if visual is None:
      return text
    seen = jnp.take_along_axis(visual, jnp.maximum(visual_index, 0)[..., None], axis=1)
    return jnp.where(visual_index[..., None] >= 0, seen, text)


def build(config: ml_collections.ConfigDict, platform: str | None = None) -> Sphinx:
  """The module of a model config (`config.model` of a run).

  Args:
    config: `attention` is a kernel of models/attention.py or 'auto'.
    platform: what the module will run on ('cpu', 'gpu', 'tpu'); None: what JAX runs on here.

  Raises:
    SphinxError: for an unknown encoder, LLM, or setting of one of them.
  """
  kernel = attention.choose(config.attention, platform or jax.default_backend())
  return Sphinx(ml_collections.FrozenConfigDict({**config.to_dict(), 'attention': kernel}))


def apply(
  model: Sphinx, params: dict, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """States [B,T,D] of a batch (core/batch.py), and the head that makes logits float32[B,t,vocab] of states [B,t,D]."""
  fields = (batch[name] for name in ('tokens', 'visual_index', 'positions', 'segments', 'images'))
  states = model.apply({'params': params}, *fields, method='states')
  return states, lambda part: model.apply({'params': params}, part, method='head')


def _present(config: Any) -> tuple[str, ...]:
  for name in config.encoders:
    ENCODERS[name]
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
  known = set(module.__dataclass_fields__) - {'parent', 'name'}
  for setting in settings:
    if setting not in known:
      raise errors.unknown(f'setting of {kind}', setting, known - set(shared))
  return module(
    **{key: value for key, value in shared.items() if key in known}, **settings, name=name
  )


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


def visual_tokens(config: ml_collections.ConfigDict) -> int:
  """Sequence positions of one image: start, tokens and end of every view (the official image_words); 0 without encoders."""
  if not config.encoders:
    return 0
  return _visual_tokens(ml_collections.FrozenConfigDict(config))


@functools.cache
def _visual_tokens(config: ml_collections.FrozenConfigDict) -> int:
  images = jax.ShapeDtypeStruct((1, 1, config.image_size, config.image_size, 3), jnp.uint8)
  module = build(config)
  return jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, method='encode')[0], images
  ).shape[1]


def init(config: ml_collections.ConfigDict, rng: jax.Array) -> dict:
  """Float32 parameters as plain nested dictionaries."""
  return jax.jit(lambda rng: nn.unbox(_boxed(config, rng)))(rng)


def abstract_params(config: ml_collections.ConfigDict) -> dict:
  """Shapes and dtypes of `init`, without computing anything."""
  return nn.unbox(_abstract(ml_collections.FrozenConfigDict(config)))


def logical_axes(config: ml_collections.ConfigDict) -> dict:
  """The tree of `init` with a tuple of logical names (see layers.py) in place of every parameter."""
  return jax.tree.map(
    lambda box: tuple(box.names),
    _abstract(ml_collections.FrozenConfigDict(config)),
    is_leaf=lambda box: isinstance(box, nn.LogicallyPartitioned),
  )


@functools.cache
def _abstract(config: ml_collections.FrozenConfigDict) -> dict:
  """Shapes and names together: tracing a large model takes a second."""
  return jax.eval_shape(lambda rng: _boxed(config, rng), jax.random.key(0))


def init_cache(config: ml_collections.ConfigDict, rows: int, length: int) -> dict:
  """An empty cache of `rows` sequences of up to `length` positions, for `decode`."""
  return _llm(config).init_cache(rows, length)


def _boxed(config: ml_collections.ConfigDict, rng: jax.Array) -> dict:
  one = jnp.zeros((1, 1), jnp.int32)
  images = jnp.zeros(
    (1, 1 if config.encoders else 0, config.image_size, config.image_size, 3), jnp.uint8
  )
  return build(config, 'cpu').init(rng, one, one, one, one, images)['params']
