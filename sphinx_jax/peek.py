"""Shows what the model sees: `python -m sphinx_jax.peek --config=configs/mini.py --workdir=workdir/mini --stage=stage2`.

Prints the mixture and, for the first rows, the decoded text with the loss mask in colour, and writes the same with the
pixels of every view to --output. A config of one training run (configs/forkme.py) needs neither --workdir nor --stage.
"""

import contextlib
import pathlib
import sys

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax import recipe, train
from sphinx_jax.core import cli, errors
from sphinx_jax.mix import scales
from sphinx_jax.models import sphinx
from sphinx_jax.report import rows

FLAGS = flags.FLAGS


def run_config(config, stage, workdir) -> ConfigDict:
  """The config of one training run: itself, or a stage of a recipe. Raises SphinxError for an unknown stage."""
  if 'mixture' not in config:
    stages = [name for name in config.steps if config[name].kind == 'train']
    if stage not in stages:
      raise errors.unknown('stage of the recipe', stage, stages)
    config = recipe.stage_config(config, stage, pathlib.Path(workdir))
  return ConfigDict({**config.to_dict(), 'validation': {}})


def narrowed(config, only, tokenizer) -> ConfigDict:
  """The config with some entries of its mixture alone, and another tokenizer, where they are given.

  Raises:
    SphinxError: an entry that the mixture does not have.
  """
  for name in only or ():
    if name not in config.mixture:
      raise errors.unknown('entry of the mixture', name, config.mixture)
  plain = config.to_dict()
  if only:
    plain['mixture'] = {name: plain['mixture'][name] for name in only}
  return ConfigDict(plain | ({'tokenizer': tokenizer} if tokenizer else {}))


def views_of(pixels, model):
  """What encoders get of one image uint8[Y, X, 3]: [(caption, uint8[V, view, view, 3]), ...], one for each view size."""
  sizes = {}
  for name, encoder in model.encoders.items():
    sizes.setdefault(encoder.view, []).append(name)
  shown = []
  for size, names in sizes.items():
    views = np.asarray(scales.views(pixels[None].astype(np.float32), model.grid, size))[0]
    caption = f'{", ".join(names)}: {len(views)} x {size} pixels'
    shown.append((caption, np.clip(np.round(views), 0, 255).astype(np.uint8)))
  return shown


def peek(config, count):
  """The mixture table and the examples of the first rows.

  Args:
    config: of one training run.
    count: rows.

  Returns:
    (table, [(`rows.Example`, views as `views_of` gives them), ...]).
  """
  data = train.open_data(config)
  tokenizer, visual_tokens = train.open_tokenizer(config), sphinx.visual_tokens(config.model)
  with contextlib.closing(data.batches(0)) as batches:
    batch, _ = next(iter(batches))
  shown = []
  for row in range(min(count, len(batch['tokens']))):
    for example in rows.examples(batch, row, tokenizer, tuple(config.mixture), visual_tokens):
      views = (
        [] if example.slot is None else views_of(batch['images'][row, example.slot], config.model)
      )
      shown.append((example, views))
  return data.table, shown


def show(config, count, output, colour) -> None:
  """Prints what `peek` finds and writes it as a picture. Raises SphinxError when `output` cannot be written."""
  table, shown = peek(config, count)
  print(table)
  for example, _ in shown:
    print(f'\n{rows.to_text(example, colour)}')
  try:
    rows.picture(shown, table).save(output)
  except (OSError, ValueError) as error:
    raise errors.make(
      f"output '{output}'", str(error), 'a picture file that can be written', 'change --output'
    ) from error
  print(f'\npicture: {output}')


def main() -> None:
  config = narrowed(
    run_config(FLAGS.config, FLAGS.stage, FLAGS.workdir), FLAGS.only, FLAGS.tokenizer
  )
  show(config, FLAGS.rows, FLAGS.output, sys.stdout.isatty())


if __name__ == '__main__':
  cli.define_config('configs/mini.py')
  flags.DEFINE_string('stage', 'stage2', 'Which training stage of a recipe.')
  flags.DEFINE_string(
    'workdir', 'workdir/mini', 'Where the recipe runs; its data step must be finished.'
  )
  flags.DEFINE_list(
    'only',
    None,
    'Entries of the mixture; left out: all of them, and all of their data must be there.',
  )
  flags.DEFINE_string(
    'tokenizer',
    None,
    'A tokenizer.model; left out: that of the config, or inside the weights it starts from.',
  )
  flags.DEFINE_integer('rows', 2, 'How many rows of the first batch.', lower_bound=1)
  flags.DEFINE_string('output', 'peek.png', 'Where the picture is written.')
  cli.run(main)
