"""Writes our parameters as foreign files: an official SPHINX folder, or one of HF transformers.

Nothing is read from the checkpoint before it is written.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.checkpoint.foreign import (
  processor_files,
  pth_writer,
  safetensors,
  shards,
  sources,
)
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.checkpoint.stream import Array
from sphinx_jax.core import errors, files, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.models import foreign, forms, variants

# The checkpoint's item with the tensors that an import kept although the model does not use them.
UNUSED_ITEM = 'carried'


def foreign_tensors(table: list[foreign.Weight], arrays: Mapping[str, Array]) -> dict[str, Tensor]:
  """Returns foreign name -> tensor, in the dtypes of our parameters.

  Args:
    table: names and shapes of the form to write.
    arrays: path -> our parameter.
  """
  tensors = {}
  for weight in table:
    array = arrays[weight.path]
    shape = weight.foreign_shape(array.shape)
    for index, key in weight.places():
      tensors[key] = Tensor(shape, array.dtype, functools.partial(_read, weight, array, index))
  return tensors


def _read(weight: foreign.Weight, array: Array, index: tuple[Any, ...]) -> np.ndarray:
  return weight.to_foreign(array.read(index))


def official_tensors(
  config: ml_collections.ConfigDict,
  arrays: Mapping[str, Array],
  unused: Mapping[str, Array],
  origin: Mapping[str, Any],
) -> dict[str, Tensor]:
  """Returns all tensors of an official folder.

  Args:
    config: the model config.
    arrays: path -> our parameter.
    unused: foreign name -> tensor that the import kept although the model does not use it.
    origin: the origin in the checkpoint's meta.

  Raises:
    SphinxError: the official code does not have this model.
  """
  variants.name_of(config)
  prefix = origin['prefix'] if origin.get('form') == 'official' else shards.PREFIX
  encoder_prefixes = tuple(
    name for part, (name, _) in variants.ENCODERS.items() if part in config.encoders
  )
  absent = [
    key for key in variants.UNUSED if key.startswith(encoder_prefixes) and key not in unused
  ]
  if absent:
    log.info('not in this checkpoint, and not read by the official model: %s', ', '.join(absent))
  tensors = foreign_tensors(variants.weights(config), arrays) | _unused_tensors(unused)
  return {prefix + key: tensor for key, tensor in tensors.items()}


def _huggingface_form(config: ml_collections.ConfigDict) -> foreign.Form:
  """The form in which HF transformers has the language model of a config."""
  return forms.HUGGINGFACE[config.llm.name]


def huggingface_table(config: ml_collections.ConfigDict) -> list[foreign.Weight]:
  """The names of HF for a whole model if HF has it, or for its language model alone."""
  whole = forms.whole(config)
  if whole is not None:
    return whole.weights(config)
  return foreign.within('llm/', '', _huggingface_form(config).weights(config.llm))


def huggingface_tensors(
  config: ml_collections.ConfigDict,
  arrays: Mapping[str, Array],
  unused: Mapping[str, Array],
  origin: Mapping[str, Any],
) -> dict[str, Tensor]:
  """Returns the tensors under the names of HF: the whole model if HF has it, or the LLM alone.

  Arguments as of `official_tensors`.
  """
  form = forms.whole(config) or _huggingface_form(config)
  tensors = foreign_tensors(huggingface_table(config), arrays)
  return tensors | _unused_tensors(unused) if _is_of(form, origin) else tensors


def _is_of(form: foreign.Form, origin: Mapping[str, Any]) -> bool:
  """Whether a checkpoint was imported from this form."""
  return any(name == origin.get('form') and form is other for _, name, other in forms.each())


def _unused_tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
  return {
    key: Tensor(array.shape, array.dtype, functools.partial(array.read, ()))
    for key, array in arrays.items()
  }


def write_official(
  folder: pathlib.Path,
  bundle: Bundle,
  tensors: Mapping[str, Tensor],
  origin: Mapping[str, Any],
  count: int,
) -> None:
  """Writes a folder in the form of an official release.

  Args:
    folder: the folder, which exists.
    bundle: of the checkpoint.
    tensors: from `official_tensors`.
    origin: the origin in the checkpoint's meta. The config.json of an official checkpoint is
      written back as it was.
    count: number of tensor-parallel shards.

  Raises:
    SphinxError: the shards do not divide the heads or a dimension.
  """
  config = bundle.config.model
  name = variants.name_of(config)
  if origin.get('form') == 'official' and 'config' in origin:
    settings = origin['config']
  else:
    clip = config.encoders.get('clip')
    activation = 'gelu' if clip is None else clip.get('activation', 'gelu')
    settings = {
      **variants.LLMS[config.llm.name].config(config.llm),
      'load_pretrained_visual_encoder': activation == 'quick_gelu',
    }
  parts = shards.split(tensors, count, config.llm.get('kv_heads') or config.llm.heads)
  with _read_in_order(*parts) as ordered_parts:
    for rank, part in enumerate(ordered_parts):
      pth_writer.write_pth(folder / f'consolidated.{rank:02d}-of-{count:02d}.model.pth', part)
  _write_json(folder / 'config.json', settings)
  _write_json(folder / 'meta.json', {'llama_type': name})
  _write_json(folder / sources.SIDECAR, config.to_dict())
  _write_tokenizer(folder, bundle, origin)


def write_huggingface(
  folder: pathlib.Path,
  bundle: Bundle,
  tensors: Mapping[str, Tensor],
  origin: Mapping[str, Any],
  count: int,
) -> None:
  """Writes a folder for HF transformers: safetensors, config.json, tokenizer.

  The arguments are those of `write_official`, with `tensors` from `huggingface_tensors`. The files
  of a whole model's processor are those that the import found, or made anew.

  Raises:
    SphinxError: more than one shard (the size of a file decides here).
  """
  if count != 1:
    raise errors.make(
      '--shards',
      f'{count}',
      '1 with --to=hf',
      'leave it out: files of transformers are cut by size, not for parallel ranks',
    )
  config = bundle.config.model
  whole = forms.whole(config)
  form = whole or _huggingface_form(config)
  dtype = str(next(iter(tensors.values())).dtype)
  is_back = _is_of(form, origin)
  if is_back and 'config' in origin:  # Else settings were changed.
    settings = dict(origin['config'])
  else:
    settings = {**form.config(config if whole else config.llm), 'torch_dtype': dtype}
  beside = {}
  if whole:
    beside = dict(origin.get('files', {})) if is_back else processor_files.make(bundle)
    for name in form.beside:
      if name in settings:
        beside[name] = _json(settings.pop(name))
    # transformers loads the weights in this dtype.
    settings['dtype' if 'dtype' in settings else 'torch_dtype'] = dtype
  with _read_in_order(tensors) as (ordered,):
    safetensors.write_safetensors(folder, ordered)
  for name, content in {**beside, 'config.json': _json(settings)}.items():
    files.write_atomic(folder / name, content)
  _write_tokenizer(folder, bundle, origin)


def _write_tokenizer(folder: pathlib.Path, bundle: Bundle, origin: Mapping[str, Any]) -> None:
  tokenizer = bundle.tokenizer or b''
  name = 'tokenizer.json' if tokenizer[:1] == b'{' else 'tokenizer.model'
  (folder / name).write_bytes(tokenizer)
  if origin.get('added_tokens') and not origin.get('files'):
    _write_json(folder / 'added_tokens.json', origin['added_tokens'])


@contextlib.contextmanager
def _read_in_order(*parts: Mapping[str, Tensor]) -> Iterator[list[dict[str, Tensor]]]:
  """Yields the same tensors with reads that come from the background, and shows a progress bar.

  Args:
    parts: the tensors. Each must be read once, in this order.
  """
  ordered = [tensor for part in parts for tensor in part.values()]
  with Progress(total=sum(map(trees.nbytes, parts)), what='writing', unit='B') as bar:
    values = read_ahead([(tensor.nbytes, tensor.read) for tensor in ordered])
    waiting = collections.deque(ordered)

    def read(tensor: Tensor) -> np.ndarray:
      if waiting.popleft() is not tensor:
        raise RuntimeError('tensors are read in another order than they were announced')
      bar.update(tensor.nbytes)
      return next(values)

    yield [
      {
        key: Tensor(tensor.shape, tensor.dtype, functools.partial(read, tensor))
        for key, tensor in part.items()
      }
      for part in parts
    ]


def _write_json(file: pathlib.Path, value: Mapping[str, Any]) -> None:
  files.write_atomic(file, _json(value))


def _json(value: Mapping[str, Any]) -> str:
  return json.dumps(value, indent=2) + '\n'


@dataclasses.dataclass(frozen=True)
class Target:
  """A format to write.

  Attributes:
    tensors: (config, arrays, unused, origin) -> foreign name -> tensor.
    write: (folder, bundle, tensors, origin, shards) writes the folder.
  """

  tensors: Callable[..., dict[str, Tensor]]
  write: Callable[..., None]


TARGETS = {
  'official': Target(official_tensors, write_official),
  'hf': Target(huggingface_tensors, write_huggingface),
}
