"""Sizes and scales of SPHINX, as numbers: one model code, from the laptop to 13B.

`model(llm, encoders, scale)` puts a model together from three tables: LLMS (the language model), ENCODERS (the visual
embeddings in the mix) and SCALES (pixels and sub-images; official names: 224 is llama_ens, 1k is llama_ens5, 2k is
llama_ens10, 1k_pooled is llama_ens5p2). Full-size numbers are those of the released models.
"""

from ml_collections import ConfigDict

LLMS = {
    'mini': dict(vocab=640, width=128, layers=3, heads=2, kv_heads=2, multiple_of=32),
    '1b': dict(vocab=32000, width=2048, layers=22, heads=32, kv_heads=4, multiple_of=256),
    '7b': dict(vocab=32000, width=4096, layers=32, heads=32, kv_heads=32, multiple_of=256),
    '13b': dict(vocab=32000, width=5120, layers=40, heads=40, kv_heads=40, multiple_of=256),
}

ENCODERS = {
    'mini': dict(
        clip=dict(view=32, patch=8, width=64, layers=2, heads=2),
        convnext=dict(view=32, input=32, depths=(1, 1), widths=(32, 64)),
        dinov2=dict(view=32, patch=8, width=64, layers=2, heads=2, pos_grid=5),
        qformer=dict(view=32, patch=8, vit_width=64, vit_layers=1, vit_heads=2, vit_mlp=128, width=64, layers=2, heads=2,
                     mlp=128, queries=2),
    ),
    'full': dict(
        clip=dict(view=224, patch=14, width=1024, layers=24, heads=16),
        convnext=dict(view=224, input=256, depths=(3, 4, 30, 3), widths=(384, 768, 1536, 3072)),
        dinov2=dict(view=224, patch=14, width=1536, layers=40, heads=24, pos_grid=37),
        qformer=dict(view=224, patch=14, vit_width=1408, vit_layers=39, vit_heads=16, vit_mlp=6144, width=768, layers=12,
                     heads=12, mlp=3072, queries=32),
    ),
}

SCALES = {
    'mini': dict(image_size=64, grid=2, pool=2),
    '224': dict(image_size=224, grid=1),
    '1k': dict(image_size=448, grid=2),
    '2k': dict(image_size=672, grid=3),
    '1k_pooled': dict(image_size=448, grid=2, pool=2),
}


def model(llm: str, encoders: str, scale: str, dtype: str = 'float32', scan_unroll: int = 1,
          **llm_settings) -> ConfigDict:
    """The `model` section of a run: a row of each table, and changes to the language model (`rope_scaling=0.5`)."""
    return ConfigDict(dict(
        **{'pool': 1, 'half_round': False, **SCALES[scale]}, dtype=dtype, remat='none', scan_unroll=scan_unroll,
        encoders=ENCODERS[encoders],
        llm={'name': 'llama', **LLMS[llm], **llm_settings}))
