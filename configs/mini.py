"""The whole recipe at laptop size: `bash launch/local.sh`, or

    python -m sphinx_jax.recipe --config=configs/mini.py --workdir=workdir/mini

`configs/mini.py:quick` runs every step with few updates; `configs/mini.py:official` writes the data as the files of official
datasets (LAION, COCO, VQAv2, RefCOCO, ...) and reads those, as a run on the real ones does. The steps are those of the paper;
nothing is pretrained at this size, so the encoders learn in the first stage and are frozen from there on.
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import sphinx
from sphinx_jax.core import errors

STEPS = ('data', 'real', 'synthetic', 'mix', 'stage2', 'evaluate', 'report')

# Stage 2, all tasks jointly: task -> weight (share of examples).
TASKS = {
  'caption': 0.04,
  'vqa': 0.14,
  'ocr': 0.10,
  'rec': 0.14,
  'reg': 0.12,
  'grounded_caption': 0.10,
  'detection': 0.09,
  'relation': 0.14,
  'layout': 0.09,
  'pose': 0.03,
  'text': 0.01,
}

# What this size should reach; the report says whether it did.
AIMS = {
  'vqa': 0.8,
  'ocr': 0.6,
  'rec': 0.6,
  'reg': 0.7,
  'grounded_caption': 0.5,
  'detection': 0.5,
  'layout': 0.6,
  'pose': 0.6,
  'relation': 0.6,
}

# The same tasks from official files: task -> (source, folder, split to train on, folder and split that are held out).
OFFICIAL = {
  'caption': ('coco', 'coco', 'train2014', 'coco', 'val2014'),
  'vqa': ('vqav2', 'coco', 'train2014', 'coco', 'val2014'),
  'ocr': ('ocrvqa', 'ocrvqa', 'train', 'ocrvqa', 'test'),
  'rec': ('refcoco', 'refcoco', 'train', 'refcoco', 'testA'),
  'reg': ('refcoco', 'refcoco', 'train', 'refcoco', 'testA'),
  'grounded_caption': (
    'flickr30k_entities',
    'flickr30k_entities',
    'train',
    'flickr30k_entities',
    'test',
  ),
  'detection': ('coco', 'coco', 'train2014', 'coco', 'val2014'),
  'relation': ('visual_genome', 'visual_genome', 'all', 'visual_genome_val', 'all'),
  'layout': ('doclaynet', 'doclaynet', 'train', 'doclaynet', 'test'),
  'pose': ('coco', 'coco', 'train2014', 'coco', 'val2014'),
  'text': ('plain_text', 'text/train', 'train', 'text/test', 'train'),
}


def _official(task: str, held_out: bool = False) -> dict:
  """A task of stage 2 from official files."""
  source, root, split, *held = OFFICIAL[task]
  root, split = held if held_out else (root, split)
  return dict(
    source=source,
    task=task,
    root=f'official/{root}',
    split=split,
    max_turns=4,
    weight=1.0 if held_out else TASKS.get(task, 0.1),
  )


def _laion(domain: str, split: str, weight: float = 1.0) -> dict:
  return dict(
    source='laion', task='caption', root=f'official/laion/{domain}/{split}', weight=weight
  )


def _caption(domain: str, split: str, weight: float = 1.0) -> dict:
  return dict(source='miniworld', task='caption', domain=domain, split=split, weight=weight)


def _run(
  name: str, steps: int, lr: float, mixture: dict, trained: tuple, init_from: str | None = None
) -> dict:
  """One training run: what differs between the stages is said by the arguments, the rest is shared."""
  return dict(
    kind='train',
    name=name,
    seed=0,
    model=sphinx.model('mini', 'mini', 'mini', scan_unroll=3).to_dict(),
    tokenizer='data/tokenizer.model',
    dialog=dict(system=''),
    data_dir='data',
    mixture=mixture,
    sampling=dict(by='examples', temperature=1.0, stages=()),
    max_skipped=0.5,
    batch=dict(size=8, seq_len=256, images=2, window=256),
    loss_weighting='sqrt',
    trainable=trained,
    optimizer=dict(
      name='muon',
      lr=lr,
      warmup=max(steps // 20, 1),
      decay_to=0.05,
      betas=(0.9, 0.99),
      weight_decay=0.01,
      clip=1.0,
      accumulate=1,
      moment_dtype='float32',
    ),
    steps=steps,
    log_every=50,
    eval_every=max(steps // 2, 1),
    eval_batches=8,
    checkpoint=dict(every=max(steps // 4, 1), keep=2, keep_every=0),
    mesh=dict(data=1, fsdp=1, tensor=1),
    init_from=init_from,
    validation=dict(
      real=_caption('real', 'validation'), synthetic=_caption('synthetic', 'validation')
    ),
  )


def _from_official(config: dict) -> dict:
  """The recipe's config with every mixture read from official files."""
  config['data']['official'] = True
  text = _official('text') | dict(weight=0.1)
  for domain in ('real', 'synthetic'):
    config[domain]['mixture'] = dict(caption=_laion(domain, 'train', 0.9), text=text)
    config[domain]['validation'] = {
      name: _laion(name, 'validation') for name in ('real', 'synthetic')
    }
  config['stage2']['mixture'] = {task: _official(task) for task in TASKS}
  config['stage2']['mixture']['dialog'] = dict(
    source='llava', task='dialog', root='official', file='llava_train.json', weight=0.02
  )
  config['stage2'].update(
    validation={task: _official(task, held_out=True) for task in TASKS}, eval_batches=2
  )
  return config


def get_config(arg: str = '') -> ConfigDict:
  """The recipe's config; `arg` is '', 'quick', 'official' or 'quick,official'."""
  words = set(filter(None, arg.split(',')))
  for word in words - {'quick', 'official'}:
    raise errors.unknown('argument of configs/mini.py', word, ['quick', 'official'])
  quick = 'quick' in words
  everything = (('.*', 'train'),)
  frozen_encoders = (('encoders/.*', 'frozen'), ('.*', 'train'))
  text = dict(source='miniworld', task='text', split='train', weight=0.1)
  tasks = {
    task: dict(source='miniworld', task=task, split='train', weight=weight, max_turns=4)
    for task, weight in TASKS.items()
  }
  tasks['caption'] = _caption('synthetic', 'train', TASKS['caption'])
  config = dict(
    steps=STEPS,
    data=dict(
      kind='data',
      image_size=64,
      seed=0,
      vocab=640,
      lines=2000,
      official=False,
      train=dict(objects=400, words=200, page=200, figure=200)
      if quick
      else dict(objects=8000, words=3500, page=3500, figure=3500),
      heldout=60 if quick else 300,
    ),
    real=_run(
      'real',
      6 if quick else 130,
      2e-3,
      dict(caption=_caption('real', 'train', 0.9), text=text),
      everything,
    ),
    synthetic=_run(
      'synthetic',
      6 if quick else 70,
      1.5e-3,
      dict(caption=_caption('synthetic', 'train', 0.9), text=text),
      frozen_encoders,
      init_from='real',
    ),
    mix=dict(
      kind='mix', inputs=('real', 'synthetic'), coefficients=tuple(i / 10 for i in range(11))
    ),
    stage2=_run('stage2', 8 if quick else 2250, 2.5e-3, tasks, frozen_encoders, init_from='mix'),
    evaluate=dict(
      kind='evaluate',
      checkpoint='stage2',
      tasks=tuple(t for t in TASKS if t != 'text'),
      split='test',
      examples=16 if quick else 200,
      batch_size=100,
    ),
    report=dict(kind='report', aims=AIMS),
  )
  return ConfigDict(_from_official(config) if 'official' in words else config).lock()
