"""Models from a checkpoint alone: config, tokenizer and dialog travel inside ours, or lie beside an official one."""

import base64

import jax
from etils import epath

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.foreign import assemble, sources
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import dialog, tokenizer
from sphinx_jax.generate.decode import Generator
from sphinx_jax.generate.model import Model
from sphinx_jax.models import sphinx
from sphinx_jax.parallel import mesh as meshes, rules

DTYPES = ('float32', 'bfloat16')
ACTIVATIONS = ('gelu', 'quick_gelu')


def load(directory, **options):
  """Reads one of our checkpoints.

  Args:
    directory: a run's directory or one step's.
    options: `rows` and `bucket` of the Generator.

  Returns:
    (Generator, the checkpoint's meta, its config as a ConfigDict).

  Raises:
    SphinxError: not a checkpoint.
  """
  meta = store.load_meta(directory)
  config = config_lib.from_json(meta['config'])
  text, template = _carried(meta)
  return (
    Generator(config.model, store.load_params(directory), text, template, **options),
    meta,
    config,
  )


def load_model(directory, dtype=None, half_round=None, clip_activation=None, mesh=None) -> Model:
  """See `sphinx_jax.load`."""
  for kind, given, known in (
    ('dtype', dtype, DTYPES),
    ('clip_activation', clip_activation, ACTIVATIONS),
    ('mesh', mesh, meshes.PRESETS),
  ):
    if given is not None and given not in known:
      raise errors.unknown(kind, given, known)
  if is_ours(directory):
    meta = store.load_meta(directory)
    config = config_lib.from_json(meta['config']).model
    params = store.load_params(
      directory, mesh and _laid_out(config, store.stored(store.locate(directory)), mesh)
    )
    text, template = _carried(meta)
  else:
    assembly = assemble.assemble([sources.open_source(directory)])
    config = assembly.config
    params = read(assembly, mesh and _laid_out(config, assemble.arrays(assembly), mesh))
    text = None if assembly.tokenizer is None else tokenizer.Tokenizer(assembly.tokenizer)
    template = dialog.Template()
  changes = dict(dtype=dtype, half_round=half_round)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.update({name: value for name, value in changes.items() if value is not None})
    if clip_activation is not None:
      if 'clip' not in config.encoders:
        raise errors.make(
          'load', f'clip_activation={clip_activation!r}', 'a model with CLIP in it', 'leave it out'
        )
      config.encoders.clip.activation = clip_activation
  return Model(config, params, text, template)


def is_ours(directory) -> bool:
  """Whether a directory is one of our runs or checkpoints, and not somebody else's."""
  return store.latest(directory) is not None or (epath.Path(directory) / 'params').is_dir()


def _laid_out(config, arrays, mesh: str) -> dict:
  """ShapeDtypeStructs of stored arrays (path -> shape and dtype), in the layout that a mesh by name gives a model's parameters.

  The mesh is over this process's devices: each process of a run that answers has a model of its own.
  """
  devices = meshes.make_mesh(**meshes.PRESETS[mesh], devices=jax.local_devices())
  layouts = rules.shardings(sphinx.logical_axes(config), sphinx.abstract_params(config), devices)
  return trees.unflatten(
    {
      path: jax.ShapeDtypeStruct(arrays[path].shape, arrays[path].dtype, sharding=layout)
      for path, layout in trees.flatten(layouts).items()
      if path in arrays
    }
  )


def read(assembly: assemble.Assembly, expected: dict | None = None) -> dict:
  """The parameter tree of foreign files, in their dtypes and, where given, the layouts of `expected`."""
  arrays, params = assemble.arrays(assembly), {}
  layouts = {path: leaf.sharding for path, leaf in trees.flatten(expected or {}).items()}
  with Progress(total=trees.nbytes(arrays), what='reading', unit='B') as bar:
    for path, array in arrays.items():
      params[path] = jax.device_put(array.read(()), layouts.get(path))
      bar.update(array.nbytes)
  return trees.unflatten(params)


def _carried(meta):
  """Tokenizer and dialog template inside a checkpoint."""
  return tokenizer.Tokenizer(base64.b64decode(meta['tokenizer'])), dialog.Template(**meta['dialog'])
