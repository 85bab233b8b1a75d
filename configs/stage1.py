"""Stage 1 on a pod: captions of one domain beside text alone, from pretrained parts.

    python -m sphinx_jax.convert --source=LLAMA,CLIP,CONVNEXT,DINOV2,BLIP2 --variant=llama_ens --output=weights/fresh
    python -m sphinx_jax.train --config=configs/stage1.py:13b,224 --workdir=workdir/real
    python -m sphinx_jax.train --config=configs/stage1.py:13b,224,synthetic --workdir=workdir/synthetic

The argument: 7b or 13b; 224, 1k or 2k; `synthetic` is the second domain, which goes on from the first one's weights, and
that keeps the two mixable. Slices, bytes a device and days: README "Will it fit" (`python -m sphinx_jax.plan
--config=configs/stage1.py:13b,224 --topology=v5p:4x4x4` prints them for any slice). Captions and text are read from
data/*.jsonl. Learning rates and lengths are the paper's as far as known (FACTS "The paper's recipe", from memory there);
rows a batch are ours.
"""

from ml_collections import ConfigDict

from configs import pod

DOMAINS = {'real': 'laion400m.jsonl', 'synthetic': 'laion_coco.jsonl'}


def get_config(arg: str = '') -> ConfigDict:
    """The config of one run; `arg` as above, '13b,224' by default."""
    choice = pod.parse(arg, '13b,224', 'stage1.py', tuple(DOMAINS))
    domain = choice.word or 'real'
    mixture = dict(caption=pod.jsonl(DOMAINS[domain], 0.9, 'caption'), text=pod.jsonl('refinedweb.jsonl', 0.1, 'text'))
    validation = {name: pod.jsonl(f'validation/{path}', 1.0, 'caption') for name, path in DOMAINS.items()}
    init_from = 'workdir/real' if domain == 'synthetic' else 'weights/fresh'
    return pod.run(f'stage1_{domain}_{choice.size}_{choice.scale}', choice, mixture, validation, rows=256, steps=180_000,
                   lr=5e-5, decay_to=0.1, warmup=2000, init_from=init_from).lock()
