"""Products of groups of rows with a matrix each, as the experts of a mixture take them.

Rows are sorted by group. One function, `product`, computes with a kernel chosen by name; 'loop' is
the reference for the others.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors, tables
from sphinx_jax.models import narrow, quantized

KERNELS = tables.Table(
  'kernel of grouped products',
  {
    'blocks': 'sphinx_jax.models.grouped:by_blocks',  # CPU
    'ragged': 'sphinx_jax.models.grouped:ragged',  # GPU and TPU
    'loop': 'sphinx_jax.models.grouped:loop',
  },
)
AUTO = 'auto'
KERNEL = 'kernel'
Leaves = Mapping[str, jax.Array]

_FEW = 16  # Most rows for which only the matrices of groups with rows are read, tile by tile.
_TILE = 128  # Rows of such a tile.
_BLOCK = 128  # Most rows of a group that are multiplied at once.


def choose(kernel: str, platform: str) -> str:
  """Resolves a config's kernel name for a platform.

  Args:
    kernel: name in `KERNELS`, or 'auto': blocks on a CPU, where XLA expands a ragged product to one
      with every matrix; ragged elsewhere.
    platform: 'cpu', 'gpu' or 'tpu'.

  Raises:
    SphinxError: an unknown name.
  """
  if kernel == AUTO:
    return 'blocks' if platform == 'cpu' else 'ragged'
  if kernel not in KERNELS:
    raise errors.unknown('kernel of grouped products', kernel, KERNELS)
  return kernel


def slack(rows: int, kernel: str) -> int:
  """Rows behind those of all groups that a kernel writes to; `product` adds those that lack."""
  return _BLOCK if kernel == 'blocks' and rows > _FEW else 0


def product(
  x: jax.Array, leaves: Leaves, sizes: jax.Array, kernel: str, spare: int = 0
) -> jax.Array:
  """The product of every row with the matrix of its group.

  Args:
    x: [rows,in], sorted by group: the first sizes[0] rows are of the first group.
    leaves: 'kernel' [groups,in,out] in the dtype of x or as its bits (models/narrow.py), or the
      arrays of a quantized form (models/quantized.py), each with the groups in front.
    sizes: int32[groups], rows of each group. There may be groups without rows, and rows beyond the
      last group.
    kernel: name in `KERNELS`.
    spare: rows at the end of x that are of no group, whatever the sizes.

  Returns:
    [rows,out] in the dtype of x. Rows beyond the last group are undefined, and so is the gradient
    that they get.
  """
  missing = max(slack(len(x) - spare, kernel) - spare, 0)
  if not missing:
    return KERNELS[kernel](x, dict(leaves), sizes)
  padded = jnp.pad(x, ((0, missing), (0, 0)))
  return KERNELS[kernel](padded, dict(leaves), sizes)[: len(x)]


def loop(x: jax.Array, leaves: Leaves, sizes: jax.Array) -> jax.Array:
  """The reference: all rows times every matrix. Arguments as of `product`."""
  ends = jnp.cumsum(sizes)
  row = jnp.arange(len(x))[:, None]
  parts = []
  for group in range(len(sizes)):
    matrix = {name: leaf[group] for name, leaf in leaves.items()}
    is_in = (row >= ends[group] - sizes[group]) & (row < ends[group])
    parts.append(jnp.where(is_in, _multiply(x, matrix), 0))
  return functools.reduce(jnp.add, parts)


def ragged(x: jax.Array, leaves: Leaves, sizes: jax.Array) -> jax.Array:
  """`jax.lax.ragged_dot`. Arguments as of `product`; quantized matrices are widened before it."""
  if quantized.form_of(leaves):
    kernel = jax.vmap(functools.partial(quantized.widen, dtype=x.dtype))(leaves)
  else:
    kernel = narrow.widen(leaves[KERNEL])
  return jax.lax.ragged_dot(x, kernel, sizes)


@functools.partial(jax.custom_vjp)
def by_blocks(x: jax.Array, leaves: dict[str, jax.Array], sizes: jax.Array) -> jax.Array:
  """Group after group, in blocks of rows. Arguments as of `product`, with `slack` spare rows.

  A block may reach into the next group, whose rows are computed later and replace it. So the work
  exceeds that of the rows by less than one block for each group. Of few rows, only the matrices of
  groups with rows are read.
  """
  if len(x) <= _FEW:
    return _few_rows(x, leaves, sizes)
  width = leaves[quantized.SCALE if quantized.form_of(leaves) else KERNEL].shape[2]

  def of_group(group: jax.Array, out: jax.Array) -> jax.Array:
    matrix = _one(leaves, group)
    of_block = lambda block, out: _put(out, _multiply(block.cut(x), matrix), block)
    return _each_block(sizes, size, group, of_block, out)

  size = _block_size(x, sizes)
  return jax.lax.fori_loop(0, len(sizes), of_group, jnp.zeros((len(x), width), x.dtype))


def _forward(x: Any, leaves: dict[str, Any], sizes: Any) -> tuple[jax.Array, tuple]:
  held = {name: leaf.value for name, leaf in leaves.items()}
  # The structure of a tree is known while the gradient is traced: None is a frozen matrix.
  trained = () if KERNEL in leaves and leaves[KERNEL].perturbed else None
  return by_blocks(x.value, held, sizes.value), (x.value, held, sizes.value, trained)


def _backward(kept: tuple, gradient: jax.Array) -> tuple:
  x, leaves, sizes, trained = kept
  size = _block_size(x, sizes)
  if len(x) <= _FEW:
    rows = len(x)
    x, gradient = (jnp.pad(a, ((0, size), (0, 0))) for a in (x, gradient))
    of_x, *others = _backward((x, leaves, sizes, trained), gradient)
    return of_x[:rows], *others

  def of_group(group: jax.Array, totals: tuple) -> tuple:
    of_x, of_kernels = totals
    matrix = _one(leaves, group)

    def of_block(block: _Block, totals: tuple) -> tuple:
      of_x, of_kernel = totals
      rows, own = block.cut(x), block.cut(gradient)
      (part,) = jax.vjp(lambda rows: _multiply(rows, matrix), rows)[1](own)
      of_x = _put(of_x, part, block)
      if trained is not None:
        own = jnp.where(block.is_in(size), own, 0)
        of_kernel += jnp.matmul(rows.T, own, preferred_element_type=jnp.float32)
      return of_x, of_kernel

    of_kernel = None
    if trained is not None:
      of_kernel = jnp.zeros(matrix[KERNEL].shape, jnp.float32)
    of_x, of_kernel = _each_block(sizes, size, group, of_block, (of_x, of_kernel))
    if trained is not None:
      part = of_kernel.astype(of_kernels.dtype)
      of_kernels = jax.lax.dynamic_update_index_in_dim(of_kernels, part, group, 0)
    return of_x, of_kernels

  of_kernels = None if trained is None else jnp.zeros_like(leaves[KERNEL])
  zeros = jnp.zeros_like(x)
  of_x, of_kernels = jax.lax.fori_loop(0, len(sizes), of_group, (zeros, of_kernels))
  none = {name: _no_gradient(leaf) for name, leaf in leaves.items()}
  of_leaves = none if trained is None else {KERNEL: of_kernels}
  return of_x, of_leaves, _no_gradient(sizes)


by_blocks.defvjp(_forward, _backward, symbolic_zeros=True)


class _Block(NamedTuple):
  """Some rows of a group.

  Attributes:
    start: the first of them.
    count: rows of the group from there on.
    size: rows of the block, which may reach beyond the group.
  """

  start: jax.Array
  count: jax.Array
  size: int

  def cut(self, x: jax.Array) -> jax.Array:
    """Its rows of x."""
    return jax.lax.dynamic_slice_in_dim(x, self.start, self.size)

  def is_in(self, size: int) -> jax.Array:
    """bool[size,1]: whether a row is one of the group."""
    return (jnp.arange(size) < self.count)[:, None]


def _each_block(sizes: jax.Array, size: int, group: jax.Array, body: Any, carry: Any) -> Any:
  """Runs `body(block, carry)` for all blocks of a group."""
  start = jnp.cumsum(sizes)[group] - sizes[group]

  def step(i: jax.Array, carry: Any) -> Any:
    return body(_Block(start + i * size, sizes[group] - i * size, size), carry)

  return jax.lax.fori_loop(0, -(-sizes[group] // size), step, carry)


def _put(out: jax.Array, part: jax.Array, block: _Block) -> jax.Array:
  return jax.lax.dynamic_update_slice_in_dim(out, part, block.start, 0)


def _block_size(x: jax.Array, sizes: jax.Array) -> int:
  """Rows of a block: half of a mean group, as a power of 2."""
  half = max(len(x) // len(sizes) // 2, 1)
  return min(max(1 << (half.bit_length() - 1), _FEW), _BLOCK)


def _few_rows(x: jax.Array, leaves: Leaves, sizes: jax.Array) -> jax.Array:
  """All rows times the matrix of every group that has rows."""
  ends = jnp.cumsum(sizes)
  row = jnp.arange(len(x))[:, None]
  present = jnp.argsort(sizes == 0, stable=True)

  def add(i: jax.Array, out: jax.Array) -> jax.Array:
    group = present[i]
    is_in = (row >= ends[group] - sizes[group]) & (row < ends[group])
    return jnp.where(is_in, _tiled(x, leaves, group), out)

  out = jax.eval_shape(_tiled, x, leaves, jnp.int32(0))
  zeros = jnp.zeros(out.shape, out.dtype)
  return jax.lax.fori_loop(0, (sizes > 0).sum(), add, zeros)


def _tiled(x: jax.Array, leaves: Leaves, group: jax.Array) -> jax.Array:
  """x [rows,in] times the matrix of one group, which is read once, tile by tile, and in order."""
  if quantized.form_of(leaves):
    return quantized.matmul(x, _one(leaves, group))
  kernels = leaves[KERNEL]
  width, out = kernels.shape[1:]
  tile = next(size for size in range(min(_TILE, width), 0, -1) if width % size == 0)

  def add(i: jax.Array, total: jax.Array) -> jax.Array:
    part = jax.lax.dynamic_slice(kernels, (group, i * tile, 0), (1, tile, out))[0]
    rows = jax.lax.dynamic_slice_in_dim(x, i * tile, tile, 1)
    return total + jnp.matmul(rows, narrow.widen(part), preferred_element_type=jnp.float32)

  zeros = jnp.zeros((len(x), out), jnp.float32)
  return jax.lax.fori_loop(0, width // tile, add, zeros).astype(x.dtype)


def _multiply(x: jax.Array, matrix: Leaves) -> jax.Array:
  """The product of x [rows,in] with one matrix."""
  if quantized.form_of(matrix):
    return quantized.matmul(x, matrix)
  kernel = matrix[KERNEL]
  return (narrow.matmul if kernel.dtype == narrow.BITS else jnp.matmul)(x, kernel)


def _one(leaves: Leaves, group: jax.Array) -> dict[str, jax.Array]:
  """The arrays of one matrix."""
  return {
    name: jax.lax.dynamic_index_in_dim(leaf, group, keepdims=False) for name, leaf in leaves.items()
  }


def _no_gradient(leaf: jax.Array) -> Any:
  if jnp.issubdtype(leaf.dtype, jnp.floating):
    return jnp.zeros_like(leaf)
  return np.zeros(leaf.shape, jax.dtypes.float0)
