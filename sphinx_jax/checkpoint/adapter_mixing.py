"""Mixes the adapters of several runs on one base into one adapter of a rank that is asked for."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sphinx_jax.checkpoint import adapter_runs, content, merged, mixing, store, stream
from sphinx_jax.checkpoint.bundle import Bundle, check_same_model
from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.mix import linear, low_rank, weights
from sphinx_jax.models import adapters

Tree = Mapping[str, stream.StoredArray]  # Path -> array of an adapter's checkpoint.


class Loss(NamedTuple):
  """What a mix of a lower rank loses of one layer, or of all.

  Attributes:
    rank: of the mix; None: of all layers.
    error: Frobenius norm of the difference to the exact mix, relative to that of the exact mix.
  """

  rank: int | None
  error: float


def mix_adapters(
  inputs: Sequence[store.Path],
  coefficients: weights.Coefficients,
  output: store.Path,
  rank: int,
  unnormalized: bool = False,
  base: store.Path | None = None,
) -> dict[str, Loss]:
  """Writes the mix of several adapters as a checkpoint that holds one adapter.

  It is the best approximation of that rank of the sum of c_i times what adapter i adds to the base
  (mix/low_rank.py). Parameters that were trained in full beside the adapters are mixed exactly. The
  config, tokenizer and dialog are those of the first input. An output that already holds the same
  mix is kept.

  Args:
    inputs: directories of runs with adapters, or of single steps of theirs.
    coefficients: one per input, or ordered rules `(pattern, coefficients)` of kernels and other
      parameters; see mix/weights.py.
    output: directory of the mix, in the form of a run's directory.
    rank: of the mix, at most. It is lower where the sum of the ranks, or a side of the matrix, is.
    unnormalized: allow coefficients that do not sum to 1.
    base: the checkpoint that the inputs were trained with; None: where it was. It is read only for
      a parameter that one input trained in full and another one did not, and with coefficients of
      another sum.

  Returns:
    Path of a layer -> what the mix loses; 'total' -> of all layers.

  Raises:
    SphinxError: an input holds no adapter alone, the inputs have different bases, models or
      tokenizers, the coefficients are wrong, a rule matches nothing, the mix is not finite, or the
      output is an input, holds another checkpoint or cannot be written.
  """
  rules = weights.as_rules(coefficients, len(inputs), unnormalized or base is not None)
  for place in inputs:
    if merged.split(place)[1] is not None:
      raise errors.make(
        f"mix_weights, input '{place}'",
        'an adapter beside its weights',
        'a run that holds adapters alone',
        'give ADAPTER alone, or leave --rank out',
      )
  metas = [store.load_meta(place) for place in inputs]
  adapter_runs.check_same_base(metas, inputs)
  if base is not None:
    adapter_runs.check_base(metas[0], inputs[0], base)
  mixing.check_output(output, inputs)
  bundles = [Bundle.from_meta(meta, place) for meta, place in zip(metas, inputs)]
  check_same_model('mix_weights', inputs, bundles)
  recipe = {
    'parents': [merged.source_of(place, meta) for meta, place in zip(metas, inputs)],
    'coefficients': weights.as_json(coefficients),
    'base': [],
    'method': 'linear',
    'dtype': None,
    'rank': rank,
  }
  if mixing.holds_mix(output, recipe):
    log.info('%s: this mix was written before', output)
    return {layer: Loss(*loss) for layer, loss in store.load_meta(output)['losses'].items()}
  opened = [stream.read(place) for place in inputs]
  layers, whole = _matched(opened, rules)
  arrays, losses = _mix_layers(opened, layers, rank)
  arrays |= _mix_whole(opened, whole, lambda: stream.read(base or adapter_runs.base_of(inputs[0])))
  broken = [path for path, value in arrays.items() if not content.is_finite(value)]
  if broken:
    raise errors.make(
      'mix_weights', f'NaN or infinity in {broken[0]}', 'finite adapters', 'check the inputs'
    )
  config = bundles[0].config.copy_and_resolve_references()
  with config.unlocked():  # The factor of the mix is 1.
    config.lora.update(rank=rank, alpha=float(rank), ranks=(), rslora=False)
  carried = dataclasses.replace(bundles[0], config=config)
  of_base = adapter_runs.entry(metas[0]) if base is None else adapter_runs.base(base)
  meta = {**carried.to_meta(), **recipe, **of_base, 'losses': losses}
  writer = stream.Writer(output, {'params': arrays}, meta)
  hashed = content.ContentHash()
  try:
    for path, value in arrays.items():
      hashed.update(path, value, value)
      writer.write('params', path, value)
    writer.finish(hash=hashed.hexdigest())
  except BaseException:
    writer.abandon()
    raise
  return losses


def _matched(
  inputs: Sequence[Tree], rules: weights.Rules
) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
  """Coefficients by the path of every layer with an adapter, and of every other parameter."""
  paths = dict.fromkeys(path for tree in inputs for path in tree)
  layers = [path.rpartition('/')[0] for path in paths if path.endswith(f'/{adapters.A}')]
  whole = [path for path in paths if not adapters.is_adapter(path)]
  matched = weights.match(rules, [*(f'{layer}/{adapters.KERNEL}' for layer in layers), *whole])
  of_layers = {layer: matched[f'{layer}/{adapters.KERNEL}'] for layer in layers}
  return of_layers, {path: matched[path] for path in whole}


def _mix_layers(
  inputs: Sequence[Tree], coefficients: Mapping[str, Sequence[float]], rank: int
) -> tuple[dict[str, np.ndarray], dict[str, Loss]]:
  """The arrays of the mixed adapters, and what they lose."""
  arrays, losses, error, size = {}, {}, 0.0, 0.0
  for layer, row in Progress(coefficients.items(), what='mixing', unit='layer'):
    used = [
      ([tree[f'{layer}/{leaf}'].read(()) for leaf in adapters.LEAVES], c)
      for tree, c in zip(inputs, row)
      if c and f'{layer}/{adapters.A}' in tree
    ]
    if not used:
      continue
    (a, b, scale), _ = used[0]
    features = b.shape[scale.ndim + 1 :]
    factors = [
      (a, b.reshape(*b.shape[: scale.ndim + 1], -1) * scale[..., None, None])
      for (a, b, scale), _ in used
    ]
    mixed = low_rank.mix(factors, [c for _, c in used], rank)
    b = mixed.b.reshape(*mixed.b.shape[:-1], *features)
    for leaf, value in zip(adapters.LEAVES, (mixed.a, b, np.ones_like(scale))):
      arrays[f'{layer}/{leaf}'] = np.ascontiguousarray(value, np.float32)
    losses[layer] = Loss(mixed.a.shape[-1], _relative(mixed.error, mixed.size))
    error, size = error + mixed.error, size + mixed.size
  return arrays, {**losses, 'total': Loss(None, _relative(error, size))}


def _relative(error: float, size: float) -> float:
  """The ratio of two norms of which the squares are given; 0 of nothing."""
  return math.sqrt(error / size) if size else 0.0


def _mix_whole(
  inputs: Sequence[Tree],
  coefficients: Mapping[str, Sequence[float]],
  open_base: Callable[[], Tree],
) -> dict[str, np.ndarray]:
  """The mix of parameters that were trained in full: base + sum of c_i * (input_i - base)."""
  mixed: dict[str, np.ndarray] = {}
  base: Tree = {}
  for path, row in coefficients.items():
    needs_base = abs(sum(row) - 1) > 1e-6 or any(path not in tree for tree in inputs)
    base = open_base() if needs_base and not base else base
    start = base[path].read(()) if needs_base else None
    leaves = [tree[path].read(()) if path in tree else start for tree in inputs]
    mixed[path] = np.asarray(linear.mix_leaf(leaves, row, start, np.float32))
  return mixed
