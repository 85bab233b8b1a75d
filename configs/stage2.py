"""Stage 2 on a pod: all tasks jointly, from the mixed weights of stage 1.

    python -m sphinx_jax.mix_weights --inputs=workdir/real,workdir/synthetic \\
      --coefficients=0.5,0.5 --output=workdir/mix
    python -m sphinx_jax.train --config=stage2:13b,1k --workdir=workdir/stage2

Argument: the size (7b, 13b, moe) and the scale (224, 1k, 2k; 512, 1k of moe).

Data: every dataset is under data/ as it is downloaded; its file in sphinx_jax/datasets shows the
directory tree. On a slice, `--data` of launch/tpu_queued.sh copies it there. This command shows the
examples of one dataset:

    python -m sphinx_jax.peek --config=stage2:13b,1k --only=refcoco_rec --tokenizer=tokenizer.model

Tasks and datasets are the paper's. Mixture weights, batch size and number of steps are our choice.

Packed rows use 98 % of their positions or more (docs/results.md, "Data pipeline"). A batch of 1k or
2k has 64 rows and divides over up to 64 chips.

Hardware: the smallest v5p slice that fits, from `python -m sphinx_jax.plan`. Memory is the
compiler's figure, or an estimate (~). Times assume 40 % MFU and shrink with the number of chips.
docs/pods.md has other kinds of slices.

    argument  slice   GiB a device  a step  whole run
    7b,224    v5p-8          ~73.8    17 s     6 days
    7b,1k     v5p-8           73.6    37 s     6 days
    7b,2k     v5p-8           85.3    60 s    14 days
    13b,224   v5p-16         ~84.9    15 s     5 days
    13b,1k    v5p-16          84.4    33 s     6 days
    13b,2k    v5p-32          79.8    27 s     6 days
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import pod

# Name -> (source, task, folder under data/, split, share of the examples, settings of the source).
MIXTURE = {
  'vqav2': ('vqav2', 'vqa', 'coco', 'train2014', 0.10, {}),
  'gqa': ('gqa', 'vqa', 'gqa', 'train_balanced', 0.07, {}),
  'okvqa': ('okvqa', 'vqa', 'coco', 'train2014', 0.02, {}),
  'aokvqa': ('aokvqa', 'vqa', 'coco', 'train', 0.01, {}),
  'aokvqa_choice': ('aokvqa', 'vqa', 'coco', 'train', 0.01, dict(form='choice')),
  'vg_vqa': ('visual_genome', 'vqa', 'visual_genome', 'train', 0.03, {}),
  'ocrvqa': ('ocrvqa', 'ocr', 'ocrvqa', 'train', 0.06, {}),
  'textcaps': ('textcaps', 'caption', 'textvqa', 'train', 0.02, {}),
  'refcoco_rec': ('refcoco', 'rec', 'refcoco', 'train', 0.03, {}),
  'refcoco_reg': ('refcoco', 'reg', 'refcoco', 'train', 0.02, {}),
  'refcocoplus_rec': ('refcoco+', 'rec', 'refcoco', 'train', 0.03, {}),
  'refcocoplus_reg': ('refcoco+', 'reg', 'refcoco', 'train', 0.02, {}),
  'refcocog_rec': ('refcocog', 'rec', 'refcoco', 'train', 0.03, {}),
  'refcocog_reg': ('refcocog', 'reg', 'refcoco', 'train', 0.02, {}),
  'vg_rec': ('visual_genome', 'rec', 'visual_genome', 'train', 0.03, {}),
  'vg_reg': ('visual_genome', 'reg', 'visual_genome', 'train', 0.03, {}),
  'flickr30k': ('flickr30k_entities', 'grounded_caption', 'flickr30k_entities', 'train', 0.06, {}),
  'coco_caption': ('coco', 'caption', 'coco', 'train2017', 0.02, {}),
  'coco_detection': ('coco', 'detection', 'coco', 'train2017', 0.06, dict(mirror=0.5)),
  'coco_counting': ('coco', 'counting', 'coco', 'train2017', 0.02, dict(mirror=0.5)),
  'lvis_detection': ('lvis', 'detection', 'coco', 'train', 0.03, dict(mirror=0.5)),
  'vg_relation': ('visual_genome', 'relation', 'visual_genome', 'train', 0.06, {}),
  'doclaynet': ('doclaynet', 'layout', 'doclaynet', 'train', 0.04, {}),
  'coco_pose': ('coco', 'pose', 'coco', 'train2017', 0.04, dict(mirror=0.5)),
  'llava': ('llava', 'dialog', 'llava', 'train', 0.08, dict(too_long='cut_text')),
  'sharegpt': ('sharegpt', 'dialog', 'sharegpt', 'train', 0.04, dict(too_long='cut_text')),
  'text': ('array_record', 'text', 'refinedweb', 'train', 0.02, {}),
}
# Scale -> rows of a batch and updates.
SCHEDULE = {'224': (128, 30_000), '512': (128, 30_000), '1k': (64, 15_000), '2k': (64, 20_000)}
# Validation losses during training: mixture entry -> held-out split of the same files.
VALIDATION = {
  'vqav2': 'val2014',
  'refcoco_rec': 'val',
  'refcocog_reg': 'val',
  'flickr30k': 'val',
  'coco_detection': 'val2017',
  'coco_pose': 'val2017',
  'doclaynet': 'val',
  'vg_relation': 'val',
  'ocrvqa': 'val',
}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config of one run. The default of `arg` is '13b,1k'."""
  choice = pod.parse(arg, '13b,1k', 'stage2')
  mixture = {name: pod.entry(*row, **settings) for name, (*row, settings) in MIXTURE.items()}
  validation = {
    name: {**mixture[name], 'split': split, 'mirror': 0.0, 'weight': 1.0}
    for name, split in VALIDATION.items()
  }
  batch_size, steps = SCHEDULE[choice.scale]
  return pod.run(
    f'stage2_{choice.size}_{choice.scale}',
    choice,
    mixture,
    validation,
    batch_size=batch_size,
    steps=steps,
    lr=2e-5,
    decay_to=0.0,
    warmup=3 * steps // 100,
    init_from='workdir/mix',
  ).lock()
