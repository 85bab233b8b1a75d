"""Detects the format of a file or folder and finds the model's table for it.

Only names, shapes and config files are read.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections
import numpy as np

from sphinx_jax.checkpoint.foreign import files, pth, safetensors, shards
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.models import foreign, variants
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama

# Written beside the files of an official folder that we export: the whole model config.
SIDECAR = 'sphinx_jax.json'
FORMS = {
  'llm': llama.FORMS,
  'clip': clip.FORMS,
  'convnext': convnext.FORMS,
  'dinov2': dinov2.FORMS,
  'qformer': qformer.FORMS,
}


@dataclasses.dataclass(frozen=True)
class Source:
  """An opened file or folder.

  Attributes:
    path: the file or folder.
    kind: description of the format.
    part: 'model' for a whole SPHINX, or 'llm', 'clip', 'convnext', 'dinov2', 'qformer'.
    form: name of the part's form (models/foreign.py).
    tensors: foreign name, without `prefix`, -> tensor.
    table: parameters and foreign names; paths begin at the root of the tree or of the part.
    settings: sizes of the part, or the whole model config.
    config: contents of the foreign config file, or {}.
    tokenizer: contents of a tokenizer.model beside it, or None.
    unused: names that the model does not use.
    prefix: what all names in the file begin with.
    outside: names of other parts in the same file (a text encoder), without the prefix.
  """

  path: pathlib.Path
  kind: str
  part: str
  form: str
  tensors: Mapping[str, Tensor]
  table: list[foreign.Weight]
  settings: Any
  config: Mapping[str, Any]
  tokenizer: bytes | None
  unused: tuple[str, ...]
  prefix: str = ''
  outside: tuple[str, ...] = ()


def open_source(
  path: files.Path,
  variant: str | None = None,
  base: files.Path | None = None,
  report: Callable[[str], None] = log.warning,
) -> Source:
  """Opens weights of another project.

  Args:
    path: a file, or a folder as it was downloaded.
    variant: the official llama_type, if meta.json does not have it or should be overridden.
    base: the folder that the deltas of *.model-diff.pth are added to. Its config and tokenizer are
      used if the folder of the deltas has none.
    report: called with a message for oddities that are no errors (replicas of a tensor that
      differ).

  Raises:
    SphinxError: the format is unknown, a file is damaged or missing, or the config lacks a value
      that no shape determines.
  """
  path = pathlib.Path(path)
  tensors = _open_tensors(path, base, report)
  folder = path if path.is_dir() else path.parent
  folders = [folder, *([pathlib.Path(base)] if base else [])]
  shared = {'path': path, 'config': _find_config(folders), 'tokenizer': _find_tokenizer(folders)}
  prefix = shards.PREFIX if any(key.startswith(shards.PREFIX) for key in tensors) else ''
  unprefixed = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
  meta = _read_json(folder / 'meta.json')
  if 'start_img' in unprefixed or 'llama_type' in meta:
    return _open_model(unprefixed, prefix, meta, variant, folder, shared)
  return _open_part(tensors, path, shared)


def _find_config(folders: Iterable[pathlib.Path]) -> dict[str, Any]:
  """Returns the first config.json or params.json that is not empty, or {}."""
  for folder in folders:
    for name in ('config.json', 'params.json'):
      config = _read_json(folder / name)
      if config:
        return config
  return {}


def _find_tokenizer(folders: Iterable[pathlib.Path]) -> bytes | None:
  for folder in folders:
    file = folder / 'tokenizer.model'
    if file.is_file():
      return file.read_bytes()
  return None


def _open_tensors(
  path: pathlib.Path, base: files.Path | None, report: Callable[[str], None]
) -> dict[str, Tensor]:
  """Opens every tensor of a file or folder, with shards merged and deltas added."""
  if not path.exists():
    raise errors.make(
      f"source '{path}'",
      'no such file or folder',
      'a file of weights or a folder with them',
      'check the path',
    )
  if path.is_file():
    is_safetensors = path.suffix == '.safetensors'
    return safetensors.open_safetensors(path) if is_safetensors else pth.open_pth(path)
  sets = shards.open_sets(path)
  if sets:
    return _merge_sets(path, sets, base, report)
  names = sorted(file.name for file in path.iterdir())
  if any(name.endswith('.safetensors') for name in names):
    return safetensors.open_safetensors(path)
  pickles = [path / name for name in names if name.endswith(('.bin', '.pt', '.pth'))]
  if not pickles:
    raise errors.make(
      f"source '{path}'",
      f'a folder with {names[:5]}',
      'weights (consolidated*.pth, *.safetensors, *.bin, *.pth) or a checkpoint of sphinx_jax',
      'check the path',
    )
  return files.join_tensors(path, [(file, pth.open_pth(file)) for file in pickles])


def _merge_sets(
  path: pathlib.Path,
  sets: Mapping[str, list[dict[str, Tensor]]],
  base: files.Path | None,
  report: Callable[[str], None],
) -> dict[str, Tensor]:
  """Returns the whole tensors of a folder of shards; deltas are added to their base."""
  weights = sets.get('official') or sets.get('meta')
  if weights and 'diff' not in sets:
    return shards.merge(weights, report)
  if not weights and base is None:
    raise errors.make(
      f"source '{path}'",
      'deltas (*.model-diff.pth) alone',
      'the base that they are added to',
      'give --base=DIR',
    )
  if weights:
    base_tensors = shards.merge(weights, report)
  else:
    base_tensors = _open_tensors(pathlib.Path(base), None, report)
  return shards.add_diff(base_tensors, shards.merge(sets['diff'], report))


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  """Returns the object of a JSON file; {} if there is no such file."""
  if not file.is_file():
    return {}
  try:
    value = json.loads(file.read_text())
  except ValueError as error:
    raise errors.make(
      f"'{file}'", f'text that is no JSON ({error})', 'a JSON object', 'copy the file again'
    ) from None
  if not isinstance(value, dict):
    raise errors.make(
      f"'{file}'", f'a JSON {type(value).__name__}', 'a JSON object', 'copy the file again'
    )
  return value


def _open_model(
  tensors: Mapping[str, Tensor],
  prefix: str,
  meta: Mapping[str, Any],
  variant: str | None,
  folder: pathlib.Path,
  shared: Mapping[str, Any],
) -> Source:
  """Opens an official SPHINX; the meta.json of its folder names the variant."""
  name = variant or meta.get('llama_type')
  if not isinstance(name, str):
    raise errors.make(
      f"source '{folder}'",
      f'llama_type {name!r}' if meta else 'no meta.json',
      f'meta.json with a llama_type ({", ".join(variants.VARIANTS)})',
      'copy it from the release, or give --variant',
    )
  row = variants.variant(name)
  sidecar = _read_json(folder / SIDECAR)
  if sidecar:
    model = ml_collections.ConfigDict(sidecar)
  else:
    config = shared['config']
    llm = _settings(variants.LLM, _shapes(tensors), config, f"source '{folder}'")
    encoders = _encoder_settings(tensors, row, folder, config)
    model = variants.model(name, llm, encoders, compute_dtype(tensors, variants.LLM))
  table = variants.weights(model)
  return Source(
    kind=f'official SPHINX, {name}',
    part='model',
    form='official',
    tensors=tensors,
    table=table,
    settings=model,
    unused=_find_unused(tensors, table),
    prefix=prefix,
    **shared,
  )


def _encoder_settings(
  tensors: Mapping[str, Tensor],
  row: Mapping[str, Any],
  folder: pathlib.Path,
  config: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns the sizes of every encoder of a variant, from the shapes of its tensors."""
  settings = {}
  for part in row['encoders']:
    prefix, form = variants.ENCODERS[part]
    shapes = {
      key.removeprefix(prefix): tensor.shape
      for key, tensor in tensors.items()
      if key.startswith(prefix)
    }
    settings[part] = _settings(form, shapes, {}, f"encoder {part} of '{folder}'")
  if 'clip' in settings:
    # OpenAI's weights were trained with QuickGELU. The official code builds it only if it loads
    # those weights, else the exact GELU (docs/official_sphinx.md, "CLIP").
    has_openai_weights = config.get('load_pretrained_visual_encoder')
    settings['clip']['activation'] = 'quick_gelu' if has_openai_weights else 'gelu'
  return settings


def _settings(
  form: foreign.Form, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], who: str
) -> dict[str, Any]:
  """Returns the sizes of a part.

  Raises:
    SphinxError: a tensor is missing, or the shapes are impossible.
  """
  try:
    return form.settings(shapes, config)
  except KeyError as error:
    raise errors.make(
      who,
      f'no tensor {error}',
      'all tensors of the part',
      'check whether a file is missing or the download was cut short',
    ) from None
  except (ValueError, IndexError, TypeError) as error:
    raise errors.make(
      who,
      f'shapes that cannot be read ({error})',
      'the shapes of its library',
      'check that the files belong together',
    ) from None


def compute_dtype(tensors: Mapping[str, Tensor], form: foreign.Form) -> str:
  """Returns the default compute dtype of a language model.

  It is float32 if the weights are stored in float32, else bfloat16.
  """
  embedding = tensors.get(form.mark)  # `assemble` reports a missing one.
  return 'float32' if embedding is None or embedding.dtype == np.float32 else 'bfloat16'


def _open_part(
  tensors: Mapping[str, Tensor], path: pathlib.Path, shared: Mapping[str, Any]
) -> Source:
  """Opens one part of a model, of the first form whose names match."""
  for part, forms in FORMS.items():
    for name, form in forms.items():
      prefix = form.prefix(tensors)
      if prefix is None:
        continue
      who = f"source '{path}' ({form.kind})"
      inside = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
      }
      settings = _settings(form, _shapes(inside), shared['config'], who)
      table = form.weights(settings)
      unused = _find_unused(inside, table)
      _refuse_unknown(unused, table, form, who)
      return Source(
        kind=form.kind,
        part=part,
        form=name,
        tensors=inside,
        table=table,
        settings=settings,
        unused=unused,
        prefix=prefix,
        outside=tuple(key for key in tensors if not key.startswith(prefix)),
        **shared,
      )
  kinds = '; '.join(form.kind for forms in FORMS.values() for form in forms.values())
  raise errors.make(
    f"source '{path}'",
    f'{len(tensors)} tensors of no known form ({", ".join(sorted(tensors)[:3])}, ...)',
    f'one of: official SPHINX; {kinds}',
    'see the table of formats in docs/weights.md',
  )


def _refuse_unknown(
  unused: Iterable[str], table: Iterable[foreign.Weight], form: foreign.Form, who: str
) -> None:
  """Refuses names that the model does not have and that are not known to be unnecessary.

  Ignoring them would compute another model.

  Raises:
    SphinxError: there are such names.
  """
  keys = {weight.key for weight in table}
  unknown = [
    key
    for key in unused
    # More layers than in the config: `assemble` reports them.
    if re.sub(r'\.\d+\.', '.{}.', key) not in keys
    and not any(re.fullmatch(pattern, key) for pattern in form.unused)
  ]
  if unknown:
    raise errors.make(
      who,
      f'{len(unknown)} tensors that it does not have ({", ".join(unknown[:5])})',
      'only the tensors of this architecture',
      'give one file if the folder has several models; variants of the architecture (biases, '
      'registers) are not supported',
    )


def _find_unused(tensors: Iterable[str], table: Iterable[foreign.Weight]) -> tuple[str, ...]:
  used = {key for weight in table for _, key in weight.places()}
  return tuple(key for key in tensors if key not in used)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
  return {key: tensor.shape for key, tensor in tensors.items()}
