"""Detects the format of a file or folder and finds the model's table for it.

Only names, shapes and config files are read.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import adapters, files, hub, names, pth, safetensors, shards
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.core.progress import log
from sphinx_jax.models import foreign, foreign_config, forms, multimodal, variants

# Written beside the files of an official folder that we export: the whole model config.
SIDECAR = 'sphinx_jax.json'
_MAX_SHOWN = 10  # Fields of a config in an error.
_EMBEDDING = re.compile(r'(.*\.)?(tok_embeddings|embed_tokens|embedding)\.weight')
_PICKLE_INDEX = 'pytorch_model.bin.index.json'
_TRAINER_FILES = re.compile(
  r'(training_args|optimizer|scheduler|scaler|rng_state|random_states).*|.*optim_states\.pt'
)


@dataclasses.dataclass(frozen=True)
class Source:
  """An opened file or folder.

  Attributes:
    path: the file or folder.
    kind: description of the format.
    part: 'model' for a whole model, or another key of `forms.FORMS`.
    form: name of the part's form (models/foreign.py).
    tensors: foreign name, without `prefix`, -> tensor.
    table: parameters and foreign names; paths begin at the root of the tree or of the part.
    settings: sizes of the part, or the whole model config.
    config: contents of the foreign config file, or {}.
    tokenizer: contents of a tokenizer.model beside it, or of a tokenizer.json if the form carries
      one; None: there is none.
    added_tokens: id -> token of those that files beside tokenizer.model add to it.
    unused: names that the model does not use.
    prefix: what all names in the file begin with.
    carried: name -> text of the files that the form carries.
    outside: names of other parts in the same file (a text encoder), without the prefix.
    adapters: folders of the adapters that are merged into the tensors.
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
  added_tokens: Mapping[int, str]
  unused: tuple[str, ...]
  prefix: str = ''
  carried: Mapping[str, str] = dataclasses.field(default_factory=dict)
  outside: tuple[str, ...] = ()
  adapters: tuple[pathlib.Path, ...] = ()


def open_source(
  path: files.Path,
  variant: str | None = None,
  base: files.Path | None = None,
  report: Callable[[str], None] = log.warning,
  adapter: files.Path | None = None,
) -> Source:
  """Opens weights of another project.

  Args:
    path: a file, a folder as it was downloaded, or the name of a model in the local hub cache; or
      BASE+ADAPTER, see `hub.split`.
    variant: the official llama_type, if meta.json does not have it or should be overridden.
    base: the folder that the deltas of *.model-diff.pth are added to; refused without such files.
      Its config and tokenizer are used if the folder of the deltas has none.
    report: called with a message for oddities that are no errors (replicas of a tensor that
      differ).
    adapter: folder of a LoRA adapter to merge into the weights, or None.

  Raises:
    SphinxError: the format is unknown, a file is damaged or missing, the config lacks a value that
      no shape determines, or the adapter does not fit.
  """
  path, joined = hub.split(path)
  merged = [place for place in (joined, adapter) if place is not None]
  for place in merged:
    _check_base(path, place)
  path = hub.locate(path)
  folder = path if path.is_dir() else path.parent
  _refuse_adapter(path)
  tensors = _open_tensors(path, base, report)
  names.check_whole(tensors, f"source '{path}'")
  for place in merged:
    tensors = adapters.merge(tensors, place, path)
  folders = [folder, *([pathlib.Path(base)] if base else [])]
  shared = {
    'path': path,
    'tokenizer': _find_tokenizer(folders),
    'added_tokens': _find_added_tokens(folders),
    'adapters': tuple(map(hub.locate, merged)),
  }
  prefix = shards.PREFIX if any(key.startswith(shards.PREFIX) for key in tensors) else ''
  unprefixed = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
  meta = _read_json(folder / 'meta.json')
  is_text = (variant or meta.get('llama_type')) in variants.TEXT
  if 'start_img' in unprefixed or ('llama_type' in meta and not is_text):
    return _open_model(unprefixed, prefix, meta, variant, folders, shared)
  return _open_part(tensors, folders, shared)


def _check_base(path: files.Path, adapter: files.Path) -> None:
  """Raises SphinxError for a checkpoint as the base: `merged.split` finds what fits one."""
  if store.is_checkpoint(path):
    raise errors.make(
      f"adapter '{adapter}'",
      f"no adapter for the checkpoint '{path}'",
      f'a run with adapters, or a folder of PEFT with {adapters.CONFIG}',
      'check the path',
    )


def _refuse_adapter(path: pathlib.Path) -> None:
  """Refuses a folder of PEFT."""
  own = (adapters.CONFIG, *adapters.FILES)
  file = next((path / name for name in own if (path / name).is_file()), None)
  if file is not None:
    kind = _read_json(path / adapters.CONFIG).get('peft_type', 'LORA')
    kind = 'LoRA' if kind == 'LORA' else kind
    raise names.adapter(f"source '{path}'", f'a {kind} adapter ({file.name})')


def _read_config(
  folders: Iterable[pathlib.Path], configs: Mapping[str, foreign_config.Fields]
) -> tuple[dict[str, Any], foreign_config.Fields]:
  """Returns the first config file of a form that is not empty, and its fields.

  A config.json of another library, beside a file that has none, is passed over.
  """
  for folder in folders:
    for name, fields in configs.items():
      config = _read_json(folder / name)
      is_own = len(configs) == 1 or not fields.marks or any(mark in config for mark in fields.marks)
      if config and is_own:
        return config, fields
  return {}, foreign_config.Fields()


def _find_tokenizer(folders: Iterable[pathlib.Path]) -> bytes | None:
  for folder in folders:
    file = folder / 'tokenizer.model'
    if file.is_file():
      files.check_kind(file, 'a sentencepiece tokenizer.model')
      return file.read_bytes()
  return None


def _find_added_tokens(folders: Iterable[pathlib.Path]) -> dict[int, str]:
  """Returns id -> token of those that transformers adds to a tokenizer.model."""
  found: dict[int, str] = {}
  for folder in folders:
    config = _read_json(folder / 'config.json')
    for name in ('pad', 'bos', 'eos'):
      value = config.get(f'{name}_token_id')
      found |= {value: f'<{name}>'} if type(value) is int else {}
    decoder = _read_json(folder / 'tokenizer_config.json').get('added_tokens_decoder')
    if isinstance(decoder, dict):
      found |= {
        int(key): str(token.get('content'))
        for key, token in decoder.items()
        if key.isdecimal() and isinstance(token, dict)
      }
    added = _read_json(folder / 'added_tokens.json')
    found |= {value: name for name, value in added.items() if type(value) is int}
    if not added and decoder is None:  # transformers 5 writes them here only.
      added = _read_json(folder / 'tokenizer.json').get('added_tokens') or []
      found |= {
        token['id']: str(token.get('content'))
        for token in added
        if isinstance(token, dict) and type(token.get('id')) is int
      }
  return found


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
  sets = {} if path.is_file() else shards.open_sets(path)
  if base is not None and sets.keys() != {'diff'}:
    raise errors.make(
      '--base', f"'{base}'", f"deltas (*.model-diff.pth) in '{path}' to add to it", 'leave it out'
    )
  if path.is_file():
    is_safetensors = path.suffix == '.safetensors'
    open_file = safetensors.open_safetensors if is_safetensors else pth.open_pth
    return _unwrap(path, open_file(path))
  sets = {kind: [_unwrap(path, tensors) for tensors in ranks] for kind, ranks in sets.items()}
  if sets:
    return _merge_sets(path, sets, base, report)
  # Hidden files are no weights: macOS leaves '._NAME' beside NAME.
  found = sorted(file.name for file in path.iterdir() if not file.name.startswith('.'))
  if any(name.endswith('.safetensors') for name in found):
    return _unwrap(path, safetensors.open_safetensors(path))
  if (path / _PICKLE_INDEX).is_file():
    return _unwrap(path, files.open_index(path / _PICKLE_INDEX, pth.open_pth))
  loose = [name for name in found if (path / name).is_file()]
  pickles = [name for name in loose if name.endswith(('.bin', '.pt', '.pth'))]
  # transformers reads only these. Trainers leave other files beside them.
  pickles = [name for name in pickles if name.startswith('pytorch_model')] or [
    name for name in pickles if not _TRAINER_FILES.fullmatch(name)
  ]
  pickles = pickles or [name for name in loose if name.endswith('.gguf')]  # Refused by its name.
  if not pickles:
    folders = [name for name in found if name not in loose][:5]
    raise errors.make(
      f"source '{path}'",
      f'a folder with {found[:5]}',
      'weights (consolidated*.pth, *.safetensors, *.bin, *.pth) or a checkpoint of sphinx_jax',
      f'check the path, or give a folder inside it ({", ".join(folders)})'
      if folders
      else 'check the path',
    )
  opened = [(path / name, pth.open_pth(path / name)) for name in pickles]
  return _unwrap(path, files.join_tensors(path, opened))


def _unwrap(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Removes the names of wrappers (DDP, PEFT, torch.compile) and logs that they were there."""
  unwrapped = names.unwrap(tensors, _is_known)
  if unwrapped.keys() != tensors.keys():
    log.info("'%s': %s is read as %s", path, next(iter(tensors)), next(iter(unwrapped)))
  return unwrapped


def _is_known(keys: Iterable[str]) -> bool:
  """Whether names are those of a form or of an official SPHINX, without a wrapper."""
  keys = set(keys)
  return (
    'start_img' in keys
    or any(key.startswith(shards.PREFIX) for key in keys)
    or any(form.prefix(keys) is not None for _, _, form in forms.each())
  )


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
  return files.read_json(file) if file.is_file() else {}


def _read_text(file: pathlib.Path) -> str:
  with files.explain_damage(file):
    files.check_kind(file, 'a text file')
    return file.read_text(encoding='utf-8')


def _open_model(
  tensors: Mapping[str, Tensor],
  prefix: str,
  meta: Mapping[str, Any],
  variant: str | None,
  folders: list[pathlib.Path],
  shared: Mapping[str, Any],
) -> Source:
  """Opens an official SPHINX; the meta.json of its folder names the variant."""
  folder = folders[0]
  name = variant or meta.get('llama_type')
  if not isinstance(name, str):
    raise errors.make(
      f"source '{folder}'",
      f'llama_type {name!r}' if meta else 'no meta.json',
      f'meta.json with a llama_type ({", ".join(variants.VARIANTS)})',
      'copy it from the release, or give --variant',
    )
  row = variants.variant(name)
  who = f"source '{folder}'"
  form = variants.LLMS[row['llm']['name']]
  fields_of_llm = variants.config_fields(row['llm']['name'])
  config, fields = _read_config(
    folders, dict.fromkeys(('config.json', 'params.json'), fields_of_llm)
  )
  llm = read_settings(form, _shapes(tensors), config, fields, who)
  sidecar = _read_json(folder / SIDECAR)
  if sidecar:
    model = ml_collections.ConfigDict(sidecar)
    _check_sidecar(model, name, llm, who)
  else:
    encoders = _encoder_settings(tensors, row, folder, config)
    model = variants.model(name, llm, encoders, compute_dtype(tensors))
  table = variants.weights(model)
  unused = _find_unused(tensors, table)
  _check_tensors(tensors, unused, table, _official_unused(row), who)
  return Source(
    kind=f'official SPHINX, {name}',
    part='model',
    form='official',
    tensors=tensors,
    table=table,
    settings=model,
    config=config,
    unused=unused,
    prefix=prefix,
    **shared,
  )


def _check_sidecar(
  model: ml_collections.ConfigDict, name: str, llm: Mapping[str, Any], who: str
) -> None:
  """Compares the model config that an export wrote with the files that others read.

  Raises:
    SphinxError: they describe different models.
  """
  try:
    differences = config_lib.differences({**llm}, model.llm.to_dict(), 'llm.')
    differences = [str(line) for line in differences if line.key.removeprefix('llm.') in llm]
    if variants.name_of(model) != name:
      differences.append(f'llama_type {name} there, {variants.name_of(model)} here')
  except (AttributeError, KeyError, TypeError) as error:
    differences = [f'{type(error).__name__} {error}']
  if differences:
    raise errors.make(
      who,
      f'a {SIDECAR} that differs from config.json and meta.json ({"; ".join(differences[:5])})',
      'files that describe one model',
      f'export the folder again, or remove {SIDECAR}',
    )


def _official_unused(row: Mapping[str, Any]) -> tuple[str, ...]:
  """Patterns of the tensors of a release that no model reads."""
  patterns = [*variants.LLMS[row['llm']['name']].unused]
  for part in row['encoders']:
    prefix, form = variants.ENCODERS[part]
    patterns += [f'{re.escape(prefix)}(?:{pattern})' for pattern in form.unused]
  return tuple(patterns)


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
    who = f"encoder {part} of '{folder}'"
    settings[part] = read_settings(form, shapes, {}, foreign_config.Fields(), who)
  if 'clip' in settings:
    # OpenAI's weights were trained with QuickGELU. The official code builds it only if it loads
    # those weights, else the exact GELU (docs/official_sphinx.md, "CLIP").
    has_openai_weights = config.get('load_pretrained_visual_encoder')
    settings['clip']['activation'] = 'quick_gelu' if has_openai_weights else 'gelu'
  return settings


def read_settings(
  form: foreign.Form,
  shapes: Mapping[str, tuple[int, ...]],
  config: Mapping[str, Any],
  fields: foreign_config.Fields,
  who: str,
) -> dict[str, Any]:
  """Returns the settings of a part.

  Args:
    form: how the part is named and arranged.
    shapes: foreign name -> shape.
    config: the foreign config, or {}.
    fields: its fields.
    who: the part, for errors.

  Raises:
    SphinxError: a tensor is missing, the shapes are impossible, or the config has a field with
      which the model would compute something else.
  """
  problems = fields.problems(config) if config else []
  if not problems:
    settings = _settings(form, shapes, config, who)
    problems = fields.wrong_sizes(config, settings)
  if problems:
    more = f'; and {len(problems) - _MAX_SHOWN} more' if len(problems) > _MAX_SHOWN else ''
    raise errors.make(
      f'{who}, config',
      '; '.join(problems[:_MAX_SHOWN]) + more,
      'only what this package computes',
      'another model is not supported (a field without any effect may be removed)',
    )
  return settings


def _settings(
  form: foreign.Form, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], who: str
) -> dict[str, Any]:
  """Returns the settings of a part; see `read_settings`."""
  try:
    return form.settings(shapes, config)
  except errors.SphinxError:
    raise
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


def compute_dtype(tensors: Mapping[str, Tensor]) -> str:
  """Returns the default compute dtype of a model.

  It is bfloat16 if the embeddings are stored in 16 bits, else float32.
  """
  names = (key for key in tensors if _EMBEDDING.fullmatch(key))
  embedding = tensors.get(next(names, ''))  # `assemble` reports a missing one.
  return 'float32' if embedding is None or embedding.dtype.itemsize > 2 else 'bfloat16'


def _open_part(
  tensors: Mapping[str, Tensor], folders: list[pathlib.Path], shared: Mapping[str, Any]
) -> Source:
  """Opens one part of a model, of the first form whose names match."""
  for part, name, form in forms.each():
    prefix = form.prefix(tensors)
    if prefix is None:
      continue
    who = f"source '{shared['path']}' ({form.kind})"
    inside = {
      key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
    }
    config, fields = _read_config(folders, form.configs)
    beside = {file: _read_json(folders[0] / file) for file in form.beside}
    config |= {file: contents for file, contents in beside.items() if contents}
    inside = _in_pieces(inside, form.pieces(config))
    settings = read_settings(form, _shapes(inside), config, fields, who)
    if part == 'model':
      settings = multimodal.model_config(settings, compute_dtype(inside))
    table = form.weights(settings)
    unused = _find_unused(inside, table)
    _check_tensors(inside, unused, table, form.unused, who)
    carried = {
      file: _read_text(folders[0] / file) for file in form.carried if (folders[0] / file).is_file()
    }
    if shared['tokenizer'] is None and 'tokenizer.json' in carried:
      shared = {**shared, 'tokenizer': carried['tokenizer.json'].encode()}
    return Source(
      kind=form.kind,
      part=part,
      form=name,
      tensors=inside,
      table=table,
      settings=settings,
      config=config,
      unused=unused,
      prefix=prefix,
      carried=carried,
      outside=tuple(key for key in tensors if not key.startswith(prefix)),
      **shared,
    )
  kinds = '; '.join(form.kind for _, _, form in forms.each())
  raise errors.make(
    f"source '{shared['path']}'",
    f'{len(tensors)} tensors of no known form ({", ".join(sorted(tensors)[:3])}, ...)',
    f'one of: official SPHINX; {kinds}',
    'see the table of formats in docs/weights.md',
  )


def _in_pieces(tensors: Mapping[str, Tensor], pieces: foreign.Pieces) -> dict[str, Tensor]:
  """Replaces tensors by their pieces, see `foreign.Form`."""
  found = {}
  for key, tensor in tensors.items():
    names = next((value for name, value in pieces.items() if re.fullmatch(name, key)), None)
    if names is None:
      found[key] = tensor
      continue
    whole = np.broadcast_to(np.zeros((), tensor.dtype), tensor.shape)  # It takes no memory.
    for name, take in names.items():
      read = functools.partial(_read_piece, tensor, take)
      found[f'{key}[{name}]'] = Tensor(take(whole).shape, tensor.dtype, read)
  return found


def _read_piece(tensor: Tensor, take: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  return np.ascontiguousarray(take(tensor.read()))


def _check_tensors(
  tensors: Mapping[str, Tensor],
  unused: Iterable[str],
  table: Iterable[foreign.Weight],
  unneeded: Iterable[str],
  who: str,
) -> None:
  """Refuses quantized weights, and names that the model does not have.

  Ignoring them would compute another model.

  Args:
    tensors: name -> tensor.
    unused: names that the model does not use.
    table: names and paths of the model.
    unneeded: patterns of names that are known to be unnecessary.
    who: the part, for errors.

  Raises:
    SphinxError: there are such weights or names.
  """
  dtypes = {key: tensors[key].dtype for w in table for _, key in w.places() if key in tensors}
  whole = [key for key, dtype in dtypes.items() if not jnp.issubdtype(dtype, jnp.floating)]
  if whole:
    kinds = ', '.join(sorted({str(dtypes[key]) for key in whole}))
    raise names.quantized(who, f'{kinds}: {files.first_names(whole)}')
  keys = {weight.key for weight in table}
  unknown = [
    key
    for key in unused
    # More layers than in the config: `assemble` reports them.
    if re.sub(r'\.\d+\.', '.{}.', key) not in keys
    and not any(re.fullmatch(pattern, key) for pattern in unneeded)
  ]
  names.check_not_quantized(unknown, who)
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
