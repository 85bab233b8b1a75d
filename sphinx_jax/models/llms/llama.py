"""LLaMA-2 (FACTS "LLaMA"): RMSNorm, rotary embeddings on adjacent pairs, grouped key/value heads, SwiGLU, no biases."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sphinx_jax.core import errors
from sphinx_jax.models import attention, foreign, layers
from sphinx_jax.parallel import placement


class Llama(nn.Module):
  """The decoder: `embed` tokens, `states` of the whole sequence, `head`. Sizes as in Meta's params.json."""

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int | None = None  # None: as many as heads.
  multiple_of: int = 256
  ffn_multiplier: float | None = None
  norm_eps: float = 1e-5
  rope_theta: float = 10000.0
  rope_scaling: float | None = None  # Multiplies positions: 0.5 halves them.
  max_length: int = 2048
  remat: str = 'none'
  attention: str = 'xla'  # A kernel of models/attention.py.
  unroll: int = 1
  dtype: Any = jnp.float32

  def setup(self):
    if self.width % self.heads or self.width // self.heads % 2:
      raise errors.make(
        'llm',
        f'width {self.width} and {self.heads} heads',
        'an even width per head',
        'change one of them',
      )
    self.table = layers.param(
      self,
      'embed',
      nn.initializers.normal(self.width**-0.5),
      (self.vocab, self.width),
      ('vocab', 'lookup'),
      self.dtype,
    )
    blocks = layers.stack(Layer, self.layers, self.unroll, self.remat, scanned=1, broadcast=4)
    self.blocks = blocks(
      self.heads,
      self.kv_heads or self.heads,
      ffn_width(self.width, self.multiple_of, self.ffn_multiplier),
      self.norm_eps,
      (2 * self.layers) ** -0.5,
      self.attention,
      self.dtype,
      name='layers',
    )
    self.norm = layers.RMSNorm(self.norm_eps, self.dtype)
    # Small first logits: the loss starts at log(vocab).
    self.output = layers.Dense(
      (self.vocab,), ('embed', 'vocab'), bias=False, scale=0.25, dtype=self.dtype
    )

  def embed(self, tokens: jax.Array) -> jax.Array:
    """int32[B,T] -> [B,T,D] in the compute dtype."""
    # Every device looks up its channels of all rows. The whole table, or its gradient, is on none of them.
    tokens = placement.constrain(tokens, ('lookup_rows', None))
    x = placement.constrain(jnp.take(self.table, tokens, axis=0), ('lookup_rows', None, 'lookup'))
    return placement.constrain(x, ('batch', None, None))

  def states(
    self,
    x: jax.Array,
    positions: jax.Array,
    segments: jax.Array | None = None,
    cache: dict | None = None,
  ) -> tuple[jax.Array, dict | None]:
    """Embedded sequence -> what the head reads.

    Args:
      x: [B,T,D].
      positions: int32[B,T], for the rotary embedding; with a cache, also the slots: row b writes positions[b,0] onwards.
      segments: int32[B,T] of packed rows, without a cache.
      cache: as `init_cache` makes it, or None.

    Returns:
      [B,T,D] in the compute dtype, normed, and the new cache.
    """
    angles = rotary_angles(positions, self.width // self.heads, self.rope_theta, self.rope_scaling)
    (x, cache), _ = self.blocks(
      (x, cache), jnp.arange(self.layers), jnp.cos(angles), jnp.sin(angles), positions, segments
    )
    return self.norm(x), cache

  def head(self, states: jax.Array) -> jax.Array:
    """Logits float32[B,T,vocab] of states [B,T,D]."""
    return self.output(states).astype(jnp.float32)

  def init_cache(self, rows: int, length: int) -> dict:
    """Zeros {'k','v'}: [layers,B,K,length,C]; a decoding step reads a head's slots in one stretch of memory.

    Raises:
      SphinxError: for a length over max_length.
    """
    if length > self.max_length:
      raise errors.make(
        'cache',
        f'{length} positions',
        f'at most llm.max_length, {self.max_length}',
        'shorten the prompt or raise it',
      )
    shape = (self.layers, rows, self.kv_heads or self.heads, length, self.width // self.heads)
    return {'k': jnp.zeros(shape, self.dtype), 'v': jnp.zeros(shape, self.dtype)}


def ffn_width(width: int, multiple_of: int, multiplier: float | None) -> int:
  """Feed-forward width: 2/3 of 4 * width, times the multiplier, rounded up to a multiple."""
  hidden = int(8 * width / 3)
  if multiplier is not None:
    hidden = int(multiplier * hidden)
  return multiple_of * -(-hidden // multiple_of)


def rotary_angles(
  positions: jax.Array, width: int, theta: float, scaling: float | None
) -> jax.Array:
  """float32[B,T,width/2]: position (times scaling) * theta^(-2i/width)."""
  frequency = 1.0 / theta ** (jnp.arange(0, width, 2, dtype=jnp.float32) / width)
  return positions.astype(jnp.float32)[..., None] * (scaling or 1.0) * frequency


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns adjacent pairs (2i, 2i+1) of x [B,T,H,C] by angles [B,T,C/2], in float32."""
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  even, odd = pairs[..., 0], pairs[..., 1]
  cos, sin = cos[:, :, None], sin[:, :, None]
  return (
    jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    .reshape(x.shape)
    .astype(x.dtype)
  )


class Layer(nn.Module):
  """One decoder layer: (x [B,T,D], the cache of all layers or None) -> the same.

  The scan over layers carries the cache whole and each layer writes only its new slots; as a scanned input and output
  it would be copied in every step.
  """

  heads: int
  kv_heads: int
  ffn: int
  eps: float
  scale: float
  kernel: str
  dtype: Any

  @nn.compact
  def __call__(self, carry, layer, cos, sin, positions, segments):
    x, cache = carry
    x = placement.constrain(x, ('batch', None, None))
    normed = layers.RMSNorm(self.eps, self.dtype, name='attention_norm')(x)
    attended, cache = Attention(
      self.heads, self.kv_heads, self.scale, self.kernel, self.dtype, name='attention'
    )(normed, cache, layer, cos, sin, positions, segments)
    x = x + attended
    x = x + FeedForward(self.ffn, self.scale, self.dtype, name='feed_forward')(
      layers.RMSNorm(self.eps, self.dtype, name='ffn_norm')(x)
    )
    return (x, cache), None


class Attention(nn.Module):
  """Causal attention: within segments of a packed row, or over a cache that it also writes."""

  heads: int
  kv_heads: int
  scale: float
  kernel: str
  dtype: Any

  @nn.compact
  def __call__(self, x, cache, layer, cos, sin, positions, segments):
    batch, length, width = x.shape
    head = width // self.heads
    dense = lambda name, heads, names: layers.Dense(
      (heads * head,), names, bias=False, dtype=self.dtype, name=name
    )(x).reshape(batch, length, heads, head)
    query = rotate(dense('wq', self.heads, ('embed', 'heads')), cos, sin)
    key = rotate(dense('wk', self.kv_heads, ('embed', 'kv_heads')), cos, sin)
    value = dense('wv', self.kv_heads, ('embed', 'kv_heads'))
    if cache is None:
      x = attention.attend(query, key, value, segments=segments, kernel=self.kernel)
    else:
      cache = {
        'k': _write(cache['k'], layer, key, positions),
        'v': _write(cache['v'], layer, value, positions),
      }
      x = attention.attend(
        query, *(cache[name][layer].swapaxes(1, 2) for name in 'kv'), positions=positions
      )
    out = layers.Dense(
      (width,), ('heads', 'embed'), bias=False, scale=self.scale, dtype=self.dtype, name='wo'
    )
    return out(x.reshape(batch, length, width)), cache


def _write(slots: jax.Array, layer: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
  # `new` [B,T,K,C] goes to slots `positions` [B,T] of one layer of [layers,B,K,S,C], in place.
  rows = jnp.arange(new.shape[0])[:, None]
  return slots.at[layer, rows, :, positions].set(new.astype(slots.dtype), unique_indices=True)


class FeedForward(nn.Module):
  """w2(silu(w1 x) * w3 x)."""

  hidden: int
  scale: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = lambda name: layers.Dense(
      (self.hidden,), ('embed', 'ffn'), bias=False, dtype=self.dtype, name=name
    )(x)
    gated = jax.nn.silu(dense('w1')) * dense('w3')
    return layers.Dense(
      (x.shape[-1],), ('ffn', 'embed'), bias=False, scale=self.scale, dtype=self.dtype, name='w2'
    )(gated)


SIZES = {
  '1b': dict(vocab=32000, width=2048, layers=22, heads=32, kv_heads=4, multiple_of=256),
  '7b': dict(vocab=32000, width=4096, layers=32, heads=32, kv_heads=32, multiple_of=256),
  '13b': dict(vocab=32000, width=5120, layers=40, heads=40, kv_heads=40, multiple_of=256),
}


def _meta(settings: Any) -> list[foreign.Weight]:
  block = []
  for name in (
    'attention/wq',
    'attention/wk',
    'attention/wv',
    'attention/wo',
    'feed_forward/w1',
    'feed_forward/w2',
    'feed_forward/w3',
  ):
    block += foreign.linear(name, name.replace('/', '.'), bias=False)
  for name in ('attention_norm', 'ffn_norm'):
    block += foreign.tensor(f'{name}/scale', f'{name}.weight', 'd -> d')
  return [
    *foreign.tensor('embed', 'tok_embeddings.weight', 'v d -> v d'),
    *foreign.within('layers/', 'layers.{}.', block, range(settings['layers'])),
    *foreign.tensor('norm/scale', 'norm.weight', 'd -> d'),
    *foreign.linear('output', 'output', bias=False),
  ]


def _huggingface(settings: Any) -> list[foreign.Weight]:
  block = []
  # Their rotary embedding pairs channel i with i + C/2, ours (and Meta's) neighbours.
  for name, heads in (
    ('q', settings['heads']),
    ('k', settings.get('kv_heads') or settings['heads']),
  ):
    block += foreign.tensor(
      f'attention/w{name}/kernel',
      f'self_attn.{name}_proj.weight',
      '(h two c) i -> i (h c two)',
      h=heads,
      two=2,
    )
  for ours, theirs in (
    ('attention/wv', 'self_attn.v_proj'),
    ('attention/wo', 'self_attn.o_proj'),
    ('feed_forward/w1', 'mlp.gate_proj'),
    ('feed_forward/w2', 'mlp.down_proj'),
    ('feed_forward/w3', 'mlp.up_proj'),
  ):
    block += foreign.linear(ours, theirs, bias=False)
  for ours, theirs in (
    ('attention_norm', 'input_layernorm'),
    ('ffn_norm', 'post_attention_layernorm'),
  ):
    block += foreign.tensor(f'{ours}/scale', f'{theirs}.weight', 'd -> d')
  return [
    *foreign.tensor('embed', 'model.embed_tokens.weight', 'v d -> v d'),
    *foreign.within('layers/', 'model.layers.{}.', block, range(settings['layers'])),
    *foreign.tensor('norm/scale', 'model.norm.weight', 'd -> d'),
    *foreign.linear('output', 'lm_head', bias=False),
  ]


def _from_meta(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  heads, vocab = foreign.size(config, 'n_heads'), config.get('vocab_size', -1)
  return dict(
    vocab=vocab if vocab > 0 else shapes['tok_embeddings.weight'][0],  # Meta's own files say -1.
    width=foreign.size(config, 'dim'),
    layers=foreign.size(config, 'n_layers'),
    heads=heads,
    kv_heads=config.get('n_kv_heads') or heads,
    multiple_of=config.get('multiple_of', 256),
    ffn_multiplier=config.get('ffn_dim_multiplier'),
    norm_eps=config.get('norm_eps', 1e-5),
    rope_theta=float(config.get('rope_theta') or 10000.0),
    rope_scaling=config.get('rope_scaling'),
    max_length=config.get('max_seq_len', _CONTEXT),
  )


def _to_meta(settings: Mapping[str, Any]) -> dict[str, Any]:
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


def _from_huggingface(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  if 'lm_head.weight' not in shapes and config.get('tie_word_embeddings'):
    raise errors.make(
      'config.json',
      'tied embeddings (tie_word_embeddings)',
      'an output of its own, lm_head.weight',
      'LLaMA-2 has one; a model without it is not supported',
    )
  width, heads, hidden = (
    foreign.size(config, name)
    for name in ('hidden_size', 'num_attention_heads', 'intermediate_size')
  )
  rope = (
    config.get('rope_parameters') or config.get('rope_scaling') or {}
  )  # The newer name holds theta as well.
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind not in ('default', 'linear'):
    raise errors.make(
      'config.json',
      f"rope type '{kind}'",
      "'default' or 'linear'",
      'this rotary embedding is not supported',
    )
  sizes = dict(multiple_of=256, ffn_multiplier=None)
  if ffn_width(width, 256, None) != hidden:  # Then one multiple is the whole width.
    sizes = dict(multiple_of=hidden, ffn_multiplier=min(1.0, hidden / int(8 * width / 3)))
  return dict(
    vocab=foreign.size(config, 'vocab_size'),
    width=width,
    layers=foreign.size(config, 'num_hidden_layers'),
    heads=heads,
    kv_heads=config.get('num_key_value_heads') or heads,
    **sizes,
    norm_eps=config.get('rms_norm_eps', 1e-6),
    rope_theta=float(config.get('rope_theta') or rope.get('rope_theta') or 10000.0),
    rope_scaling=1 / foreign.field(rope, 'factor') if kind == 'linear' else None,
    max_length=config.get('max_position_embeddings', _CONTEXT),
  )


def _to_huggingface(settings: Mapping[str, Any]) -> dict[str, Any]:
  scaling = settings.get('rope_scaling')
  return dict(
    architectures=['LlamaForCausalLM'],
    model_type='llama',
    hidden_act='silu',
    tie_word_embeddings=False,
    attention_bias=False,
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
    rope_scaling=None
    if scaling is None
    else {'type': 'linear', 'rope_type': 'linear', 'factor': 1 / scaling},
    max_position_embeddings=settings.get('max_length', 2048),
    bos_token_id=1,
    eos_token_id=2,
  )


_CONTEXT = 4096  # LLaMA-2's, where a config does not say.

FORMS = {
  'meta': foreign.Form(
    'LLaMA as Meta names it',
    'tok_embeddings.weight',
    _meta,
    _from_meta,
    unused=(r'rope\.freqs',),
    config=_to_meta,
  ),
  'hf': foreign.Form(
    'LLaMA of HF transformers',
    'model.embed_tokens.weight',
    _huggingface,
    _from_huggingface,
    unused=(r'.*\.rotary_emb\.inv_freq',),
    config=_to_huggingface,
  ),
}
