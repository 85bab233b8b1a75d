"""The whole recipe at laptop size.

    python -m sphinx_jax.recipe --config=mini --workdir=workdir/mini

On 2 CPU cores it takes 10 to 26 minutes and 2.5 GiB of memory. The results are in
workdir/mini/report.html. `bash launch/local.sh` installs the package and runs the recipe.

Variants, which can be combined (`mini:quick,dataset_files`):

    mini:quick          every step with a few updates, in about 4 minutes and without useful scores
    mini:dataset_files  writes miniworld in the file formats of published datasets (LAION, COCO,
                        VQAv2, RefCOCO, ...) and trains on those files, as a run on the real
                        datasets does
    mini:siglip         adds SigLIP to the encoders of the mix
    mini:moe            four experts of half the width in place of each feed-forward layer, two of
                        which compute a position: as many active parameters
    mini:learned        stage 2 learns the weights of its tasks from held-out losses, seven times

The steps are those of the paper. There are no released weights of this size, so the step `encoders`
pretrains the encoders, each in the way of the released one: CLIP and ConvNeXt by image-text
contrast, DINOv2 by self-distillation, the branch of BLIP-2 by captioning. They are frozen from
then on.
"""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict, FieldReference

from sphinx_jax.configs import sphinx
from sphinx_jax.core import errors, renames

WORDS = {'quick', 'dataset_files', 'siglip', 'moe', 'learned'}  # Of the config's argument.
STEPS = ('data', 'encoders', 'real', 'synthetic', 'mix', 'stage2', 'evaluate', 'report')

# Stage 2 trains all tasks jointly. Task -> weight: its share of the examples.
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

# Scores that a model of this size should reach. The report compares them with the measured ones.
TARGETS = {
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

# Studies whose results the report shows, once they are in sphinx_jax/report/studies.
STUDIES = ('embeddings', 'scales', 'weights', 'tasks', 'sampling', 'unfreeze')

# Held-out losses of stage 2 with the weights above, the references of `mini:learned`. They are the
# last ones in stage2/metrics.jsonl of
#   python -m sphinx_jax.recipe --config=mini:learned --config.stage2.sampling.by=examples \
#     --config.real.trainable="(('.*', 'train'),)"
# in which stage 1 trains the encoders, too. The study `sampling` was run with them.
REFERENCE_LOSSES = {
  'caption': 0.265,
  'vqa': 0.098,
  'ocr': 0.154,
  'rec': 0.355,
  'reg': 0.254,
  'grounded_caption': 0.247,
  'detection': 0.418,
  'relation': 0.328,
  'layout': 0.147,
  'pose': 0.523,
  'text': 1.662,
}

# The same tasks in published file formats. Task -> (source, training folder and split, held-out
# folder and split); folders are inside `data/official`.
DATASET_FILES = {
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


def _from_files(task: str, held_out: bool = False) -> dict[str, Any]:
  """Returns the mixture entry of a stage 2 task that is read from dataset files."""
  source, train_root, train_split, held_out_root, held_out_split = DATASET_FILES[task]
  return dict(
    source=source,
    task=task,
    root=f'official/{held_out_root if held_out else train_root}',
    split=held_out_split if held_out else train_split,
    max_turns=4,
    weight=1.0 if held_out else TASKS[task],
  )


def _laion(domain: str, split: str, weight: float = 1.0) -> dict[str, Any]:
  root = f'official/laion/{domain}/{split}'
  return dict(source='laion', task='caption', root=root, weight=weight)


def caption(domain: str, split: str, weight: float = 1.0) -> dict[str, Any]:
  """Returns a mixture entry: captions of miniworld in one domain."""
  return dict(source='miniworld', task='caption', domain=domain, split=split, weight=weight)


def pretraining(encoders: str) -> dict[str, Any]:
  """Returns the section that pretrains the encoders, a row of `sphinx.ENCODERS`."""
  of_text = tuple(
    name for name in ('clip', 'convnext', 'siglip') if name in sphinx.ENCODERS[encoders]
  )
  text = dict(width=64, layers=2, heads=2)

  def objective(
    names: tuple[str, ...], steps: int, optimizer: str, lr: float, **own: Any
  ) -> dict[str, Any]:
    updates = FieldReference(steps)
    return dict(
      trains=names,
      # Released encoders saw 4e8 noisy captions and more. Few updates learn more from clean ones.
      data=caption('synthetic', 'train'),
      optimizer=dict(
        name=optimizer,
        lr=lr,
        warmup=updates // 20,
        decay_to=0.05,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        clip=1.0,
        moment_dtype='float32',
      ),
      steps=updates,
      **own,
    )

  return dict(
    kind='pretrain',
    seed=0,
    model=sphinx.model('mini', encoders, 'mini').to_dict(),
    tokenizer='data/tokenizer.model',
    dialog=dict(system=''),
    data_dir='data',
    image=dict(alpha='drop'),
    max_skipped=0.5,
    batch=dict(size=64, seq_len=112, text=72, window=256),
    objectives=dict(
      contrast=objective(of_text, 200, 'muon', 2e-3, width=64, text=text),
      distill=objective(
        ('dinov2',), 150, 'adamw', 1e-3, prototypes=256, momentum=0.99, small=4, hidden=0.4
      ),
      captions=objective(('qformer',), 150, 'muon', 2e-3, text=text),
    ),
    log_every=10,
    checkpoint=dict(every=100, keep=1),
    mesh=dict(data=1, fsdp=1, tensor=1),
  )


def training(
  name: str,
  steps: int,
  lr: float,
  mixture: dict[str, Any],
  trainable: tuple[tuple[str, str], ...],
  init_from: str | None = None,
  **changes: Any,
) -> dict[str, Any]:
  """Returns the section of one training run: what differs between stages is an argument.

  `changes` take the place of whole settings ('model', 'batch') in other recipes.
  """
  updates = FieldReference(steps)
  section = dict(
    kind='train',
    name=name,
    seed=0,
    model=sphinx.model('mini', 'mini', 'mini', scan_unroll=3).to_dict(),
    tokenizer='data/tokenizer.model',
    dialog=dict(system=''),
    data_dir='data',
    mixture=mixture,
    sampling=dict(by='examples', temperature=1.0, stages=()),
    max_skipped=0.5,  # A larger share of unreadable or invalid examples stops the run.
    image=dict(alpha='drop'),  # Ignores transparency. 'white' puts images on white.
    batch=dict(size=8, seq_len=256, images=2, window=256),
    loss_weighting='sqrt',
    loss_chunk=0,
    trainable=trainable,
    optimizer=dict(
      name='muon',
      lr=lr,
      warmup=updates // 20,  # Follows --config.NAME.steps.
      decay_to=0.05,
      betas=(0.9, 0.99),
      weight_decay=0.01,
      clip=1.0,
      accumulate=1,
      moment_dtype='float32',
    ),
    steps=updates,
    log_every=50,
    profile=(),  # (100, 103) writes a profiler trace of these steps.
    wandb='',  # Project of Weights & Biases that gets the metrics, too.
    cache_features='',  # Directory that keeps the features of frozen encoders, for later epochs.
    eval_every=max(steps // 2, 1),
    eval_batches=8,
    checkpoint=dict(every=max(steps // 4, 1), keep=2, keep_every=0),
    mesh=dict(data=1, fsdp=1, tensor=1),
    init_from=init_from,
    validation=dict(
      real=caption('real', 'validation'), synthetic=caption('synthetic', 'validation')
    ),
  )
  return section | changes


def data(vocab: int) -> dict[str, Any]:
  """Returns the section that draws the scenes and trains a tokenizer of `vocab` ids."""
  return dict(
    kind='data',
    image_size=64,
    seed=0,
    vocab=vocab,
    lines=2000,
    dataset_files=False,
    train=dict(objects=8000, words=3500, page=3500, figure=3500),  # Images of each kind.
    heldout=300,
  )


def evaluation(tasks: Iterable[str]) -> dict[str, Any]:
  """Returns the section that asks stage 2 about the test split."""
  return dict(
    kind='evaluate',
    checkpoint='stage2',
    tasks=tuple(task for task in tasks if task != 'text'),
    split='test',
    examples=200,
    batch_size=100,
  )


def _read_dataset_files(config: dict[str, Any]) -> None:
  """Changes a recipe: its data are written as dataset files, and every mixture reads those."""
  config['data']['dataset_files'] = True
  for objective in config['encoders']['objectives'].values():
    objective['data'] = _laion('synthetic', 'train')
  text = _from_files('text') | dict(weight=0.1)
  for domain in ('real', 'synthetic'):
    config[domain]['mixture'] = dict(caption=_laion(domain, 'train', 0.9), text=text)
    config[domain]['validation'] = {
      name: _laion(name, 'validation') for name in ('real', 'synthetic')
    }
  stage2 = config['stage2']
  stage2['mixture'] = {task: _from_files(task) for task in TASKS}
  stage2['mixture']['dialog'] = dict(
    source='llava', task='dialog', root='official', file='llava_train.json', weight=0.02
  )
  stage2['validation'] = {task: _from_files(task, held_out=True) for task in TASKS}
  stage2['eval_batches'] = 2
  config['evaluate']['split'] = 'validation'  # The entries above: each dataset names its own.


def shorten(config: dict[str, Any]) -> None:
  """Changes a recipe: few images, updates and questions, and programs that compile faster."""
  config['data'] |= dict(train=dict(objects=400, words=200, page=200, figure=200), heldout=60)
  for stage in config['steps']:
    run = config[stage]
    if run['kind'] == 'pretrain':
      run['batch']['size'] = 8
      for objective in run['objectives'].values():
        objective['steps'] = 2
        objective['optimizer'] |= dict(name='adamw', warmup=1)
    if run['kind'] != 'train':
      continue
    steps = 4 if stage == 'stage2' else 3
    run |= dict(steps=steps, eval_every=steps, eval_batches=2)
    run['optimizer']['warmup'] = 1
    run['checkpoint']['every'] = 2
    run['model']['scan_unroll'] = 1
    run['batch']['size'] = 4
    if stage != 'stage2':
      run['optimizer']['name'] = 'adamw'  # Compiles faster; stage 2 runs muon.
  if 'mix' in config:
    config['mix']['coefficients'] = (0.0, 0.5, 1.0)
  config['evaluate']['examples'] = 4


def learn_weights(stage2: dict[str, Any], parts: int) -> None:
  """Changes a run: the weights of its tasks are learned between `parts` parts of it."""
  stage2['validation'] = {
    name: {**entry, 'split': 'validation', 'weight': 1.0}
    for name, entry in stage2['mixture'].items()
  }
  stage2['eval_batches'] = 4
  stage2['sampling'] = dict(
    by='learned',
    temperature=1.0,
    stages=(),
    learned=dict(
      every=stage2['steps'] // parts + 1,  # Follows --config.stage2.steps.
      rate=5.0,  # A task that is 0.2 nats further behind its reference gets e times as much,
      limit=2.0,  # but at most twice, at least half of its first weight, before scaling.
      reference='',  # Workdir of a run whose losses take the place of the next line.
      reference_losses=REFERENCE_LOSSES,
    ),
  )


def get_config(arg: str = '') -> ConfigDict:
  """Returns the recipe's config.

  Args:
    arg: '' or words of WORDS with commas between them.

  Raises:
    SphinxError: another word in `arg`, or 'learned' with 'dataset_files'.
  """
  words = {renames.config_argument('mini', word) for word in arg.split(',') if word}
  for word in words - WORDS:
    raise errors.unknown('argument of config mini', word, WORDS)
  if {'learned', 'dataset_files'} <= words:
    raise errors.make(
      'argument of config mini',
      'learned with dataset_files',
      'one of them, because the reference losses are those of other data',
      'leave one out',
    )
  frozen_encoders = (('encoders/.*', 'frozen'), ('.*', 'train'))
  text = dict(source='miniworld', task='text', split='train', weight=0.1)
  tasks = {
    task: dict(source='miniworld', task=task, split='train', weight=weight, max_turns=4)
    for task, weight in TASKS.items()
  }
  tasks['caption'] = caption('synthetic', 'train', TASKS['caption'])
  llm = 'mini_moe' if 'moe' in words else 'mini'
  encoders = 'mini_siglip' if 'siglip' in words else 'mini'
  config = dict(
    steps=STEPS,
    data=data(vocab=640),
    encoders=pretraining(encoders),
    real=training(
      'real',
      130,
      2e-3,
      dict(caption=caption('real', 'train', 0.9), text=text),
      frozen_encoders,
      init_from='encoders',
    ),
    synthetic=training(
      'synthetic',
      70,
      1.5e-3,
      dict(caption=caption('synthetic', 'train', 0.9), text=text),
      frozen_encoders,
      init_from='real',
    ),
    mix=dict(
      kind='mix', inputs=('real', 'synthetic'), coefficients=tuple(i / 10 for i in range(11))
    ),
    stage2=training('stage2', 2250, 2.5e-3, tasks, frozen_encoders, init_from='mix'),
    evaluate=evaluation(TASKS),
    report=dict(kind='report', targets=TARGETS, studies=STUDIES),
  )
  for stage in ('real', 'synthetic', 'stage2'):
    config[stage]['model'] = sphinx.model(llm, encoders, 'mini', scan_unroll=3).to_dict()
  if 'quick' in words:
    shorten(config)
  if 'learned' in words:
    learn_weights(config['stage2'], parts=2 if 'quick' in words else 8)
  if 'dataset_files' in words:
    _read_dataset_files(config)
  return ConfigDict(config).lock()
