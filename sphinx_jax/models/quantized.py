"""Matrices of frozen weights in 8 or 4 bits, and products with them.

In place of a kernel [in, ...], a layer has two arrays: codes, named after their form, and the
'kernel_scale' of every tile of `in`. The values are those of qwix (github.com/google/qwix): 'int8'
and 'int4' are whole numbers times a scale, 'nf4' are the 16 quantiles of QLoRA (arXiv 2305.14314)
times the largest value of the tile. Codes of 4 bits are stored in pairs as uint8.

A product widens a few columns or rows of the matrix at a time. It has a gradient with respect to x
alone. With 'int8_dynamic', which has the arrays of 'int8', a product rounds x to 8 bits too, every
row of a tile with a scale of its own, and a GPU or TPU multiplies 8-bit numbers.
"""

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.parallel import placement

SCALE = 'kernel_scale'
DYNAMIC = 'int8_dynamic'
_FEW = 16  # Most rows of x for which the rows of the weights are read in order.
_ROWS = 64  # Rows of a part of the matrix that few rows of x meet. It stays in the cache of a CPU.
# Most numbers of a part of the matrix: of a large product, and of few rows if tiles are odd.
_WIDE, _NARROW = 2**22, 2**17


class Form(NamedTuple):
  """How numbers become codes.

  Attributes:
    qtype: name for qwix.
    tile: rows of the matrix that share the scale of a column.
    levels: what codes stand for, from code 0 on; None: the codes themselves, as signed numbers.
    pairs: whether a byte has two codes.
  """

  qtype: Any
  tile: int
  levels: tuple[float, ...] | None
  pairs: bool


# Appendix E of QLoRA.
_NF4 = (
  *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
  *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
  *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
  *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
STORED = {  # The forms of checkpoints and of runs.
  'int8': Form(jnp.int8, 128, None, pairs=False),
  'int4': Form(jnp.int4, 64, None, pairs=True),
  'nf4': Form('nf4', 64, _NF4, pairs=True),
}
FORMS = {**STORED, DYNAMIC: STORED['int8']}


def form_of(leaves: Container[str]) -> str | None:
  """The form of the weights among the names of a layer's arrays; None: not quantized."""
  return next((name for name in FORMS if name in leaves), None)


def tile_of(width: int, form: str) -> int:
  """Rows of a matrix [width, ...] that share a scale: the most that divide, up to the form's.

  Raises:
    SphinxError: an odd width, for a form with two codes in a byte.
  """
  most = FORMS[form].tile
  tile = next(size for size in range(min(most, width), 0, -1) if width % size == 0)
  if FORMS[form].pairs and tile % 2:
    tile = next((size for size in range(tile, 1, -1) if width % size == 0 and size % 2 == 0), 0)
  if not tile:
    raise errors.make(
      f'weights in {form}', f'a matrix of {width} rows', 'an even number', 'leave this layer out'
    )
  return tile


def shapes(shape: Sequence[int], form: str) -> dict[str, jax.ShapeDtypeStruct]:
  """The arrays in place of a kernel of a shape [in, ...]."""
  width, *features = shape
  bytes_in = width // 2 if FORMS[form].pairs else width
  dtype = jnp.uint8 if FORMS[form].pairs else jnp.int8
  return {
    form: jax.ShapeDtypeStruct((bytes_in, *features), dtype),
    SCALE: jax.ShapeDtypeStruct((width // tile_of(width, form), *features), jnp.float32),
  }


def quantize(kernel: jax.Array, form: str) -> dict[str, jax.Array]:
  """The arrays in place of a kernel float[in, ...]."""
  import qwix  # Here, as it takes a second.

  width = kernel.shape[0]
  tile = tile_of(width, form)
  array = qwix.quantize(
    kernel.astype(jnp.float32),
    FORMS[form].qtype,
    channelwise_axes=range(1, kernel.ndim),
    tiled_axes={0: tile},
  )
  codes = array.qvalue
  if FORMS[form].pairs:
    # The halves of a tile share its bytes, so that any part of whole tiles can be widened alone.
    halves = codes.astype(jnp.uint8).reshape(width // tile, 2, tile // 2, *codes.shape[1:]) & 15
    codes = (halves[:, 0] | halves[:, 1] << 4).reshape(width // 2, *codes.shape[1:])
  return {form: codes, SCALE: array.scale}


def widen(leaves: Mapping[str, jax.Array], dtype: Any = jnp.float32) -> jax.Array:
  """The kernel [in, ...] of the arrays of whole tiles."""
  form = form_of(leaves)
  codes, scale = leaves[form], leaves[SCALE]
  tiles, *features = scale.shape
  values = _values(codes.reshape(tiles, -1, *features), form) * scale[:, None]
  return values.reshape(-1, *features).astype(dtype)


def _values(codes: jax.Array, form: str) -> jax.Array:
  """What the codes [tiles,n,...] of whole tiles stand for, float32[tiles,rows,...]."""
  if FORMS[form].pairs:
    # One shift for both halves. XLA:CPU takes ten times as long for a concatenation.
    halves = jnp.array([0, 4], jnp.uint8).reshape(1, 2, *[1] * (codes.ndim - 1))
    codes = (codes[:, None] >> halves & 15).reshape(len(codes), -1, *codes.shape[2:])
  levels = FORMS[form].levels
  if levels is None:
    if FORMS[form].pairs:  # The sign of 4 bits.
      codes = (codes << 4).astype(jnp.int8) >> 4
    return codes.astype(jnp.float32)
  # A tree of selections. A gather of single numbers is slow on every device.
  values = [jnp.float32(level) for level in levels]
  for bit in range(4):
    is_set = (codes & (1 << bit)) != 0
    values = [jnp.where(is_set, odd, even) for even, odd in zip(values[::2], values[1::2])]
  return values[0]


def matmul(
  x: jax.Array, leaves: Mapping[str, jax.Array], names: Sequence[str | None] = (None, None)
) -> jax.Array:
  """The product of x [rows,in] and a kernel [in,out].

  Args:
    x: in the compute dtype.
    leaves: the arrays of the kernel, from `quantize`.
    names: logical names of the kernel's dimensions.

  Returns:
    [rows,out] in the dtype of x.
  """
  ways = (
    placement.compute_ways(name) if size % placement.compute_ways(name) == 0 else 1
    for name, size in zip(names, leaves[SCALE].shape)
  )
  return _product(x, dict(leaves), tuple(ways))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, leaves: dict[str, jax.Array], ways: tuple[int, int]) -> jax.Array:
  """`matmul` of a kernel whose dimensions are split among so many devices."""
  if DYNAMIC in leaves:
    rounded = lambda x, leaves: _widening(_dequantized(x, leaves), leaves, ways)
    narrow = functools.partial(_narrow, ways=ways[1])
    return jax.lax.platform_dependent(x, leaves, cpu=rounded, default=narrow)
  return _widening(x, leaves, ways)


def _widening(x: jax.Array, leaves: dict[str, jax.Array], ways: tuple[int, int]) -> jax.Array:
  """A product with numbers as wide as those of x."""
  if len(x) > _FEW:
    return _by_columns(x, leaves, ways[1])
  whole = lambda x, leaves: x @ widen(leaves, x.dtype)
  if ways != (1, 1):
    return whole(x, leaves)
  return jax.lax.platform_dependent(x, leaves, cpu=_by_rows, default=whole)


def _rounded(x: jax.Array, leaves: Mapping[str, jax.Array]) -> Any:
  """x [rows,in] in 8 bits, as a QArray of qwix with a scale for every row and tile."""
  import qwix  # Here, as it takes a second.

  tile = x.shape[1] // len(leaves[SCALE])
  return qwix.quantize(x.astype(jnp.float32), jnp.int8, channelwise_axes=[0], tiled_axes={1: tile})


def _dequantized(x: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
  """x as 8 bits have it, where products of 8 bits are slow."""
  import qwix

  return qwix.dequantize(_rounded(x, leaves)).astype(x.dtype)


def _narrow(x: jax.Array, leaves: dict[str, jax.Array], ways: int) -> jax.Array:
  """The product of 8-bit numbers: whole sums of every tile, which their scales then meet."""
  import qwix

  rounded = _rounded(x, leaves)
  # A part has a sum for every tile.
  parts, cut = _parts(leaves, 1, ways, max(_WIDE // len(x), 1) * (x.shape[1] // len(leaves[SCALE])))

  def part(i: jax.Array) -> jax.Array:
    of_part = cut(i)
    weights = qwix.QArray(of_part[DYNAMIC], of_part[SCALE])
    return qwix.dot_general(rounded, weights, (([1], [0]), ([], []))).astype(x.dtype)

  return _filled(part, parts, ways)


def _by_rows(x: jax.Array, leaves: dict[str, jax.Array]) -> jax.Array:
  """The product of few rows: a sum over parts of `in`, which are read once and in order."""
  form = form_of(leaves)
  codes, scale = leaves[form], leaves[SCALE]
  tile = x.shape[1] // len(scale)
  if tile % _ROWS:
    return _by_tiles(x, leaves)
  parts, height = x.shape[1] // _ROWS, _ROWS * len(codes) // x.shape[1]
  cut = jax.lax.dynamic_slice_in_dim

  def add(i: jax.Array, total: jax.Array) -> jax.Array:
    part = _values(cut(codes, i * height, height)[None], form)[0].astype(x.dtype)
    # The scale is that of all these rows, so fewer numbers meet it after the product.
    return total + (cut(x, i * _ROWS, _ROWS, 1) @ part) * cut(scale, i * _ROWS // tile, 1)

  total = jnp.zeros((len(x), scale.shape[1]), jnp.float32)
  return jax.lax.fori_loop(0, parts, add, total).astype(x.dtype)


def _by_tiles(x: jax.Array, leaves: dict[str, jax.Array]) -> jax.Array:
  """`_by_rows` in parts of whole tiles."""
  parts, cut = _parts(leaves, 0, 1, _NARROW)
  if parts == 1:
    return x @ widen(leaves, x.dtype)
  columns = x.reshape(len(x), parts, -1)

  def add(i: jax.Array, total: jax.Array) -> jax.Array:
    return total + columns[:, i] @ widen(cut(i), x.dtype)

  zeros = jnp.zeros((len(x), leaves[SCALE].shape[1]), x.dtype)
  return jax.lax.fori_loop(0, parts, add, zeros)


def _by_columns(x: jax.Array, leaves: dict[str, jax.Array], ways: int) -> jax.Array:
  """The product of many rows, part by part of `out`."""
  parts, cut = _parts(leaves, 1, ways, _WIDE)
  return _filled(lambda i: x @ widen(cut(i), x.dtype), parts, ways)


def _forward(
  x: jax.Array, leaves: dict[str, jax.Array], ways: tuple[int, int]
) -> tuple[jax.Array, dict[str, jax.Array]]:
  return _product(x, leaves, ways), leaves


def _backward(
  ways: tuple[int, int], leaves: dict[str, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
  """The gradient of x, part by part of `in`. Weights have none."""
  parts, cut = _parts(leaves, 0, ways[0], _WIDE)
  of_x = _filled(lambda i: gradient @ widen(cut(i), gradient.dtype).T, parts, ways[0])
  of_codes = lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0)
  none = {name: of_codes(leaf) for name, leaf in leaves.items() if name != SCALE}
  return of_x, {**none, SCALE: jnp.zeros_like(leaves[SCALE])}


_product.defvjp(_forward, _backward)


def _parts(
  leaves: Mapping[str, jax.Array], axis: int, ways: int, most: int
) -> tuple[int, Callable[[jax.Array], dict[str, jax.Array]]]:
  """Cuts the arrays of a kernel into equal parts along a dimension.

  Every device has some of each part, as the dimension is split among `ways` devices.

  Returns:
    The number of parts, and a function of the index of one that returns its arrays. Parts have at
    most that many numbers if the dimension can be divided so.
  """
  tiles, features = leaves[SCALE].shape
  form = form_of(leaves)
  rows = leaves[form].shape[0] // tiles * (2 if FORMS[form].pairs else 1)
  whole = leaves[SCALE].shape[axis] // ways
  size = rows * tiles * features // ways
  parts = next(
    n for n in range(1, whole + 1) if whole % n == 0 and (size <= n * most or n == whole)
  )

  def cut(i: jax.Array) -> dict[str, jax.Array]:
    if parts == 1:
      return dict(leaves)
    return {name: _slice(leaf, axis, ways, parts, i) for name, leaf in leaves.items()}

  return parts, cut


def _slice(leaf: jax.Array, axis: int, ways: int, parts: int, i: jax.Array) -> jax.Array:
  """Part i of an array [a,b] along an axis, of what each of `ways` devices has."""
  before, size, after = leaf.shape[:axis], leaf.shape[axis], leaf.shape[axis + 1 :]
  of_devices = leaf.reshape(*before, ways, parts, size // ways // parts, *after)
  part = jax.lax.dynamic_index_in_dim(of_devices, i, axis + 1, keepdims=False)
  return part.reshape(*before, -1, *after)


def _filled(part: Callable[[jax.Array], jax.Array], parts: int, ways: int) -> jax.Array:
  """Parts [rows,n] side by side, where `_slice` had taken them: [rows,parts*n]."""
  if parts == 1:  # A loop takes longer to compile.
    return part(0)
  shape = jax.eval_shape(part, jnp.int32(0))
  rows, columns = shape.shape

  def fill(i: jax.Array, out: jax.Array) -> jax.Array:
    return out.at[:, :, i].set(part(i).reshape(rows, ways, -1))

  out = jnp.zeros((rows, ways, parts, columns // ways), shape.dtype)
  return jax.lax.fori_loop(0, parts, fill, out).reshape(rows, -1)
