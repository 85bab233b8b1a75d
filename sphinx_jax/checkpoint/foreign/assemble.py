"""One model from one source or several: an official release, a language model alone, or a fresh SPHINX from its parts."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from sphinx_jax.checkpoint.foreign.sources import Source, compute_dtype
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.checkpoint.stream import Array, Index
from sphinx_jax.core import errors, trees
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.models import foreign, sphinx, variants as official
from sphinx_jax.models.llms import llama

_SHOWN = 20  # Differences named in an error.


@dataclasses.dataclass(frozen=True)
class Assembly:
  """A model whose weights lie in foreign files.

  Attributes:
    config: of the model.
    table: paths from the root of the parameter tree; names as in `tensors`.
    tensors: of all sources; where there are several, named 'part/name'.
    shapes: path -> shape and dtype of ours.
    fresh: paths that no source has and that start from random numbers (projections, start and end of a view).
    differences: between files and model, in words; such an assembly cannot be read.
    carried: what the model does not use of a single source, kept for the way back.
    dropped: the same of several sources, and what of a file belongs to no part of the model; it is not kept.
    tokenizer: contents of tokenizer.model, or None.
    origin: JSON-able: form, prefix and config of the language model's source, for the way back.
  """

  config: ml_collections.ConfigDict
  table: list[foreign.Weight]
  tensors: Mapping[str, Tensor]
  shapes: Mapping[str, jax.ShapeDtypeStruct]
  fresh: tuple[str, ...]
  differences: tuple[str, ...]
  carried: Mapping[str, Tensor]
  dropped: tuple[str, ...]
  tokenizer: bytes | None
  origin: dict[str, Any]


def assemble(
  sources: Sequence[Source],
  variant: str = 'llama_ens',
  tokenizer: bytes | None = None,
  strict: bool = True,
) -> Assembly:
  """Puts a model together and checks it against the files, names, shapes and dtypes, before a weight is read.

  Args:
    sources: one whole SPHINX, or a language model with or without encoders, each part once.
    variant: of a SPHINX from its parts.
    tokenizer: contents of a tokenizer.model, instead of the one beside the language model.
    strict: refuses files that differ from the model; False lists how in `differences`.

  Raises:
    SphinxError: parts twice or missing; names, shapes or dtypes that the config does not expect, all named; a tokenizer
      of another vocabulary.
  """
  config, main = _config(sources, variant)
  table, tensors, carried, outside = [], {}, {}, []
  for source in sources:
    path = {'model': '', 'llm': 'llm/'}.get(source.part, f'encoders/{source.part}/')
    before = f'{source.part}/' if len(sources) > 1 else ''
    table += foreign.within(path, before, source.table)
    tensors |= {before + key: tensor for key, tensor in source.tensors.items()}
    carried |= {before + key: source.tensors[key] for key in source.carried}
    outside += [before + key for key in source.outside]
  ours = trees.flatten(sphinx.abstract_params(config))
  differences = _differences(table, tensors, ours, carried)
  if differences and strict:
    more = f'; and {len(differences) - _SHOWN} more' if len(differences) > _SHOWN else ''
    raise errors.make(
      'source ' + ', '.join(f"'{source.path}' ({source.kind})" for source in sources),
      f'{len(differences)} differences: ' + '; '.join(differences[:_SHOWN]) + more,
      'the tensors that its config says',
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
    for path, leaf in ours.items()
  }
  tokenizer = tokenizer or main.tokenizer
  if tokenizer is not None:
    _check_vocabulary(tokenizer, config.llm.vocab, main)
  kept = carried if len(sources) == 1 else {}
  dropped = (*(key for key in carried if key not in kept), *outside)
  return Assembly(
    config,
    table,
    tensors,
    shapes,
    fresh=tuple(path for path in ours if path not in dtypes),
    differences=differences,
    carried=kept,
    dropped=dropped,
    tokenizer=tokenizer,
    origin={'form': main.form, 'prefix': main.prefix, 'config': dict(main.config)},
  )


def _config(sources: Sequence[Source], variant: str) -> tuple[ml_collections.ConfigDict, Source]:
  """The model config, and the source with the language model."""
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
  dtype = compute_dtype(llm.tensors, llama.FORMS[llm.form])
  if not parts:
    return official.language_model(llm.settings, dtype), llm
  config = official.model(
    variant, llm.settings, {part: source.settings for part, source in parts.items()}, dtype
  )
  if unneeded := set(parts) - set(config.encoders):
    raise errors.make(
      f'model {variant}',
      f'weights of {", ".join(sorted(unneeded))}',
      f'its encoders, {", ".join(config.encoders)}',
      'leave them out, or give another --variant',
    )
  return config, llm


def _differences(
  table: Sequence[foreign.Weight],
  tensors: Mapping[str, Tensor],
  ours: Mapping[str, Any],
  carried: Mapping[str, Tensor],
) -> tuple[str, ...]:
  """Every difference between the files and the model of their config."""
  lines = []
  for weight in table:
    shape, dtypes = weight.their_shape(ours[weight.path].shape), set()
    for _, key in weight.places():
      if key not in tensors:
        lines.append(f'missing {key}')
        continue
      dtypes.add(str(tensors[key].dtype))
      if tensors[key].shape != shape:
        lines.append(f'{key}: shape {tensors[key].shape}, expected {shape}')
    if len(dtypes) > 1:
      lines.append(f'{weight.key}: layers of {" and ".join(sorted(dtypes))}')
  # Layers that the config does not count.
  families = {_family(key) for weight in table for _, key in weight.places()}
  return (*lines, *(f'left over {key}' for key in carried if _family(key) in families))


def _family(key: str) -> str:
  return re.sub(r'\d+', '#', key)


def _check_vocabulary(tokenizer: bytes, vocab: int, source: Source) -> None:
  size = Tokenizer(tokenizer).vocab_size
  if size != vocab:
    raise errors.make(
      f"source '{source.path}'",
      f'a tokenizer of {size} tokens',
      f'the {vocab} of the embedding',
      'take the tokenizer.model that belongs to the weights',
    )


def arrays(assembly: Assembly) -> dict[str, Array]:
  """Path -> our parameter, read from the foreign files layer by layer when it is asked for; fresh ones are left out."""
  groups: dict[str, list[foreign.Weight]] = {}
  for weight in assembly.table:
    groups.setdefault(weight.path, []).append(weight)
  found = {}
  for path, group in groups.items():
    leaf = assembly.shapes[path]
    read = functools.partial(_read, assembly.tensors, group, leaf)
    found[path] = Array(leaf.shape, np.dtype(leaf.dtype), read, len(group[0].layers or (0,)))
  return found


def _read(
  tensors: Mapping[str, Tensor],
  group: Sequence[foreign.Weight],
  leaf: jax.ShapeDtypeStruct,
  index: Index,
) -> np.ndarray:
  stacked = group[0].layers is not None
  if not stacked or index:
    return _layer(
      tensors,
      group,
      leaf.shape[1:] if stacked else leaf.shape,
      leaf.dtype,
      index[0] if index else None,
    )
  out = np.empty(leaf.shape, leaf.dtype)
  for i in range(leaf.shape[0]):
    out[i] = _layer(tensors, group, leaf.shape[1:], leaf.dtype, i)
  return out


def _layer(
  tensors: Mapping[str, Tensor],
  group: Sequence[foreign.Weight],
  shape: Sequence[int],
  dtype: Any,
  layer: int | None,
) -> np.ndarray:
  """One layer, from one tensor, or from several that lie beside each other in it."""
  name = lambda weight: weight.key if layer is None else weight.key.format(weight.layers[layer])
  if len(group) == 1:
    return group[0].to_ours(tensors[name(group[0])].read())
  out = np.empty(shape, dtype)
  for weight in group:
    out[weight.part] = weight.to_ours(tensors[name(weight)].read())
  return out


def fresh(assembly: Assembly, seed: int) -> dict[str, np.ndarray]:
  """Path -> first values of the parameters that no source has; the others are not made."""

  def pick(rng):
    drawn = trees.flatten(sphinx.init(assembly.config, rng))
    return {path: drawn[path] for path in assembly.fresh}

  return {path: np.asarray(value) for path, value in jax.jit(pick)(jax.random.key(seed)).items()}
