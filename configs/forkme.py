"""Tune on your own data: copy this file, change what you need, and run

    python -m sphinx_jax.train --config=configs/forkme.py:my.jsonl --workdir=workdir/mine

One line of `my.jsonl` is one example, in the official format (paths are relative to the file, or to `root`; leave `image`
out for text alone):

    {"image": "cat.jpg", "conversations": [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "A cat."}]}

It starts from the weights, the tokenizer, the dialog and the model config of a checkpoint: of the stage 2 of the mini recipe
(run `bash launch/local.sh` first; 2 CPU cores take about half a second a step at this size), or of another one after a
comma, such as released weights that `python -m sphinx_jax.convert` took in: `configs/forkme.py:my.jsonl,DIR`.
A mixture may have more entries, other sources among them (configs/stage2.py names the paper's), each with its weight;
`--config.sampling.by=tokens` makes weights shares of tokens, and more than `max_skipped` of bad examples stops the run.
Then ask the result: `python -m sphinx_jax.chat --checkpoint=workdir/mine --image=cat.jpg --prompt="What is this?"`.
"""

from ml_collections import ConfigDict

from sphinx_jax.checkpoint import store
from sphinx_jax.configs import mini
from sphinx_jax.core import config as config_lib
from sphinx_jax.models import sphinx

MINI = 'workdir/mini/stage2'


def get_config(arg: str = '') -> ConfigDict:
  """The config of one training run; `arg` is the path of your JSONL file, then, after a comma, the checkpoint."""
  path, _, checkpoint = arg.partition(',')
  config = ConfigDict(mini.get_config().stage2.to_dict())
  config.name = 'forkme'
  config.init_from = checkpoint or MINI
  config.tokenizer = ''  # That of the checkpoint.
  if checkpoint:
    meta = store.load_meta(checkpoint)
    config.model = config_lib.from_json(meta['config']).model.to_dict()
    config.dialog = meta['dialog']
    # Room for one image and an answer; the official recipe for pretrained weights (FACTS "Fine-tuning").
    config.batch = dict(
      size=8, seq_len=sphinx.visual_tokens(config.model) + 512, images=1, window=256
    )
    config.optimizer.update(name='adamw', betas=(0.9, 0.95), weight_decay=0.0, clip=8.0)
  data = dict(
    source='jsonl', path=path or 'my.jsonl', root='', task='dialog', weight=1.0, too_long='skip'
  )
  config.mixture = dict(mine=data)
  config.validation = dict(mine=data)  # Better: lines that are not trained on.
  config.steps = 200
  config.optimizer.lr = 2e-5 if checkpoint else 5e-4
  config.optimizer.warmup = 10
  config.eval_every = 50
  config.checkpoint.update(
    every=50, keep=2, keep_every=0
  )  # Newest kept, and those of steps that keep_every divides.
  return config.lock()
