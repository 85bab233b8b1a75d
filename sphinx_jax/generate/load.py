"""Loads models from a checkpoint alone, or from a folder as others release it.

A checkpoint of sphinx_jax carries config, tokenizer and dialog. Elsewhere they are files beside the
weights.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections

from sphinx_jax.checkpoint import adapter_runs, bundle, grown, placing, store, stream
from sphinx_jax.checkpoint.foreign import assemble, sources
from sphinx_jax.core import config_values, errors, trees
from sphinx_jax.core.progress import log
from sphinx_jax.data import dialog, tokenizer
from sphinx_jax.generate.model import Model
from sphinx_jax.models import adapters, families, quantized, settings, stored
from sphinx_jax.models.adapters import KERNEL, A
from sphinx_jax.parallel import mesh as meshes, placement, rules


def load_run(
  directory: store.Path, weights: str | None = None
) -> tuple[Model, dict[str, Any], ml_collections.ConfigDict]:
  """Loads a checkpoint of a training run.

  Args:
    directory: a run's directory, for its newest step, or one step's.
    weights: as in `sphinx_jax.load`.

  Returns:
    The model on the first device, the checkpoint's meta, and the config of the whole run.

  Raises:
    SphinxError: not a checkpoint.
  """
  meta = store.load_meta(directory)
  carried = bundle.Bundle.from_meta(meta, directory)
  return load_model(directory, weights=weights), meta, carried.config


def template(directory: store.Path) -> dialog.Template:
  """The dialog template of a checkpoint or of a folder of released weights; reads no weight."""
  if store.is_checkpoint(directory):
    carried = bundle.load_bundle(directory).dialog
  else:
    carried = assemble.assemble([sources.open_source(directory)]).dialog
  return dialog.Template(**carried)


class _Opened(NamedTuple):
  """Weights that are not read yet.

  Attributes:
    carried: config, tokenizer and dialog.
    model: the model config.
    arrays: path -> array.
    directory: of the checkpoint; None: other files.
  """

  carried: bundle.Bundle
  model: ml_collections.ConfigDict
  arrays: Mapping[str, stream.Array]
  directory: store.Path | None


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
  if adapter is None and adapter_runs.is_adapter(directory):
    directory, adapter = adapter_runs.base_of(directory), directory
  ours = None  # An adapter that a run of sphinx_jax trained.
  if adapter is not None and store.is_checkpoint(adapter):
    ours, adapter = adapter, None
  opened = _open(directory, adapter)
  carried, config = opened.carried, opened.model
  if ours is not None:
    adapter_runs.check_base(store.load_meta(ours), ours, directory)
    carried = bundle.load_bundle(ours)
    config = carried.config.model
    weights = weights or opened.carried.weights or carried.config.get('frozen_dtype') or None
  config = settings.change(config, changes or {})
  params = _read(opened, config, ours, weights, mesh)
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


def _open(directory: store.Path, adapter: store.Path | None) -> _Opened:
  """Opens a checkpoint, or files of other projects with a PEFT adapter merged into them."""
  if adapter is None and store.is_checkpoint(directory):
    carried = bundle.load_bundle(directory)
    _check_model(carried, directory)
    return _Opened(carried, carried.config.model, stream.read(directory), directory)
  assembly = assemble.assemble([sources.open_source(directory, adapter=adapter)])
  carried = bundle.Bundle(
    assembly.config, assembly.tokenizer, assembly.dialog, assembly.added_tokens
  )
  return _Opened(carried, assembly.config, assemble.arrays(assembly), None)


def _read(
  opened: _Opened,
  config: ml_collections.ConfigDict,
  adapter: store.Path | None,
  weights: str | None,
  mesh: str | None,
) -> dict:
  """Reads weights, quantizes their matrices, and adds the parameters of a run with adapters."""
  arrays, trained = opened.arrays, {}
  if adapter is not None:
    arrays, trained = grown.join(arrays, stream.read(adapter), config.llm.vocab)
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
  held = opened.carried.weights
  if not held or weights in (None, held) or (held, weights) == ('int8', quantized.DYNAMIC):
    return weights or held or None
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
