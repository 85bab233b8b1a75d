"""Sizes and scales of SPHINX, as numbers: one model code, from the laptop to 13B.

`model(llm, encoders, scale)` puts a model together from three tables: LLMS (the language model), ENCODERS (the visual
embeddings in the mix) and SCALES (pixels and sub-images). Full-size numbers are those of the released models and stand
beside the code of each part (`SIZES`) and in `sphinx_jax/models/variants.py` (`VARIANTS`).
"""

from ml_collections import ConfigDict

from sphinx_jax.models import variants as official
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama

LLMS = {
  'mini': dict(vocab=640, width=128, layers=3, heads=2, kv_heads=2, multiple_of=32),
  **llama.SIZES,
}

ENCODERS = {
  'mini': dict(
    clip=dict(view=32, patch=8, width=64, layers=2, heads=2),
    convnext=dict(view=32, input=32, depths=(1, 1), widths=(32, 64)),
    dinov2=dict(view=32, patch=8, width=64, layers=2, heads=2, pos_grid=5),
    qformer=dict(
      view=32,
      patch=8,
      vit_width=64,
      vit_layers=1,
      vit_heads=2,
      vit_mlp=128,
      width=64,
      layers=2,
      heads=2,
      mlp=128,
      queries=2,
    ),
  ),
  'full': dict(
    clip=clip.SIZES['ViT-L-14'],
    convnext=convnext.SIZES['xxlarge'],
    dinov2=dinov2.SIZES['ViT-g-14'],
    qformer=qformer.SIZES['BLIP-2'],
  ),
}

# Of the full encoders: the official variant that has these pixels and views.
SCALES = {
  '224': 'llama_ens',
  '1k': 'llama_ens5',
  '2k': 'llama_ens10',
  '1k_pooled': 'llama_ens5p2',
  'light': 'llama_ens_light',
  'light_1k': 'llama_ens5_light',
}
MINI = dict(image_size=64, grid=2, pool=2)


def model(
  llm: str, encoders: str, scale: str, dtype: str = 'float32', scan_unroll: int = 1, **llm_settings
) -> ConfigDict:
  """The `model` section of a run: a row of each table, and changes to the language model (`rope_scaling=0.5`)."""
  llm_row = {**LLMS[llm], **llm_settings}
  if scale == 'mini':
    return ConfigDict(
      dict(
        **MINI,
        half_round=False,
        dtype=dtype,
        remat='none',
        scan_unroll=scan_unroll,
        encoders=ENCODERS[encoders],
        llm={'name': 'llama', **llm_row},
      )
    )
  config = official.model(SCALES[scale], llm_row, ENCODERS[encoders], dtype, half_round=False)
  config.scan_unroll = scan_unroll
  return config
