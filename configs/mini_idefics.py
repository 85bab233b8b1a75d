"""Idefics2 at laptop size, from fresh weights, with questions about two images.

    python -m sphinx_jax.recipe --config=mini_idefics --workdir=workdir/mini_idefics

`mini_idefics:quick` runs every step with a few updates and without useful scores. The results are
in report.html of the workdir, as those of configs/mini.py. There is one domain of captions and no
mix of weights, and stage 2 trains the vision tower too: no part is pretrained at this size.
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import mini, sphinx
from sphinx_jax.core import errors
from sphinx_jax.models import multimodal

VOCAB = 640  # Of the tokenizer. Its special tokens come after them.

# Stage 2. Task -> weight: its share of the examples.
TASKS = {
  'caption': 0.08,
  'vqa': 0.25,
  'ocr': 0.08,
  'rec': 0.06,
  'relation': 0.08,
  'difference': 0.44,
  'text': 0.01,
}
TARGETS = {'vqa': 0.7, 'difference': 0.5}


def model() -> ConfigDict:
  """The model config: Idefics2 with 16 visual tokens of an image of 64 pixels."""
  settings = dict(
    name='idefics2',
    image_size=64,
    slots=dict(shortest=64, longest=64, split=False),
    image_token=VOCAB + 1,  # Behind <fake_token_around_image>.
    # A patch is a cell of miniworld (miniworld/draw.py, `lattice`).
    vision=dict(patch=16, width=64, layers=2, heads=2, hidden=128, pos_grid=4, patch_rule='all'),
    perceiver=dict(queries=16, layers=2, heads=4, kv_heads=2, head_width=32, eps=1e-6),
    llm=dict(name='llama', **sphinx.LLMS['mini'] | dict(vocab=VOCAB + 3, heads=4)),
    scan_unroll=3,
  )
  return multimodal.model_config(settings, 'float32')


def get_config(arg: str = '') -> ConfigDict:
  """Returns the recipe's config.

  Args:
    arg: '' or 'quick'.

  Raises:
    SphinxError: another word in `arg`.
  """
  if arg not in ('', 'quick'):
    raise errors.unknown('argument of config mini_idefics', arg, ['quick'])
  shared = dict(
    trainable=(('.*', 'train'),),
    model=model().to_dict(),
    dialog=dict(system='', style='idefics2'),
    batch=dict(size=8, seq_len=256, images=4, window=256),
    validation=dict(synthetic=mini.caption('synthetic', 'validation')),
  )
  text = dict(source='miniworld', task='text', split='train', weight=0.1)
  tasks = {
    task: dict(source='miniworld', task=task, split='train', weight=weight, max_turns=4)
    for task, weight in TASKS.items()
  }
  tasks['caption'] = mini.caption('synthetic', 'train', TASKS['caption'])
  captions = dict(caption=mini.caption('synthetic', 'train', 0.9), text=text)
  config = dict(
    steps=('data', 'stage1', 'stage2', 'evaluate', 'report'),
    data=mini.data(vocab=VOCAB),
    stage1=mini.training('stage1', 400, 2e-3, captions, **shared),
    stage2=mini.training('stage2', 2400, 1.5e-3, tasks, init_from='stage1', **shared),
    evaluate=mini.evaluation(TASKS),
    report=dict(kind='report', targets=TARGETS),
  )
  if arg:
    mini.shorten(config)
  return ConfigDict(config).lock()
