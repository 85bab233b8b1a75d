"""Tune on your own data: copy this file, change what you need, and run

    python -m sphinx_jax.train --config=configs/forkme.py:my.jsonl --workdir=workdir/mine

One line of `my.jsonl` is one example, in the official format (paths are relative to the file, or to `root`; leave `image`
out for text alone):

    {"image": "cat.jpg", "conversations": [{"from": "human", "value": "What is this?"}, {"from": "gpt", "value": "A cat."}]}

It starts from the weights, the tokenizer and the model config of a checkpoint: here the stage 2 of the mini recipe, so run
`bash launch/local.sh` first, or point `init_from` at another one. 2 CPU cores take about half a second a step at this size.
Then ask the result: `python -m sphinx_jax.chat --checkpoint=workdir/mine --image=cat.jpg --prompt="What is this?"`.
"""

from ml_collections import ConfigDict

from configs import mini


def get_config(arg: str = '') -> ConfigDict:
    """The config of one training run; `arg` is the path of your JSONL file."""
    config = ConfigDict(mini.get_config().stage2.to_dict())  # Same model and batch as the checkpoint it starts from.
    config.name = 'forkme'
    config.init_from = 'workdir/mini/stage2'
    config.tokenizer = 'workdir/mini/data/tokenizer.model'
    data = dict(source='jsonl', path=arg or 'my.jsonl', root='', task='dialog', weight=1.0, too_long='skip')
    config.mixture = dict(mine=data)
    config.validation = dict(mine=data)  # Better: lines that are not trained on.
    config.steps = 200
    config.optimizer.lr = 5e-4
    config.optimizer.warmup = 10
    config.eval_every = 50
    config.checkpoint.every = 50
    return config.lock()
