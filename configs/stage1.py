"""Stage 1 on a pod: captions of one domain and plain text, from pretrained parts.

    python -m sphinx_jax.convert --source=LLAMA,CLIP,CONVNEXT,DINOV2,BLIP2 --variant=llama_ens \\
      --output=weights/fresh
    python -m sphinx_jax.prepare --source=laion --root=LAION400M --output=data/laion400m --beam
    python -m sphinx_jax.train --config=stage1:13b,224 --workdir=workdir/real
    python -m sphinx_jax.train --config=stage1:13b,224,synthetic --workdir=workdir/synthetic

Argument: the size (7b, 13b, moe), the scale (224, 1k, 2k; 512, 1k of moe) and `synthetic` for the
second domain. The second domain starts from the weights of the first, so that their weights can be
mixed.

Data: data/laion400m, data/laion_coco and data/refinedweb, written by `sphinx_jax.prepare`. Some
tars of each domain, prepared apart with --set=files=..., are held out as data/laion400m_heldout and
data/laion_coco_heldout. On a slice, launch/tpu_queued.sh copies a bucket's folder (`--data`). Mount
larger data at data/, for example with gcsfuse.

Learning rates and lengths follow the paper as far as they are known (docs/official_sphinx.md, "The
paper's recipe"). The batch size is our choice.

Hardware: the smallest v5p slice that fits, from `python -m sphinx_jax.plan`. Memory is an estimate
(~), which is within 1 % of what was compiled for stage 2. Times assume 40 % MFU and shrink with the
number of chips. docs/pods.md has other kinds of slices.

    argument  slice   GiB a device  a step  whole run
    7b,224    v5p-8          ~73.8    33 s    69 days
    7b,1k     v5p-8          ~73.4    37 s    78 days
    7b,2k     v5p-8          ~85.3    60 s   167 days
    13b,224   v5p-16         ~84.9    30 s    63 days
    13b,1k    v5p-16         ~84.5    33 s    70 days
    13b,2k    v5p-32         ~80.3    27 s    74 days
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import pod

# Domain of the captions -> folder under data/.
DOMAINS = {'real': 'laion400m', 'synthetic': 'laion_coco'}
# Scale -> rows of a batch and updates.
SCHEDULE = {'224': (256, 180_000), '512': (256, 180_000), '1k': (64, 180_000), '2k': (64, 240_000)}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config of one run. The default of `arg` is '13b,224'."""
  choice = pod.parse(arg, '13b,224', 'stage1', tuple(DOMAINS))
  domain = choice.word or 'real'
  mixture = dict(
    caption=pod.entry('array_record', 'caption', DOMAINS[domain], 'train', 0.9),
    text=pod.entry('array_record', 'text', 'refinedweb', 'train', 0.1),
  )
  validation = {
    name: pod.entry('array_record', 'caption', f'{root}_heldout', 'train', 1.0)
    for name, root in DOMAINS.items()
  }
  batch_size, steps = SCHEDULE[choice.scale]
  init_from = 'workdir/real' if domain == 'synthetic' else 'weights/fresh'
  return pod.run(
    f'stage1_{domain}_{choice.size}_{choice.scale}',
    choice,
    mixture,
    validation,
    batch_size=batch_size,
    steps=steps,
    lr=5e-5,
    decay_to=0.1,
    warmup=steps // 90,
    init_from=init_from,
  ).lock()
