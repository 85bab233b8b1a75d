"""Model sizes and scales as numbers: the `model` section of every shipped config.

`model(llm, encoders, scale)` takes a row of each of three tables: LLMS (language models), ENCODERS
(the visual embeddings in the mix) and SCALES (image size and sub-images). The full-size numbers are
those of the released models. They are kept beside the code of each part (`SIZES`) and in
sphinx_jax/models/variants.py (`VARIANTS`).
"""

from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import errors
from sphinx_jax.models import variants
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama, mixtral

LLMS = {
  'mini': dict(vocab=640, width=128, layers=3, heads=2, kv_heads=2, multiple_of=32),
  # Experts of half the width: two of them are as large as the feed-forward layer of `mini`.
  'mini_moe': dict(
    name='mixtral',
    vocab=640,
    width=128,
    layers=3,
    heads=2,
    kv_heads=2,
    hidden=176,
    experts=4,
    experts_per_token=2,
    balance_weight=0.01,
    max_length=2048,
    rope_theta=10000.0,
  ),
  **llama.SIZES,
  'moe': {'name': 'mixtral', **mixtral.SIZES['mixtral-8x7b']},
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
# With a fifth encoder in the mix, which no released SPHINX has.
ENCODERS['mini_siglip'] = ENCODERS['mini'] | dict(
  siglip=dict(view=32, patch=8, width=64, layers=2, heads=2, hidden=128)
)

# Kind of language model -> scale -> the official variant with this image size and this number of
# sub-images.
SCALES = {
  'llama': {'224': 'llama_ens', '1k': 'llama_ens5', '2k': 'llama_ens10'},
  'mixtral': {'512': 'mixtral_sparse_ens', '1k': 'mixtral_sparse_ens5'},
}
MINI_SCALE = dict(image_size=64, grid=2, pool=2)


def model(
  llm: str,
  encoders: str,
  scale: str,
  dtype: str = 'float32',
  scan_unroll: int = 1,
  **llm_settings: Any,
) -> ConfigDict:
  """Returns the `model` section of a run.

  Args:
    llm: row of LLMS.
    encoders: row of ENCODERS.
    scale: row of SCALES for this kind of language model, or 'mini'.
    dtype: compute dtype.
    scan_unroll: layers that are unrolled in each iteration of the scan over layers.
    llm_settings: changes to the row of LLMS (`rope_scaling=0.5`).

  Raises:
    SphinxError: the kind of language model has no such scale.
  """
  llm_row = {'name': 'llama', **LLMS[llm], **llm_settings}
  if scale == 'mini':
    return ConfigDict(
      dict(
        **MINI_SCALE,
        half_round=False,
        dtype=dtype,
        remat='none',
        attention='auto',
        scan_unroll=scan_unroll,
        encoders=ENCODERS[encoders],
        llm=llm_row,
      )
    )
  scales = SCALES[llm_row['name']]
  if scale not in scales:
    raise errors.unknown(f'scale of {llm}', scale, scales)
  config = variants.model(scales[scale], llm_row, ENCODERS[encoders], dtype, half_round=False)
  config.scan_unroll = scan_unroll
  return config
