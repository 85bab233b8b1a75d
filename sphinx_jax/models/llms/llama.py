"""LLaMA-2 and Mistral: RMSNorm, rotary embeddings, grouped key/value heads, SwiGLU, no biases.

Rotary embeddings rotate adjacent pairs of channels, as in Meta's code
(docs/official_sphinx.md, "LLaMA").
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.models import attention, foreign, foreign_config, layers, narrow, vocabulary
from sphinx_jax.models.adapters import Blocks
from sphinx_jax.parallel import placement

Cache = dict[str, jax.Array] | list[dict[str, jax.Array]] | None  # See `Llama.init_cache`.


class Llama(nn.Module):
  """The decoder: `embed` tokens, compute `hidden_states`, apply the `lm_head`.

  Attributes:
    vocab: number of token ids.
    width: D.
    layers: number of layers.
    heads: number of query heads.
    kv_heads: number of key/value heads; None: as many as heads.
    head_width: C; None: width / heads.
    multiple_of: the feed-forward width is a multiple of it, see `ffn_width`.
    ffn_multiplier: multiplier of the feed-forward width, see `ffn_width`.
    norm_eps: epsilon of the norms.
    rope_theta: base of the rotary frequencies.
    rope_scaling: factor of positions; 0.5 halves them.
    attention_bias: whether the linear layers of attention have biases (InternLM 1).
    window: latest positions that a position sees, itself included (Mistral); None: all.
    max_length: most positions of a sequence.
    remat: see `layers.stack`.
    attention: kernel for packed rows, see models/attention.py.
    unroll: see `layers.stack`.
    separate: whether layers have parameters and a cache of their own, for decoding: 'layers_0',
      ... in place of the stack 'layers' (`families.for_decoding`).
    dtype: compute dtype.
  """

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int | None = None
  head_width: int | None = None
  multiple_of: int = 256
  ffn_multiplier: float | None = None
  norm_eps: float = 1e-5
  rope_theta: float = 10000.0
  rope_scaling: float | None = None
  attention_bias: bool = False
  window: int | None = None
  max_length: int = 2048
  remat: str = 'none'
  attention: str = 'xla'
  unroll: int = 1
  separate: bool = False
  dtype: Any = jnp.float32

  def setup(self) -> None:
    if self.head_width is None and self.width % self.heads or self._channels % 2:
      raise errors.make(
        'llm',
        f'width {self.width} and {self.heads} heads, head_width {self.head_width}',
        'an even width per head',
        'change one of them',
      )
    new = self._new_tokens
    self.table = layers.param(
      self,
      'embed',
      nn.initializers.normal(self.width**-0.5),
      (self.vocab - new, self.width),
      ('vocab', 'lookup'),
      self.dtype,
      keep_bits=True,
    )
    layer, settings = self._layer()
    if self.separate:
      self.blocks = [layer(**settings, name=f'layers_{i}') for i in range(self.layers)]
    else:
      blocks = layers.stack(
        self, layer, self.layers, self.unroll, self.remat, 1, broadcast=4, records=self._records
      )
      self.blocks = blocks(**settings, name='layers')
    self.norm = layers.RMSNorm(self.norm_eps, self.dtype)
    # The scale makes the first logits small, so that the loss starts at log(vocab).
    self.output = layers.Dense(
      (self.vocab - new,), ('embed', 'vocab'), bias=False, scale=0.25, dtype=self.dtype
    )
    if new:
      self.new_embed, self.new_output = (
        layers.param(self, name, nn.initializers.zeros, shape, names, self.dtype)
        for name, shape, names in (
          (vocabulary.EMBED, (new, self.width), (None, 'lookup')),
          (vocabulary.OUTPUT, (self.width, new), ('embed', None)),
        )
      )

  _records = ()  # Collections in which layers store values.

  def _layer(self) -> tuple[type['Layer'], dict[str, Any]]:
    """The module of a layer, and its attributes."""
    return Layer, dict(
      heads=self.heads,
      kv_heads=self.kv_heads or self.heads,
      head_width=self._channels,
      ffn=self.ffn,
      eps=self.norm_eps,
      scale=(2 * self.layers) ** -0.5,
      bias=self.attention_bias,
      window=self.window,
      kernel=self.attention,
      dtype=self.dtype,
    )

  @property
  def _new_tokens(self) -> int:
    """Number of the last tokens whose rows are leaves of their own (models/vocabulary.py)."""
    if not self.has_variable('params', vocabulary.EMBED):
      return 0
    return len(nn.unbox(self.get_variable('params', vocabulary.EMBED)))

  @property
  def _channels(self) -> int:
    """C."""
    return self.head_width or self.width // self.heads

  @property
  def ffn(self) -> int:
    """F."""
    return ffn_width(self.width, self.multiple_of, self.ffn_multiplier)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """int32[B,T] -> [B,T,D] in the compute dtype."""
    # Every device looks up its own channels of all rows. No device holds the whole table or its
    # gradient.
    tokens = placement.constrain(tokens, ('lookup_rows', None))
    if self._new_tokens:
      old = len(self.table)
      x = jnp.take(self.table, jnp.minimum(tokens, old - 1), axis=0)
      new = jnp.take(self.new_embed, jnp.maximum(tokens - old, 0), axis=0)
      x = jnp.where(tokens[..., None] < old, x, new)
    else:
      x = narrow.widen(jnp.take(self.table, tokens, axis=0))
    x = placement.constrain(x, ('lookup_rows', None, 'lookup'))
    return placement.constrain(x, ('batch', None, None))

  def hidden_states(
    self,
    x: jax.Array,
    positions: jax.Array,
    segments: jax.Array | None = None,
    cache: Cache = None,
  ) -> tuple[jax.Array, Cache]:
    """Last hidden states of embedded sequences.

    Args:
      x: embeddings [B,T,D].
      positions: int32[B,T] for the rotary embedding. With a cache they are also its slots: row b
        writes slots positions[b,0] onwards.
      segments: int32[B,T] of packed rows. With a cache of T slots, rows are prompts: they see
        themselves alone, and fill the cache.
      cache: from `init_cache` or the call before; None only with segments.

    Returns:
      Hidden states [B,T,D] in the compute dtype, after the last norm, and the new cache.
    """
    angles = rotary_angles(positions, self._channels, self.rope_theta, self.rope_scaling)
    shared = jnp.cos(angles), jnp.sin(angles), positions, segments
    with layers.counted(None if segments is None else segments > 0):
      if self.separate:
        caches = []
        for block, own in zip(self.blocks, cache or [None] * self.layers):
          (x, own), _ = block((x, own), 0, *shared)
          caches.append(own)
        cache = cache and caches
      else:
        (x, cache), _ = self.blocks((x, cache), jnp.arange(self.layers), *shared)
    return self.norm(x), cache

  def lm_head(self, hidden_states: jax.Array) -> jax.Array:
    """Logits float32[B,T,vocab] of hidden states [B,T,D]."""
    logits = self.output(hidden_states)
    if self._new_tokens:
      logits = jnp.concatenate([logits, hidden_states @ self.new_output], axis=-1)
    return logits.astype(jnp.float32)

  def lm_head_matrices(self) -> Blocks:
    """The matrix of the LM head [D,vocab] in the compute dtype, as blocks of its columns."""
    matrix = self.output.matrix(self.width)
    return (matrix, self.new_output) if self._new_tokens else (matrix,)

  def init_cache(self, rows: int, length: int) -> Cache:
    """An empty cache.

    Args:
      rows: B.
      length: slots of each row.

    Returns:
      Zeros {'k', 'v'}, each [layers,B,K,length,C] in the compute dtype; of separate layers a list
      of them, [1,B,K,length,C] each. In this order a decoding step reads the slots of a head from
      contiguous memory.

    Raises:
      SphinxError: the length is over max_length.
    """
    if length > self.max_length:
      raise errors.make(
        'cache',
        f'{length} positions',
        f'at most llm.max_length, {self.max_length}',
        'shorten the prompt or raise it',
      )
    shape = (rows, self.kv_heads or self.heads, length, self._channels)
    zeros = lambda layers: {name: jnp.zeros((layers, *shape), self.dtype) for name in ('k', 'v')}
    return [zeros(1) for _ in range(self.layers)] if self.separate else zeros(self.layers)


def ffn_width(width: int, multiple_of: int, multiplier: float | None) -> int:
  """Feed-forward width: 8/3 of `width`, times the multiplier, rounded up to `multiple_of`."""
  hidden = int(8 * width / 3)
  if multiplier is not None:
    hidden = int(multiplier * hidden)
  return multiple_of * -(-hidden // multiple_of)


def rotary_angles(
  positions: jax.Array, width: int, theta: float, scaling: float | None
) -> jax.Array:
  """Angles float32[B,T,width/2]: position * scaling * theta^(-2i/width)."""
  frequency = 1.0 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  return positions.astype(jnp.float32)[..., None] * (scaling or 1.0) * frequency


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates adjacent channels (2i, 2i+1) of x [B,T,H,C] by angles [B,T,C/2], in float32."""
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  cos, sin = cos[:, :, None], sin[:, :, None]
  rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return rotated.reshape(x.shape).astype(x.dtype)


class Layer(nn.Module):
  """One decoder layer.

  The carry is x [B,T,D] and the cache of all scanned layers, or None. Each layer writes only its
  new slots. A cache that is a scanned input and output instead would be copied in every step.
  """

  heads: int
  kv_heads: int
  head_width: int
  ffn: int
  eps: float
  scale: float
  bias: bool
  window: int | None
  kernel: str
  dtype: Any

  @nn.compact
  def __call__(
    self,
    carry: tuple[jax.Array, dict | None],
    layer: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    segments: jax.Array | None,
  ) -> tuple[tuple[jax.Array, dict | None], None]:
    attend = Attention(
      self.heads,
      self.kv_heads,
      self.head_width,
      self.scale,
      self.bias,
      self.window,
      self.kernel,
      self.dtype,
      name='attention',
    )
    attention_norm = layers.RMSNorm(self.eps, self.dtype, name='attention_norm')
    ffn_norm = layers.RMSNorm(self.eps, self.dtype, name='ffn_norm')

    x, cache = carry
    x = placement.constrain(x, ('batch', None, None))
    attended, cache = attend(attention_norm(x), cache, layer, cos, sin, positions, segments)
    x = x + attended
    x = x + self.mlp(ffn_norm(x), segments)
    return (x, cache), None

  def mlp(self, x: jax.Array, segments: jax.Array | None) -> jax.Array:
    """The feed-forward layer, [B,T,D] -> [B,T,D]."""
    del segments
    names = 'embed', 'ffn'
    return layers.GatedMlp(self.ffn, self.scale, self.dtype, names, name='feed_forward')(x)


class Attention(nn.Module):
  """Causal attention within the segments of packed rows, or over a cache that it also writes."""

  heads: int
  kv_heads: int
  head_width: int
  scale: float
  bias: bool
  window: int | None
  kernel: str
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    cache: dict | None,
    layer: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    segments: jax.Array | None,
  ) -> tuple[jax.Array, dict | None]:
    batch, length, width = x.shape

    def project(name: str, heads: int, axis: str) -> jax.Array:
      dense = layers.Dense(
        (heads * self.head_width,), ('embed', axis), self.bias, dtype=self.dtype, name=name
      )
      return dense(x).reshape(batch, length, heads, self.head_width)

    query = rotate(project('wq', self.heads, 'heads'), cos, sin)
    key = rotate(project('wk', self.kv_heads, 'kv_heads'), cos, sin)
    value = project('wv', self.kv_heads, 'kv_heads')
    if segments is not None:
      kernel = self.kernel if cache is None else 'xla'
      attended = attention.attend(
        query, key, value, segments=segments, window=self.window, kernel=kernel
      )
      if cache is not None:
        cache = {
          name: jax.lax.dynamic_update_index_in_dim(cache[name], new.swapaxes(1, 2), layer, 0)
          for name, new in (('k', key), ('v', value))
        }
    else:
      cache = {
        'k': _write(cache['k'], layer, key, positions),
        'v': _write(cache['v'], layer, value, positions),
      }
      keys, values = (cache[name][layer].swapaxes(1, 2) for name in ('k', 'v'))
      attended = attention.attend(query, keys, values, positions=positions, window=self.window)
    out = layers.Dense((width,), ('heads', 'embed'), self.bias, self.scale, self.dtype, name='wo')
    return out(attended.reshape(batch, length, -1)), cache


def _write(slots: jax.Array, layer: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
  """Writes `new` [B,T,K,C] to slots `positions` [B,T] of one layer of [layers,B,K,S,C]."""
  rows = jnp.arange(new.shape[0])[:, None]
  return slots.at[layer, rows, :, positions].set(new.astype(slots.dtype), unique_indices=True)


SIZES = {
  '1b': dict(vocab=32000, width=2048, layers=22, heads=32, kv_heads=4, multiple_of=256),
  '7b': dict(vocab=32000, width=4096, layers=32, heads=32, kv_heads=32, multiple_of=256),
  'mistral-7b': dict(
    vocab=32000,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    multiple_of=14336,
    norm_eps=1e-5,
    rope_theta=10000.0,
    window=4096,
    max_length=32768,
  ),
  '13b': dict(vocab=32000, width=5120, layers=40, heads=40, kv_heads=40, multiple_of=256),
}


def meta_weights(settings: Any, feed_forward: list[foreign.Weight]) -> list[foreign.Weight]:
  """The table of Meta's names, with the rows of a feed-forward layer."""
  block = [*feed_forward]
  for name in ('wq', 'wk', 'wv', 'wo'):
    block += foreign.linear(f'attention/{name}', f'attention.{name}', bias=False)
  for name in ('attention_norm', 'ffn_norm'):
    block += foreign.tensor(f'{name}/scale', f'{name}.weight', 'd -> d')
  return [
    *foreign.tensor('embed', 'tok_embeddings.weight', 'v d -> v d'),
    *foreign.within('layers/', 'layers.{}.', block, range(settings['layers'])),
    *foreign.tensor('norm/scale', 'norm.weight', 'd -> d'),
    *foreign.linear('output', 'output', bias=False),
  ]


def _meta(settings: Any) -> list[foreign.Weight]:
  feed_forward = []
  for name in ('w1', 'w2', 'w3'):
    feed_forward += foreign.linear(f'feed_forward/{name}', f'feed_forward.{name}', bias=False)
  return meta_weights(settings, feed_forward)


def _huggingface(settings: Any) -> list[foreign.Weight]:
  return huggingface_weights(settings, foreign.gated_mlp('feed_forward', 'mlp'))


def huggingface_weights(settings: Any, feed_forward: list[foreign.Weight]) -> list[foreign.Weight]:
  """The table of the names of HF transformers, with the rows of a feed-forward layer."""
  block = [*feed_forward]
  bias = settings.get('attention_bias', False)
  for name, heads in _rotated(settings):
    block += _half_split(name, f'self_attn.{name}_proj.{{}}', heads, bias)
  for name in ('v', 'o'):
    block += foreign.linear(f'attention/w{name}', f'self_attn.{name}_proj', bias)
  for path, key in (
    ('attention_norm', 'input_layernorm'),
    ('ffn_norm', 'post_attention_layernorm'),
  ):
    block += foreign.tensor(f'{path}/scale', f'{key}.weight', 'd -> d')
  return [
    *foreign.tensor('embed', 'model.embed_tokens.weight', 'v d -> v d'),
    *foreign.within('layers/', 'model.layers.{}.', block, range(settings['layers'])),
    *foreign.tensor('norm/scale', 'model.norm.weight', 'd -> d'),
    *foreign.linear('output', 'lm_head', bias=False),
  ]


def _rotated(settings: Any) -> tuple[tuple[str, int], ...]:
  """(name, heads) of the matrices of attention whose outputs are rotated."""
  return ('q', settings['heads']), ('k', settings.get('kv_heads') or settings['heads'])


def _half_split(name: str, key: str, heads: int, bias: bool) -> list[foreign.Weight]:
  """A matrix of attention of code that rotates channel i with i + C/2, and perhaps its bias.

  Meta's code and ours rotate adjacent channels.

  Args:
    name: 'q' or 'k'.
    key: name of the tensors, with '{}' for 'weight' and 'bias'.
    heads: number of heads.
    bias: whether there is one.
  """
  sizes = dict(h=heads, two=2)
  table = foreign.tensor(
    f'attention/w{name}/kernel', key.format('weight'), '(h two c) i -> i (h c two)', **sizes
  )
  if bias:
    table += foreign.tensor(
      f'attention/w{name}/bias', key.format('bias'), '(h two c) -> (h c two)', **sizes
    )
  return table


def _internlm(settings: Any) -> list[foreign.Weight]:
  block = []
  for name in ('q', 'k'):
    block += _half_split(name, f'mixer.Wqkv.{{}}[{name}]', settings['heads'], bias=True)
  for leaf, kind, pattern in (('kernel', 'weight', 'o i -> i o'), ('bias', 'bias', 'o -> o')):
    block += foreign.tensor(f'attention/wv/{leaf}', f'mixer.Wqkv.{kind}[v]', pattern)
  block += foreign.linear('attention/wo', 'mixer.out_proj')
  for path, key in (('w1', 'w1'), ('w2', 'w3'), ('w3', 'w2')):  # Its w2 is the way up.
    block += foreign.linear(f'feed_forward/{path}', f'mlp.{key}', bias=False)
  for path, key in (('attention_norm', 'norm1'), ('ffn_norm', 'norm2')):
    block += foreign.tensor(f'{path}/scale', f'{key}.weight', 'd -> d')
  return [
    *foreign.tensor('embed', 'embedding.weight', 'v d -> v d'),
    *foreign.within('layers/', 'layers.{}.', block, range(settings['layers'])),
    *foreign.tensor('norm/scale', 'norm.weight', 'd -> d'),
    *foreign.linear('output', 'head', bias=False),
  ]


def _internlm2(settings: Any) -> list[foreign.Weight]:
  block = []
  for name, heads in _rotated(settings):
    block += _half_split(name, f'attention.wqkv.{{}}[{name}]', heads, bias=False)
  block += foreign.tensor('attention/wv/kernel', 'attention.wqkv.weight[v]', 'o i -> i o')
  block += foreign.linear('attention/wo', 'attention.wo', bias=False)
  for name in ('w1', 'w2', 'w3'):
    block += foreign.linear(f'feed_forward/{name}', f'feed_forward.{name}', bias=False)
  for name in ('attention_norm', 'ffn_norm'):
    block += foreign.tensor(f'{name}/scale', f'{name}.weight', 'd -> d')
  return [
    *foreign.tensor('embed', 'model.tok_embeddings.weight', 'v d -> v d'),
    *foreign.within('layers/', 'model.layers.{}.', block, range(settings['layers'])),
    *foreign.tensor('norm/scale', 'model.norm.weight', 'd -> d'),
    *foreign.linear('output', 'output', bias=False),
  ]


def _pieces_of_internlm(config: Mapping[str, Any]) -> foreign.Pieces:
  """The rows of Wqkv are those of q, k and v."""
  del config
  thirds = {name: functools.partial(_third, number=i) for i, name in enumerate('qkv')}
  return {r'layers\.\d+\.mixer\.Wqkv\.(weight|bias)': thirds}


def _third(rows: np.ndarray, number: int) -> np.ndarray:
  size = len(rows) // 3
  return rows[number * size : (number + 1) * size]


def _pieces_of_internlm2(config: Mapping[str, Any]) -> foreign.Pieces:
  """The rows of wqkv: of each key/value head its query heads, its key and its value."""
  heads = foreign_config.size(config, 'num_attention_heads')
  kv_heads = foreign_config.divisor(config, 'num_key_value_heads', heads)
  queries = heads // kv_heads
  parts = dict(q=slice(0, queries), k=slice(queries, queries + 1), v=slice(queries + 1, None))

  def take(rows: np.ndarray, part: slice) -> np.ndarray:
    groups = rows.reshape(kv_heads, queries + 2, -1, rows.shape[1])
    return groups[:, part].reshape(-1, rows.shape[1])

  pieces = {name: functools.partial(take, part=part) for name, part in parts.items()}
  return {r'.*\.attention\.wqkv\.weight': pieces}


def _settings_of_internlm(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  width = foreign_config.size(config, 'hidden_size')
  heads = foreign_config.divisor(config, 'num_attention_heads', width)
  return dict(
    vocab=foreign_config.size(config, 'vocab_size', shapes['embedding.weight'][0]),
    width=width,
    layers=foreign_config.size(config, 'num_layers'),
    heads=heads,
    kv_heads=heads,
    **_ffn_settings(width, shapes['layers.0.mlp.w1.weight'][0]),
    norm_eps=foreign_config.number(config, 'layer_norm_epsilon', 1e-5),
    rope_theta=10000.0,
    attention_bias=True,
    max_length=foreign_config.size(config, 'max_seq_len', _CONTEXT),
  )


def settings_of_meta(
  shapes: foreign.Shapes, config: Mapping[str, Any], rope_theta: float = 10000.0
) -> dict[str, Any]:
  """Settings from a config of Meta or of the official code; `rope_theta` is that of one without.

  Raises:
    SphinxError: a field is missing, or is none that the model computes.
  """
  if config.get('use_scaled_rope'):
    raise errors.make(
      'params.json',
      f'use_scaled_rope, beside rope_theta {config.get("rope_theta")}',
      'rotary frequencies of rope_theta alone',
      'the rotary embedding of LLaMA 3.1 is not supported',
    )
  heads, vocab = foreign_config.size(config, 'n_heads'), config.get('vocab_size')
  rows = shapes['tok_embeddings.weight'][0]
  return dict(
    vocab=rows if vocab == -1 else foreign_config.size(config, 'vocab_size', rows),  # Meta has -1.
    width=foreign_config.size(config, 'dim'),
    layers=foreign_config.size(config, 'n_layers'),
    heads=heads,
    kv_heads=foreign_config.divisor(config, 'n_kv_heads', heads),
    multiple_of=foreign_config.size(config, 'multiple_of', 256),
    ffn_multiplier=foreign_config.number(config, 'ffn_dim_multiplier'),
    norm_eps=foreign_config.number(config, 'norm_eps', 1e-5),
    rope_theta=float(foreign_config.number(config, 'rope_theta', rope_theta)),
    rope_scaling=foreign_config.number(config, 'rope_scaling'),
    max_length=foreign_config.size(config, 'max_seq_len', _CONTEXT),
  )


def config_of_meta(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The config of the official code.

  Raises:
    SphinxError: the official code does not compute this model.
  """
  if settings.get('attention_bias'):
    raise errors.make(
      'params.json',
      'llm.attention_bias',
      'attention without biases, as in the official code',
      'write a language model alone with --to=hf',
    )
  if settings.get('window') is not None:
    raise errors.make(
      'params.json',
      f'llm.window {settings["window"]}',
      'attention over the whole context, as in the official code',
      'write a language model alone with --to=hf',
    )
  return dict(
    dim=settings['width'],
    n_layers=settings['layers'],
    n_heads=settings['heads'],
    n_kv_heads=settings.get('kv_heads'),
    vocab_size=settings['vocab'],
    multiple_of=settings.get('multiple_of', 256),
    ffn_dim_multiplier=settings.get('ffn_multiplier'),
    norm_eps=settings.get('norm_eps', 1e-5),
    rope_theta=settings.get('rope_theta', 10000.0),
    rope_scaling=settings.get('rope_scaling'),
    max_seq_len=settings.get('max_length', 2048),
  )


def settings_of_huggingface(
  config: Mapping[str, Any], norm_eps: float = 1e-6, rope_theta: float = 10000.0
) -> dict[str, Any]:
  """Settings from a config of LLaMA or Mistral; without these numbers in it, the defaults.

  Raises:
    SphinxError: a field is missing, or is none that the model computes.
  """
  if config.get('tie_word_embeddings'):
    raise errors.make(
      'config.json',
      'tied embeddings (tie_word_embeddings)',
      'a separate output, lm_head.weight',
      'tied embeddings are not supported; LLaMA-2 has a separate output',
    )
  width, heads, hidden = (
    foreign_config.size(config, name)
    for name in ('hidden_size', 'num_attention_heads', 'intermediate_size')
  )
  context = foreign_config.size(
    config,
    'max_position_embeddings',
    foreign_config.size(config, 'max_sequence_length', _CONTEXT),  # Its name in the first files.
  )
  rope_theta, rope_scaling = _rope(config, rope_theta)
  return dict(
    vocab=foreign_config.size(config, 'vocab_size'),
    width=width,
    layers=foreign_config.size(config, 'num_hidden_layers'),
    heads=heads,
    kv_heads=foreign_config.divisor(config, 'num_key_value_heads', heads),
    **_ffn_settings(width, hidden),
    **({'attention_bias': True} if foreign_config.flag(config, 'attention_bias') else {}),
    norm_eps=foreign_config.number(config, 'rms_norm_eps', norm_eps),
    rope_theta=rope_theta,
    rope_scaling=rope_scaling,
    window=_window(config, context),
    max_length=context,
  )


def _ffn_settings(width: int, hidden: int) -> dict[str, Any]:
  """The settings of a feed-forward width."""
  if ffn_width(width, 256, None) == hidden:
    return dict(multiple_of=256, ffn_multiplier=None)
  # Round up to a multiple that is the whole width.
  return dict(multiple_of=hidden, ffn_multiplier=min(1.0, hidden / int(8 * width / 3)))


def _window(config: Mapping[str, Any], context: int) -> int | None:
  """The window of attention; None if it reaches over the whole context.

  Raises:
    SphinxError: a shorter window of a LLaMA, which transformers does not compute.
  """
  kinds = {config.get('model_type'), *(config.get('architectures') or ())}
  is_mistral = bool({'mistral', _MISTRAL} & kinds)
  window = config.get('sliding_window', _MISTRAL_WINDOW if is_mistral else None)
  if window is None or foreign_config.size({'sliding_window': window}, 'sliding_window') >= context:
    return None
  if not is_mistral and 'mixtral' not in kinds:
    raise errors.make(
      'config.json',
      f'sliding_window {window} of a LLaMA',
      f'null, or at least the context of {context} positions',
      "if it is a Mistral, write model_type 'mistral'; transformers ignores the window of a LLaMA",
    )
  return window


def _rope(config: Mapping[str, Any], default: float) -> tuple[float, float | None]:
  """Returns the base of the rotary frequencies, and the factor of positions or None.

  Args:
    config: of transformers.
    default: the base of a config without one.

  transformers 5 writes `rope_parameters`, which has theta too. Older releases wrote `rope_theta`
  and `rope_scaling`, whose `rope_type` was called `type`.

  Raises:
    SphinxError: another kind of rotary embedding, or fields that contradict each other.
  """
  name = 'rope_scaling' if config.get('rope_parameters') is None else 'rope_parameters'
  rope = foreign_config.section(config, name)
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ('default', 'linear'):
    raise errors.make(
      'config.json',
      f"rope type '{kind}'",
      "'default' or 'linear'",
      'this rotary embedding is not supported',
    )
  problems = _ROPE.problems(rope, f'{name}.')
  for key, first, other_key, second in (
    ('rope_type', rope.get('rope_type'), 'type', rope.get('type')),
    ('rope_theta', config.get('rope_theta'), f'{name}.rope_theta', rope.get('rope_theta')),
    (name, config.get('rope_parameters'), 'rope_scaling', config.get('rope_scaling')),
  ):
    if first is not None and second is not None and first != second:
      problems.append(f'{key} {first!r} and {other_key} {second!r}')
  if problems:
    raise errors.make(
      'config.json',
      f'a rotary embedding of {"; ".join(problems)}',
      'rope_type, factor and rope_theta alone, each with one value',
      'this rotary embedding is not supported',
    )
  theta = foreign_config.number(
    config, 'rope_theta', foreign_config.number(rope, 'rope_theta', default)
  )
  if kind == 'default':
    return float(theta), None
  foreign_config.field(rope, 'factor')
  return float(theta), 1 / foreign_config.number(rope, 'factor')


def config_of_huggingface(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The config of HF transformers."""
  scaling, rope_scaling = settings.get('rope_scaling'), None
  if scaling is not None:
    rope_scaling = {'type': 'linear', 'rope_type': 'linear', 'factor': 1 / scaling}
  window = settings.get('window')
  kind = dict(architectures=['LlamaForCausalLM'], model_type='llama')
  if window is not None:
    kind = dict(architectures=[_MISTRAL], model_type='mistral', sliding_window=window)
  return dict(
    **kind,
    hidden_act='silu',
    tie_word_embeddings=False,
    attention_bias=settings.get('attention_bias', False),
    vocab_size=settings['vocab'],
    hidden_size=settings['width'],
    num_hidden_layers=settings['layers'],
    num_attention_heads=settings['heads'],
    num_key_value_heads=settings.get('kv_heads') or settings['heads'],
    intermediate_size=ffn_width(
      settings['width'], settings.get('multiple_of', 256), settings.get('ffn_multiplier')
    ),
    rms_norm_eps=settings.get('norm_eps', 1e-5),
    rope_theta=settings.get('rope_theta', 10000.0),
    rope_scaling=rope_scaling,
    max_position_embeddings=settings.get('max_length', 2048),
    bos_token_id=1,
    eos_token_id=2,
  )


_CONTEXT = 4096  # LLaMA-2's context, for configs without one.
_MISTRAL, _MISTRAL_WINDOW = 'MistralForCausalLM', 4096  # The window of configs without one.
_ROPE = foreign_config.Fields(
  used=('rope_type', 'type', 'factor', 'rope_theta'),
  neutral={'the context before it was extended': ('original_max_position_embeddings',)},
  only={'partial_rotary_factor': (None, 1.0)},
)
META_FIELDS = foreign_config.Fields(
  used=(
    'dim',
    'n_layers',
    'n_heads',
    'n_kv_heads',
    'vocab_size',
    'multiple_of',
    'ffn_dim_multiplier',
    'norm_eps',
    'rope_theta',
    'rope_scaling',
    'max_seq_len',
  ),
  neutral={'rows of the official cache': ('max_batch_size',)},
  only={'use_scaled_rope': (None, False, True)},
)
HUGGINGFACE_FIELDS = foreign_config.transformers_fields(
  ('llama', 'mistral'),
  ('LlamaForCausalLM', 'LLaMAForCausalLM', _MISTRAL),
  used=(
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'rms_norm_eps',
    'rope_theta',
    'rope_scaling',
    'rope_parameters',
    'max_position_embeddings',
    'max_sequence_length',
    'sliding_window',
    'tie_word_embeddings',
    'attention_bias',
  ),
  neutral={'the same products in slices': ('pretraining_tp',)},
  only={
    'hidden_act': (None, 'silu', 'swish'),
    'mlp_bias': (None, False),
    'layer_types': (None, ['full_attention']),
    'partial_rotary_factor': (None, 1.0),
    'attn_logit_softcapping': (None,),
    'final_logit_softcapping': (None,),
    'embedding_multiplier': (None, 1.0),
    'residual_multiplier': (None, 1.0),
    'logits_scaling': (None, 1.0),
  },
  sizes={'head_dim': lambda settings: settings['width'] // settings['heads']},
)

# But for the three sizes from memory (docs/official_sphinx.md, "InternLM").
_INTERNLM_FIELDS = foreign_config.Fields(
  used=(
    'num_layers',
    'hidden_size',
    'num_attention_heads',
    'vocab_size',
    'layer_norm_epsilon',
    'max_seq_len',
  ),
  neutral={
    'sizes of tensors': ('mlp_ratio', 'multiple_of'),
    'how it computes, not what': (
      *('checkpoint', 'embed_split_hidden', 'parallel_output', 'dtype', 'use_flash_attn'),
      *('num_chunks', 'max_batch_size', 'sequence_parallel'),
    ),
    'training only': ('embed_grad_scale', 'drop_rate', 'attn_drop_rate'),
  },
  only={
    'norm_type': (None, 'rmsnorm'),
    'apply_post_layer_norm': (None, False),
    'use_swiglu': (None, True),
    'no_bias': (None, True),
  },
)
_INTERNLM2_FIELDS = dataclasses.replace(
  HUGGINGFACE_FIELDS,
  neutral={**HUGGINGFACE_FIELDS.neutral, 'its own code beside the weights': ('auto_map',)},
  only={
    **{name: values for name, values in HUGGINGFACE_FIELDS.only.items() if name != 'auto_map'},
    'model_type': ('internlm2', None),
    'architectures': (None, ['InternLM2ForCausalLM']),
    'bias': (None, False),
  },
)

FORMS = {
  'internlm': foreign.Form(
    'InternLM as the official code names it',
    'layers.0.mixer.Wqkv.weight',
    _internlm,
    _settings_of_internlm,
    prefixes=('', 'model.', 'llma.'),
    configs={'config.json': _INTERNLM_FIELDS},
    pieces=_pieces_of_internlm,
  ),
  'internlm2': foreign.Form(
    'InternLM2',
    'model.layers.0.attention.wqkv.weight',
    _internlm2,
    lambda _, config: settings_of_huggingface(config),
    unused=(r'.*\.rotary_emb\.inv_freq',),
    configs={'config.json': _INTERNLM2_FIELDS},
    pieces=_pieces_of_internlm2,
  ),
  'meta': foreign.Form(
    'LLaMA as Meta names it',
    'tok_embeddings.weight',
    _meta,
    settings_of_meta,
    unused=(r'rope\.freqs',),
    config=config_of_meta,
    configs={'params.json': META_FIELDS, 'config.json': META_FIELDS},
  ),
  'hf': foreign.Form(
    'LLaMA of HF transformers',
    'model.embed_tokens.weight',
    _huggingface,
    lambda _, config: settings_of_huggingface(config),
    unused=(r'.*\.rotary_emb\.inv_freq',),
    config=config_of_huggingface,
    configs={'config.json': HUGGINGFACE_FIELDS},
  ),
}
