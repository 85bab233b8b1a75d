"""LoRA adapters of PEFT: what they hold, and merged into the weights that they were trained on.

W' = W + s B A, with s = alpha / r, or alpha / sqrt(r) with `use_rslora`. DoRA then gives every row
of the sum a length of its own (arXiv 2106.09685, 2312.03732, 2402.09353). PEFT itself needs torch
and the model's class of transformers; its numbers are recorded in tests/golden/adapters.
"""

import functools
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.checkpoint.foreign import files, hub, pth, safetensors
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.models import foreign_config

CONFIG = 'adapter_config.json'
TENSORS = 'adapter_model.safetensors'
FILES = {
  TENSORS: safetensors.open_safetensors,
  'adapter_model.bin': pth.open_pth,
}
_PIECE = 1 << 22  # Numbers of a weight that are in float32 at a time.
WRAPPER = 'base_model.model.'
# PEFT's name of a matrix; tensors saved without its library have the name of the adapter, too.
_PART = re.compile(
  r'(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)'
  r'(\.default)?(\.weight)?'
)
_REPLACED = re.compile(r'\.(base_layer|modules_to_save(\.default)?)(?=\.)')
_PLAIN_INITS = (True, 'gaussian', 'eva', 'orthogonal')  # The others change the base as well.
# Of the unused fields, only those that are not null, false or empty are checked.
_FIELDS = foreign_config.Fields(
  used=(
    'alpha_pattern',
    'bias',  # Of which the file has the trained ones.
    'exclude_modules',
    'layers_to_transform',
    'lora_alpha',
    'modules_to_save',
    'r',
    'rank_pattern',
    'target_modules',
    'use_dora',
    'use_rslora',
  ),
  neutral={
    'names and versions': (
      'auto_mapping',
      'base_model_name_or_path',
      'peft_version',
      'revision',
      'task_type',
    ),
    'training only': ('eva_config', 'inference_mode', 'lora_dropout', 'runtime_config'),
    'of a layer that no model here has (Conv1D); PEFT ignores it for others': ('fan_in_fan_out',),
    'with other settings only': ('layers_pattern', 'megatron_core', 'qalora_group_size'),
  },
  only={
    'peft_type': ('LORA',),
    'init_lora_weights': _PLAIN_INITS,
    **dict.fromkeys(
      (
        'alora_invocation_tokens',
        'arrow_config',
        'ensure_weight_tying',
        'kasa_config',
        'layer_replication',
        'lora_bias',
        'megatron_config',
        'target_parameters',
        'trainable_token_indices',
        'use_bdlora',
        'use_qalora',
      ),
      (),
    ),
  },
)


class Parsed(NamedTuple):
  """An adapter that fits its base.

  Attributes:
    modules: name -> (part -> matrix, scale of their product).
    replaced: name of a tensor -> the one that takes its place.
  """

  modules: dict[str, tuple[dict[str, Tensor], float]]
  replaced: dict[str, Tensor]


def is_adapter(folder: files.Path) -> bool:
  """Whether a folder, or a name in the local hub cache, is an adapter of PEFT."""
  return (hub.locate(folder) / CONFIG).is_file()


def parse(
  tensors: Mapping[str, Tensor], folder: files.Path, base: files.Path, name: str | None
) -> Parsed:
  """Opens an adapter and compares it with its base. No weight is read.

  Args:
    tensors: the base's, by their names in HF transformers.
    folder: folder of the adapter, or its name in the local hub cache.
    base: folder of the base, for messages.
    name: OWNER/NAME of the base; None: not known.

  Raises:
    SphinxError: there is no adapter, a setting that is not computed, a module that the base does
      not have, or shapes that do not fit.
  """
  who, place = f"adapter '{folder}'", hub.locate(folder)
  config, own = _open(place, who)
  modules: dict[str, dict[str, Tensor]] = {}  # Module -> part -> matrix.
  replaced: dict[str, Tensor] = {}
  for key, tensor in own.items():
    key = key.removeprefix(WRAPPER)
    found = _PART.fullmatch(key)
    if found:
      modules.setdefault(found['module'], {})[found['part']] = tensor
    else:
      replaced[_REPLACED.sub('', key)] = tensor
  with files.explain_damage(place / CONFIG):
    _check_names(config, modules, replaced, tensors, who, base, name)
    problems = [
      f'{name} {list(tensor.shape)} in place of {list(tensors[name].shape)}'
      for name, tensor in replaced.items()
      if tensor.shape != tensors[name].shape
    ]
    scaled = {}
    for module, parts in modules.items():
      problem, scale = _check_parts(config, module, parts, tensors[f'{module}.weight'].shape)
      if problem:
        problems.append(f'{module}: {problem}')
      scaled[module] = parts, scale
  if problems:
    raise errors.make(
      who,
      f'{len(problems)} modules that do not fit ({"; ".join(problems[:5])})',
      f"an adapter of '{base}'",
      'take the base that it was trained on',
    )
  log.info("%s: %d modules of '%s', and %d whole tensors", who, len(scaled), base, len(replaced))
  return Parsed(scaled, replaced)


def merge(tensors: Mapping[str, Tensor], folder: files.Path, base: files.Path) -> dict[str, Tensor]:
  """Merges an adapter into the weights of its base. They are read when the result is.

  Args:
    tensors, folder, base: as of `parse`.

  Returns:
    All tensors of the base, in its shapes and dtypes. Sums are float32.

  Raises:
    SphinxError: as `parse`.
  """
  parsed = parse(tensors, folder, base, hub.name_of(hub.locate(base)))
  merged = {name: _cast(tensor, tensors[name].dtype) for name, tensor in parsed.replaced.items()}
  for module, (parts, scale) in parsed.modules.items():
    name = f'{module}.weight'
    weight = merged.get(name, tensors[name])
    read = functools.partial(_read_merged, weight, parts, scale)
    merged[name] = Tensor(weight.shape, weight.dtype, read)
  return {**tensors, **merged}


def merged_weight(
  weight: np.ndarray,
  a: np.ndarray,
  b: np.ndarray,
  scale: float,
  magnitude: np.ndarray | None = None,
) -> np.ndarray:
  """The weight of a module with its adapter.

  Args:
    weight: [out,in].
    a: [r,in].
    b: [out,r].
    scale: of their product.
    magnitude: [out], the length of every row, of DoRA; None: the rows keep that of the sum.

  Returns:
    [out,in] in the weight's dtype. The arithmetic is float32, or float64 for such a weight.
  """
  wide = np.promote_types(weight.dtype, np.float32)
  a, b = a.astype(wide), b.astype(wide)
  out = np.empty_like(weight)
  rows = max(_PIECE // max(weight.shape[1], 1), 1)
  for start in range(0, len(weight), rows):
    part = slice(start, start + rows)
    total = weight[part].astype(wide) + wide.type(scale) * (b[part] @ a)
    if magnitude is not None:
      length = np.linalg.norm(total, axis=1)
      total *= (magnitude[part].astype(wide) / length)[:, None]
    out[part] = total.astype(weight.dtype)
  return out


def _open(place: pathlib.Path, who: str) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
  """Returns the config and the tensors of an adapter."""
  name = next((name for name in FILES if (place / name).is_file()), None)
  if name is None or not (place / CONFIG).is_file():
    raise errors.make(
      who,
      'no such folder' if not place.is_dir() else f'no {CONFIG if name else " or ".join(FILES)}',
      f'a folder of PEFT with {CONFIG} and {" or ".join(FILES)}',
      'check the path',
    )
  config = files.read_json(place / CONFIG)
  switched_on = {key: value for key, value in config.items() if value or key in _FIELDS.used}
  problems = _FIELDS.problems(switched_on)
  if problems:
    raise errors.make(
      f'{who}, {CONFIG}',
      '; '.join(problems[:5]),
      'only what this package computes: LoRA and DoRA',
      'merge it into its base with PEFT (merge_and_unload, then save_pretrained)',
    )
  tensors = FILES[name](place / name)
  if not tensors:
    raise errors.make(
      f'{who}, {name}', 'no tensor', 'the matrices of an adapter', 'save or copy the adapter again'
    )
  return config, tensors


def _check_names(
  config: Mapping[str, Any],
  modules: Mapping[str, Any],
  replaced: Mapping[str, Any],
  tensors: Mapping[str, Tensor],
  who: str,
  base: files.Path,
  base_name: str | None,
) -> None:
  """Compares the names in an adapter's file with those of its base and of its own config.

  Raises:
    SphinxError: the base does not have a module, or the config does not name it.
  """
  unknown = [name for name in modules if f'{name}.weight' not in tensors]
  unknown += [name for name in replaced if name not in tensors]
  if unknown:
    raise errors.make(
      who,
      f'{len(unknown)} modules that the base does not have ({files.first_names(unknown)})',
      f"an adapter of '{base}'",
      'take the base that it was trained on',
    )
  made_for = config.get('base_model_name_or_path')
  if made_for and base_name and pathlib.PurePath(made_for).name != base_name.rpartition('/')[2]:
    log.warning("%s: made for '%s', and used with '%s'", who, made_for, base)
  targets = config.get('target_modules')
  if not targets or targets == 'all-linear':
    return
  unnamed = [name for name in modules if not _is_target(targets, name)]
  if unnamed:
    raise errors.make(
      who,
      f'{len(unnamed)} modules that target_modules does not name ({files.first_names(unnamed)})',
      f'a file that belongs to its {CONFIG}',
      'copy both files again',
    )
  lacking = [
    key
    for key, tensor in tensors.items()
    if len(tensor.shape) > 1
    and _is_target(targets, key.removesuffix('.weight'))
    and key.removesuffix('.weight') not in modules
    and key not in replaced
  ]
  if lacking and not (config.get('exclude_modules') or config.get('layers_to_transform')):
    log.warning(
      '%s: leaves %d targets as they are (%s)', who, len(lacking), files.first_names(lacking)
    )


def _is_target(targets: str | list[str], module: str) -> bool:
  """Whether `target_modules` names a module: one regular expression, or ends of names."""
  if isinstance(targets, str):
    return re.fullmatch(targets, module) is not None
  return any(module == target or module.endswith(f'.{target}') for target in targets)


def _check_parts(
  config: Mapping[str, Any], module: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]
) -> tuple[str | None, float]:
  """Returns what is wrong with the matrices of a module, or None, and the scale of their product.

  Args:
    config: the adapter's.
    module: name of the module.
    parts: its matrices.
    shape: of its weight.
  """
  rank, alpha = (
    next(
      (
        value
        for pattern, value in (config.get(name) or {}).items()
        if _is_pattern_of(pattern, module)
      ),
      config[default],
    )
    for name, default in (('rank_pattern', 'r'), ('alpha_pattern', 'lora_alpha'))
  )
  scale = alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
  if len(shape) != 2:  # PEFT also adapts convolutions.
    return f'its weight is {list(shape)}, no matrix', scale
  out_width, in_width = shape
  expected = {'A': (rank, in_width), 'B': (out_width, rank)}
  if 'embedding_A' in parts:
    expected = {'embedding_A': (rank, out_width), 'embedding_B': (in_width, rank)}
  elif config.get('use_dora'):
    expected['magnitude_vector'] = (out_width,)
  got = {name: tensor.shape for name, tensor in parts.items()}
  if got != expected:
    return f'{_described(got)}, expected {_described(expected)}', scale
  return None, scale


def _is_pattern_of(pattern: str, module: str) -> bool:
  """Whether a key of `rank_pattern` or `alpha_pattern` (the end of names) is for a module."""
  return re.match(rf'(.*\.)?({pattern})$', module) is not None


def _described(shapes: Mapping[str, tuple[int, ...]]) -> str:
  return ', '.join(f'lora_{name} {list(shape)}' for name, shape in shapes.items())


def _read_merged(weight: Tensor, parts: Mapping[str, Tensor], scale: float) -> np.ndarray:
  read = {name: tensor.read() for name, tensor in parts.items()}
  if 'embedding_A' in read:  # Its weight has a row for each token.
    return merged_weight(weight.read(), read['embedding_B'].T, read['embedding_A'].T, scale)
  return merged_weight(weight.read(), read['A'], read['B'], scale, read.get('magnitude_vector'))


def _cast(tensor: Tensor, dtype: np.dtype) -> Tensor:
  return Tensor(tensor.shape, dtype, lambda: tensor.read().astype(dtype, copy=False))
