"""Tiny release folders of random numbers: an official SPHINX, and LLaMA as Meta releases it."""

import json
import pathlib

import ml_dtypes
import numpy as np

from sphinx_jax.checkpoint.foreign import pth_writer, shards
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.models import variants

TOKENIZER = pathlib.Path(__file__).parent / 'golden' / 'tokenizer.model'  # 512 tokens.
LLAMA = dict(
  dim=16,
  n_layers=2,
  n_heads=4,
  n_kv_heads=None,
  vocab_size=512,
  multiple_of=8,
  ffn_dim_multiplier=None,
  norm_eps=1e-5,
  rope_theta=10000,
  rope_scaling=None,
  max_seq_len=1536,
)
CONFIG = LLAMA | dict(
  load_pretrained_visual_encoder=False, trainable_mode='mm_stage2', max_batch_size=32
)
ENCODERS = dict(
  convnext=dict(depths=(1,), widths=(4,)),
  dinov2=dict(view=224, patch=14, width=48, layers=1, heads=3, pos_grid=4, hidden=8),
  clip=dict(view=224, patch=14, width=32, layers=1, heads=4, mlp_ratio=2.0, activation='gelu'),
  qformer=dict(
    view=224,
    patch=14,
    vit_width=32,
    vit_layers=1,
    vit_heads=4,
    vit_mlp=8,
    width=48,
    layers=1,
    heads=4,
    mlp=8,
    queries=2,
  ),
)
_UNUSED = {  # Tensors of a release that no model reads.
  'llama_ens_light': {'dinov2_vitg14.mask_token': (1, 48)},
  'llama_ens': {
    'dinov2_vitg14.mask_token': (1, 48),
    'clip.logit_scale': (),
    'clip.visual.proj': (32, 6),
    'clip.ln_final.bias': (6,),
  },
}


def llama_shapes(dim=16, n_layers=2, vocab_size=512, ffn=48, **_):
  """Returns name -> shape, with Meta's names."""
  layer = {
    'attention.wq': (dim, dim),
    'attention.wk': (dim, dim),
    'attention.wv': (dim, dim),
    'attention.wo': (dim, dim),
    'feed_forward.w1': (ffn, dim),
    'feed_forward.w2': (dim, ffn),
    'feed_forward.w3': (ffn, dim),
    'attention_norm': (dim,),
    'ffn_norm': (dim,),
  }
  return {
    'tok_embeddings.weight': (vocab_size, dim),
    'norm.weight': (dim,),
    'output.weight': (vocab_size, dim),
  } | {f'layers.{i}.{name}.weight': shape for i in range(n_layers) for name, shape in layer.items()}


def official_shapes(variant='llama_ens_light'):
  """Returns name -> shape of a whole release, with the tensors that no model reads."""
  row = variants.variant(variant)
  encoders = {name: ENCODERS[name] for name in row['encoders']}
  config = variants.model(
    variant, variants.LLMS['llama'].settings(llama_shapes(), CONFIG), encoders
  )
  return {
    'llma.' + key: shape for key, shape in (variants.shapes(config) | _UNUSED[variant]).items()
  }


def tensors(shapes, dtype=np.float32, seed=0):
  """Returns name -> random array."""
  rng = np.random.default_rng(seed)
  return {
    key: np.asarray(rng.normal(0, 0.3, shape) + ('norm' in key and 'weight' in key)).astype(dtype)
    for key, shape in shapes.items()
  }


def as_tensors(arrays):
  return {key: Tensor(array.shape, array.dtype, array.copy) for key, array in arrays.items()}


def write_official(folder, arrays, count=1, config=CONFIG, variant='llama_ens_light', change=None):
  """Writes a release folder; `change(rank, key, array)` returns the array of a shard."""
  folder.mkdir(parents=True, exist_ok=True)
  for rank, part in enumerate(shards.split(as_tensors(arrays), count)):
    if change is not None:
      part = as_tensors({key: change(rank, key, tensor.read()) for key, tensor in part.items()})
    pth_writer.write_pth(folder / f'consolidated.{rank:02d}-of-{count:02d}.model.pth', part)
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'meta.json').write_text(json.dumps({'llama_type': variant}))
  (folder / 'tokenizer.model').write_bytes(TOKENIZER.read_bytes())
  return folder


def write_meta(folder, arrays, count=1, config=LLAMA, tokenizer=True):
  """Writes LLaMA as Meta releases it."""
  folder.mkdir(parents=True, exist_ok=True)
  for rank, part in enumerate(shards.split(as_tensors(arrays), count)):
    pth_writer.write_pth(folder / f'consolidated.{rank:02d}.pth', part)
  (folder / 'params.json').write_text(json.dumps(config))
  if tokenizer:
    (folder / 'tokenizer.model').write_bytes(TOKENIZER.read_bytes())
  return folder


BFLOAT16 = ml_dtypes.bfloat16
