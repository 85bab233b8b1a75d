"""Layers that all parts of the model share. Parameters get their logical names here.

Logical names of dimensions, which `parallel/rules.py` maps to mesh axes:

    layers                                                    scanned layers
    vocab, lookup, embed, heads, kv_heads, ffn                language model
    encoder_embed, encoder_heads, encoder_ffn, encoder_out    encoders
    visual                                                    input of the projections
    experts, expert_embed                                     experts of a mixture, and their input

A dimension named None is never sharded.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from sphinx_jax.core import errors
from sphinx_jax.models import adapters, narrow, quantized
from sphinx_jax.parallel import placement, rules

Names = tuple[str | None, ...]


class Noise(NamedTuple):
  """What training adds to a forward pass, with the random keys that `apply` gets.

  Attributes:
    dropout: share of the inputs of adapters that is 0, with the key 'dropout'.
    neftune: noise on embeddings (arXiv 2310.05914), with the key 'neftune'.
  """

  dropout: float = 0.0
  neftune: float = 0.0


QUIET = Noise()
_noise: contextvars.ContextVar[Noise] = contextvars.ContextVar('noise', default=QUIET)


@contextlib.contextmanager
def noisy(noise: Noise) -> Iterator[None]:
  """A context in which modules are traced with noise, if they get random keys."""
  token = _noise.set(noise)
  try:
    yield
  finally:
    _noise.reset(token)


def dropout() -> float:
  """Share of the inputs of adapters that is 0, in this context."""
  return _noise.get().dropout


def neftune(module: nn.Module, embeddings: jax.Array, segments: jax.Array) -> jax.Array:
  """Adds uniform noise of up to alpha / sqrt(L * D) to embeddings, L the positions of an example.

  Args:
    module: the module that may have the random key.
    embeddings: [B,T,D].
    segments: int32[B,T] of packed rows.
  """
  alpha = _noise.get().neftune
  if not alpha or not module.has_rng('neftune'):
    return embeddings
  same = segments[:, :, None] == segments[:, None, :]
  bound = alpha / jnp.sqrt(same.sum(axis=-1) * embeddings.shape[-1])
  noise = jax.random.uniform(module.make_rng('neftune'), embeddings.shape, minval=-1, maxval=1)
  return embeddings + (bound[..., None] * noise).astype(embeddings.dtype)


GRAMS = 'grams'  # Collection of the Gram matrices of the inputs of every `Dense`.
_counted: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar('counted', default=None)


@contextlib.contextmanager
def counted(mask: jax.Array | None) -> Iterator[None]:
  """A context in which Gram matrices leave out padding.

  Args:
    mask: bool[...], of the leading dimensions of the inputs of every `Dense` in the context, or of
      the first of them: [B] or [B,T] of inputs [B,T,in]. None: nothing is padding.
  """
  token = _counted.set(mask)
  try:
    yield
  finally:
    _counted.reset(token)


def gram_names(name: str | None) -> tuple[str | None, str | None]:
  """Logical names of a Gram matrix of inputs with this name: all mesh axes split it in storage."""
  if name is None:
    return None, None
  return name, 'heads' if 'fsdp' in rules.RULES[name].storage else 'embed'


_shapes_only = contextvars.ContextVar('shapes_only', default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
  """A context in which modules that are initialized get zeros, as only shapes are looked at.

  Tracing random initializers takes half of the time of `jax.eval_shape`.
  """
  token = _shapes_only.set(True)
  try:
    yield
  finally:
    _shapes_only.reset(token)


def fan_in(axes: int = 1, scale: float = 1.0) -> Callable:
  """Normal initializer with deviation `scale` / sqrt(product of the first `axes` dimensions)."""

  def init(rng: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(rng, shape, dtype) * (scale / math.sqrt(math.prod(shape[:axes])))

  return init


def sincos_2d(prefix: int) -> Callable:
  """Initializer of learned position embeddings [prefix + G*G, E].

  They start as sines and cosines of row and column, with zeros for the prefix. Models learn to
  localize sooner from ordered positions than from random ones.
  """

  def init(rng: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    del rng
    cells, width = shape[0] - prefix, shape[1]
    side = math.isqrt(cells)
    bands = -(-width // 4)
    # Half periods from one cell up to the whole side.
    frequency = np.pi * side ** (-np.arange(bands) / bands)
    angle = (np.arange(side) + 0.5)[:, None] * frequency
    wave = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    rows, columns = np.repeat(wave, side, axis=0), np.tile(wave, (side, 1))
    table = np.stack([rows, columns], axis=-1).reshape(cells, -1)[:, :width]
    return jnp.asarray(np.concatenate([np.zeros((prefix, width)), table]), dtype)

  return init


def param(
  module: nn.Module,
  name: str,
  init: Callable,
  shape: Sequence[int],
  names: Names,
  dtype: Any = jnp.float32,
  keep_bits: bool = False,
) -> jax.Array:
  """Makes a float32 parameter.

  Args:
    module: the module that owns it.
    name: its name in the module.
    init: initializer (rng, shape, dtype) -> array.
    shape: its shape.
    names: logical names of its dimensions.
    dtype: of the returned value.
    keep_bits: whether a value that is given as its bits (models/narrow.py) stays so.

  Returns:
    The value in `dtype` and in the compute sharding.
  """
  if module.has_variable('params', name):
    # Flax would trace the initializer to learn the shape, a fifth of the time of tracing an update.
    value = nn.unbox(module.get_variable('params', name))
    check_shape((*module.path, name), value.shape, shape)
  else:
    init = nn.with_logical_partitioning(
      nn.initializers.zeros if _shapes_only.get() else init, names
    )
    value = module.param(name, init, tuple(shape), jnp.float32)
  if value.dtype == narrow.BITS:
    if keep_bits:
      return value
    value = narrow.widen(value)
  # Casting first makes the all-gather smaller.
  return placement.gather(value.astype(dtype), names)


def check_shape(path: Sequence[str], got: Sequence[int], expected: Sequence[int]) -> None:
  """Raises SphinxError if a parameter has another shape."""
  if tuple(got) != tuple(expected):
    raise errors.make(
      f"parameter '{'/'.join(path)}'",
      f'shape {list(got)}',
      f'{list(expected)}',
      'give the config with which the weights were made',
    )


class Dense(nn.Module):
  """x[..., in] @ kernel[in, *features] (+ bias): [..., *features].

  Its parameters may have a quantized form in place of the kernel (models/quantized.py), and an
  adapter beside it (models/adapters.py).

  The product is taken on 2-D shapes: XLA:CPU computes weight gradients of higher ranks 4x slower
  (docs/official_sphinx.md, "Measured").

  Attributes:
    features: output dimensions.
    names: logical names of the kernel's dimensions: the input, then the features.
    bias: whether there is one.
    scale: scale of the initial deviation; residual outputs start smaller.
    dtype: compute dtype.

  Raises:
    SphinxError: (when called) a dimension is 0.
  """

  features: tuple[int, ...]
  names: Names
  bias: bool = True
  scale: float = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    if 0 in self.features:
      raise errors.make(
        f"layer '{'/'.join(self.path)}'",
        f'{self.features} features',
        'at least 1',
        'raise the width that the model config gives it',
      )
    flat = x.astype(self.dtype).reshape(-1, width)
    if self.is_mutable_collection(GRAMS) and not self.is_initializing():
      self._record_gram(flat)
    held = self.variables.get('params', {})
    if quantized.form_of(held):
      product = self._quantized_product(flat)
    else:
      kernel = self._kernel(width, keep_bits=True).reshape(width, -1)
      product = (narrow.matmul if kernel.dtype == narrow.BITS else jnp.matmul)(flat, kernel)
    if adapters.A in held:
      product += self._adapted(flat)
    out = product.reshape(*x.shape[:-1], *self.features)
    if self.bias:
      out += param(self, 'bias', nn.initializers.zeros, self.features, self.names[1:], self.dtype)
    return out

  def _record_gram(self, x: jax.Array) -> None:
    """Adds float32[in,in], the sum of the outer products of inputs x [rows,in], to `GRAMS`."""
    mask = _counted.get()
    if mask is not None:
      x = jnp.where(jnp.repeat(mask.reshape(-1), len(x) // mask.size)[:, None], x, 0)
    gram = jnp.einsum(
      'ri,rj->ij', x, x, preferred_element_type=jnp.float32, precision=jax.lax.Precision.HIGHEST
    )
    gram = placement.constrain(gram, gram_names(self.names[0]), compute=False)
    add = lambda before, new: new if before is None else before + new  # Several calls of one layer.
    self.sow(GRAMS, adapters.KERNEL, gram, init_fn=lambda: None, reduce_fn=add)

  def _held(self, name: str) -> jax.Array:
    """An array in place of the kernel or beside it."""
    return nn.unbox(self.get_variable('params', name))

  def _quantized_product(self, x: jax.Array) -> jax.Array:
    """The product of x [rows,in] with the quantized kernel [in,features]."""
    form = quantized.form_of(self.variables['params'])
    leaves = {name: self._held(name) for name in (form, quantized.SCALE)}
    for name, shape in quantized.shapes((x.shape[1], *self.features), form).items():
      self._check_shape(name, leaves[name], shape.shape)
    # Of several feature dimensions none is split: `reshape` would move them between devices.
    names = self.names if len(self.features) == 1 else (self.names[0], None)
    flat = {
      name: placement.constrain(leaf, self.names).reshape(leaf.shape[0], -1)
      for name, leaf in leaves.items()
    }
    return checkpoint_name(quantized.matmul(x, flat, names), 'product')

  def _adapted(self, x: jax.Array) -> jax.Array:
    """What the adapter (models/adapters.py) adds to the product of x [rows,in]."""
    a, b, scale = self._adapter(x.shape[1])
    if dropout() and self.has_rng('dropout'):
      kept = jax.random.bernoulli(self.make_rng('dropout'), 1 - dropout(), x.shape)
      x = jnp.where(kept, x / (1 - dropout()), 0)
    return (x @ a) @ b.reshape(len(b), -1) * scale

  def _adapter(self, width: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The arrays of the adapter in `dtype`."""
    a, b, scale = (self._held(name) for name in adapters.LEAVES)
    self._check_shape(adapters.A, a, (width, a.shape[-1]))
    self._check_shape(adapters.B, b, (a.shape[-1], *self.features))
    a = placement.gather(a.astype(self.dtype), (self.names[0], None))
    b = placement.gather(b.astype(self.dtype), (None, *self.names[1:]))
    return a, b, scale.astype(self.dtype)

  def _check_shape(self, name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    check_shape((*self.path, name), array.shape, shape)

  def matrix(self, width: int) -> jax.Array | adapters.Adapted:
    """The kernel [width,*features] in `dtype`, with its adapter if it has one."""
    kernel = self._kernel(width)
    if adapters.A not in self.variables.get('params', {}):
      return kernel
    a, b, scale = self._adapter(width)
    return adapters.Adapted(kernel, a, b * scale)

  def _kernel(self, width: int, keep_bits: bool = False) -> jax.Array:
    """The kernel [width,*features] in `dtype`; `keep_bits` as of `param`."""
    shape = width, *self.features
    init = fan_in(scale=self.scale)
    return param(self, 'kernel', init, shape, self.names, self.dtype, keep_bits)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
  """Splits the last dimension among attention heads: [..., heads * D] -> [..., heads, D].

  Raises:
    SphinxError: the heads do not divide it.
  """
  width = x.shape[-1]
  if width % heads:
    raise errors.make(
      'attention of an encoder',
      f'width {width} and {heads} heads',
      'a multiple',
      'change one of them',
    )
  return x.reshape(*x.shape[:-1], heads, width // heads)


class LayerNorm(nn.Module):
  """Layer norm over the last dimension. Computes in float32, returns `dtype`."""

  eps: float
  name_axis: str = 'encoder_embed'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = param(self, 'scale', nn.initializers.ones, x.shape[-1:], (self.name_axis,))
    bias = param(self, 'bias', nn.initializers.zeros, x.shape[-1:], (self.name_axis,))
    x = x.astype(jnp.float32)
    x -= x.mean(axis=-1, keepdims=True)
    x *= jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
    return (x * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
  """Root-mean-square norm over the last dimension. Computes in float32, returns `dtype`."""

  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = param(self, 'scale', nn.initializers.ones, x.shape[-1:], ('embed',))
    x = x.astype(jnp.float32)
    x *= jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
    return (x * scale).astype(self.dtype)


class PatchEmbed(nn.Module):
  """A convolution with stride = size, as one matrix product.

  [B,Y,X,3] -> [B,Y/patch,X/patch,features]. Pixels beyond the last whole patch are left out.
  """

  patch: int
  features: int
  bias: bool = True
  name_in: str | None = None
  name_out: str = 'encoder_embed'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    patch, rows, columns = self.patch, height // self.patch, width // self.patch
    kernel = param(
      self,
      'kernel',
      fan_in(axes=3),
      (patch, patch, channels, self.features),
      (None, None, self.name_in, self.name_out),
      self.dtype,
    )
    x = x[:, : rows * patch, : columns * patch].astype(self.dtype)
    x = x.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
    out = x.reshape(batch * rows * columns, -1) @ kernel.reshape(-1, self.features)
    out = out.reshape(batch, rows, columns, -1)
    if self.bias:
      out += param(
        self, 'bias', nn.initializers.zeros, (self.features,), (self.name_out,), self.dtype
      )
    return out


class GatedMlp(nn.Module):
  """w2(silu(w1 x) * w3 x), without biases: [...,D] -> [...,width].

  Attributes:
    hidden: hidden features.
    scale: scale of the initial deviation of w2.
    dtype: compute dtype.
    names: logical names of the input and the hidden features.
    width: output features; None: as many as the input has.
  """

  hidden: int
  scale: float
  dtype: Any
  names: tuple[str, str] = ('encoder_embed', 'encoder_ffn')
  width: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = lambda name: Dense((self.hidden,), self.names, bias=False, dtype=self.dtype, name=name)
    w1, w3 = dense('w1'), dense('w3')
    w2 = Dense(
      (self.width or x.shape[-1],),
      self.names[::-1],
      bias=False,
      scale=self.scale,
      dtype=self.dtype,
      name='w2',
    )
    gate, value = (checkpoint_name(product(x), 'mlp') for product in (w1, w3))
    return w2(jax.nn.silu(gate) * value)


def activate(name: str, x: jax.Array) -> jax.Array:
  """Applies 'gelu' (exact, with erf), 'gelu_tanh' or 'quick_gelu' (x * sigmoid(1.702 x))."""
  if name == 'quick_gelu':
    return x * jax.nn.sigmoid(1.702 * x)
  return jax.nn.gelu(x, approximate=name == 'gelu_tanh')


# Policies of what is saved for the backward pass, from the one that recomputes least on. Attention
# kernels name their output 'attention', gated MLPs their first two products 'mlp', products with
# quantized weights theirs 'product'.
_policies = jax.checkpoint_policies
_attention = _policies.save_only_these_names('attention')
_dots = _policies.save_from_both_policies(
  _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names('product')
)
REMAT = {
  'none': None,
  'dots_attention': _policies.save_from_both_policies(_dots, _attention),
  'dots': _dots,
  'mlp': _policies.save_only_these_names('mlp'),
  'attention': _attention,
  'full': _policies.nothing_saveable,
}


def stack(
  module: nn.Module,
  layer: type[nn.Module],
  length: int,
  unroll: int,
  remat: str,
  scanned: int = 0,
  broadcast: int = 0,
  records: Sequence[str] = (),
) -> Callable:
  """Scans a layer `length` times over stacked parameters.

  Args:
    module: the module that owns the stack.
    layer: a module called as (x, *scanned, *broadcast) -> (x, out).
    length: number of layers.
    unroll: layers in one loop iteration.
    remat: name in `REMAT`. 'none' saves all activations of a layer for the backward pass, 'full'
      recomputes them, 'dots' saves the outputs of products with weights, 'mlp' those of the first
      two of a gated MLP, 'attention' that of attention, 'dots_attention' both.
    scanned: number of arguments with a leading layer axis.
    broadcast: number of arguments that every layer gets whole.
    records: collections in which a layer stores values, which are stacked.

  Returns:
    Constructor of modules called as (x, *scanned, *broadcast) -> (x, stacked outs).

  Raises:
    SphinxError: `remat` is unknown.
  """
  if remat not in REMAT:
    raise errors.unknown('model.remat', remat, REMAT)
  if remat != 'none':
    layer = nn.remat(layer, prevent_cse=False, policy=REMAT[remat])
  return nn.scan(
    layer,
    variable_axes=dict.fromkeys(('params', GRAMS, *records), 0),
    split_rngs={'params': True, 'dropout': True},
    in_axes=(0,) * scanned + (nn.broadcast,) * broadcast,
    length=length,
    unroll=min(unroll, length),
    # The check traces a layer a second time. Fresh weights depend on it, no other result does.
    check_constancy_invariants=module.is_initializing() and not _shapes_only.get(),
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )


def compiler_options() -> dict[str, str]:
  """Options of `jax.jit` for a forward pass over scanned layers with parameters stored in bfloat16.

  XLA:CPU cannot slice bfloat16. It widens the stack of all layers to float32 and moves that out of
  the loop: a copy of the whole model at every call. Without this motion, only one layer at a time
  is widened. Other backends need no options.
  """
  if jax.default_backend() != 'cpu':
    return {}
  return {'xla_disable_hlo_passes': 'while-loop-invariant-code-motion'}
