"""Training on your own data: copy this file to any directory, change what you need, and run

    python -m sphinx_jax.train --config=forkme.py:my.jsonl --workdir=workdir/mine

The shipped file itself is `--config=forkme:my.jsonl`.

Each line of `my.jsonl` is one example, in the format of LLaVA and SPHINX. The image path is
relative to the file, or to `root` below. Leave `image` out for an example without one. Several
images are a list (docs/data.md); for them, give rows more image slots: `--config.batch.images=4`.

    {"image": "cat.jpg", "conversations": [{"from": "human", "value": "What is this?"},
                                           {"from": "gpt", "value": "A cat."}]}

The run starts from the weights, tokenizer, dialog template and model config of a checkpoint. The
default is stage 2 of the mini recipe in the current directory, so run `bash launch/local.sh` first.
A step takes about half a second on 2 CPU cores. Another checkpoint follows a comma, for example
released weights that `python -m sphinx_jax.convert` imported: `--config=forkme.py:my.jsonl,DIR`.
It needs a machine of its size, which `python -m sphinx_jax.plan` computes for the same --config.

A large model fits a small device with adapters (LoRA): `--config=forkme.py:my.jsonl,DIR,lora`
freezes its weights in bfloat16 and trains small matrices beside them, `qlora` freezes them in 4
bits. A DIR in few bits (`python -m sphinx_jax.convert --quantize`) stays as it is. The run holds
adapters alone, and needs DIR to answer:

    python -m sphinx_jax.chat --checkpoint=workdir/mine --image=cat.jpg --prompt="What is this?"
    python -m sphinx_jax.mix_weights --inputs=DIR+workdir/mine --output=workdir/merged

Pairs of a better and a worse answer are trained by DPO, with the model without its adapters as the
reference: `--config=forkme.py:pairs.jsonl,DIR,dpo`. A line of pairs.jsonl is

    {"image": "cat.jpg", "prompt": "What is this?", "chosen": "A cat.", "rejected": "Two dogs."}

The mixture may have several entries, also of other sources (configs/stage2.py lists the paper's),
each with a weight. `--config.sampling.by=tokens` makes weights shares of tokens, not of examples.

Then ask the trained model:

    python -m sphinx_jax.chat --checkpoint=workdir/mine --image=cat.jpg --prompt="What is this?"
"""

import os
from typing import Any

from ml_collections import ConfigDict, FieldReference

from sphinx_jax.checkpoint import bundle, merged
from sphinx_jax.configs import mini
from sphinx_jax.core import errors
from sphinx_jax.data import slots
from sphinx_jax.models import families

MINI_CHECKPOINT = 'workdir/mini/stage2'
KINDS = ('lora', 'qlora', 'dpo')  # Of runs that train adapters.


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config of one training run.

  Args:
    arg: path of the JSONL file, 'FILE,CHECKPOINT', or 'FILE,CHECKPOINT,KIND', with 'lora', 'qlora'
      or 'dpo' as KIND.

  Raises:
    SphinxError: the given checkpoint cannot be read, or is an adapter.
  """
  path, checkpoint, kind = [*arg.split(','), '', ''][:3]
  config = ConfigDict(mini.get_config().stage2.to_dict())
  config.name = 'forkme'
  config.init_from = checkpoint or MINI_CHECKPOINT
  config.tokenizer = ''  # Use the checkpoint's.
  config.tokenizer_add = ()  # Tokens that it gets, or files of them: ('<image_end>', 'loc.txt').
  if checkpoint:
    merged.check_whole(checkpoint, 'forkme, checkpoint')
    parent = bundle.load_bundle(checkpoint)
    config.model = parent.config.model.to_dict()
    config.dialog = parent.dialog
    config.image = parent.config.get('image', config.image)
    # A row has room for one image, which some models split into several slots, and an answer. Its
    # length follows --config.batch.images, which examples with several images need.
    count = slots.make(**families.family(config.model).slot_rule(config.model)).count
    images = FieldReference(count)
    if count == 1 and 'vision' in config.model:
      # Rows are packed with patches of any images: four small ones, or the largest. Their number
      # follows --config.batch.images, too; for four it is a multiple of 128 (the TPU's kernel).
      images = FieldReference(4)
      canvas = (config.model.slots.longest // config.model.vision.patch) ** 2
      config.model.vision.patches_per_row = images * (32 * -(-canvas // 128))
    config.batch = dict(size=8, images=images, window=256)
    visual_tokens = families.visual_tokens(config.model)
    answers = 2 if kind == 'dpo' else 1  # Each with the question and its images.
    config.batch.seq_len = answers * (config.batch.get_ref('images') * visual_tokens + 512)
    # The logits of a large vocabulary, and what a layer saves, are most of the memory.
    config.loss_chunk, config.model.remat = 128, 'dots'
    # For pretrained weights: docs/official_sphinx.md, "Fine-tuning recipe".
    config.optimizer.update(name='adamw', betas=(0.9, 0.95), weight_decay=0.0, clip=8.0)
  file = os.path.abspath(path or 'my.jsonl')  # A relative path would be one inside data_dir.
  source = 'pairs' if kind == 'dpo' else 'jsonl'
  entry = dict(source=source, path=file, root='', task='dialog', weight=1.0, too_long='skip')
  config.mixture = dict(mine=entry)
  config.validation = dict(mine=entry)  # Better: examples that are not in the mixture.
  config.max_skipped = 0.5  # A larger share of unreadable or invalid examples stops the run.
  config.steps = FieldReference(200)
  config.optimizer.lr = 2e-5 if checkpoint else 5e-4
  config.optimizer.warmup = config.get_ref('steps') // 20  # Follows --config.steps.
  config.eval_every = 50
  # Keeps the two newest checkpoints, and all of steps that keep_every divides (0: none).
  config.checkpoint.update(every=50, keep=2, keep_every=0)
  held = parent.weights if checkpoint else ''
  if held and not kind:
    raise errors.make(
      f"checkpoint '{checkpoint}'",
      f'kernels in {held}, which only adapters can be trained on',
      'a full checkpoint',
      f'take --config=forkme:{path},{checkpoint},qlora',
    )
  if kind:
    config.update(adapters(kind))
  if held:
    config.frozen_dtype = held
  if kind == 'dpo':
    config.update(
      preference=dict(beta=0.1),
      loss_weighting='token',  # An answer's log-probability is the sum of its tokens'.
      optimizer=dict(lr=5e-5),
    )
    config.lora.dropout = 0.0  # Its noise would be a part of the rewards.
  return config.lock()


def adapters(kind: str) -> dict[str, Any]:
  """The settings of a run that trains adapters of the language model and nothing else.

  Args:
    kind: 'lora' or 'dpo', with frozen weights in the compute dtype, or 'qlora', with 4 bits.

  Raises:
    SphinxError: another kind.
  """
  if kind not in KINDS:
    raise errors.unknown('kind of training', kind, KINDS)
  return dict(
    optimizer=dict(lr=2e-4),  # Adapters take a higher rate than all parameters.
    lora=dict(
      rank=16,
      alpha=32.0,
      target='llm/layers/.*',
      ranks=(),  # For instance (('.*/feed_forward/.*', 8),): pairs of a pattern and a rank.
      rslora=False,
      dropout=0.05,
      neftune=0.0,
      b_rate=1.0,
    ),
    frozen_dtype='nf4' if kind == 'qlora' else '',
    trainable=(('.*/lora_[ab]', 'train'), ('.*', 'frozen')),
  )
