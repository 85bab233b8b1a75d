"""What the pod configs share: sizes, rows, optimizer and layout of one training run. `stage1.py`, `stage2.py` and `recipe.py` use it.

Every setting that differs between stages is an argument of `run`; rows and positions follow from the scale.
"""

from ml_collections import ConfigDict, config_dict

from configs import sphinx
from sphinx_jax.core import errors

SIZES = ('7b', '13b')
# Positions of a row and images in it, so that most of a row is used: an image takes 291, 1455 or 2910 of them.
ROWS = {'224': dict(length=2048, images=6), '1k': dict(length=2048, images=1), '2k': dict(length=4096, images=1)}
# Encoders are pretrained and stay as they are; their projections and the language model learn (FACTS "Training").
TRAINED = (('encoders/.*', 'none'), ('.*', 'train'))


def parse(arg: str, default: str, file: str, words: tuple[str, ...] = ()) -> tuple[str, str, str]:
    """'13b,1k[,WORD]' -> (size, scale, word or ''); what is left out comes from `default`.

    Raises:
        SphinxError: a part that is none of these.
    """
    size, scale = default.split(',')
    word = ''
    for part in filter(None, arg.split(',')):
        if part in SIZES:
            size = part
        elif part in ROWS:
            scale = part
        elif part in words:
            word = part
        else:
            raise errors.unknown(f'argument of configs/{file}', part, [*SIZES, *ROWS, *words])
    return size, scale, word


def jsonl(path: str, weight: float, task: str = 'dialog') -> dict:
    """A mixture entry: a file in the official format (see configs/forkme.py) under `data_dir`."""
    return dict(source='jsonl', path=path, root='', task=task, weight=weight, too_long='skip')


def run(name: str, size: str, scale: str, mixture: dict, validation: dict, rows: int, steps: int, lr: float, decay_to: float,
        warmup: int, init_from: str) -> ConfigDict:
    """The config of one training run.

    Args:
        name: of the run.
        size, scale: rows of the tables in configs/sphinx.py.
        mixture, validation: name -> entry.
        rows: of a batch, over all devices.
        steps, lr, decay_to, warmup: of the optimizer.
        init_from: the checkpoint to start from; its tokenizer is used.
    """
    model = sphinx.model(size, 'full', scale, dtype='bfloat16', max_length=4096)
    model.remat, model.attention = 'full', 'auto'
    config = ConfigDict(dict(
        name=name, seed=0, model=model.to_dict(), tokenizer='', dialog=dict(system=''), data_dir='data',
        mixture=mixture, validation=validation,
        batch=dict(rows=rows, **ROWS[scale], window=1024), loss_weighting='token', loss_chunk=512,
        trained=TRAINED,
        # FACTS "Fine-tuning recipe": AdamW (0.9, 0.95), no weight decay, clip 8.
        optimizer=dict(name='adamw', lr=lr, warmup=warmup, decay_to=decay_to, betas=(0.9, 0.95), weight_decay=0.0, clip=8.0,
                       accumulate=1, moment_dtype='float32'),
        steps=steps, log_every=20, eval_every=2000, eval_batches=8,
        checkpoint=dict(every=1000, keep=2, keep_every=0),
        mesh=dict(data=1, fsdp=-1, tensor=1), init_from=config_dict.placeholder(str)))
    config.init_from = init_from
    return config
