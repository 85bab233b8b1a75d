"""What the pod configs share: sizes, rows, optimizer and layout of one training run. `stage1.py`, `stage2.py` and `recipe.py` use it.

Every setting that differs between stages is an argument of `run`; rows and positions follow from the scale.
"""

from typing import NamedTuple

from ml_collections import ConfigDict, config_dict

from sphinx_jax.configs import sphinx
from sphinx_jax.core import errors
from sphinx_jax.parallel.mesh import PRESETS

SIZES = ('7b', '13b')
# Positions of a row and images in it, so that most of a row is used: an image takes 291, 1455 or 2910 of them.
ROWS = {
  '224': dict(seq_len=2048, images=6),
  '1k': dict(seq_len=2048, images=1),
  '2k': dict(seq_len=4096, images=1),
}
# Encoders are pretrained and stay as they are; their projections and the language model learn (FACTS "Training").
TRAINABLE = (('encoders/.*', 'frozen'), ('.*', 'train'))


class Choice(NamedTuple):
  """What the argument of a pod config says."""

  size: str
  scale: str
  mesh: str
  word: str


def parse(arg: str, default: str, file: str, words: tuple[str, ...] = ()) -> Choice:
  """'13b,1k[,MESH][,WORD]'; what is left out comes from `default`, the mesh is 'fsdp' and the word ''.

  Raises:
      SphinxError: a part that is none of these.
  """
  known = dict(size=SIZES, scale=ROWS, mesh=PRESETS, word=words)
  choice = Choice(*default.split(','), 'fsdp', '')
  for part in filter(None, arg.split(',')):
    name = next((name for name, values in known.items() if part in values), None)
    if name is None:
      raise errors.unknown(
        f'argument of configs/{file}',
        part,
        [value for values in known.values() for value in values],
      )
    choice = choice._replace(**{name: part})
  return choice


def entry(source: str, task: str, root: str, split: str, weight: float, **settings) -> dict:
  """A mixture entry: a dataset in its official tree (sphinx_jax/datasets shows each), or as data.build wrote it.

  Args:
      source, task: names in the tables of sphinx_jax/data.
      root: folder of the dataset under `data_dir`.
      split: as the dataset calls it.
      weight: share of examples.
      settings: max_turns (most questions about a picture in an example), and the source's own.
  """
  return (
    dict(source=source, task=task, root=root, split=split, weight=weight, max_turns=8) | settings
  )


def run(
  name: str,
  choice: Choice,
  mixture: dict,
  validation: dict,
  rows: int,
  steps: int,
  lr: float,
  decay_to: float,
  warmup: int,
  init_from: str,
) -> ConfigDict:
  """The config of one training run.

  Args:
      name: of the run.
      choice: sizes and scales are rows of the tables in configs/sphinx.py, the mesh one of parallel/mesh.py.
      mixture, validation: name -> entry.
      rows: of a batch, over all devices.
      steps, lr, decay_to, warmup: of the optimizer.
      init_from: the checkpoint to start from; its tokenizer is used.
  """
  model = sphinx.model(choice.size, 'full', choice.scale, dtype='bfloat16', max_length=4096)
  model.remat, model.attention = 'full', 'auto'
  config = ConfigDict(
    dict(
      name=name,
      seed=0,
      model=model.to_dict(),
      tokenizer='',
      dialog=dict(system=''),
      data_dir='data',
      mixture=mixture,
      validation=validation,
      # Weights are shares of examples; by 'tokens' or 'temperature' (then entries may have a `cap`): sphinx_jax/mix/tasks.py.
      # stages=((position, {name: weight}), ...) are other weights from a position of the order of examples on.
      sampling=dict(by='examples', temperature=1.0, stages=()),
      max_skipped=0.2,
      batch=dict(size=rows, **ROWS[choice.scale], window=1024),
      loss_weighting='token',
      loss_chunk=512,
      trainable=TRAINABLE,
      # FACTS "Fine-tuning recipe": AdamW (0.9, 0.95), no weight decay, clip 8.
      optimizer=dict(
        name='adamw',
        lr=lr,
        warmup=warmup,
        decay_to=decay_to,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        clip=8.0,
        accumulate=1,
        moment_dtype='float32',
      ),
      steps=steps,
      log_every=20,
      eval_every=2000,
      eval_batches=8,
      checkpoint=dict(every=1000, keep=2, keep_every=0),
      mesh=dict(PRESETS[choice.mesh]),
      init_from=config_dict.placeholder(str),
    )
  )
  config.init_from = init_from
  return config
