"""The model families, and what is done alike with a model of any of them.

`config.name` of a model config is a name in FAMILIES. Nothing outside `models/` depends on which.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sphinx_jax.core import tables, trees
from sphinx_jax.models import attention, experts, grouped, layers, multimodal, narrow
from sphinx_jax.models.adapters import Blocks

_VISUAL = 'visual'  # Field of a batch, in place of its images.

FAMILIES = tables.Table(
  'model',
  {
    'sphinx': 'sphinx_jax.models.sphinx:Sphinx',
    'idefics2': 'sphinx_jax.models.idefics2:Idefics2',
  },
)


def family(config: ml_collections.ConfigDict) -> type[multimodal.Multimodal]:
  """The module class of a model config; configs of older versions, without a name, are SPHINX."""
  return FAMILIES[config.get('name', 'sphinx')]


def build(
  config: ml_collections.ConfigDict, platform: str | None = None, separate: bool = False
) -> multimodal.Multimodal:
  """The module of a model config (`config.model` of a run).

  Args:
    config: the model config. Its `attention` is a kernel of models/attention.py or 'auto'; so is
      its `grouped`, of models/grouped.py.
    platform: where the module will run ('cpu', 'gpu', 'tpu'); None: JAX's default backend.
    separate: whether it takes parameters as `for_decoding` makes them.

  Raises:
    SphinxError: an unknown family, encoder, LLM, or setting of one of them.
  """
  platform = platform or jax.default_backend()
  kernels = dict(
    attention=attention.choose(config.attention, platform),
    grouped=grouped.choose(config.get('grouped', grouped.AUTO), platform),
  )
  settings = {**config.to_dict(), **kernels, 'separate': separate}
  return family(config)(ml_collections.FrozenConfigDict(settings))


class Forward(NamedTuple):
  """What a model makes of a batch.

  Attributes:
    hidden_states: [B,T,D] in the compute dtype, the input of the LM head.
    matrices: the matrix of the LM head [D,vocab] as blocks of its columns, in the compute dtype.
    router: of a mixture of experts, means over layers: 'balance', float32[], the balancing loss,
      'penalty', float32[], the same times its weight, and 'share', float32[experts], the share of
      the choices that each expert gets. {}: there are no experts.
  """

  hidden_states: jax.Array
  matrices: Blocks
  router: dict[str, jax.Array]


def apply(
  model: multimodal.Multimodal,
  params: dict,
  batch: Mapping[str, jax.Array],
  key: jax.Array | None = None,
  noise: layers.Noise = layers.QUIET,
) -> Forward:
  """Runs the model up to the logits, which the loss computes in chunks.

  Args:
    model: from `build`.
    params: its parameters.
    batch: see core/batch.py; or the result of `encoded`.
    key: random key of an update; None: no noise.
    noise: of training.
  """
  fields = [batch[name] for name in ('tokens', 'visual_index', 'positions', 'segments')]
  if _VISUAL in batch:
    images = dict(images=None, visual=batch[_VISUAL])
  elif 'features' in batch:
    images = dict(images=None, visual=_project(model, params, batch['features']))
  else:
    images = dict(images=batch['images'], image_size=batch['image_size'])
  keys = {}
  if key is not None:
    keys = {name: jax.random.fold_in(key, i) for i, name in enumerate(layers.Noise._fields)}
  with layers.noisy(noise):
    hidden_states, records = model.apply(
      {'params': params},
      *fields,
      **images,
      rngs=keys,
      mutable=[experts.ROUTER],
      method='hidden_states',
    )
  matrices = model.apply({'params': params}, method='lm_head_matrices')
  return Forward(hidden_states, matrices, _router(model, records))


def _router(model: multimodal.Multimodal, records: Mapping) -> dict[str, jax.Array]:
  """`Forward.router` of what the layers recorded."""
  of_layers = trees.flatten(records.get(experts.ROUTER, {}))
  found = {path.rpartition('/')[2]: values.mean(axis=0) for path, values in of_layers.items()}
  if found:
    llm = model.config.llm
    weight = llm.get('balance_weight', multimodal.LLMS[llm.name].balance_weight)
    found['penalty'] = weight * found['balance']
  return found


def grams(
  model: multimodal.Multimodal, params: dict, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Gram matrices X^T X of the inputs X of every `layers.Dense`, without padding.

  Those of experts are not among them.

  Args:
    model: from `build`.
    params: its parameters.
    batch: see core/batch.py.

  Returns:
    Path of the kernel -> float32[in,in], or [layers,in,in] of a stack.
  """
  names = ('tokens', 'visual_index', 'positions', 'segments', 'images', 'image_size')
  fields = [batch[name] for name in names]
  _, records = model.apply({'params': params}, *fields, mutable=[layers.GRAMS])
  return trees.flatten(records[layers.GRAMS])


def encoded(
  model: multimodal.Multimodal, params: dict, batch: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """The batch with visual tokens in place of images, for several calls of `apply`.

  Args:
    model: from `build`.
    params: its parameters, of which those outside of 'llm' are read.
    batch: see core/batch.py.
  """
  fields = dict(batch)
  if 'features' in batch:
    fields[_VISUAL] = _project(model, params, fields.pop('features'))
  elif batch['images'].shape[1]:
    images = fields.pop('images'), fields.pop('image_size')
    fields[_VISUAL] = model.apply({'params': params}, *images, method='encode')
  return fields


def feature_params(config: ml_collections.ConfigDict) -> str | None:
  """The parameters that `features` reads, a name at the top of the tree.

  None: the family has no features of single images, or the model no encoders.
  """
  return family(config).feature_params(config)


def encoder_names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """The encoders that can be trained alone, names under `feature_params`; (): none."""
  return family(config).encoder_names(config)


def encoder(config: ml_collections.ConfigDict, name: str) -> nn.Module:
  """The module of one encoder, with its name: normalized views [B,y,x,3] -> its features."""
  return family(config).encoder(config, name)


def normalized(config: ml_collections.ConfigDict, images: jax.Array) -> jax.Array:
  """Images uint8[B,Y,X,3] as float32, as encoders take them."""
  return family(config).normalized(config, images)


def encoder_views(config: ml_collections.ConfigDict, name: str, images: jax.Array) -> jax.Array:
  """The normalized views [B,V,y,x,3] of images uint8[B,Y,X,3] that one encoder sees."""
  return family(config).encoder_views(config, name, images)


def features(model: multimodal.Multimodal, params: dict, images: jax.Array) -> jax.Array:
  """What the encoders make of images, as one vector an image: [B,N,F] in the compute dtype.

  Args:
    model: from `build`, of a family with features.
    params: its parameters.
    images: uint8[B,N,Y,X,3].
  """
  tree = model.apply({'params': params}, images, method='features')
  parts = [part.reshape(*images.shape[:2], -1) for part in jax.tree.leaves(tree)]
  return jnp.concatenate(parts, axis=-1)


def _project(model: multimodal.Multimodal, params: dict, features: jax.Array) -> jax.Array:
  """Visual tokens [B,N*L,D] of the result of `features`."""
  size = model.config.image_size
  images = jax.ShapeDtypeStruct((*features.shape[:2], size, size, 3), jnp.uint8)
  variables = {'params': params}
  tree = jax.eval_shape(functools.partial(model.apply, method='features'), variables, images)
  leaves, structure = jax.tree.flatten(tree)
  ends = np.cumsum([math.prod(leaf.shape[2:]) for leaf in leaves])
  parts = jnp.split(features, ends[:-1].tolist(), axis=-1)
  parts = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves)]
  return model.apply(variables, jax.tree.unflatten(structure, parts), method='project')


def for_decoding(config: ml_collections.ConfigDict, params: Mapping) -> dict:
  """Parameters on a CPU as a module of `build(separate=True)` reads them, in the same memory.

  Every decoder layer has its own: a loop over a stack would copy each layer out of it, as many
  bytes as a decoding step reads. Matrices in bfloat16 become their bits, see models/narrow.py.

  Args:
    config: the model config.
    params: parameter tree, as of `init`.
  """
  if config.dtype == 'float32':
    params = jax.tree.map(narrow.bits, params)
  llm = {name: part for name, part in params['llm'].items() if name != 'layers'}
  # device_put shares aligned memory of numpy, and a layer of any real size is aligned.
  stack = {path: np.asarray(leaf) for path, leaf in trees.flatten(params['llm']['layers']).items()}
  for i in range(config.llm.layers):
    layer = {path: jax.device_put(leaf[i]) for path, leaf in stack.items()}
    llm[f'layers_{i}'] = trees.unflatten(layer)
  return {**params, 'llm': llm}


# Settings of speed, memory and rounding, those that the shapes of the parameters show, and how
# images are resized and cut before the model sees them.
_INCIDENTAL = {
  *('dtype', 'remat', 'attention', 'scan_unroll', 'unroll', 'half_round', 'patches_per_row'),
  *('max_length', 'multiple_of', 'ffn_multiplier', 'parent', 'name'),
  *('grouped', 'balance_weight', 'count_padding'),
  'slots',
}


def settings_of_weights(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The settings that decide what a model's weights mean, with defaults, to compare two models.

  Args:
    config: the model config.

  Returns:
    Nested dictionaries like the config.
  """
  settings = {key: value for key, value in config.to_dict().items() if key not in _INCIDENTAL}
  parts = family(config).parts(config)
  for group in {path.split('.')[0] for path in parts if '.' in path}:  # Of the used encoders.
    used = settings[group].items()
    settings[group] = {name: part for name, part in used if f'{group}.{name}' in parts}
  for path, module in parts.items():
    *groups, name = path.split('.')
    section = functools.reduce(dict.__getitem__, groups, settings)
    defaults = {
      field.name: field.default
      for field in dataclasses.fields(module)
      if field.default is not dataclasses.MISSING
    }
    complete = {**defaults, **section[name]}
    section[name] = {key: value for key, value in complete.items() if key not in _INCIDENTAL}
  llm = settings['llm']
  if llm['kv_heads'] is None:
    llm['kv_heads'] = llm['heads']
  return {**settings, 'llm': {'name': config.llm.name, **llm}}


def part_names(config: ml_collections.ConfigDict) -> set[str]:
  """Names of the modules and vectors of a model: encoders, projections, 'llm'."""
  groups = {path.split('.')[0] for path in family(config).parts(config) if '.' in path}
  names = (path.split('/') for path in trees.flatten(abstract_params(config)))
  return {name[1] if name[0] in groups else name[0] for name in names}


def active_share(config: ml_collections.ConfigDict) -> float:
  """The share of the experts that compute a position; 1 without experts."""
  return config.llm.get('experts_per_token', 1) / config.llm.get('experts', 1)


def count_active(config: ml_collections.ConfigDict) -> int:
  """The number of parameters that compute a position of text, those of the embedding included."""
  shapes = trees.flatten(abstract_params(config)['llm'])
  axes = trees.flatten(logical_axes(config)['llm'])
  share = lambda path: active_share(config) if 'experts' in axes[path] else 1
  return round(sum(math.prod(leaf.shape) * share(path) for path, leaf in shapes.items()))


def visual_tokens(config: ml_collections.ConfigDict) -> int:
  """Sequence positions of one image; 0 for a language model alone.

  Those of SPHINX are start, tokens and end of every view. The official code calls this number
  image_words.
  """
  model = family(config)
  return model.visual_tokens(config) if model.sees_images(config) else 0


def _key(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
  """The same for a locked and an unlocked config, to which ml_collections gives other hashes."""
  return ml_collections.FrozenConfigDict(config.to_dict())


def max_length(config: ml_collections.ConfigDict) -> int:
  """Most positions of a sequence, image and answer included."""
  return config.llm.get('max_length', multimodal.LLMS[config.llm.name].max_length)


def init(config: ml_collections.ConfigDict, rng: jax.Array) -> dict:
  """Float32 parameters as plain nested dictionaries."""
  return jax.jit(lambda rng: nn.unbox(_boxed_params(config, rng)))(rng)


def abstract_params(config: ml_collections.ConfigDict) -> dict:
  """Shapes and dtypes of `init`, without computing anything."""
  return nn.unbox(_abstract(_key(config)))


def logical_axes(config: ml_collections.ConfigDict) -> dict:
  """The tree of `init` with a tuple of logical names (see layers.py) for every parameter."""
  return names_of(_abstract(_key(config)))


def names_of(boxes: dict) -> dict:
  """The tuple of logical names of every parameter, of a tree of flax boxes."""
  is_box = lambda box: isinstance(box, nn.LogicallyPartitioned)
  return jax.tree.map(lambda box: tuple(box.names), boxes, is_leaf=is_box)


def stacked(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Path -> number of leading axes along which matrices and vectors are stacked.

  It is 1 of layers, 2 of layers and experts, and 0 of a parameter that is no stack.
  """
  return {
    path: sum(name in ('layers', 'experts') for name in names[:2])
    for path, names in trees.flatten(logical_axes(config)).items()
  }


@functools.cache
def _abstract(config: ml_collections.FrozenConfigDict) -> dict:
  """Shapes and logical names of the parameters; cached, as tracing a large model takes a second."""
  with layers.shapes_only():
    return jax.eval_shape(lambda rng: _boxed_params(config, rng), jax.random.key(0))


def init_cache(config: ml_collections.ConfigDict, rows: int, length: int) -> dict:
  """An empty cache of `rows` sequences of up to `length` positions, for `decode`."""
  return multimodal.language_model(config).init_cache(rows, length)


def _boxed_params(config: ml_collections.ConfigDict, rng: jax.Array) -> dict:
  """Parameters in flax boxes with their logical names. They do not depend on the kernel."""
  field = jnp.zeros((1, 1), jnp.int32)
  images_per_row = 1 if family(config).sees_images(config) else 0
  images = jnp.zeros((1, images_per_row, config.image_size, config.image_size, 3), jnp.uint8)
  plain = build(ml_collections.FrozenConfigDict({**config.to_dict(), 'attention': 'xla'}), 'cpu')
  return plain.init(rng, field, field, field, field, images)['params']
