"""The settings of a model: the section `model` of a run, and of a checkpoint's config.

The sizes of an encoder and a language model are described beside their code, which also checks
which of them have to divide each other.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from sphinx_jax.core import config_values as values, errors, trees
from sphinx_jax.mix import scales
from sphinx_jax.models import attention, families, grouped, layers, multimodal
from sphinx_jax.models.encoders import siglip

# Compute dtypes. float16 is for GPUs without bfloat16, such as the T4 (training/loss_scale.py).
DTYPES = ('float32', 'bfloat16', 'float16')
ACTIVATIONS = ('gelu', 'quick_gelu')
_LARGEST_SIDE = 8192  # Resampling is a product with a matrix of side x side (mix/scales.py).
_LARGEST_GRID = 64

_VIEW = values.integer('pixels along one side of a view', high=_LARGEST_SIDE)
_PATCH = values.integer('pixels along one side of a patch', high=_LARGEST_SIDE)
_WIDTH = values.integer('channels')
_LAYERS = values.integer('number of layers')
_HEADS = values.integer('attention heads; they divide the width')
_HIDDEN = values.integer('hidden width of the MLPs')
_COLOR = values.sequence('mean or deviation of RGB', values.number('', low=-1e3, high=1e3), 3, 3)

ENCODERS = values.Sections(
  clip={
    'view': _VIEW,
    'patch': _PATCH,
    'width': _WIDTH,
    'layers': _LAYERS,
    'heads': _HEADS,
    'mlp_ratio': values.optional(
      values.number('hidden width of the MLPs over the width', high=1e3, without=(0,))
    ),
    'activation': values.optional(values.choice('activation of the MLPs', ACTIVATIONS)),
  },
  convnext={
    'view': _VIEW,
    'depths': values.sequence('blocks of every stage', values.integer('')),
    'widths': values.sequence('channels of every stage', values.integer('')),
    'input': values.optional_or_none(
      values.integer('pixels that a view is resized to', high=_LARGEST_SIDE)
    ),
  },
  dinov2={
    'view': _VIEW,
    'patch': _PATCH,
    'width': _WIDTH,
    'layers': _LAYERS,
    'heads': _HEADS,
    'pos_grid': values.integer(
      'patches along one side of the stored position embeddings', high=_LARGEST_SIDE
    ),
    'hidden': values.optional_or_none(_HIDDEN),
    'mean': values.optional(_COLOR),
    'std': values.optional(_COLOR),
  },
  qformer={
    'view': _VIEW,
    'patch': _PATCH,
    'vit_width': _WIDTH,
    'vit_layers': _LAYERS,
    'vit_heads': _HEADS,
    'vit_mlp': _HIDDEN,
    'width': _WIDTH,
    'layers': _LAYERS,
    'heads': _HEADS,
    'mlp': _HIDDEN,
    'queries': values.integer('query tokens of a view'),
  },
  siglip={
    'view': _VIEW,
    'patch': _PATCH,
    'width': _WIDTH,
    'layers': _LAYERS,
    'heads': _HEADS,
    'hidden': _HIDDEN,
  },
)

_LLAMA = {
  'name': values.choice('kind of language model', multimodal.LLMS),
  'vocab': values.integer('token ids; at least those of the tokenizer'),
  'width': _WIDTH,
  'layers': _LAYERS,
  'heads': _HEADS,
  'kv_heads': values.optional_or_none(values.integer('key/value heads; they divide the heads')),
  'head_width': values.optional_or_none(values.integer('channels of a head; None: width / heads')),
  'window': values.optional_or_none(
    values.integer('latest positions that a position sees; None: all')
  ),
  'norm_eps': values.optional(values.number('epsilon of the norms', high=1, without=(0,))),
  'rope_theta': values.optional(values.positive('base of the rotary frequencies')),
  'rope_scaling': values.optional_or_none(values.positive('factor of positions; 0.5 halves them')),
  'max_length': values.optional(values.integer('most positions of a sequence that is decoded')),
}
LLM = values.Alternatives(
  llama={
    **_LLAMA,
    'multiple_of': values.optional(
      values.integer('the feed-forward width is rounded up to a multiple of it')
    ),
    'ffn_multiplier': values.optional_or_none(
      values.number('factor of the feed-forward width', high=1e3, without=(0,))
    ),
    'attention_bias': values.optional(values.flag('the linear layers of attention have biases')),
  },
  mixtral={
    **_LLAMA,
    'hidden': values.integer('hidden width of an expert'),
    'experts': values.integer('experts of a layer'),
    'experts_per_token': values.integer('experts that compute a position'),
    'balance_weight': values.optional(values.number('weight of the balancing loss of routers')),
    'count_padding': values.optional(values.flag('padding counts in the balancing loss')),
  },
)

# How a model is computed, whatever its family.
_COMPUTED = {
  'dtype': values.choice('compute dtype', DTYPES),
  'remat': values.choice('what the backward pass recomputes', layers.REMAT),
  'attention': values.choice('attention kernel', (attention.AUTO, *attention.KERNELS)),
  'scan_unroll': values.integer('layers in one iteration of the loop over layers'),
  'grouped': values.optional(
    values.choice("kernel of the experts' products", (grouped.AUTO, *grouped.KERNELS))
  ),
}

_SPHINX = {
  'name': values.optional(values.choice('model family', ['sphinx'])),
  'image_size': values.integer('pixels along one side of the square image', high=_LARGEST_SIDE),
  'grid': values.integer('sub-images along one side; 1: the whole image alone', high=_LARGEST_GRID),
  'pool': values.integer(
    'patches of sub-images along one side that are averaged', high=_LARGEST_SIDE
  ),
  'half_round': values.flag('round resized images to half precision'),
  'shown': values.optional(
    values.choice('what the views show: the whole image, its parts, or both', scales.SHOWN)
  ),
  'class_repeats': values.optional(
    values.integer('copies of the class token in place of query tokens, without a Q-Former', low=0)
  ),
  **_COMPUTED,
  'encoders': ENCODERS,
  'llm': LLM,
}

_IDEFICS2 = {
  'name': values.choice('model family', ['idefics2']),
  'image_size': values.integer('pixels along one side of the canvas', high=_LARGEST_SIDE),
  'image_token': values.integer('token id of a visual token', low=0),
  'slots': {
    'shortest': values.integer('least pixels of an edge', high=_LARGEST_SIDE),
    'longest': values.integer('most pixels of an edge', high=_LARGEST_SIDE),
    'split': values.flag('four quarters of an image come before the whole'),
  },
  **_COMPUTED,
  'vision': {
    'patch': _PATCH,
    'width': _WIDTH,
    'layers': _LAYERS,
    'heads': _HEADS,
    'hidden': _HIDDEN,
    'pos_grid': values.integer('positions along one side of the stored table', high=_LARGEST_SIDE),
    'patch_rule': values.choice('which patches at an edge are real', siglip.PATCH_RULES),
    'patches_per_row': values.optional(
      values.integer('most patches of all images of a row; 0: each image has its canvas', low=0)
    ),
  },
  'perceiver': {
    'queries': values.integer('visual tokens of an image'),
    'layers': _LAYERS,
    'heads': values.integer('attention heads'),
    'kv_heads': values.integer('key/value heads; they divide the heads'),
    'head_width': values.integer('channels of a head'),
    'eps': values.number('epsilon of the norms', high=1, without=(0,)),
  },
  'llm': LLM,
}

MODEL = values.Alternatives(sphinx=_SPHINX, idefics2=_IDEFICS2)


def change(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Returns a model config with other values, for weights that exist.

  Args:
    config: the model config.
    changes: dotted path of a setting -> value: {'perceiver.eps': 1e-5}.

  Raises:
    SphinxError: there is no such setting, it does not take the value, or the parameters would have
      other shapes.
  """
  if not changes:
    return config.copy_and_resolve_references()
  plain = config.to_dict()
  for path, value in changes.items():
    *sections, name = path.split('.')
    section = plain
    for part in sections:
      section = section.get(part)
      if not isinstance(section, dict):
        known = [key.replace('/', '.') for key in trees.flatten(plain)]
        raise errors.unknown('model setting', path, known)
    section[name] = value
  changed = ml_collections.ConfigDict(plain)
  values.check(changed, MODEL, 'model')
  if trees.differences(*map(families.abstract_params, (config, changed))):
    raise errors.make(
      'model settings',
      ', '.join(f'{path}={value}' for path, value in changes.items()),
      'settings that keep the shapes of the parameters',
      'leave out sizes: those of the weights are given',
    )
  return changed
