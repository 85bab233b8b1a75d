"""Writes the adapters of a run as PEFT has them: the way back of `native_adapters`."""

import collections
import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from sphinx_jax.checkpoint import store, stream
from sphinx_jax.checkpoint.foreign import adapters as peft, export, files, safetensors
from sphinx_jax.checkpoint.foreign.native_adapters import WEIGHT
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors, files as core_files
from sphinx_jax.models import adapters, foreign, vocabulary

_MODULE = re.compile(r'(.+)\.(weight|bias)')  # A tensor of a module; other parameters have none.


class Exported(NamedTuple):
  """What PEFT's two files hold: adapter_config.json, and name -> tensor."""

  config: dict[str, Any]
  tensors: dict[str, Tensor]


def to_peft(
  config: ml_collections.ConfigDict,
  arrays: Mapping[str, stream.Array],
  base: str | None,
  where: store.Path,
) -> Exported:
  """The adapters of a run as PEFT names them.

  Args:
    config: the run's.
    arrays: path -> array of the run's checkpoint.
    base: name of the base for `base_model_name_or_path`, or None.
    where: the run's directory, for messages.

  Raises:
    SphinxError: the run trained what HF transformers does not have, or what is no whole module.
  """
  groups = foreign.by_path(export.huggingface_table(config.model))
  layers = [path.removesuffix(f'/{adapters.A}') for path in arrays if path.endswith(adapters.A)]
  whole = [path for path in arrays if not adapters.is_adapter(path)]
  lost = [layer for layer in layers if f'{layer}/{adapters.KERNEL}' not in groups]
  lost += [path for path in whole if path not in groups]
  new = [table.new for table in vocabulary.TABLES.values() if table.new in arrays]
  if new:
    raise _cannot_hold(where, new, 'the tokens of its base (PEFT does not lengthen its tables)')
  if lost:
    raise _cannot_hold(where, lost, 'matrices and parameters that HF transformers has')
  if not layers:
    raise errors.make(
      f"adapter '{where}'", 'no adapter', 'at least one', 'train with another lora.target'
    )
  is_rslora = bool(config.lora.rslora)
  tensors: dict[str, Tensor] = {}
  sizes: dict[str, tuple[int, float]] = {}  # Module -> its rank and alpha.
  named: dict[str, list[str]] = {}  # Pattern of modules -> these modules.
  for layer in layers:
    a, b, scale = (arrays[f'{layer}/{leaf}'] for leaf in adapters.LEAVES)
    rank, scales = a.shape[-1], scale.read(())
    for weight in groups[f'{layer}/{adapters.KERNEL}']:
      modules = named.setdefault(_pattern(weight.key.removesuffix(WEIGHT)), [])
      beside = export.foreign_tensors(
        [dataclasses.replace(weight, path=f'{layer}/{adapters.B}')], arrays
      )
      for index, key in weight.places():
        module, stack = key.removesuffix(WEIGHT), index[: scales.ndim]
        modules.append(module)
        sizes[module] = rank, _alpha(scales[stack], math.sqrt(rank) if is_rslora else rank)
        name = f'{peft.WRAPPER}{module}.lora_'
        read = functools.partial(_read_transposed, a, stack)
        tensors[f'{name}A.weight'] = Tensor((rank, a.shape[-2]), a.dtype, read)
        tensors[f'{name}B.weight'] = beside[key]
  saved = export.foreign_tensors([weight for path in whole for weight in groups[path]], arrays)
  tensors |= {f'{peft.WRAPPER}{key}': tensor for key, tensor in saved.items()}
  keys = {key for weights in groups.values() for weight in weights for _, key in weight.places()}
  modules_to_save = _whole_modules(saved, keys, sizes, where)
  rank, ranks = _default({module: size for module, (size, _) in sizes.items()}, named)
  alpha, alphas = _default({module: size for module, (_, size) in sizes.items()}, named)
  return Exported(
    {
      'peft_type': 'LORA',
      'base_model_name_or_path': base,
      'inference_mode': True,
      'r': rank,
      'lora_alpha': alpha,
      'rank_pattern': ranks,
      'alpha_pattern': alphas,
      'use_rslora': is_rslora,
      'lora_dropout': float(config.lora.dropout),
      'bias': 'none',
      'target_modules': '|'.join(named),
      'modules_to_save': modules_to_save or None,
    },
    tensors,
  )


def _read_transposed(a: stream.Array, index: stream.Index) -> np.ndarray:
  return np.ascontiguousarray(a.read(index).T)


def _alpha(scale: float, divisor: float) -> float:
  """The alpha of a factor float32[] = alpha / divisor: a whole number if one gives the factor."""
  nearest = round(float(scale) * divisor)
  return nearest if np.float32(nearest / divisor) == scale else float(scale) * divisor


def _pattern(key: str) -> str:
  """The regular expression of a name in which '{}' stands for a number."""
  return re.escape(key).replace(re.escape('{}'), r'\d+')


def _default(
  values: Mapping[str, Any], named: Mapping[str, Sequence[str]]
) -> tuple[Any, dict[str, Any]]:
  """The most frequent value, and pattern of modules -> value of those that have another one.

  Args:
    values: module -> its value.
    named: pattern -> its modules.
  """
  default = collections.Counter(values.values()).most_common(1)[0][0]
  others = {}
  for pattern, modules in named.items():
    if len({values[module] for module in modules}) == 1:
      others[pattern] = values[modules[0]]
    else:
      others |= {re.escape(module): values[module] for module in modules}
  return default, {pattern: value for pattern, value in others.items() if value != default}


def _whole_modules(
  saved: Collection[str], keys: Collection[str], adapted: Collection[str], where: store.Path
) -> list[str]:
  """The modules whose tensors are trained in full.

  Args:
    saved: names of the trained tensors.
    keys: names of all tensors of the model.
    adapted: modules with an adapter.
    where: the run's directory, for the message.

  Raises:
    SphinxError: a tensor belongs to no module, to one that is not trained whole, or to one that has
      an adapter, too.
  """
  modules = {key: found[1] for key in keys if (found := _MODULE.fullmatch(key))}
  trained = dict.fromkeys(modules.get(key) for key in saved)
  partly = {module for key, module in modules.items() if key not in saved}
  lost = [key for key in saved if modules.get(key) in (None, *partly, *adapted)]
  if lost:
    raise _cannot_hold(where, lost, 'whole modules without an adapter (modules_to_save)')
  return [*trained]


def _cannot_hold(where: store.Path, lost: Sequence[str], expected: str) -> errors.SphinxError:
  return errors.make(
    f"adapter '{where}'",
    f'{len(lost)} trained parameters that PEFT cannot hold ({files.first_names(lost)})',
    expected,
    'merge it and export the whole model (--source=BASE+ADAPTER --to=hf), or train without them',
  )


def write(folder: pathlib.Path, exported: Exported) -> None:
  """Writes the two files of an adapter into a folder, which exists."""
  core_files.write_json(folder / peft.CONFIG, exported.config)
  safetensors.write_file(folder / peft.TENSORS, exported.tensors)
