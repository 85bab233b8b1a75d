"""Names and axis orders of the same weights in other libraries: tables that are read both ways.

There is one table per library and part of the model. A model file lists its tables in `FORMS`.
`variants.weights` combines them into the official SPHINX release. "Foreign" means the other
library's side of a table, "native" means ours.
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
from sphinx_jax.models import foreign_config

Shapes = Mapping[str, tuple[int, ...]]  # Foreign name -> shape.
# Pattern of names -> name of a piece -> function of the tensor.
Pieces = Mapping[str, Mapping[str, Callable[[np.ndarray], np.ndarray]]]
# (shapes of a file, its config or {}) -> settings of the part, as in a model config.
ReadSettings = Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]

# What HF transformers has in a folder beside weights, configs and tokenizer.model.
TRANSFORMERS_FILES = (
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
  'special_tokens_map.json',
  'tokenizer.json',
  'tokenizer_config.json',
)


@dataclasses.dataclass(frozen=True)
class Weight:
  """A native parameter and the foreign tensors that it consists of.

  Attributes:
    path: native path, e.g. 'trunk/layers/attention/qkv/kernel'.
    key: foreign name. '{}' stands for the layer number if the native parameter is stacked.
    pattern: einops pattern of one layer, foreign to native: 'o i -> i o'.
    sizes: sizes of the pattern's axes that no shape determines, ((axis, size), ...).
    layers: foreign layer numbers along the native leading axis, or None if it is not stacked.
    part: index into the native layer if several foreign tensors form one native parameter
      (separate q, k and v).
  """

  path: str
  key: str
  pattern: str
  sizes: tuple[tuple[str, int], ...] = ()
  layers: tuple[int, ...] | None = None
  part: tuple[Any, ...] = ()

  @property
  def expert(self) -> int | None:
    """The expert whose tensor it is; None: it is no tensor of a single expert."""
    return self.part[0] if self.part and isinstance(self.part[0], int) else None

  def places(self) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Yields (index into the native parameter, foreign name) of every tensor."""
    if self.layers is None:
      yield self.part, self.key
    else:
      yield from (((i, *self.part), self.key.format(layer)) for i, layer in enumerate(self.layers))

  def to_native(self, tensor: np.ndarray) -> np.ndarray:
    """One foreign tensor in native axis order, contiguous."""
    return _contiguous(einops.rearrange(tensor, self.pattern, **dict(self.sizes)))

  def to_foreign(self, part: np.ndarray) -> np.ndarray:
    """The inverse of `to_native`: one tensor in foreign axis order, contiguous."""
    return _contiguous(_invert(self.pattern, self.sizes, part))

  def foreign_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one foreign tensor from the shape of the whole native parameter."""
    layer_shape = list(shape if self.layers is None else shape[1:])
    if self.part:
      del layer_shape[len(self.part) - 1]
    return _inverted_shape(self.pattern, self.sizes, tuple(layer_shape))


def _invert(pattern: str, sizes: tuple[tuple[str, int], ...], part: Any) -> Any:
  """Rearranges `part` by the inverse of an einops pattern."""
  foreign, native = pattern.split('->')
  # Only axes that the inverse splits need a size. einops rejects sizes of other axes.
  split = {name for group in re.findall(r'\(([^)]*)\)', native) for name in group.split()}
  split_sizes = {name: size for name, size in sizes if name in split}
  return einops.rearrange(part, f'{native}->{foreign}', **split_sizes)


@functools.cache
def _inverted_shape(
  pattern: str, sizes: tuple[tuple[str, int], ...], shape: tuple[int, ...]
) -> tuple[int, ...]:
  part = jax.ShapeDtypeStruct(shape, np.float32)
  return jax.eval_shape(lambda part: _invert(pattern, sizes, part), part).shape


def _contiguous(array: np.ndarray) -> np.ndarray:
  """A contiguous copy of a transposed view.

  XLA transposes in blocks, which is several times faster than numpy.
  """
  if array.flags.c_contiguous or array.dtype.itemsize > 4:  # XLA would narrow 64 bits to 32.
    return np.ascontiguousarray(array)
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS lists only accelerators.
    return np.ascontiguousarray(array)
  return np.asarray(jax.device_put(array, host))


@dataclasses.dataclass(frozen=True)
class Form:
  """How a library names and arranges one part of the model.

  Attributes:
    kind: description for messages.
    mark: a tensor name that identifies files of this form.
    weights: settings of the part (as in a model config) -> its table.
    settings: (shapes of a file, its config or {}) -> settings of the part.
    unused: patterns of tensor names that the model does not use. Such tensors are kept in the
      converted checkpoint.
    prefixes: possible prefixes of the names in a file. The first one with which `mark` is there is
      taken.
    config: settings -> the library's own config, for forms that can be written as a whole model.
    configs: name of a config file -> its fields. The first one in the folder is read.
    beside: names of files that are read as sections of the config.
    carried: names of other files in a folder, which an export writes back.
    pieces: config -> pattern of names of tensors that are several native parameters -> name in
      brackets -> function of the tensor. The table has these pieces as 'NAME[PIECE]'.
  """

  kind: str
  mark: str
  weights: Callable[[Mapping[str, Any]], list[Weight]]
  settings: ReadSettings
  unused: tuple[str, ...] = ()
  prefixes: tuple[str, ...] = ('',)
  config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
  configs: Mapping[str, foreign_config.Fields] = dataclasses.field(default_factory=dict)
  beside: tuple[str, ...] = ()
  carried: tuple[str, ...] = ()
  pieces: Callable[[Mapping[str, Any]], Pieces] = lambda config: {}

  def prefix(self, keys: Iterable[str]) -> str | None:
    """The prefix of the names in a file, or None if the file is of another form."""
    present = set(keys)
    return next((prefix for prefix in self.prefixes if prefix + self.mark in present), None)


def tensor(path: str, key: str, pattern: str, **sizes: int) -> list[Weight]:
  """A parameter that is one foreign tensor."""
  return [Weight(path, key, pattern, tuple(sizes.items()))]


def linear(path: str, key: str, bias: bool = True) -> list[Weight]:
  """A Dense from a foreign Linear."""
  table = tensor(f'{path}/kernel', f'{key}.weight', 'o i -> i o')
  if bias:
    table += tensor(f'{path}/bias', f'{key}.bias', 'o -> o')
  return table


def packed(path: str, weight: str, bias: str, count: int) -> list[Weight]:
  """A Dense of `count` features from one Linear that concatenates them (q, k, v; gate, value)."""
  return [
    *tensor(f'{path}/kernel', weight, '(n o) i -> i n o', n=count),
    *tensor(f'{path}/bias', bias, '(n o) -> n o', n=count),
  ]


def unpacked(path: str, keys: Sequence[str]) -> list[Weight]:
  """A Dense of several features, each from its own Linear."""
  table = []
  for n, key in enumerate(keys):
    table += [
      Weight(f'{path}/kernel', f'{key}.weight', 'o i -> i o', part=(slice(None), n)),
      Weight(f'{path}/bias', f'{key}.bias', 'o -> o', part=(n,)),
    ]
  return table


def patches(path: str, key: str, bias: bool = True) -> list[Weight]:
  """A PatchEmbed from a convolution."""
  table = tensor(f'{path}/kernel', f'{key}.weight', 'o i y x -> y x i o')
  if bias:
    table += tensor(f'{path}/bias', f'{key}.bias', 'o -> o')
  return table


def gated_mlp(path: str, key: str) -> list[Weight]:
  """A GatedMlp from the three Linear layers of HF transformers."""
  return [
    *linear(f'{path}/w1', f'{key}.gate_proj', bias=False),
    *linear(f'{path}/w2', f'{key}.down_proj', bias=False),
    *linear(f'{path}/w3', f'{key}.up_proj', bias=False),
  ]


def norm(path: str, key: str) -> list[Weight]:
  """A LayerNorm."""
  return [
    *tensor(f'{path}/scale', f'{key}.weight', 'e -> e'),
    *tensor(f'{path}/bias', f'{key}.bias', 'e -> e'),
  ]


def within(
  path: str, key: str, weights: Iterable[Weight], layers: Iterable[int] | None = None
) -> list[Weight]:
  """Prefixes the paths and names of a table.

  Args:
    path: prefix of native paths.
    key: prefix of foreign names; contains '{}' if `layers` is given.
    weights: the table.
    layers: foreign layer numbers of stacked parameters, or None.
  """
  stacked = {} if layers is None else {'layers': tuple(layers)}
  return [
    dataclasses.replace(weight, path=path + weight.path, key=key + weight.key, **stacked)
    for weight in weights
  ]


def by_path(table: Iterable[Weight]) -> dict[str, list[Weight]]:
  """The rows of a table by their native parameter."""
  groups: dict[str, list[Weight]] = {}
  for weight in table:
    groups.setdefault(weight.path, []).append(weight)
  return groups


def count(shapes: Shapes, key: str) -> int:
  """The number of layers in a file; `key` is a tensor name with '{}' for the layer number."""
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
  """The number of attention heads, which no tensor determines.

  Args:
    part: encoder, for the error.
    sizes: the encoder's size table.
    width: its width.
    name: name of the width in the size table.
    field: name of the number of heads in the size table.
    config: config of transformers, which may have the number; None: there is none.

  Returns:
    The config's number if there is one, or that of the size table's row of the same width.

  Raises:
    SphinxError: no row of the size table has the width, or the config's number does not divide it.
  """
  if config and config.get('num_attention_heads') is not None:
    return foreign_config.divisor(config, 'num_attention_heads', width)
  heads_of_width = {row[name]: row[field] for row in sizes.values()}
  if width not in heads_of_width:
    raise errors.make(
      f'encoder {part}',
      f'{name} {width}, whose number of heads no tensor determines',
      f'{name} {sorted(heads_of_width)}',
      "add a row to the encoder's SIZES",
    )
  return heads_of_width[width]
