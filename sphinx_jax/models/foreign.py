"""Names and layouts of the same weights elsewhere: one table per library and part of the model, read in both directions.

A model file lists its `FORMS`; `forms(config)` puts the official SPHINX release together from them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np

from sphinx_jax.core import errors

Shapes = Mapping[str, tuple[int, ...]]  # Foreign name -> shape.


@dataclasses.dataclass(frozen=True)
class Weight:
  """A parameter of ours and the foreign tensors that it is made of.

  Attributes:
    path: ours, 'trunk/layers/attention/qkv/kernel'.
    key: theirs; '{}' stands for the number of the layer where ours is stacked.
    pattern: the layout of one layer, theirs to ours, as einops writes it: 'o i -> i o'.
    sizes: of the pattern's axes that a shape does not tell, ((axis, size), ...).
    layers: their numbers of the layers along our leading axis, or None where ours is not stacked.
    part: index into our layer, where several of their tensors make one of ours (separate q, k and v).
  """

  path: str
  key: str
  pattern: str
  sizes: tuple[tuple[str, int], ...] = ()
  layers: tuple[int, ...] | None = None
  part: tuple[Any, ...] = ()

  def places(self) -> Iterator[tuple[tuple[Any, ...], str]]:
    """(index into our parameter, their name) of every tensor."""
    if self.layers is None:
      yield self.part, self.key
    else:
      yield from (((i, *self.part), self.key.format(layer)) for i, layer in enumerate(self.layers))

  def to_ours(self, tensor: np.ndarray) -> np.ndarray:
    """One of their tensors in our layout, contiguous."""
    return _contiguous(einops.rearrange(tensor, self.pattern, **dict(self.sizes)))

  def to_theirs(self, part: np.ndarray) -> np.ndarray:
    """What `to_ours` made, back in their layout, contiguous."""
    return _contiguous(_back(self.pattern, self.sizes, part))

  def their_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one of their tensors from that of our whole parameter."""
    one = list(shape if self.layers is None else shape[1:])
    if self.part:
      del one[len(self.part) - 1]
    return _back_shape(self.pattern, self.sizes, tuple(one))


def _back(pattern: str, sizes: tuple[tuple[str, int], ...], part: Any) -> Any:
  theirs, ours = pattern.split('->')
  # The sizes that count are of axes that are split on the way back; joined ones tell their own.
  split = {name for group in re.findall(r'\(([^)]*)\)', ours) for name in group.split()}
  return einops.rearrange(
    part, f'{ours}->{theirs}', **{name: size for name, size in sizes if name in split}
  )


@functools.cache
def _back_shape(
  pattern: str, sizes: tuple[tuple[str, int], ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
  return jax.eval_shape(
    lambda part: _back(pattern, sizes, part), jax.ShapeDtypeStruct(shape, np.float32)
  ).shape


def _contiguous(array: np.ndarray) -> np.ndarray:
  """A transposed view as an array of its own; XLA transposes in blocks, several times faster than numpy."""
  if array.flags.c_contiguous or array.dtype.itemsize > 4:  # XLA would cut 64 bits to 32.
    return np.ascontiguousarray(array)
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS names accelerators alone.
    return np.ascontiguousarray(array)
  return np.asarray(jax.device_put(array, host))


@dataclasses.dataclass(frozen=True)
class Form:
  """How a library names and lays out one part of the model.

  Attributes:
    kind: what it is, in words.
    mark: a name by which a file of it is recognised.
    weights: settings of the part (as in a model config) -> its table.
    settings: (shapes of a file, its config or {}) -> settings of the part.
    unused: patterns of names that such a file holds and the model does not use; they are carried along.
    prefixes: what files put before the names; the first one that fits the mark counts.
    config: settings -> the library's own config, for forms that can be written as a whole model.
  """

  kind: str
  mark: str
  weights: Callable[[Mapping[str, Any]], list[Weight]]
  settings: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
  unused: tuple[str, ...] = ()
  prefixes: tuple[str, ...] = ('',)
  config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None

  def prefix(self, keys: Iterable[str]) -> str | None:
    """What stands before the names in a file, or None where the file is of another form."""
    present = set(keys)
    return next((prefix for prefix in self.prefixes if prefix + self.mark in present), None)


def tensor(path: str, key: str, pattern: str, **sizes: int) -> list[Weight]:
  """One parameter that is one tensor."""
  return [Weight(path, key, pattern, tuple(sizes.items()))]


def linear(path: str, key: str, bias: bool = True) -> list[Weight]:
  """A Dense of ours from their Linear."""
  return tensor(f'{path}/kernel', f'{key}.weight', 'o i -> i o') + (
    tensor(f'{path}/bias', f'{key}.bias', 'o -> o') if bias else []
  )


def packed(path: str, weight: str, bias: str, count: int) -> list[Weight]:
  """A Dense of `count` features from one Linear that packs them one after the other (q, k, v; gate, value)."""
  return [
    *tensor(f'{path}/kernel', weight, '(n o) i -> i n o', n=count),
    *tensor(f'{path}/bias', bias, '(n o) -> n o', n=count),
  ]


def unpacked(path: str, keys: Sequence[str]) -> list[Weight]:
  """A Dense of several features from as many Linears."""
  table = []
  for n, key in enumerate(keys):
    table += [
      Weight(f'{path}/kernel', f'{key}.weight', 'o i -> i o', part=(slice(None), n)),
      Weight(f'{path}/bias', f'{key}.bias', 'o -> o', part=(n,)),
    ]
  return table


def patches(path: str, key: str, bias: bool = True) -> list[Weight]:
  """A PatchEmbed from a convolution."""
  kernel = tensor(f'{path}/kernel', f'{key}.weight', 'o i y x -> y x i o')
  return kernel + (tensor(f'{path}/bias', f'{key}.bias', 'o -> o') if bias else [])


def norm(path: str, key: str) -> list[Weight]:
  """A LayerNorm."""
  return [
    *tensor(f'{path}/scale', f'{key}.weight', 'e -> e'),
    *tensor(f'{path}/bias', f'{key}.bias', 'e -> e'),
  ]


def within(
  path: str, key: str, weights: Iterable[Weight], layers: Iterable[int] | None = None
) -> list[Weight]:
  """The table with prefixes before paths and names; `layers` stacks it, and then `key` holds their '{}'."""
  stacked = {} if layers is None else {'layers': tuple(layers)}
  return [
    dataclasses.replace(weight, path=path + weight.path, key=key + weight.key, **stacked)
    for weight in weights
  ]


def field(config: Mapping[str, Any], name: str) -> Any:
  """A field that a foreign config must have.

  Raises:
    SphinxError: where it has not.
  """
  if config.get(name) is None:
    raise errors.make(
      'config.json',
      f'no {name!r}' if config else 'no such file',
      f'{name!r}, which no tensor tells',
      'take the config.json (or params.json) that belongs to the weights',
    )
  return config[name]


def size(config: Mapping[str, Any], name: str) -> int:
  """A field that a foreign config must have, a number of something.

  Raises:
    SphinxError: where it has not, or it is none.
  """
  value = field(config, name)
  if type(value) is not int or value < 1:
    raise errors.make(
      'config.json',
      f'{name} {value!r}',
      'a whole number above 0',
      'take the config.json (or params.json) that belongs to the weights',
    )
  return value


def count(shapes: Shapes, key: str) -> int:
  """How many layers a file has of a name with '{}'."""
  layers = 0
  while key.format(layers) in shapes:
    layers += 1
  return layers


def heads(
  part: str,
  sizes: Mapping[str, Mapping[str, Any]],
  width: int,
  name: str = 'width',
  field: str = 'heads',
  config: Mapping[str, Any] | None = None,
) -> int:
  """The number of heads, which no tensor tells: from a config of transformers for that width, or that of a known width.

  Raises:
    SphinxError: for a width that is in no row of the size table.
  """
  if config and config.get('hidden_size') == width and 'num_attention_heads' in config:
    return config['num_attention_heads']
  found = {row[name]: row[field] for row in sizes.values()}
  if width not in found:
    raise errors.make(
      f'encoder {part}',
      f'{name} {width}, whose number of heads no tensor tells',
      f'{name} {sorted(found)}',
      "add a row to the encoder's SIZES",
    )
  return found[width]
