"""Makes a mixture of experts of dense checkpoints (arXiv 2212.05055, 2403.07816).

Each expert is the feed-forward layer of one of them. All other parameters are mixed in equal parts.
The router is new and small. As the weights of the chosen experts sum to 1, a mixture of equal
experts computes what the dense model computes.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sphinx_jax.checkpoint import content, merged, mixing, store, stream
from sphinx_jax.checkpoint.bundle import check_same_model
from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import Progress
from sphinx_jax.mix import linear
from sphinx_jax.models import families
from sphinx_jax.models.adapters import KERNEL
from sphinx_jax.models.llms import llama

_ROUTER = f'llm/layers/feed_forward/gate/{KERNEL}'
_MATRICES = tuple(f'llm/layers/feed_forward/{name}/{KERNEL}' for name in ('w1', 'w2', 'w3'))
_DEVIATION = 0.02  # Of a router.
Arrays = Mapping[str, stream.Array]


def upcycle(
  inputs: Sequence[store.Path], output: store.Path, experts: int, per_token: int, seed: int = 0
) -> None:
  """Writes a mixture of experts. It appears when it is complete.

  Of several inputs, expert N is that of input N modulo their number. At most one matrix of a layer
  is in memory, and what waits for the disk.

  Args:
    inputs: checkpoints with a LLaMA, of one model config; BASE+ADAPTER, too.
    output: directory of the checkpoint, in the form of a run's directory.
    experts: number of experts of a layer, a multiple of the number of inputs.
    per_token: experts that compute a position.
    seed: random seed of the routers.

  Raises:
    SphinxError: an input is no checkpoint, has experts already or another model, the numbers do not
      fit together, a parameter is not finite, or the output is an input or holds a checkpoint.
  """
  _check_numbers(len(inputs), experts, per_token)
  opened = [merged.open_checkpoint(place) for place in inputs]
  mixing.check_output(output, [place for place in inputs if store.is_checkpoint(place)])
  bundle, arrays = opened[0].bundle, [input_.arrays for input_ in opened]
  check_same_model('upcycle', inputs, [input_.bundle for input_ in opened])
  if bundle.config.model.llm.name != 'llama':
    raise errors.make(
      f"upcycle, input '{inputs[0]}'",
      f'a language model {bundle.config.model.llm.name!r}',
      'a dense one with the layers of LLaMA',
      'take a checkpoint without experts',
    )
  config = bundle.config.copy_and_resolve_references()
  with config.unlocked():
    config.model.llm = _settings(config.model.llm, experts, per_token)
  outputs = {
    path: jax.ShapeDtypeStruct(leaf.shape, _like(path, arrays[0]).dtype)
    for path, leaf in trees.flatten(families.abstract_params(config.model)).items()
  }
  carried = dataclasses.replace(bundle, config=config, weights='')
  parents = [input_.source for input_ in opened]
  meta = {**carried.to_meta(), 'method': 'upcycle', 'parents': parents}
  writer = stream.Writer(output, {'params': outputs}, meta)
  hashed = content.ContentHash()
  try:
    with Progress(total=trees.nbytes(outputs), what='writing', unit='B') as bar:
      for path, index, value in _parts(outputs, arrays, seed):
        if not content.is_finite(value):
          raise errors.make(
            'upcycle', f'NaN or infinity in {path}', 'finite weights', 'check the inputs'
          )
        hashed.update(path, outputs[path], value)
        writer.write('params', path, value, index)
        bar.update(value.nbytes)
    writer.finish(hash=hashed.hexdigest())
  except BaseException:
    writer.abandon()
    raise


def _check_numbers(inputs: int, experts: int, per_token: int) -> None:
  if experts % inputs or per_token > experts:
    raise errors.make(
      'upcycle',
      f'{experts} experts of {inputs} inputs, {per_token} of them for a token',
      'a multiple of the inputs, and at most all of them',
      'change --experts or --per_token',
    )


def _settings(llm: ConfigDict, experts: int, per_token: int) -> dict[str, Any]:
  """The settings of the mixture's language model, those with other defaults included."""
  given = llm.to_dict()
  hidden = llama.ffn_width(
    given['width'], given.pop('multiple_of', 256), given.pop('ffn_multiplier', None)
  )
  defaults = dict(rope_theta=llama.Llama.rope_theta, max_length=llama.Llama.max_length)
  mixture = dict(name='mixtral', hidden=hidden, experts=experts, experts_per_token=per_token)
  return {**defaults, **given, **mixture}


def _like(path: str, arrays: Arrays) -> stream.Array:
  """The array of a dense model whose dtype a parameter of the mixture has."""
  return arrays[_MATRICES[0] if path == _ROUTER else path]


def _parts(
  outputs: Mapping[str, jax.ShapeDtypeStruct], inputs: Sequence[Arrays], seed: int
) -> Iterator[tuple[str, stream.Index, np.ndarray]]:
  """Yields (path, index, part) of every parameter, in row-major order."""
  equal = [1 / len(inputs)] * len(inputs)
  for path, leaf in outputs.items():
    if path == _ROUTER:
      rng = np.random.default_rng(seed)
      yield path, (), (_DEVIATION * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
    elif path in _MATRICES:
      for layer, expert in np.ndindex(leaf.shape[:2]):
        value = inputs[expert % len(inputs)][path].read((layer,))
        yield path, (layer, expert), value.astype(leaf.dtype, copy=False)
    else:
      for index, _ in inputs[0][path].pieces():
        values = [arrays[path].read(index) for arrays in inputs]
        yield path, index, np.asarray(linear.mix_leaf(values, equal, None, leaf.dtype))
