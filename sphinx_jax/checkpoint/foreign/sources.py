"""Recognises what lies in a file or folder, and puts the model's tables to it: nothing is read but names and shapes."""

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
from sphinx_jax.models import foreign, variants as official
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama

SIDECAR = (
  'sphinx_jax.json'  # Beside an official folder that we wrote: the model config, heads and all.
)
FORMS = {
  'llm': llama.FORMS,
  'clip': clip.FORMS,
  'convnext': convnext.FORMS,
  'dinov2': dinov2.FORMS,
  'qformer': qformer.FORMS,
}


@dataclasses.dataclass(frozen=True)
class Source:
  """What a file or folder holds.

  Attributes:
    path: where it lies.
    kind: what it is, in words.
    part: 'model' for a whole SPHINX, or 'llm', 'clip', 'convnext', 'dinov2', 'qformer'.
    form: name of the form that it is in.
    tensors: foreign name (without what this file puts before all names) -> tensor.
    table: whose paths are from the root of what the source is: the parameter tree or the part.
    settings: of the part, or the whole model config.
    config: the foreign config file, or {}.
    tokenizer: contents of a tokenizer.model beside it, or None.
    carried: names that the model does not use.
    prefix: what the file puts before all names.
    outside: names of the file without that prefix: of other parts (a text encoder), which nothing here reads.
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
  carried: tuple[str, ...]
  prefix: str = ''
  outside: tuple[str, ...] = ()


def open_source(
  path: str | pathlib.Path,
  variant: str | None = None,
  base: str | pathlib.Path | None = None,
  report: Callable[[str], None] = log.warning,
) -> Source:
  """Opens a checkpoint of somebody else.

  Args:
    path: a file, or a folder as it is downloaded.
    variant: the official llama_type, where meta.json does not say (or is to be read as another).
    base: the folder that the deltas of *.model-diff.pth are added to; what the delta's folder lacks is taken from there.
    report: is told, in words, of what is odd but no error (replicas of a tensor that differ).

  Raises:
    SphinxError: nothing recognised, damaged or missing files, a config without what no tensor tells.
  """
  path = pathlib.Path(path)
  tensors = _open_tensors(path, base, report)
  folder = path if path.is_dir() else path.parent
  folders = [folder, *([pathlib.Path(base)] if base else [])]
  config = next(
    (
      found
      for near in folders
      for name in ('config.json', 'params.json')
      if (found := _json(near / name))
    ),
    {},
  )
  tokenizer = next(
    (file.read_bytes() for near in folders if (file := near / 'tokenizer.model').is_file()), None
  )
  shared = dict(path=path, config=config, tokenizer=tokenizer)
  prefix = shards.PREFIX if any(key.startswith(shards.PREFIX) for key in tensors) else ''
  plain = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
  meta = _json(folder / 'meta.json')
  if 'start_img' in plain or 'llama_type' in meta:
    return _whole(plain, prefix, meta, variant, folder, shared)
  return _part(tensors, path, shared)


def _open_tensors(
  path: pathlib.Path, base: str | pathlib.Path | None, report: Callable[[str], None]
) -> dict[str, Tensor]:
  if not path.exists():
    raise errors.make(
      f"source '{path}'",
      'no such file or folder',
      'a file of weights or a folder with them',
      'check the path',
    )
  if path.is_file():
    return (
      safetensors.open_safetensors(path) if path.suffix == '.safetensors' else pth.open_pth(path)
    )
  names = sorted(file.name for file in path.iterdir())
  if sets := shards.fold(path):
    return _merged(path, sets, base, report)
  if any(name.endswith('.safetensors') for name in names):
    return safetensors.open_safetensors(path)
  pickles = [path / name for name in names if name.endswith(('.bin', '.pt', '.pth'))]
  if not pickles:
    raise errors.make(
      f"source '{path}'",
      f'a folder with {names[:5]}',
      'weights (consolidated*.pth, *.safetensors, *.bin, *.pth) or a checkpoint of ours',
      'check the path',
    )
  return files.join_tensors(path, [(file, pth.open_pth(file)) for file in pickles])


def _merged(
  path: pathlib.Path,
  sets: Mapping[str, list],
  base: str | pathlib.Path | None,
  report: Callable[[str], None],
) -> dict[str, Tensor]:
  """The whole tensors of a folder of shards, deltas added to their base."""
  whole = sets.get('official') or sets.get('meta')
  if whole and 'diff' not in sets:
    return shards.merge(whole, report)
  if not whole and base is None:
    raise errors.make(
      f"source '{path}'",
      'deltas (*.model-diff.pth) alone',
      'the base that they are added to',
      'give --base=DIR',
    )
  found = shards.merge(whole, report) if whole else _open_tensors(pathlib.Path(base), None, report)
  return shards.add_diff(found, shards.merge(sets['diff'], report))


def _json(file: pathlib.Path) -> dict[str, Any]:
  if not file.is_file():
    return {}
  try:
    found = json.loads(file.read_text())
  except ValueError as error:
    raise errors.make(
      f"'{file}'", f'text that is no JSON ({error})', 'a JSON object', 'copy the file again'
    ) from None
  if not isinstance(found, dict):
    raise errors.make(
      f"'{file}'", f'a JSON {type(found).__name__}', 'a JSON object', 'copy the file again'
    )
  return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
  return {key: tensor.shape for key, tensor in tensors.items()}


def _whole(
  tensors: Mapping[str, Tensor],
  prefix: str,
  meta: Mapping[str, Any],
  variant: str | None,
  folder: pathlib.Path,
  shared: Mapping[str, Any],
) -> Source:
  """An official SPHINX; its own folder says what variant it is."""
  name = variant or meta.get('llama_type')
  if not isinstance(name, str):
    raise errors.make(
      f"source '{folder}'",
      f'llama_type {name!r}' if meta else 'no meta.json',
      f'meta.json with a llama_type ({", ".join(official.VARIANTS)})',
      'copy it from the release, or give --variant',
    )
  row = official.variant(name)
  known = _json(folder / SIDECAR)
  if known:
    model = ml_collections.ConfigDict(known)
  else:
    config = shared['config']
    llm = _settings(official.LLM, _shapes(tensors), config, f"source '{folder}'")
    model = official.model(
      name, llm, _encoders(tensors, row, folder, config), compute_dtype(tensors, official.LLM)
    )
  table = official.weights(model)
  return Source(
    kind=f'official SPHINX, {name}',
    part='model',
    form='official',
    tensors=tensors,
    table=table,
    settings=model,
    carried=_unused(tensors, table),
    prefix=prefix,
    **shared,
  )


def _encoders(
  tensors: Mapping[str, Tensor],
  row: Mapping[str, Any],
  folder: pathlib.Path,
  config: Mapping[str, Any],
) -> dict[str, Any]:
  found = {}
  for part in row['encoders']:
    before, form = official.ENCODERS[part]
    shapes = {
      key.removeprefix(before): tensor.shape
      for key, tensor in tensors.items()
      if key.startswith(before)
    }
    found[part] = _settings(form, shapes, {}, f"encoder {part} of '{folder}'")
  if (
    'clip' in found
  ):  # The official loader of OpenAI's weights builds QuickGELU, its plain one the exact GELU (FACTS "CLIP").
    found['clip']['activation'] = (
      'quick_gelu' if config.get('load_pretrained_visual_encoder') else 'gelu'
    )
  return found


def _settings(
  form: foreign.Form, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], who: str
) -> dict[str, Any]:
  try:
    return form.settings(shapes, config)
  except KeyError as error:
    raise errors.make(
      who, f'no tensor {error}', 'a whole one', 'is a file missing, or the download cut short?'
    ) from None
  except (ValueError, IndexError, TypeError) as error:
    raise errors.make(
      who,
      f'shapes that cannot be read ({error})',
      'those of its library',
      'check that the files belong together',
    ) from None


def compute_dtype(tensors: Mapping[str, Tensor], form: foreign.Form) -> str:
  """What a language model computes in unless it is told otherwise: float32 where it is stored so, else bfloat16."""
  embedding = tensors.get(form.mark)  # Where it is missing, `assemble` says so.
  return 'float32' if embedding is None or embedding.dtype == np.float32 else 'bfloat16'


def _part(tensors: Mapping[str, Tensor], path: pathlib.Path, shared: Mapping[str, Any]) -> Source:
  """One part of a model."""
  for part, forms in FORMS.items():
    for name, form in forms.items():
      prefix = form.prefix(tensors)
      if prefix is None:
        continue
      inside = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
      }
      settings = _settings(
        form, _shapes(inside), shared['config'], f"source '{path}' ({form.kind})"
      )
      table = form.weights(settings)
      carried = _unused(inside, table)
      _refuse_strange(carried, table, form, f"source '{path}' ({form.kind})")
      return Source(
        kind=form.kind,
        part=part,
        form=name,
        tensors=inside,
        table=table,
        settings=settings,
        carried=carried,
        prefix=prefix,
        outside=tuple(key for key in tensors if not key.startswith(prefix)),
        **shared,
      )
  raise errors.make(
    f"source '{path}'",
    f'{len(tensors)} tensors of no known form ({", ".join(sorted(tensors)[:3])}, ...)',
    f'one of: official SPHINX; {"; ".join(form.kind for forms in FORMS.values() for form in forms.values())}',
    'see the table of formats in README.md',
  )


def _refuse_strange(
  carried: Iterable[str], table: Iterable[foreign.Weight], form: foreign.Form, who: str
) -> None:
  """Names that are neither the model's nor known to be of no use here: without them another model would be computed."""
  layers = {
    weight.key for weight in table
  }  # More of these than the config says: `assemble` names them.
  strange = [
    key
    for key in carried
    if re.sub(r'\.\d+\.', '.{}.', key) not in layers
    and not any(re.fullmatch(pattern, key) for pattern in form.unused)
  ]
  if strange:
    raise errors.make(
      who,
      f'{len(strange)} tensors that it does not have ({", ".join(strange[:5])})',
      'its own alone',
      'another architecture (biases, registers) is not supported; of several models in one folder give one file',
    )


def _unused(tensors: Iterable[str], table: Iterable[foreign.Weight]) -> tuple[str, ...]:
  used = {key for weight in table for _, key in weight.places()}
  return tuple(key for key in tensors if key not in used)
