"""Answers one question about many images, or the questions of a JSONL file.

    python -m sphinx_jax.predict --checkpoint=DIR --input=FOLDER --prompt="Detect all objects." \\
        --output=OUT.jsonl [--schema=boxes] [--coco=FILE] [--draw=DIR] [--limit=N]

--input is a folder with its subfolders, a glob pattern, or a JSONL file. A line of it has "image"
or "images", relative to the file, and "prompt", "conversations" or "messages"; --prompt is the
question of a line without one. Any checkpoint that `chat` takes answers.

--output gets a line for each item, in the order of the input, when all are answered. Until then
their answers are in OUT.jsonl.run, from which the same command resumes after an interruption. Later
it asks about what was added to the input, or could not be asked. Several processes share the items.

--schema=boxes or points adds them in pixels of the image files. --schema, --boxes, --coco and
--draw may differ from call to call: what is answered is not asked again.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath

from sphinx_jax.checkpoint import identity
from sphinx_jax.core import cli, errors, files, paths, text
from sphinx_jax.core.progress import log
from sphinx_jax.evaluation import (
  answering,
  by_model,
  coco_labels,
  labels,
  output_lines,
  predictions,
)
from sphinx_jax.evaluation.items import Items, open_items
from sphinx_jax.evaluation.protocols import box_forms
from sphinx_jax.generate import load, model_flags
from sphinx_jax.parallel import hosts
from sphinx_jax.report import answer_drawings

FLAGS = flags.FLAGS
_SAMPLING = ('temperature', 'top_p', 'seed')


def main() -> None:
  """Answers what the flags of the command line name."""
  check_flags()
  items = open_items(FLAGS.input, FLAGS.prompt, FLAGS.max_new_tokens, FLAGS.limit, FLAGS.draw)
  sampling = {name: FLAGS[name].value for name in _SAMPLING}
  run = {
    'checkpoint': identity.describe(FLAGS.checkpoint, FLAGS.adapter),
    'weights': identity.of_weights(FLAGS.checkpoint, FLAGS.adapter),
    'input': os.path.abspath(FLAGS.input),
    'prompt': FLAGS.prompt,
    'max_new_tokens': FLAGS.max_new_tokens,
    **sampling,
  }
  others = {name: FLAGS[name].value for name in ('output', 'schema', 'boxes', 'coco', 'draw')}
  folder = epath.Path(f'{FLAGS.output}.run')
  with hosts.session({**run, **others, 'items': items.digest}):
    hosts.on_process_0(check_places)
    with hosts.exclusive(folder, 'output'), files.writing(folder, 'output'):
      hosts.on_process_0(lambda: claim(run, folder))
      model = load.load_model(FLAGS.checkpoint, mesh=FLAGS.mesh, adapter=FLAGS.adapter)
      answering.answer(
        by_model.ByModel(model, FLAGS.batch_size, sampling),
        items,
        folder,
        max_skipped=math.inf,  # An item that cannot be asked becomes a line with its error.
        unit=items.unit,
      )
      hosts.on_process_0(lambda: write_output(items, folder, model.slot_rule.upright))
      if FLAGS.draw:
        answer_drawings.write(FLAGS.draw, model, items, folder, FLAGS.boxes)


def check_flags() -> None:
  """Raises SphinxError for flags that do not go together, and for a prompt of another encoding."""
  if FLAGS.coco and FLAGS.schema != 'boxes':
    raise errors.make(
      'command line', '--coco without --schema=boxes', 'both of them', 'add --schema=boxes'
    )
  if FLAGS.prompt is not None and not text.is_unicode(FLAGS.prompt):
    raise errors.make(
      '--prompt', f'{ascii(FLAGS.prompt)}, which is not unicode', 'UTF-8', 'change the encoding'
    )
  if FLAGS.coco and os.path.abspath(FLAGS.coco) == os.path.abspath(FLAGS.output):
    raise errors.make('--coco', 'the file of --output', 'another one', 'give a new name')
  # The next call would take drawings for images of the input.
  if FLAGS.draw and Path(os.path.abspath(FLAGS.input)).is_relative_to(os.path.abspath(FLAGS.draw)):
    raise errors.make(
      f"--draw '{FLAGS.draw}'", 'the folder of the input', 'another folder', 'give a new name'
    )


def check_places() -> None:
  """Raises SphinxError if an output cannot be written, or is a file of something else."""
  paths.check_file(FLAGS.output)
  if FLAGS.coco:
    paths.check_file(FLAGS.coco, 'coco')
    coco_labels.check(FLAGS.coco)


def claim(run: Mapping[str, Any], folder: epath.Path) -> None:
  """Claims the output, and the folder of drawings, for the answers of this run.

  Raises:
    SphinxError: they belong to another run, or the output is a file of something else.
  """
  who, do = f"--output '{FLAGS.output}'", f"give another --output, or remove it and '{folder}'"
  if epath.Path(FLAGS.output).exists() and not (folder / 'run.json').exists():
    raise errors.make(
      who, f"a file without '{folder}'", 'a new name, or the output of this run', do
    )
  predictions.claim_folder(folder, run, who=who, do=do)
  if FLAGS.draw:
    drawn = {**run, 'boxes': FLAGS.boxes}  # Drawings that exist are kept.
    predictions.claim_folder(FLAGS.draw, drawn, who=f"--draw '{FLAGS.draw}'")


def write_output(items: Items, folder: epath.Path, upright: bool) -> None:
  """Writes the lines of all items and the COCO file, and reports what has no answer or label."""
  counts = output_lines.write(FLAGS.output, items, folder, FLAGS.schema, FLAGS.boxes, upright)
  if FLAGS.coco:
    coco_labels.write(FLAGS.coco, lambda: output_lines.read(FLAGS.output))
  failed = counts.pop(output_lines.ERRORS, 0)
  print(f'{FLAGS.output}: {len(items.ids) - failed} answers, {failed} errors', flush=True)
  for what, count in counts.items():
    log.warning("'%s': %d %s", FLAGS.output, count, what)


if __name__ == '__main__':
  model_flags.define_model()
  cli.define_path('input', None, 'Folder of images, glob pattern, or JSONL file.', required=True)
  flags.DEFINE_string('prompt', None, 'The question about every image, and every line without one.')
  cli.define_path('output', None, 'JSONL file for the answers.', required=True)
  flags.DEFINE_enum(
    'schema', 'text', list(labels.SCHEMAS), 'What is read in answers, in pixels of the image files.'
  )
  flags.DEFINE_enum(
    'boxes',
    'square',
    list(box_forms.FORMS),
    'Scale of boxes and points without a mark of it: [0, 1] of the padded square, as this package '
    'trains; [0, 1], thousandths or pixels of the image.',
  )
  cli.define_path('coco', None, 'COCO JSON file for the boxes.')
  cli.define_path('draw', None, 'Folder for the images with the boxes and points of their answers.')
  flags.DEFINE_integer('limit', None, 'Only the first items.', lower_bound=1)
  flags.DEFINE_integer('batch_size', 32, 'Most prompts decoded together.', lower_bound=1)
  model_flags.define_sampling()
  cli.run(main)
