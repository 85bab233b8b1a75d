"""Stage 1 on a pod: captions of one domain beside text alone, from pretrained parts.

    python -m sphinx_jax.convert --source=LLAMA,CLIP,CONVNEXT,DINOV2,BLIP2 --variant=llama_ens --output=weights/fresh
    python -m sphinx_jax.prepare --source=laion --root=LAION400M --output=data/laion400m --beam
    python -m sphinx_jax.train --config=configs/stage1.py:13b,224 --workdir=workdir/real
    python -m sphinx_jax.train --config=configs/stage1.py:13b,224,synthetic --workdir=workdir/synthetic

The argument: 7b or 13b; 224, 1k or 2k; `synthetic` is the second domain, which goes on from the first one's weights, and
that keeps the two mixable. Captions and text are read as `data.build` writes them (array_record), from data/laion400m,
data/laion_coco and data/refinedweb; a few tars of each domain, built apart (--set=files=...), are held out as
data/laion400m_heldout and data/laion_coco_heldout. On a slice `--data` of launch/tpu_queued.sh copies a bucket's folder
there; what is too large for that is mounted at data/ (with gcsfuse, say). Learning rates and lengths are the paper's as far
as known (FACTS "The paper's recipe", from memory there); rows a batch are ours.

What to expect of the smallest v5p slice, as `plan` says: bytes are the compiler's, times suppose 40 % MFU and fall with the
number of chips. The slices of other kinds: README "Will it fit".

    argument  slice   GiB a device  a step  whole run
    7b,224    v5p-16          63.8    17 s    35 days
    7b,1k     v5p-16          63.0    16 s    34 days
    7b,2k     v5p-32          55.5    17 s    35 days
    13b,224   v5p-32          45.1    15 s    32 days
    13b,1k    v5p-32          44.6    15 s    31 days
    13b,2k    v5p-32          71.9    31 s    65 days
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import pod

DOMAINS = {'real': 'laion400m', 'synthetic': 'laion_coco'}


def get_config(arg: str = '') -> ConfigDict:
  """The config of one run; `arg` as above, '13b,224' by default."""
  choice = pod.parse(arg, '13b,224', 'stage1.py', tuple(DOMAINS))
  domain = choice.word or 'real'
  mixture = dict(
    caption=pod.entry('built', 'caption', DOMAINS[domain], 'train', 0.9),
    text=pod.entry('built', 'text', 'refinedweb', 'train', 0.1),
  )
  validation = {
    name: pod.entry('built', 'caption', f'{root}_heldout', 'train', 1.0)
    for name, root in DOMAINS.items()
  }
  init_from = 'workdir/real' if domain == 'synthetic' else 'weights/fresh'
  return pod.run(
    f'stage1_{domain}_{choice.size}_{choice.scale}',
    choice,
    mixture,
    validation,
    rows=256,
    steps=180_000,
    lr=5e-5,
    decay_to=0.1,
    warmup=2000,
    init_from=init_from,
  ).lock()
