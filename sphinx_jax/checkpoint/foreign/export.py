"""Our parameters as foreign tensors again, for the official code or HF transformers; nothing is read until it is written."""

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

from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.checkpoint.foreign import pth_writer, safetensors, shards, sources
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.checkpoint.stream import Array
from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.models import foreign, variants as official
from sphinx_jax.models.llms import llama


def tensors(table: list[foreign.Weight], arrays: Mapping[str, Array]) -> dict[str, Tensor]:
  """Foreign name -> tensor, in the dtypes of ours.

  Args:
    table: of the form to write.
    arrays: path -> our parameter.
  """
  found = {}
  for weight in table:
    array = arrays[weight.path]
    shape = weight.their_shape(array.shape)
    for index, key in weight.places():
      found[key] = Tensor(shape, array.dtype, functools.partial(_read, weight, array, index))
  return found


def _read(weight: foreign.Weight, array: Array, index: tuple[Any, ...]) -> np.ndarray:
  return weight.to_theirs(array.read(index))


def official_tensors(
  config: ml_collections.ConfigDict,
  arrays: Mapping[str, Array],
  carried: Mapping[str, Array],
  origin: Mapping[str, Any],
) -> dict[str, Tensor]:
  """All tensors of an official folder, those that the model does not use included where they were carried along.

  Raises:
    SphinxError: a model that the official code does not have.
  """
  official.name_of(config)
  prefix = origin['prefix'] if origin.get('form') == 'official' else shards.PREFIX
  encoders = tuple(
    before for part, (before, _) in official.ENCODERS.items() if part in config.encoders
  )
  if absent := [key for key in official.UNUSED if key.startswith(encoders) and key not in carried]:
    log.info('not in this checkpoint, and not read by the official model: %s', ', '.join(absent))
  return {
    prefix + key: tensor
    for key, tensor in (tensors(official.weights(config), arrays) | _carried(carried)).items()
  }


def _carried(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
  return {
    key: Tensor(array.shape, array.dtype, functools.partial(array.read, ()))
    for key, array in arrays.items()
  }


def write_official(
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  found: Mapping[str, Tensor],
  tokenizer: bytes,
  origin: Mapping[str, Any],
  count: int,
) -> None:
  """Writes a folder as the official code releases it.

  Args:
    folder: made by the caller.
    config: of the model.
    found: as `official_tensors` gives.
    tokenizer: contents of tokenizer.model.
    origin: of the checkpoint; an official one's own config.json is written back as it was.
    count: of tensor-parallel shards.

  Raises:
    SphinxError: dimensions or heads that do not divide by the shards.
  """
  name = official.name_of(config)
  if origin.get('form') == 'official':
    settings = origin['config']
  else:
    activation = (
      config.encoders.clip.get('activation', 'gelu') if 'clip' in config.encoders else 'gelu'
    )
    settings = {
      **official.LLM.config(config.llm),
      'load_pretrained_visual_encoder': activation == 'quick_gelu',
    }
  parts = shards.split(found, count, config.llm.get('kv_heads') or config.llm.heads)
  with _counted(*parts) as counted:
    for rank, part in enumerate(counted):
      pth_writer.write_pth(folder / f'consolidated.{rank:02d}-of-{count:02d}.model.pth', part)
  _write_json(folder / 'config.json', settings)
  _write_json(folder / 'meta.json', {'llama_type': name})
  _write_json(folder / sources.SIDECAR, config.to_dict())
  (folder / 'tokenizer.model').write_bytes(tokenizer)


def language_tensors(
  config: ml_collections.ConfigDict,
  arrays: Mapping[str, Array],
  carried: Mapping[str, Array],
  origin: Mapping[str, Any],
) -> dict[str, Tensor]:
  """All tensors of the language model alone in HF's names."""
  table = foreign.within('llm/', '', llama.FORMS['hf'].weights(config.llm))
  return tensors(table, arrays) | (_carried(carried) if origin.get('form') == 'hf' else {})


def write_huggingface(
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  found: Mapping[str, Tensor],
  tokenizer: bytes,
  origin: Mapping[str, Any],
  count: int,
) -> None:
  """Writes the language model for HF transformers: safetensors, config.json, tokenizer.model. Arguments as `write_official`.

  Raises:
    SphinxError: for more than one shard; a file's size decides here.
  """
  if count != 1:
    raise errors.make(
      '--shards',
      f'{count}',
      '1 with --to=hf',
      "transformers' files are cut by size, not for parallel ranks",
    )
  with _counted(found) as counted:
    safetensors.write_safetensors(folder, counted[0])
  dtype = str(found['model.embed_tokens.weight'].dtype)
  _write_json(
    folder / 'config.json',
    {**llama.FORMS['hf'].config(config.llm), 'torch_dtype': dtype}
    if origin.get('form') != 'hf'
    else dict(origin['config']),
  )
  (folder / 'tokenizer.model').write_bytes(tokenizer)


@contextlib.contextmanager
def _counted(*parts: Mapping[str, Tensor]) -> Iterator[list[dict[str, Tensor]]]:
  """The same tensors, to be read once; a bar counts the bytes, and in their order they are read ahead."""
  ordered = [tensor for part in parts for tensor in part.values()]
  with Progress(total=sum(map(trees.nbytes, parts)), what='writing', unit='B') as bar:
    values = read_ahead([(tensor.nbytes, tensor.read) for tensor in ordered])
    waiting = collections.deque(ordered)

    def read(tensor):
      bar.update(tensor.nbytes)
      if waiting and waiting[0] is tensor:
        waiting.popleft()
        return next(values)
      return tensor.read()  # safetensors puts wider dtypes first.

    counted = lambda tensor: Tensor(tensor.shape, tensor.dtype, functools.partial(read, tensor))
    yield [{key: counted(tensor) for key, tensor in part.items()} for part in parts]


def _write_json(file: pathlib.Path, value: Mapping[str, Any]) -> None:
  file.write_text(json.dumps(value, indent=2) + '\n')


@dataclasses.dataclass(frozen=True)
class Target:
  """A format to write: (config, arrays, carried, origin) -> tensors, and what writes a folder of them."""

  tensors: Callable[..., dict[str, Tensor]]
  write: Callable[..., None]


TARGETS = {
  'official': Target(official_tensors, write_official),
  'hf': Target(language_tensors, write_huggingface),
}
