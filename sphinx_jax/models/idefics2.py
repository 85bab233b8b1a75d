"""Idefics2: images of any size, each read by a perceiver into a few vectors, and Mistral.

Source: docs/idefics2.md. Checked against HF transformers in tests/models/test_idefics2.py.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.models import attention, foreign, foreign_config, layers, multimodal, perceiver
from sphinx_jax.models.encoders import siglip
from sphinx_jax.models.llms import llama
from sphinx_jax.parallel import placement


class Idefics2(multimodal.Multimodal):
  """The model. Parameters: vision, projection, perceiver, llm."""

  @classmethod
  def parts(cls, config: Any) -> dict[str, type[nn.Module]]:
    own = {'vision': siglip.Tower, 'perceiver': perceiver.Perceiver}
    return super().parts(config) | own

  @classmethod
  def dialog(cls, specials: Collection[str]) -> dict[str, str]:
    is_chat = '<end_of_utterance>' in specials  # The base model has no such row.
    return {'system': '', 'style': 'idefics2' if is_chat else 'idefics2_base'}

  @classmethod
  def slot_rule(cls, config: Any) -> dict[str, Any]:
    return {'kind': 'fit', **config.slots}

  @classmethod
  def image_token(cls, config: Any) -> int | None:
    return config.image_token

  @classmethod
  def canvas(cls, config: Any) -> int:
    return config.vision.patch * -(-config.slots.longest // config.vision.patch)

  @classmethod
  def visual_tokens(cls, config: Any) -> int:
    return config.perceiver.queries

  @classmethod
  def patch_limit(cls, config: Any) -> tuple[int, Callable[[int, int], int]] | None:
    limit = config.vision.get('patches_per_row')
    return (limit, functools.partial(_patches, config.vision)) if limit else None

  @classmethod
  def encoded_length(cls, config: Any, height: int, width: int) -> int:
    patches = _patches(config.vision, height, width)
    return min(n for n in cls.encoded_lengths(config) if n >= patches)

  @classmethod
  def encoded_lengths(cls, config: Any) -> list[int]:
    """Lengths differ by a factor of 0.8, so that few programs are compiled and padding is short."""
    most = (cls.canvas(config) // config.vision.patch) ** 2
    unit = siglip.BLOCK if most > 8 * siglip.BLOCK else -(-most // 4)
    return sorted({unit * math.ceil(most * 0.8**k / unit) for k in range(10)})

  def setup(self) -> None:
    config = self.config
    shared = dict(remat=config.remat, unroll=config.scan_unroll, dtype=jnp.dtype(config.dtype))
    self.llm = multimodal.language_model(config)
    fields = siglip.Tower.__dataclass_fields__
    vision = {key: value for key, value in config.vision.items() if key in fields}
    # A row of patches need not have the length that the TPU's kernel takes.
    kernel = attention.AUTO if config.attention in (attention.AUTO, 'splash') else 'xla'
    self.vision = siglip.Tower(**vision, **shared, attention=kernel)
    self.projection = layers.GatedMlp(self.llm.ffn, 1.0, shared['dtype'], width=config.llm.width)
    self.perceiver = perceiver.Perceiver(**config.perceiver, **shared)

  def encode(
    self, images: jax.Array, image_size: jax.Array | None = None, length: int | None = None
  ) -> jax.Array:
    """Visual tokens of images.

    Args:
      images: uint8[B,N,Y,X,3]; an image is in the upper left corner of its canvas.
      image_size: int32[B,N,2], rows and columns of each image; None: the whole canvas.
      length: patches of all images of a row together, at most. They are packed one after another
        and do not see those of other images. None: `vision.patches_per_row` of the config; 0: the
        images are not packed, and each has as many as its canvas.

    Returns:
      [B,N*queries,D]; NaN in rows whose images have more than `length` patches.

    Raises:
      SphinxError: a canvas smaller than a patch, or with more patches than positions.
    """
    vision = self.config.vision
    rows, count, height, width = images.shape[:4]
    if image_size is None:
      image_size = jnp.broadcast_to(jnp.array([height, width]), (rows, count, 2))
    _check_canvas(height, width, vision.patch, vision.pos_grid)
    length = vision.get('patches_per_row', 0) if length is None else length
    if not length:
      images, image_size = (x.reshape(-1, 1, *x.shape[2:]) for x in (images, image_size))
      length = (height // vision.patch) * (width // vision.patch)
    count = images.shape[1]
    rows_axis = 'views' if count == 1 else 'batch'
    images = placement.constrain(images, (rows_axis, None, None, None, None))
    packed = siglip.pack(images, image_size, vision.patch, _rule(vision), vision.pos_grid, length)
    length_axis = None if count == 1 else 'patches'
    patches = placement.constrain(packed.patches, (rows_axis, length_axis, None, None, None))
    with layers.counted(packed.segments > 0):
      encoded = self.projection(self.vision(patches, packed.positions, packed.segments))
    visual = self.perceiver(encoded, packed.segments, count)
    visual = jnp.where(packed.fits[:, None, None], visual, jnp.nan)
    visual = visual.reshape(rows, -1, visual.shape[-1])
    return placement.constrain(visual, ('batch', None, None))


def _rule(vision: Any) -> str:
  return vision.get('patch_rule', 'all')


def _patches(vision: Any, height: int, width: int) -> int:
  """The number of real patches of an image."""
  return math.prod(siglip.grid_sizes(n, vision.patch, _rule(vision)) for n in (height, width))


def _check_canvas(height: int, width: int, patch: int, pos_grid: int) -> None:
  if min(height, width) < patch or max(height, width) // patch > pos_grid:
    raise errors.make(
      'images',
      f'{width}x{height} pixels',
      f'{patch} to {patch * pos_grid + patch - 1} along each side',
      'resize them as the processor of the model does',
    )


def weights(config: Any) -> list[foreign.Weight]:
  """The table of a whole model as HF transformers names it."""
  text = foreign.within('llm/', '', llama.FORMS['hf'].weights(config['llm']))
  text = [
    dataclasses.replace(weight, key=weight.key.replace('model.', 'model.text_model.', 1))
    for weight in text
  ]
  connector = 'model.connector.'
  return [
    *foreign.within('vision/', 'model.vision_model.', siglip.weights(config['vision']['layers'])),
    *foreign.gated_mlp('projection', f'{connector}modality_projection'),
    *foreign.within(
      'perceiver/',
      f'{connector}perceiver_resampler.',
      perceiver.weights(config['perceiver']['layers']),
    ),
    *text,
  ]


# Defaults of the classes of transformers. Released configs leave out what has one of them.
_VISION = dict(num_attention_heads=16, num_channels=3)
_PERCEIVER = dict(
  resampler_n_heads=16,
  resampler_head_dim=96,
  num_key_value_heads=4,
  hidden_size=4096,
  rms_norm_eps=1e-6,
)
_TEXT = dict(
  model_type='mistral',
  vocab_size=32000,
  hidden_size=4096,
  intermediate_size=14336,
  num_hidden_layers=32,
  num_attention_heads=32,
  num_key_value_heads=8,
  max_position_embeddings=131072,
  rms_norm_eps=1e-6,
)
_EDGES = dict(shortest_edge=378, longest_edge=980)
# Files beside config.json that are read as sections of it.
_PREPROCESSOR, _PROCESSOR = 'preprocessor_config.json', 'processor_config.json'


_IMAGE_PROCESSOR = foreign_config.Fields(
  used=('do_image_splitting',),
  sizes={'patch_size': lambda settings: settings['vision']['patch']},
  sections={'size': foreign_config.Fields(used=('shortest_edge', 'longest_edge'))},
  neutral={
    'names': ('image_processor_type', 'processor_class'),
    'how transformers computes, not what': (
      'data_format',
      'default_to_square',
      'device',
      'disable_grouping',
      'input_data_format',
      'return_tensors',
    ),
  },
  only={
    'do_convert_rgb': (None, True),
    'do_normalize': (None, True),
    'do_pad': (None, True),
    'do_rescale': (None, True),
    'do_resize': (None, True),
    'image_mean': (None, siglip.MEAN),
    'image_std': (None, siglip.STD),
    'resample': (None, 2),  # Bilinear.
    'rescale_factor': (None, 1 / 255),
  },
)


def _from_huggingface(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  section = lambda name, defaults: {**defaults, **foreign_config.section(config, name)}
  vision, text = section('vision_config', _VISION), section('text_config', _TEXT)
  tower = 'model.vision_model.'
  width, _, patch, _ = shapes[f'{tower}embeddings.patch_embedding.weight']
  pos_grid = math.isqrt(shapes[f'{tower}embeddings.position_embedding.weight'][0])
  side = foreign_config.size(vision, 'image_size', patch * pos_grid)
  if side // patch != pos_grid:
    raise foreign_config.wrong_value('vision_config.image_size', side, f'{patch * pos_grid} pixels')
  llm = llama.settings_of_huggingface(text)
  if text.get('head_dim') is not None:
    llm['head_width'] = foreign_config.size(text, 'head_dim')
  image_token = foreign_config.size(config, 'image_token_id', 32001)
  if image_token >= llm['vocab']:
    expected = f'a row of the {llm["vocab"]} of the embedding'
    raise foreign_config.wrong_value('image_token_id', image_token, expected)
  return dict(
    name='idefics2',
    image_size=patch * pos_grid,
    slots=_slots(config, patch * (pos_grid + 1) - 1),
    image_token=image_token,
    vision=dict(
      patch=patch,
      width=width,
      layers=foreign.count(shapes, tower + 'encoder.layers.{}.mlp.fc1.weight'),
      heads=foreign_config.divisor(vision, 'num_attention_heads', width),
      hidden=shapes[f'{tower}encoder.layers.0.mlp.fc1.weight'][0],
      pos_grid=pos_grid,
      patch_rule='all',
    ),
    perceiver=_perceiver(shapes, section('perceiver_config', _PERCEIVER), llm),
    llm={'name': 'llama', **llm},
  )


def _perceiver(
  shapes: foreign.Shapes, config: Mapping[str, Any], llm: Mapping[str, Any]
) -> dict[str, Any]:
  resampler = 'model.connector.perceiver_resampler.'
  eps = foreign_config.number(config, 'rms_norm_eps')
  if (
    foreign_config.size(config, 'hidden_size') != llm['width']
  ):  # transformers then takes the text's for both.
    eps = llm['norm_eps']
  heads = foreign_config.size(config, 'resampler_n_heads')
  return dict(
    queries=shapes[f'{resampler}latents'][0],
    layers=foreign.count(shapes, resampler + 'layers.{}.input_latents_norm.weight'),
    heads=heads,
    kv_heads=foreign_config.divisor(config, 'num_key_value_heads', heads),
    head_width=foreign_config.size(config, 'resampler_head_dim'),
    eps=eps,
  )


def _to_huggingface(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config.json of a model config, and the files beside it as sections."""
  vision, perceiver_, llm = config['vision'], config['perceiver'], config['llm']
  rule = _rule(vision)
  if rule != 'all':
    log.warning(
      "no config of transformers has vision.patch_rule '%s': 4.45 and later ignore it", rule
    )
  text = {
    name: value
    for name, value in llama.FORMS['hf'].config(llm).items()
    if name not in ('architectures', 'bos_token_id', 'eos_token_id')
  }
  head_width = llm.get('head_width')
  edges = {f'{name}_edge': config['slots'][name] for name in ('shortest', 'longest')}
  return {
    'architectures': ['Idefics2ForConditionalGeneration'],
    'model_type': 'idefics2',
    'image_token_id': config['image_token'],
    'tie_word_embeddings': False,
    'vision_config': dict(
      model_type='idefics2',
      hidden_size=vision['width'],
      image_size=vision['patch'] * vision['pos_grid'],
      intermediate_size=vision['hidden'],
      num_attention_heads=vision['heads'],
      num_hidden_layers=vision['layers'],
      patch_size=vision['patch'],
    ),
    'perceiver_config': dict(
      model_type='idefics2',
      hidden_size=llm['width'],
      rms_norm_eps=perceiver_['eps'],
      resampler_n_latents=perceiver_['queries'],
      resampler_depth=perceiver_['layers'],
      resampler_n_heads=perceiver_['heads'],
      resampler_head_dim=perceiver_['head_width'],
      num_key_value_heads=perceiver_['kv_heads'],
    ),
    'text_config': {
      **text,
      'model_type': 'mistral',
      'pad_token_id': 0,
      'sliding_window': llm.get('window'),
      **({'head_dim': head_width} if head_width else {}),
    },
    _PREPROCESSOR: dict(
      image_processor_type='Idefics2ImageProcessor',
      processor_class='Idefics2Processor',
      do_convert_rgb=True,
      do_image_splitting=config['slots']['split'],
      do_normalize=True,
      do_pad=True,
      do_rescale=True,
      do_resize=True,
      image_mean=[*siglip.MEAN],
      image_std=[*siglip.STD],
      resample=2,  # Bilinear.
      rescale_factor=1 / 255,
      size=edges,
    ),
    _PROCESSOR: dict(image_seq_len=perceiver_['queries'], processor_class='Idefics2Processor'),
  }


def _slots(config: Mapping[str, Any], most: int) -> dict[str, Any]:
  """How the processor of a folder resizes and splits images of at most `most` pixels an edge."""
  preprocessor = foreign_config.section(config, _PREPROCESSOR)
  if not preprocessor:  # transformers 5 writes it into the other file.
    preprocessor = foreign_config.section(
      foreign_config.section(config, _PROCESSOR), 'image_processor'
    )
  size = {**_EDGES, **foreign_config.section(preprocessor, 'size')}
  shortest, longest = (
    foreign_config.size(size, f'{name}_edge') for name in ('shortest', 'longest')
  )
  if longest > most:
    expected = f'at most {most}, for which the vision tower has positions'
    raise foreign_config.wrong_value('size.longest_edge', longest, expected, _PREPROCESSOR)
  if shortest > longest:
    expected = f'at most the longest_edge {longest}'
    raise foreign_config.wrong_value('size.shortest_edge', shortest, expected, _PREPROCESSOR)
  return dict(
    shortest=shortest,
    longest=longest,
    split=foreign_config.flag(preprocessor, 'do_image_splitting'),
  )


_CONFIG = foreign_config.transformers_fields(
  ('idefics2',),
  ('Idefics2ForConditionalGeneration',),
  used=('image_token_id',),
  only={'tie_word_embeddings': (None, False)},
  sections={
    'vision_config': foreign_config.transformers_fields(
      ('idefics2', 'idefics2_vision'),
      used=('num_attention_heads', 'image_size'),
      only={
        'hidden_act': (None, 'gelu_pytorch_tanh'),
        'layer_norm_eps': (None, siglip.EPS),
        'num_channels': (None, 3),
      },
      sizes={
        'hidden_size': lambda settings: settings['vision']['width'],
        'intermediate_size': lambda settings: settings['vision']['hidden'],
        'num_hidden_layers': lambda settings: settings['vision']['layers'],
        'patch_size': lambda settings: settings['vision']['patch'],
      },
    ),
    'perceiver_config': foreign_config.transformers_fields(
      ('idefics2', 'idefics2_perceiver'),
      used=(
        'resampler_n_heads',
        'resampler_head_dim',
        'num_key_value_heads',
        'hidden_size',
        'rms_norm_eps',
      ),
      only={'hidden_act': (None, 'silu')},
      sizes={
        'resampler_depth': lambda settings: settings['perceiver']['layers'],
        'resampler_n_latents': lambda settings: settings['perceiver']['queries'],
      },
    ),
    'text_config': dataclasses.replace(
      llama.HUGGINGFACE_FIELDS,
      used=(*llama.HUGGINGFACE_FIELDS.used, 'head_dim'),
      sizes={},
      marks=(),
    ),
    _PREPROCESSOR: _IMAGE_PROCESSOR,
    _PROCESSOR: foreign_config.Fields(
      neutral={'names': ('processor_class',)},
      sizes={'image_seq_len': lambda settings: settings['perceiver']['queries']},
      sections={'image_processor': _IMAGE_PROCESSOR},
    ),
  },
)

FORMS = {
  'idefics2': foreign.Form(
    'Idefics2 of HF transformers',
    'model.connector.perceiver_resampler.latents',
    weights,
    _from_huggingface,
    config=_to_huggingface,
    configs={'config.json': _CONFIG},
    beside=(_PREPROCESSOR, _PROCESSOR),
    carried=foreign.TRANSFORMERS_FILES,
  )
}


def full_size(
  vocab: int = 32003, image_size: int = 980, dtype: str = 'bfloat16'
) -> ml_collections.ConfigDict:
  """The model config of the released models.

  Args:
    vocab: rows of the embedding: 32003, or 32002 of the base model.
    image_size: pixels along one side of the canvas.
    dtype: compute dtype.
  """
  settings = dict(
    name='idefics2',
    image_size=image_size,
    slots=dict(shortest=378, longest=image_size, split=False),
    image_token=32001,
    vision=dict(**siglip.SIZES['so400m-14'], pos_grid=70, patch_rule='all'),
    perceiver=dict(queries=64, layers=3, heads=16, kv_heads=4, head_width=96, eps=1e-6),
    llm=dict(name='llama', **llama.SIZES['mistral-7b'] | dict(vocab=vocab)),
  )
  return multimodal.model_config(settings, dtype)
