"""Assembles one model from one source or several, without reading its weights.

The sources are an official release, a language model alone, or the parts of a fresh SPHINX.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from sphinx_jax.checkpoint.foreign import card, hub
from sphinx_jax.checkpoint.foreign.sources import Source, compute_dtype
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.checkpoint.stream import Array, Index, empty_aligned
from sphinx_jax.core import errors, trees
from sphinx_jax.core.progress import log
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.models import families, foreign, variants

_MAX_SHOWN = 20  # Differences named in an error.
_ROW_MULTIPLES = (8, 16, 32, 64, 128)  # To which libraries pad embeddings.


@dataclasses.dataclass(frozen=True)
class Assembly:
  """A model whose weights are in foreign files.

  Attributes:
    config: the model config.
    table: parameter paths from the root of the tree, with foreign names as in `tensors`.
    tensors: foreign name -> tensor of all sources; 'part/name' if there are several.
    shapes: path -> shape and dtype of our parameter.
    fresh: paths that no source has. They are initialized at random (projections, start and end of a
      view).
    differences: descriptions of what differs between files and model. An assembly with differences
      cannot be imported.
    unused: tensors of a single source that the model does not use; kept for the export.
    dropped: names of unused tensors that are not kept: those of several sources, and those of other
      models in the same file.
    tokenizer: contents of tokenizer.model or tokenizer.json, or None.
    dialog: arguments of `data.dialog.Template`; {}: those of SPHINX.
    added_tokens: token -> id of special tokens beside a tokenizer.model.
    origin: JSON-able: form, prefix, config, added tokens, name, licence, adapters (name -> licence)
      and files of the source that has the language model, for the export.
  """

  config: ml_collections.ConfigDict
  table: list[foreign.Weight]
  tensors: Mapping[str, Tensor]
  shapes: Mapping[str, jax.ShapeDtypeStruct]
  fresh: tuple[str, ...]
  differences: tuple[str, ...]
  unused: Mapping[str, Tensor]
  dropped: tuple[str, ...]
  tokenizer: bytes | None
  dialog: dict[str, str]
  added_tokens: dict[str, int]
  origin: dict[str, Any]


def assemble(
  sources: Sequence[Source],
  variant: str | None = None,
  tokenizer: bytes | None = None,
  strict: bool = True,
) -> Assembly:
  """Assembles a model and compares names, shapes and dtypes of the files with its config.

  Args:
    sources: one whole SPHINX, or a language model with or without encoders, each part once.
    variant: official name of the SPHINX that is made of parts. None: llama_ens or
      mixtral_sparse_ens, or a language model alone.
    tokenizer: contents of a tokenizer.model, instead of the one beside the language model.
    strict: refuse files that differ from the model; False lists them in `differences`.

  Raises:
    SphinxError: a part is missing or given twice, names, shapes or dtypes differ from the config
      (all of them are named), or the tokenizer has another vocabulary.
  """
  config, main = _make_config(sources, variant)
  table: list[foreign.Weight] = []
  tensors: dict[str, Tensor] = {}
  unused: dict[str, Tensor] = {}
  outside: list[str] = []
  for source in sources:
    path = {'model': '', 'llm': 'llm/'}.get(source.part, f'encoders/{source.part}/')
    prefix = f'{source.part}/' if len(sources) > 1 else ''
    table += foreign.within(path, prefix, source.table)
    tensors |= {prefix + key: tensor for key, tensor in source.tensors.items()}
    unused |= {prefix + key: source.tensors[key] for key in source.unused}
    outside += [prefix + key for key in source.outside]
  params = trees.flatten(families.abstract_params(config))
  differences = _find_differences(table, tensors, params, unused)
  if differences and strict:
    more = len(differences) - _MAX_SHOWN
    raise errors.make(
      'source ' + ', '.join(f"'{source.path}' ({source.kind})" for source in sources),
      f'{len(differences)} differences: '
      + '; '.join(differences[:_MAX_SHOWN])
      + (f'; and {more} more' if more > 0 else ''),
      'the tensors of its config',
      'check that config and weights belong together and that no file is missing',
    )
  dtypes = {
    weight.path: tensors[key].dtype
    for weight in table
    for _, key in weight.places()
    if key in tensors
  }
  shapes = {
    path: jax.ShapeDtypeStruct(leaf.shape, dtypes.get(path, leaf.dtype))
    for path, leaf in params.items()
  }
  tokenizer, added_tokens, dialog = tokenizer or main.tokenizer, {}, {}
  if tokenizer is not None:
    pieces = Tokenizer(tokenizer)
    added_tokens = _check_vocabulary(pieces.vocab_size, config.llm.vocab, main)
    dialog = families.family(config).dialog({*pieces.specials, *added_tokens})
    beyond = config.llm.vocab - pieces.vocab_size
    if beyond:
      padding = beyond - len(added_tokens)
      log.info(
        "'%s': rows of the embedding beyond the tokenizer: %d (%s); %s",
        main.path,
        beyond,
        ', '.join([*added_tokens, *([f'{padding} of padding'] if padding else [])]),
        'special tokens' if dialog else 'no text becomes them, and none is generated',
      )
  kept = unused if len(sources) == 1 else {}
  return Assembly(
    config,
    table,
    tensors,
    shapes,
    fresh=tuple(path for path in params if path not in dtypes),
    differences=differences,
    unused=kept,
    dropped=(*(key for key in unused if key not in kept), *outside),
    tokenizer=tokenizer,
    dialog=dialog,
    added_tokens=added_tokens if dialog else {},
    origin={
      'form': main.form,
      'prefix': main.prefix,
      'config': dict(main.config),
      'added_tokens': added_tokens,
      'name': hub.name_of(main.path),
      'licence': card.licence(main.path if main.path.is_dir() else main.path.parent),
      'adapters': {hub.name_of(folder): card.licence(folder) for folder in main.adapters},
      **({'files': dict(main.carried)} if main.carried else {}),
    },
  )


def _make_config(
  sources: Sequence[Source], variant: str | None
) -> tuple[ml_collections.ConfigDict, Source]:
  """Returns the model config, and the source that has the language model."""
  parts = {source.part: source for source in sources}
  if 'model' in parts and len(sources) == 1:
    return parts['model'].settings, parts['model']
  if 'model' in parts or 'llm' not in parts or len(parts) < len(sources):
    raise errors.make(
      'sources',
      ', '.join(f'{source.part} ({source.path})' for source in sources),
      'one whole SPHINX; or one language model, with encoders or without, each once',
      'add the language model, or leave out what is there twice',
    )
  llm = parts.pop('llm')
  dtype = compute_dtype(llm.tensors)
  if not parts and variant is None:
    return variants.language_model(llm.settings, dtype), llm
  kind = llm.settings.get('name', 'llama')
  of_kind = (name for name, row in variants.VARIANTS.items() if row['llm']['name'] == kind)
  variant = variant or next(of_kind)
  encoders = {part: source.settings for part, source in parts.items()}
  config = variants.model(variant, llm.settings, encoders, dtype)
  unneeded = set(parts) - set(config.encoders)
  if unneeded:
    raise errors.make(
      f'model {variant}',
      f'weights of {", ".join(sorted(unneeded))}',
      f'its encoders, {", ".join(config.encoders)}',
      'leave them out, or give another --variant',
    )
  return config, llm


def _find_differences(
  table: Sequence[foreign.Weight],
  tensors: Mapping[str, Tensor],
  params: Mapping[str, Any],
  unused: Mapping[str, Tensor],
) -> tuple[str, ...]:
  """Describes every difference between the files and the model of their config.

  Args:
    table: the foreign names of the parameters.
    tensors: foreign name -> tensor.
    params: path -> anything with a parameter's shape.
    unused: names that the model does not use.
  """
  lines = []
  for weight in table:
    shape = weight.foreign_shape(params[weight.path].shape)
    dtypes = set()
    for _, key in weight.places():
      if key not in tensors:
        lines.append(f'missing {key}')
        continue
      dtypes.add(str(tensors[key].dtype))
      if tensors[key].shape != shape:
        lines.append(f'{key}: shape {tensors[key].shape}, expected {shape}')
    if len(dtypes) > 1:
      lines.append(f'{weight.key}: layers of {" and ".join(sorted(dtypes))}')
  # Unused names that differ from a used one by numbers only: more layers than the config has.
  families = {_without_numbers(key) for weight in table for _, key in weight.places()}
  lines += [f'left over {key}' for key in unused if _without_numbers(key) in families]
  return tuple(lines)


def _without_numbers(key: str) -> str:
  return re.sub(r'\d+', '#', key)


def _check_vocabulary(size: int, vocab: int, source: Source) -> dict[str, int]:
  """Compares a tokenizer of `size` ids with the `vocab` rows of the embedding.

  Returns:
    Token -> row of those beyond the tokenizer's.

  Raises:
    SphinxError: there are fewer rows, or rows that nothing explains.
  """
  added = {row: name for row, name in source.added_tokens.items() if size <= row < vocab}
  # transformers pads an embedding (`pad_to_multiple_of`): its last rows have no name.
  end = max(added, default=vocab) + 1
  is_padded = end - size == len(added) and any(vocab == -end % n + end for n in _ROW_MULTIPLES)
  if size > vocab or (len(added) < vocab - size and not is_padded):
    raise errors.make(
      f"source '{source.path}'",
      f'a tokenizer of {size} tokens',
      f'the {vocab} of the embedding',
      'use the tokenizer.model that belongs to the weights, and an added_tokens.json that names '
      'every row beyond it',
    )
  return {name: row for row, name in added.items()}


def arrays(assembly: Assembly) -> dict[str, Array]:
  """Returns path -> our parameter, to be read layer by layer; fresh ones are left out."""
  opened = {}
  for path, weights in foreign.by_path(assembly.table).items():
    leaf = assembly.shapes[path]
    read = functools.partial(read_native, assembly.tensors, weights, leaf)
    layers = 1 if weights[0].layers is None else len(weights[0].layers)
    opened[path] = Array(leaf.shape, np.dtype(leaf.dtype), read, layers)
  return opened


def init_fresh(assembly: Assembly, seed: int) -> dict[str, np.ndarray]:
  """Returns path -> random initial values of the parameters that no source has.

  Args:
    assembly: the model.
    seed: random seed.
  """
  if not assembly.fresh:
    return {}

  def init(rng: jax.Array) -> dict[str, jax.Array]:
    params = trees.flatten(families.init(assembly.config, rng))
    return {path: params[path] for path in assembly.fresh}

  # Under jit the other parameters are not computed.
  values = jax.jit(init)(jax.random.key(seed))
  return {path: np.asarray(value) for path, value in values.items()}


def read_native(
  tensors: Mapping[str, Tensor],
  weights: Sequence[foreign.Weight],
  leaf: jax.ShapeDtypeStruct,
  index: Index,
) -> np.ndarray:
  """Reads a parameter, or one layer of a stacked one if `index` is (layer,)."""
  if weights[0].layers is None:
    return _read_layer(tensors, weights, leaf.shape, leaf.dtype, None)
  if index:
    return _read_layer(tensors, weights, leaf.shape[1:], leaf.dtype, index[0])
  # A model's largest stacks have gigabytes, and JAX would copy other memory.
  out = empty_aligned(leaf.shape, np.dtype(leaf.dtype))
  for layer in range(leaf.shape[0]):
    out[layer] = _read_layer(tensors, weights, leaf.shape[1:], leaf.dtype, layer)
  return out


def _read_layer(
  tensors: Mapping[str, Tensor],
  weights: Sequence[foreign.Weight],
  shape: Sequence[int],
  dtype: np.dtype,
  layer: int | None,
) -> np.ndarray:
  """Reads one layer, which one foreign tensor fills or several of them side by side."""

  def key(weight: foreign.Weight) -> str:
    return weight.key if layer is None else weight.key.format(weight.layers[layer])

  if len(weights) == 1:
    return weights[0].to_native(tensors[key(weights[0])].read())
  out = np.empty(shape, dtype)
  for weight in weights:
    out[weight.part] = weight.to_native(tensors[key(weight)].read())
  return out
