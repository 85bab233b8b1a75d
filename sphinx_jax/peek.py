"""Shows what the model sees.

    python -m sphinx_jax.peek --config=mini --workdir=workdir/mini --stage=stage2

Prints the mixture and, for the first rows of the first batch, the decoded text with the loss mask
in color. Writes the same with the pixels of every view to --output. The config of one training run
(configs/forkme.py) needs neither --workdir nor --stage.
"""

import contextlib
import os
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from sphinx_jax import run
from sphinx_jax.core import cli, errors, paths, text
from sphinx_jax.models import families
from sphinx_jax.report import packed_rows

FLAGS = flags.FLAGS

Views = list[tuple[str, np.ndarray]]  # [(caption, uint8[V, view, view, 3]), ...]


def narrowed(config: ConfigDict, only: Sequence[str] | None, tokenizer: str | None) -> ConfigDict:
  """Returns the config without its validation sets, with the given entries and tokenizer only.

  Args:
    config: config of one training run.
    only: names of entries; None: all.
    tokenizer: path of a tokenizer.model; None: the config's own.

  Raises:
    SphinxError: the mixture has no such entry.
  """
  settings = config.to_dict() | {'validation': {}}
  if only:
    for name in only:
      if name not in config.mixture:
        raise errors.unknown('entry of the mixture', name, config.mixture)
    settings['mixture'] = {name: settings['mixture'][name] for name in only}
  if tokenizer:
    settings['tokenizer'] = tokenizer
  return ConfigDict(settings)


def peek(config: ConfigDict, count: int) -> tuple[str, list[tuple[packed_rows.Example, Views]]]:
  """Reads the first batch of a run.

  Args:
    config: config of one training run.
    count: number of rows.

  Returns:
    (mixture as text, the examples of the first `count` rows with their views).
  """
  data = run.open_data(config)
  tokenizer = run.open_tokenizer(config)
  visual_tokens = families.visual_tokens(config.model)
  with contextlib.closing(data.batches(0)) as batches:
    batch, _ = next(iter(batches))
  shown = []
  for row in range(min(count, len(batch['tokens']))):
    for example in packed_rows.examples(
      batch, row, tokenizer, tuple(config.mixture), visual_tokens, bool(config.get('preference'))
    ):
      views: Views = []
      for slot in example.slots:
        height, width = batch['image_size'][row, slot]
        pixels = batch['images'][row, slot, :height, :width]
        views += families.family(config.model).views(config.model, pixels)
      shown.append((example, views))
  return data.table, shown


def show(config: ConfigDict, count: int, output: str | os.PathLike, color: bool) -> None:
  """Prints the first `count` rows and writes them as an image.

  Raises:
    SphinxError: `output` cannot be written.
  """
  paths.check_file(output)
  table, shown = peek(config, count)
  print(text.printable(table))
  for example, _ in shown:
    print(f'\n{packed_rows.to_text(example, color)}')
  try:
    packed_rows.to_image(shown, table).save(output)
  except (OSError, ValueError) as error:
    raise errors.make(
      f"output '{output}'", str(error), 'an image file that can be written', 'change --output'
    ) from error
  print(f'\nimage: {output}')


def main() -> None:
  """Shows the first rows with the settings of the command line."""
  config = run.training_run(FLAGS.config, FLAGS.stage, FLAGS.workdir)
  config = narrowed(config, FLAGS.only, FLAGS.tokenizer)
  show(config, FLAGS.rows, FLAGS.output, sys.stdout.isatty())


if __name__ == '__main__':
  cli.define_config('mini')
  flags.DEFINE_string('stage', 'stage2', 'Training stage of a recipe.')
  cli.define_path(
    'workdir', 'workdir/mini', 'Directory of the recipe. Its data step must be finished.'
  )
  flags.DEFINE_list(
    'only', None, 'Entries of the mixture. Default: all of them, which needs the data of all.'
  )
  cli.define_path(
    'tokenizer', None, 'A tokenizer.model. Default: that of the config or of its init_from.'
  )
  flags.DEFINE_integer('rows', 2, 'Number of rows of the first batch.', lower_bound=1)
  cli.define_path('output', 'peek.png', 'Image file to write.')
  cli.run(main)
