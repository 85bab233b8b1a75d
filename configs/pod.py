"""What the pod configs share: `stage1.py`, `stage2.py` and `recipe.py` build their runs with it.

`run` takes every setting that differs between stages as an argument. Image slots and sequence
length follow from the scale.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from sphinx_jax.configs import sphinx
from sphinx_jax.core import errors
from sphinx_jax.parallel.mesh import PRESETS

DENSE = ('7b', '13b')
SIZES = (*DENSE, 'moe')
# Sequence length and image slots of a packed row, chosen so that most positions are used: an image
# takes 291 (224, 512), 1455 (1k) or 2910 (2k) of them. No example takes more than llm.max_length,
# 4096.
PACKING = {
  '224': dict(seq_len=2048, images=6),
  '512': dict(seq_len=2048, images=6),
  '1k': dict(seq_len=8192, images=5),
  '2k': dict(seq_len=12288, images=4),
}
# Config of this directory -> its arguments. Each is a row of the table in docs/pods.md.
_SPHINX = [f'{size},{scale}' for size in DENSE for scale in sphinx.SCALES['llama']]
_SPHINX += [f'moe,{scale}' for scale in sphinx.SCALES['mixtral']]
SHIPPED = {'stage1': _SPHINX, 'stage2': _SPHINX, 'idefics2': ['whole', 'split']}
# Encoders are pretrained and frozen. Their projections and the language model are trained
# (docs/official_sphinx.md, "Training").
TRAINABLE = (('encoders/.*', 'frozen'), ('.*', 'train'))


class Choice(NamedTuple):
  """The parsed argument of a pod config: names of SIZES, PACKING and PRESETS, and a word or ''."""

  size: str
  scale: str
  mesh: str
  word: str


def parse(arg: str, default: str, config: str, words: tuple[str, ...] = ()) -> Choice:
  """Parses '13b,1k[,MESH][,WORD]', in any order.

  Args:
    arg: the argument of the config.
    default: size and scale if `arg` has none. The default mesh is 'fsdp', or 'experts' of a mixture
      of experts; the default word is ''.
    config: name of the config, for the error message.
    words: other words that the config takes.

  Raises:
    SphinxError: a part of `arg` is in none of the tables.
  """
  choices = dict(size=SIZES, scale=PACKING, mesh=PRESETS, word=words)
  choice = Choice(*default.split(','), '', '')
  for part in filter(None, arg.split(',')):
    fields = [field for field, names in choices.items() if part in names]
    if not fields:
      names = [name for group in choices.values() for name in group]
      raise errors.unknown(f'argument of config {config}', part, names)
    choice = choice._replace(**{fields[0]: part})
  mesh = choice.mesh or ('fsdp' if choice.size in DENSE else 'experts')
  return choice._replace(mesh=mesh)


def entry(
  source: str, task: str, root: str, split: str, weight: float, **settings: Any
) -> dict[str, Any]:
  """Returns a mixture entry.

  Args:
    source: name in the tables of sphinx_jax/datasets; each file there shows the directory tree.
    task: name in the table of sphinx_jax/tasks.
    root: the dataset's folder inside `data_dir`.
    split: the dataset's own name of the split.
    weight: share of the examples.
    settings: `max_turns` (most questions about one image in an example) and the source's own.
  """
  shared = dict(source=source, task=task, root=root, split=split, weight=weight, max_turns=8)
  return shared | settings


def run(
  name: str,
  choice: Choice,
  mixture: Mapping[str, Mapping[str, Any]],
  validation: Mapping[str, Mapping[str, Any]],
  batch_size: int,
  steps: int,
  lr: float,
  decay_to: float,
  warmup: int,
  init_from: str,
) -> ConfigDict:
  """Returns the config of one training run, not locked yet.

  Args:
    name: the run's name in logs.
    choice: sizes, scale and mesh.
    mixture: name -> entry.
    validation: name -> entry.
    batch_size: rows of a batch over all devices.
    steps: number of updates.
    lr: peak learning rate of a dense model. That of a mixture of experts is a quarter of it, as in
      the official README (5e-6 in place of 2e-5).
    decay_to: final learning rate as a share of `lr`.
    warmup: updates until the peak.
    init_from: directory of the checkpoint to start from. Its tokenizer is used.
  """
  model = sphinx.model(choice.size, 'full', choice.scale, dtype='bfloat16', max_length=4096)
  # All products of two experts a position are four times as large as those of a dense model.
  model.remat = 'dots' if choice.size in DENSE else 'attention'
  model.attention = 'auto'
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
      # `by` is 'examples', 'tokens' or 'temperature', see sphinx_jax/mix/tasks.py. With
      # 'temperature' an entry may have a `cap`. `stages` is ((position, {name: weight}), ...): the
      # weights from this position of the order of examples on. 'learned' needs a section `learned`
      # (docs/data.md, "Weights of tasks").
      sampling=dict(by='examples', temperature=1.0, stages=()),
      max_skipped=0.2,
      image=dict(alpha='drop'),  # As the official code does.
      batch=dict(size=batch_size, **PACKING[choice.scale], window=1024),
      loss_weighting='token',
      loss_chunk=512,
      trainable=TRAINABLE,
      # AdamW (0.9, 0.95), no weight decay, clip 8: docs/official_sphinx.md, "Fine-tuning recipe".
      optimizer=dict(
        name='adamw',
        lr=lr if choice.size in DENSE else lr / 4,
        warmup=warmup,
        decay_to=decay_to,
        betas=(0.9, 0.95),
        weight_decay=0.0,
        clip=8.0,
        accumulate=-1,
        moment_dtype='float32',
      ),
      steps=steps,
      log_every=20,
      profile=(),  # (100, 103) writes a profiler trace of these steps.
      wandb='',  # Project of Weights & Biases that gets the metrics, too.
      cache_features='',  # Directory that keeps the features of frozen encoders, for later epochs.
      eval_every=2000,
      eval_batches=8,
      checkpoint=dict(every=1000, keep=2, keep_every=0),
      mesh=dict(PRESETS[choice.mesh]),
      init_from=config_dict.placeholder(str),
    )
  )
  config.init_from = init_from
  return config
