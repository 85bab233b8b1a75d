"""Loads models from a checkpoint alone, or from a folder as others release it.

A checkpoint of sphinx_jax carries config, tokenizer and dialog. Elsewhere they are files beside the
weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from sphinx_jax.checkpoint import bundle, store
from sphinx_jax.checkpoint.foreign import assemble, sources
from sphinx_jax.core import config_values, errors, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.data import dialog, tokenizer
from sphinx_jax.generate.model import Model
from sphinx_jax.models import families, settings
from sphinx_jax.parallel import mesh as meshes, placement, rules


def load_run(directory: store.Path) -> tuple[Model, dict[str, Any], ml_collections.ConfigDict]:
  """Loads a checkpoint of a training run.

  Args:
    directory: a run's directory, for its newest step, or one step's.

  Returns:
    The model on the first device, the checkpoint's meta, and the config of the whole run.

  Raises:
    SphinxError: not a checkpoint.
  """
  meta = store.load_meta(directory)
  carried = bundle.Bundle.from_meta(meta, directory)
  _check_model(carried, directory)
  params = store.load_params(directory)
  config = _on_this_device(carried.config.model, params)
  return _model(carried, config, params), meta, carried.config


def template(directory: store.Path) -> dialog.Template:
  """The dialog template of a checkpoint or of a folder of released weights; reads no weight."""
  if store.is_checkpoint(directory):
    carried = bundle.load_bundle(directory).dialog
  else:
    carried = assemble.assemble([sources.open_source(directory)]).dialog
  return dialog.Template(**carried)


def load_model(
  directory: store.Path,
  dtype: str | None = None,
  half_round: bool | None = None,
  clip_activation: str | None = None,
  mesh: str | None = None,
  changes: Mapping[str, Any] | None = None,
  ids: str | None = None,
  adapter: store.Path | None = None,
) -> Model:
  """See `sphinx_jax.load`."""
  for kind, value, choices in (
    ('dtype', dtype, settings.DTYPES),
    ('ids', ids, tokenizer.IDS),
    ('clip_activation', clip_activation, settings.ACTIVATIONS),
    ('mesh', mesh, meshes.PRESETS),
  ):
    if value is not None and value not in choices:
      raise errors.unknown(kind, value, choices)
  if adapter is None and store.is_checkpoint(directory):
    carried = bundle.load_bundle(directory)
    _check_model(carried, directory)
    config, expected = settings.change(carried.config.model, changes or {}), None
    if mesh is not None:
      expected = _sharded_shapes(config, store.stored_leaves(store.locate(directory)), mesh)
    params = store.load_params(directory, expected)
  else:
    assembly = assemble.assemble([sources.open_source(directory, adapter=adapter)])
    config = settings.change(assembly.config, changes or {})
    carried = bundle.Bundle(config, assembly.tokenizer, assembly.dialog, assembly.added_tokens)
    expected = None
    if mesh is not None:
      expected = _sharded_shapes(config, assemble.arrays(assembly), mesh)
    params = _read_params(assembly, expected)
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


def _check_model(carried: bundle.Bundle, directory: store.Path) -> None:
  """Raises SphinxError for a checkpoint whose model config has a wrong setting."""
  where = f"checkpoint '{directory}', config model"
  config_values.check(carried.config.get('model'), settings.MODEL, where)


def _on_this_device(config: ml_collections.ConfigDict, params: dict) -> ml_collections.ConfigDict:
  """A model config with the compute dtype that this device is fast at.

  The values of weights are those of their dtype in any case.
  """
  if config.dtype != 'bfloat16' or not placement.is_on_one_cpu(params):
    return config
  log.info('products are computed in float32 on a CPU; weights stay in the dtype they have')
  return ml_collections.ConfigDict({**config.to_dict(), 'dtype': 'float32'})


def _model(carried: bundle.Bundle, config: ml_collections.ConfigDict, params: dict) -> Model:
  image = carried.config.get('image') or {'alpha': 'drop'}  # Imported weights have no such section.
  template = dialog.Template(**carried.dialog)
  return Model(config, params, carried.open_tokenizer(), template, alpha=image['alpha'])


def _sharded_shapes(
  config: ml_collections.ConfigDict, arrays: Mapping[str, Any], preset: str
) -> dict:
  """Shapes, dtypes and shardings of a model's parameters on this process's devices.

  Each process of a run that answers has a model of its own, so the mesh is local.

  Args:
    config: the model config.
    arrays: path -> stored array with `shape` and `dtype`.
    preset: name of a mesh.

  Returns:
    Parameter tree of ShapeDtypeStruct.
  """
  mesh = meshes.make_mesh(**meshes.PRESETS[preset], devices=jax.local_devices())
  shardings = rules.shardings(families.logical_axes(config), families.abstract_params(config), mesh)
  return trees.unflatten(
    {
      path: jax.ShapeDtypeStruct(arrays[path].shape, arrays[path].dtype, sharding=sharding)
      for path, sharding in trees.flatten(shardings).items()
      if path in arrays
    }
  )


def _read_params(assembly: assemble.Assembly, expected: dict | None = None) -> dict:
  """Reads the parameters of foreign files.

  Args:
    assembly: the files.
    expected: parameter tree whose leaves have a `sharding`; None puts all on the first device.

  Returns:
    Parameter tree in the files' dtypes.
  """
  arrays, params = assemble.arrays(assembly), {}
  shardings = {path: leaf.sharding for path, leaf in trees.flatten(expected or {}).items()}
  with Progress(total=trees.nbytes(arrays), what='reading', unit='B') as bar:
    for path, array in arrays.items():
      params[path] = jax.device_put(array.read(()), shardings.get(path))
      bar.update(array.nbytes)
  return trees.unflatten(params)
