"""Loads models from a checkpoint alone, or from a folder as others release it.

A checkpoint of sphinx_jax carries config, tokenizer and dialog. Elsewhere they are files beside the
weights.
"""

import dataclasses
import types
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from sphinx_jax.checkpoint import (
  adapter_runs,
  bundle,
  grown,
  merged,
  placing,
  store,
  stream,
  widened,
)
from sphinx_jax.checkpoint.foreign import assemble, native_adapters, sources
from sphinx_jax.core import config_values, errors, trees
from sphinx_jax.core.progress import log
from sphinx_jax.data import dialog, tokenizer
from sphinx_jax.generate.model import Model
from sphinx_jax.models import adapters, families, quantized, settings, stored
from sphinx_jax.models.adapters import KERNEL, A
from sphinx_jax.parallel import mesh as meshes, placement, rules


def load_run(
  directory: store.Path, weights: str | None = None, adapter: store.Path | None = None
) -> tuple[Model, dict[str, Any], ml_collections.ConfigDict]:
  """Loads a checkpoint of a training run.

  Args:
    directory: a run's directory, for its newest step, or one step's; or BASE+ADAPTER.
    weights, adapter: as in `sphinx_jax.load`.

  Returns:
    The model on the first device, and the meta and the config of the whole run. They are those of
    the directory, or of the adapter's run if the directory holds converted weights.

  Raises:
    SphinxError: not a checkpoint.
  """
  base, adapter = _split(directory, adapter)
  meta, config = _read_run(directory if adapter_runs.is_adapter(directory) else base)
  if 'mixture' not in config and adapter is not None and store.is_checkpoint(adapter):
    meta, config = _read_run(adapter)
  return load_model(base, weights=weights, adapter=adapter), meta, config


def _read_run(directory: store.Path) -> tuple[dict[str, Any], ml_collections.ConfigDict]:
  meta = store.load_meta(directory)
  return meta, bundle.Bundle.from_meta(meta, directory).config


def template(directory: store.Path) -> dialog.Template:
  """The dialog template of a checkpoint or of a folder of released weights; reads no weight."""
  base, _ = merged.split(directory)
  if store.is_checkpoint(base):
    carried = bundle.load_bundle(base).dialog
  else:
    carried = assemble.assemble([sources.open_source(directory)]).dialog
  return dialog.Template(**carried)


class _Opened(NamedTuple):
  """Weights that are not read yet.

  Attributes:
    carried: config, tokenizer and dialog.
    model: the model config.
    arrays: path -> array.
    directory: of the checkpoint with these arrays; None: there is none.
    adapter: path -> array of an adapter and of what was trained beside it.
    form: the quantized form in which the matrices under the adapter were trained; None: none.
    held: the quantized form of the kernels among the arrays; '': none.
  """

  carried: bundle.Bundle
  model: ml_collections.ConfigDict
  arrays: Mapping[str, stream.Array]
  directory: store.Path | None
  adapter: Mapping[str, stream.Array] = types.MappingProxyType({})
  form: str | None = None
  held: str = ''


def load_model(
  directory: store.Path,
  dtype: str | None = None,
  half_round: bool | None = None,
  clip_activation: str | None = None,
  mesh: str | None = None,
  changes: Mapping[str, Any] | None = None,
  ids: str | None = None,
  adapter: store.Path | None = None,
  weights: str | None = None,
) -> Model:
  """See `sphinx_jax.load`."""
  for kind, value, choices in (
    ('dtype', dtype, settings.DTYPES),
    ('ids', ids, tokenizer.IDS),
    ('clip_activation', clip_activation, settings.ACTIVATIONS),
    ('mesh', mesh, meshes.PRESETS),
    ('weights', weights, quantized.FORMS),
  ):
    if value is not None and value not in choices:
      raise errors.unknown(kind, value, choices)
  opened = _open(*_split(directory, adapter))
  carried = opened.carried
  config = settings.change(opened.model, changes or {})
  params = _read(opened, config, weights, mesh)
  if dtype is None:
    config = _on_this_device(config, params)
  given = {'dtype': dtype, 'half_round': half_round}
  with config.unlocked():
    config.update({name: value for name, value in given.items() if value is not None})
    if clip_activation is not None:
      parts = families.family(config).parts(config)
      clip = next((path for path in parts if path.endswith('.clip')), None)
      if clip is None:
        raise errors.make(
          'load', f'clip_activation={clip_activation!r}', 'a model with CLIP in it', 'leave it out'
        )
      config.update_from_flattened_dict({f'{clip}.activation': clip_activation})
  if ids is not None:
    carried = dataclasses.replace(carried, ids=ids)
  return _model(carried, config, params)


def model_of(carried: bundle.Bundle, arrays: Mapping[str, stream.Array]) -> Model:
  """The model of weights that are not read yet, on the first device in the dtypes they have."""
  params = placing.place(arrays)
  return _model(carried, _on_this_device(carried.config.model, params), params)


def _split(
  directory: store.Path, adapter: store.Path | None
) -> tuple[store.Path, store.Path | None]:
  """The weights and the adapter of a place, which may have an adapter in its name or be one.

  Raises:
    SphinxError: there are two adapters of a checkpoint, or the weights are not where they were.
  """
  base, joined = merged.split(directory)
  if adapter is not None:
    adapter_runs.check_whole(base)
    if joined is not None:
      raise errors.make(
        f"adapter '{adapter}'", f"'{joined}', too", 'one adapter of a checkpoint', 'give one'
      )
  elif joined is not None:
    adapter = joined
  elif adapter_runs.is_adapter(base):
    return adapter_runs.base_of(base), base
  return base, adapter


def _open(directory: store.Path, adapter: store.Path | None) -> _Opened:
  """Opens weights, and an adapter of them: that of a run, or one of PEFT."""
  if adapter is not None and store.is_checkpoint(adapter):
    adapter_runs.check_base(store.load_meta(adapter), adapter, directory)
    opened, run = _open(directory, None), bundle.load_bundle(adapter)
    return opened._replace(
      carried=run,
      model=run.config.model,
      adapter=stream.read(adapter),
      form=run.config.get('frozen_dtype') or None,
    )
  if store.is_checkpoint(directory):
    carried, arrays = bundle.load_bundle(directory), stream.read(directory)
    _check_model(carried, directory)
    opened = _Opened(carried, carried.config.model, arrays, directory, held=carried.weights)
    if adapter is None:
      return opened
    read = native_adapters.read(adapter, directory)
    unmerged = read.unmerged()
    if unmerged is not None:
      return opened._replace(adapter=unmerged)
    whole = widened.widen(arrays, carried.forms)
    exact = widened.kernels(arrays, carried.forms, np.float32)
    return opened._replace(arrays=merged.merge(whole, read, exact), directory=None, held='')
  assembly = assemble.assemble([sources.open_source(directory, adapter=adapter)])
  carried = bundle.Bundle(
    assembly.config, assembly.tokenizer, assembly.dialog, assembly.added_tokens
  )
  return _Opened(carried, assembly.config, assemble.arrays(assembly), None)


def _read(
  opened: _Opened, config: ml_collections.ConfigDict, weights: str | None, mesh: str | None
) -> dict:
  """Reads weights, quantizes their matrices, and adds the parameters of an adapter."""
  arrays, trained = opened.arrays, opened.adapter
  if trained:
    arrays, trained = grown.join(arrays, trained, config.llm.vocab)
  weights, forms = _form(opened, weights), {}
  if weights is not None:
    forms = stored.matrices(families.logical_axes(config), weights, trained)
    arrays = {stored.as_form(path, forms): array for path, array in arrays.items()}
  replaced = {path.removesuffix(KERNEL) for path in trained if path.endswith(f'/{KERNEL}')}
  kept = {
    path: array
    for path, array in arrays.items()
    if path not in trained and not _is_code(path, replaced)
  }
  expected = None
  if mesh is not None:
    expected = _sharded_shapes(config, {**kept, **trained}, forms, mesh)
  if opened.directory is not None and arrays is opened.arrays:
    return store.load_params(opened.directory, expected)
  flat = trees.flatten(placing.place(kept, expected, forms))
  return trees.unflatten(flat | trees.flatten(placing.place(trained, expected)))


def _form(opened: _Opened, weights: str | None) -> str | None:
  """The form in which kernels are wanted. Those of a quantized checkpoint stay as they are."""
  held, weights = opened.held, weights or opened.held or opened.form
  if not held or weights in (None, held) or (held, weights) == ('int8', quantized.DYNAMIC):
    return weights
  raise errors.make(
    f"checkpoint '{opened.directory}'",
    f'kernels in {held}',
    f"full ones, to hold them in '{weights}'",
    'load it as it is, or the checkpoint that it was made of',
  )


def _is_code(path: str, layers: Collection[str]) -> bool:
  """Whether an array is of the quantized kernel of one of some layers, 'PATH/' each."""
  layer, slash, name = path.rpartition('/')
  return layer + slash in layers and name in (quantized.SCALE, *quantized.FORMS)


def _check_model(carried: bundle.Bundle, directory: store.Path) -> None:
  """Raises SphinxError for a checkpoint whose model config has a wrong setting."""
  where = f"checkpoint '{directory}', config model"
  config_values.check(carried.config.get('model'), settings.MODEL, where)


def _on_this_device(config: ml_collections.ConfigDict, params: dict) -> ml_collections.ConfigDict:
  """A model config with the compute dtype that this device is fast at.

  The values of weights are those of their dtype in any case.
  """
  if config.dtype == 'float32' or not placement.is_on_one_cpu(params):
    return config
  log.info('products are computed in float32 on a CPU; weights stay in the dtype they have')
  return ml_collections.ConfigDict({**config.to_dict(), 'dtype': 'float32'})


def _model(carried: bundle.Bundle, config: ml_collections.ConfigDict, params: dict) -> Model:
  image = carried.config.get('image') or {'alpha': 'drop'}  # Imported weights have no such section.
  template = dialog.Template(**carried.dialog)
  return Model(config, params, carried.open_tokenizer(), template, alpha=image['alpha'])


def _sharded_shapes(
  config: ml_collections.ConfigDict,
  arrays: Mapping[str, Any],
  forms: Mapping[str, stored.Matrix],
  preset: str,
) -> dict:
  """Shapes, dtypes and shardings of a model's parameters on this process's devices.

  Each process of a run that answers has a model of its own, so the mesh is local.

  Args:
    config: the model config.
    arrays: path -> stored array with `shape` and `dtype`.
    forms: layers whose kernels are quantized.
    preset: name of a mesh.

  Returns:
    Parameter tree of ShapeDtypeStruct.
  """
  mesh = meshes.make_mesh(**meshes.PRESETS[preset], devices=jax.local_devices())
  shapes, axes = families.abstract_params(config), families.logical_axes(config)
  rank_of = lambda path: arrays[path].shape[-1]
  ranks = {path.removesuffix(f'/{A}'): rank_of(path) for path in arrays if path.endswith(f'/{A}')}
  shapes, axes = adapters.extend(shapes, axes, ranks)
  flat = {
    path: jax.ShapeDtypeStruct(leaf.shape, arrays[path].dtype if path in arrays else leaf.dtype)
    for path, leaf in trees.flatten(shapes).items()
  }
  shapes, axes = stored.extend(trees.unflatten(flat), axes, forms)
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    rules.shardings(axes, shapes, mesh),
  )
