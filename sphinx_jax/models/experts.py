"""A mixture of experts in place of a feed-forward layer: a router, and gated MLPs.

Every position is computed by the experts that the router chooses for it, however many choose the
same one: nothing is dropped. Source: docs/official_sphinx.md, "Mixture of experts".
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sphinx_jax.core import errors
from sphinx_jax.models import adapters, grouped, layers, quantized
from sphinx_jax.parallel import placement, rules

ROUTER = 'router'  # Collection of what training takes from every router.
CHOICES = 'choices'  # Collection of the choices themselves.
MORE_ROUNDS = 'more_rounds'  # Scope of loops that an even choice does not enter.
_NAMES = ('experts', 'expert_embed', 'ffn')
# Rows that a device sends to another one at a time, over those of an even choice.
ROOM = 1.25
Matrices = Mapping[str, Mapping[str, jax.Array]]  # 'w1', 'w2', 'w3' -> arrays of `Stack`.


class Routes(NamedTuple):
  """The choices of a router.

  Attributes:
    index: int32[B,T,k], the chosen experts, the likeliest first.
    weight: float32[B,T,k], their shares of the output; each sum is 1.
    probabilities: float32[B,T,experts].
  """

  index: jax.Array
  weight: jax.Array
  probabilities: jax.Array


def route(logits: jax.Array, per_token: int) -> Routes:
  """Chooses the likeliest experts of logits float32[B,T,experts]. Of equal ones, the first."""
  probabilities = jax.nn.softmax(logits.astype(jnp.float32))
  chosen, index = jax.lax.top_k(probabilities, per_token)
  return Routes(index, chosen / chosen.sum(axis=-1, keepdims=True), probabilities)


def balance(routes: Routes, counted: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """The balancing loss of a layer, and the share of the choices that each expert gets.

  The loss is experts * sum(share * mean probability): 1 if all experts get as much. Its gradient is
  that of the probabilities.

  Args:
    routes: of all positions.
    counted: bool[B,T], the positions that count; None: all.

  Returns:
    float32[] and float32[experts].
  """
  experts = routes.probabilities.shape[-1]
  mask = jnp.ones(routes.index.shape[:2]) if counted is None else counted.astype(jnp.float32)
  positions = jnp.maximum(mask.sum(), 1)
  # Chosen by comparison: a scatter would add in no fixed order on a GPU.
  chosen = (routes.index[..., None] == jnp.arange(experts)).astype(jnp.float32).sum(axis=-2)
  share = jnp.einsum('bt,btx->x', mask, chosen) / (positions * routes.index.shape[-1])
  mean = jnp.einsum('bt,btx->x', mask, routes.probabilities) / positions
  return experts * (jax.lax.stop_gradient(share) * mean).sum(), share


class Experts(nn.Module):
  """The layer: [B,T,D] -> [B,T,D].

  Attributes:
    hidden: F, hidden features of an expert.
    experts: number of experts.
    per_token: experts of a position, k.
    scale: scale of the initial deviation of w2.
    kernel: name in `grouped.KERNELS`.
    count_padding: whether padding counts in the balancing loss, as in the official code.
    dtype: compute dtype of the experts. The router computes in float32.
  """

  hidden: int
  experts: int
  per_token: int
  scale: float
  kernel: str
  count_padding: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    # Its dimensions have no names: it has no adapter, is never quantized, and is not split.
    gate = layers.Dense((self.experts,), (None, None), bias=False, dtype=jnp.float32, name='gate')
    logits = gate(x)
    routes = route(logits, self.per_token)
    if self.is_mutable_collection(ROUTER):
      counted = None if self.count_padding or segments is None else segments > 0
      loss, share = balance(routes, counted)
      self._record(ROUTER, 'balance', loss)
      self._record(ROUTER, 'share', share)
    for name, value in (('logits', logits), ('index', routes.index), ('weight', routes.weight)):
      self._record(CHOICES, name, value)
    width = x.shape[-1]
    stack = lambda name, shape, names, scale=1.0: Stack(
      (self.experts, *shape), names, scale, self.dtype, name=name
    )()
    matrices = {
      'w1': stack('w1', (width, self.hidden), _NAMES),
      'w2': stack('w2', (self.hidden, width), (_NAMES[0], *_NAMES[:0:-1]), self.scale),
      'w3': stack('w3', (width, self.hidden), _NAMES),
    }
    weight = routes.weight.astype(self.dtype)
    return mix(x.astype(self.dtype), routes.index, weight, matrices, self.kernel)

  def _record(self, collection: str, name: str, value: jax.Array) -> None:
    """Stores a value, if the caller of `apply` asks for the collection."""
    self.sow(collection, name, value, init_fn=lambda: None, reduce_fn=lambda _, value: value)


class Stack(nn.Module):
  """A matrix of every expert: the arrays that `grouped.product` takes, and those of adapters.

  There may be a quantized form in place of the kernel, and an adapter beside it, as in
  `layers.Dense`.

  Attributes:
    shape: [experts,in,out].
    names: logical names of these dimensions.
    scale: scale of the initial deviation.
    dtype: compute dtype.
  """

  shape: tuple[int, int, int]
  names: layers.Names
  scale: float
  dtype: Any

  @nn.compact
  def __call__(self) -> dict[str, jax.Array]:
    held = self.variables.get('params', {})
    form = quantized.form_of(held)
    if form:
      of_one = quantized.shapes(self.shape[1:], form)
      leaves = {
        name: placement.constrain(self._held(name, (self.shape[0], *leaf.shape)), self.names)
        for name, leaf in of_one.items()
      }
    else:
      leaves = {
        adapters.KERNEL: layers.param(
          self, adapters.KERNEL, self._init, self.shape, self.names, self.dtype, keep_bits=True
        )
      }
    if adapters.A in held:
      leaves |= self._adapter()
    return leaves

  def _init(self, rng: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(rng, shape, dtype) * (self.scale / math.sqrt(shape[1]))

  def _held(self, name: str, shape: tuple[int, ...]) -> jax.Array:
    value = nn.unbox(self.get_variable('params', name))
    layers.check_shape((*self.path, name), value.shape, shape)
    return value

  def _adapter(self) -> dict[str, jax.Array]:
    if layers.dropout() and self.has_rng('dropout'):
      raise errors.make(
        'lora.dropout',
        f'{layers.dropout()} with adapters of experts',
        '0',
        'leave the experts out of lora.target, or set lora.dropout to 0',
      )
    experts, width, out = self.shape
    rank = nn.unbox(self.get_variable('params', adapters.A)).shape[-1]
    a = self._held(adapters.A, (experts, width, rank)).astype(self.dtype)
    b = self._held(adapters.B, (experts, rank, out)).astype(self.dtype)
    scale = self._held(adapters.SCALE, (experts,)).astype(self.dtype)
    return {
      adapters.A: placement.gather(a, (*self.names[:2], None)),
      adapters.B: placement.gather(b * scale[:, None, None], (self.names[0], None, self.names[2])),
    }


def mix(
  x: jax.Array, index: jax.Array, weight: jax.Array, matrices: Matrices, kernel: str
) -> jax.Array:
  """The sum of the chosen experts' outputs, by their weights.

  On a mesh, every device routes its own positions. Over the axis `expert`, they move to the devices
  of their experts and back.

  Args:
    x: [B,T,D] in the compute dtype.
    index: int32[B,T,k], chosen experts.
    weight: [B,T,k] in the compute dtype.
    matrices: 'w1', 'w2' and 'w3' -> arrays of `Stack`.
    kernel: name in `grouped.KERNELS`.

  Returns:
    [B,T,D] in the compute dtype.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return _local(x, index, weight, matrices, kernel)
  rows = rules.partition(('batch', None, None), compute=True)
  if x.shape[0] % rules.ways('batch', mesh):
    rows = rules.partition((None, None, None))  # Rows of a prompt: every device computes all.
  is_split = mesh.shape['expert'] > 1
  compute = _exchanged if is_split else _local

  def of_device(x: jax.Array, index: jax.Array, weight: jax.Array, matrices: Matrices) -> jax.Array:
    return jax.lax.psum(compute(x, index, weight, matrices, kernel), 'tensor')

  return jax.shard_map(
    of_device,
    mesh=mesh,
    in_specs=(rows, rows, rows, _partitions(matrices)),
    out_specs=rows,
    check_vma=False,
  )(x, index, weight, matrices)


def _partitions(matrices: Matrices) -> dict[str, dict[str, Any]]:
  """The partition of the arrays of every matrix during computation."""
  found = {}
  for name, leaves in matrices.items():
    first, second = ('ffn', 'expert_embed') if name == 'w2' else ('expert_embed', 'ffn')
    of_leaf = {adapters.A: (first, None), adapters.B: (None, second)}
    found[name] = {
      leaf: rules.partition(('experts', *of_leaf.get(leaf, (first, second))), compute=True)
      for leaf in leaves
    }
  return found


def _local(
  x: jax.Array, index: jax.Array, weight: jax.Array, matrices: Matrices, kernel: str
) -> jax.Array:
  """`mix` with all experts at hand."""
  order = _Order.of(index.reshape(-1), _count(matrices))
  spare = grouped.slack(len(order.order), kernel)
  rows = _spread(_flat(x), order, spare)
  rows = _gated_mlps(rows, order.sizes, matrices, kernel, spare)
  return _combine(rows, order, weight, x)


def _exchanged(
  x: jax.Array, index: jax.Array, weight: jax.Array, matrices: Matrices, kernel: str
) -> jax.Array:
  """`mix` on a device with some of the experts, inside `shard_map` over the axis `expert`.

  Rows are exchanged in rounds, in which each device has room for a few more rows of another one
  than there are on average. Further rounds are only needed if the router is unbalanced; their
  gradient computes them a second time.
  """
  devices = jax.lax.axis_size('expert')
  order = _Order.of(index.reshape(-1), devices * _count(matrices))
  rows = _spread(_flat(x), order, 0)
  room = min(math.ceil(len(rows) / devices * ROOM), len(rows))
  exchange = _Exchange(order.sizes.reshape(devices, -1), room)
  first = exchange.sent(0, rows)
  out = exchange.put(0, jnp.zeros_like(rows), _round(*first, matrices, kernel))
  rounds = -(-exchange.counts.max() // room)
  rounds = jax.lax.pmax(rounds, rules.RULES['batch'].compute)
  out += _more_rounds(rows, matrices, order.sizes, rounds, room, kernel)
  return _combine(out, order, weight, x)


class _Order(NamedTuple):
  """The rows of all choices, sorted by expert.

  Attributes:
    order: int32[rows], the choice of each row, of the choices [B*T*k].
    inverse: int32[rows], the row of each choice.
    sizes: int32[experts], rows of each expert.
  """

  order: jax.Array
  inverse: jax.Array
  sizes: jax.Array

  @classmethod
  def of(cls, choices: jax.Array, experts: int) -> '_Order':
    """The order of choices int32[rows], equal ones as they are. Counting is faster than sorting."""
    is_chosen = (choices[:, None] == jnp.arange(experts)).astype(jnp.int32)
    counts = jnp.cumsum(is_chosen, axis=0)
    sizes = counts[-1]
    places = jnp.cumsum(sizes) - sizes + counts - 1
    inverse = (places * is_chosen).sum(axis=1)
    order = (
      jnp.zeros_like(choices)
      .at[inverse]
      .set(jnp.arange(len(choices), dtype=choices.dtype), unique_indices=True)
    )
    return cls(order, inverse, sizes)


def _count(matrices: Matrices) -> int:
  """The number of experts at hand."""
  return len(next(iter(matrices['w1'].values())))


def _flat(x: jax.Array) -> jax.Array:
  """[B,T,D] -> [B*T,D]."""
  return x.reshape(-1, x.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spread(x: jax.Array, order: _Order, spare: int) -> jax.Array:
  """x [tokens,D] as the rows of its choices [rows+spare,D]. The gradient takes rows, adds none."""
  return x[jnp.pad(order.order, (0, spare)) // (len(order.order) // len(x))]


def _spread_forward(x: jax.Array, order: _Order, spare: int) -> tuple[jax.Array, tuple]:
  return _spread(x, order, spare), (order, x.shape)


def _spread_backward(spare: int, kept: tuple, gradient: jax.Array) -> tuple[jax.Array, None]:
  del spare
  order, shape = kept
  return gradient[order.inverse].reshape(shape[0], -1, shape[1]).sum(axis=1), None


_spread.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def _permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
  """The rows of x in an order, whose inverse is given for the gradient.

  The longer one of both has spare entries at its end.
  """
  del inverse
  return x[order]


_permute.defvjp(
  lambda x, order, inverse: (x[order], inverse),
  lambda inverse, gradient: (gradient[inverse], None, None),
)


def _combine(rows: jax.Array, order: _Order, weight: jax.Array, like: jax.Array) -> jax.Array:
  """The weighted sum [B,T,D] of the rows of each position's choices."""
  spare = len(rows) - len(order.order)
  of_choices = _permute(rows, order.inverse, jnp.pad(order.order, (0, spare)))
  of_choices = of_choices.reshape(*weight.shape, -1)
  return (of_choices * weight[..., None]).sum(axis=-2).astype(like.dtype)


def _gated_mlps(
  rows: jax.Array, sizes: jax.Array, matrices: Matrices, kernel: str, spare: int
) -> jax.Array:
  """w2(silu(w1 x) * w3 x) of rows [rows,D] that are sorted by expert, int32[experts] of each.

  The last ones are spare, see `grouped.product`.
  """

  def product(name: str, x: jax.Array) -> jax.Array:
    leaves = matrices[name]
    frozen = {leaf: array for leaf, array in leaves.items() if leaf not in adapters.LEAVES}
    out = grouped.product(x, frozen, sizes, kernel, spare)
    if adapters.A in leaves:
      for leaf in (adapters.A, adapters.B):
        x = grouped.product(x, {adapters.KERNEL: leaves[leaf]}, sizes, kernel, spare)
      out += x
    return checkpoint_name(out, 'product')

  gate, value = (checkpoint_name(product(name, rows), 'mlp') for name in ('w1', 'w3'))
  return product('w2', jax.nn.silu(gate) * value)


class _Exchange(NamedTuple):
  """Which rows a device sends to the devices of their experts.

  Attributes:
    sizes: int32[devices,experts], rows for each expert of each device.
    room: rows that are sent to a device in one round.
  """

  sizes: jax.Array
  room: int

  @property
  def counts(self) -> jax.Array:
    """int32[devices]: rows for each device."""
    return self.sizes.sum(axis=1)

  def _places(self, number: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The rows of a round int32[devices,room], and whether there is such a row."""
    within = number * self.room + jnp.arange(self.room)
    starts = jnp.cumsum(self.counts) - self.counts
    return starts[:, None] + within, within < self.counts[:, None]

  def sent(self, number: jax.Array | int, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rows [devices,room,D] of a round, and how many are for each expert."""
    at, is_row = self._places(number)
    sent = jnp.where(is_row[..., None], rows.at[at].get(mode='clip'), 0)
    ends = jnp.cumsum(self.sizes, axis=1)
    here = lambda bound: jnp.clip(bound - number * self.room, 0, self.room)
    return sent, here(ends) - here(ends - self.sizes)

  def put(self, number: jax.Array | int, out: jax.Array, back: jax.Array) -> jax.Array:
    """Writes what came back [devices,room,D] into the rows of a round."""
    at, is_row = self._places(number)
    at = jnp.where(is_row, at, len(out))
    return out.at[at].set(back, mode='drop', unique_indices=True)


def _round(sent: jax.Array, sizes: jax.Array, matrices: Matrices, kernel: str) -> jax.Array:
  """Sends rows [devices,room,D] to their experts and returns what these make of them."""
  trade = functools.partial(
    jax.lax.all_to_all, axis_name='expert', split_axis=0, concat_axis=0, tiled=True
  )
  with jax.named_scope('exchange'):
    received, sizes = trade(sent), trade(sizes)
  devices, room, width = received.shape
  # The rows of each device are sorted by expert; those without one are behind them.
  expert = (jnp.arange(room)[:, None] >= jnp.cumsum(sizes, axis=1)[:, None]).sum(axis=-1)
  order, inverse, sizes = _Order.of(expert.reshape(-1), sizes.shape[1] + 1)
  sizes = sizes[:-1]
  spare = grouped.slack(len(order), kernel)
  order = jnp.pad(order, (0, spare))
  rows = _permute(received.reshape(-1, width), order, inverse)
  out = _gated_mlps(rows, sizes, matrices, kernel, spare)
  out = jnp.where((jnp.arange(len(out)) < sizes.sum())[:, None], out, 0)
  with jax.named_scope('exchange'):
    return trade(_permute(out, inverse, order).reshape(devices, room, width))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _more_rounds(
  rows: jax.Array,
  matrices: Matrices,
  sizes: jax.Array,
  rounds: jax.Array,
  room: int,
  kernel: str,
) -> jax.Array:
  """The outputs of the rows that the first round leaves; 0 for the others."""
  exchange = _Exchange(sizes.reshape(jax.lax.axis_size('expert'), -1), room)

  def body(number: jax.Array, out: jax.Array) -> jax.Array:
    back = _round(*exchange.sent(number, rows), matrices, kernel)
    return exchange.put(number, out, back)

  with jax.named_scope(MORE_ROUNDS):
    return jax.lax.fori_loop(1, rounds, body, jnp.zeros_like(rows))


def _more_forward(
  rows: jax.Array, matrices: Matrices, sizes: jax.Array, rounds: jax.Array, room: int, kernel: str
) -> tuple[jax.Array, tuple]:
  kept = rows, matrices, sizes, rounds
  return _more_rounds(*kept, room, kernel), kept


def _more_backward(room: int, kernel: str, kept: tuple, gradient: jax.Array) -> tuple:
  rows, matrices, sizes, rounds = kept
  exchange = _Exchange(sizes.reshape(jax.lax.axis_size('expert'), -1), room)
  is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
  floats = {
    name: {leaf: array for leaf, array in leaves.items() if is_float(array)}
    for name, leaves in matrices.items()
  }

  def body(number: jax.Array, totals: tuple) -> tuple:
    of_rows, of_floats = totals
    sent, here = exchange.sent(number, rows)

    def outputs(sent: jax.Array, floats: Matrices) -> jax.Array:
      whole = {name: {**leaves, **floats[name]} for name, leaves in matrices.items()}
      return _round(sent, here, whole, kernel)

    _, pull = jax.vjp(outputs, sent, floats)
    of_sent, of_round = pull(exchange.sent(number, gradient)[0])
    return exchange.put(number, of_rows, of_sent), jax.tree.map(jnp.add, of_floats, of_round)

  with jax.named_scope(MORE_ROUNDS):
    start = jnp.zeros_like(rows), jax.tree.map(jnp.zeros_like, floats)
    of_rows, of_floats = jax.lax.fori_loop(1, rounds, body, start)
  of_matrices = {
    name: {leaf: of_floats[name].get(leaf) for leaf in leaves} for name, leaves in matrices.items()
  }
  return of_rows, of_matrices, None, None


_more_rounds.defvjp(_more_forward, _more_backward)
