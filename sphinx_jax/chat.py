"""Asks a checkpoint about a picture: `python -m sphinx_jax.chat --checkpoint=DIR --image=FILE --prompt="Where is the red circle?"`.

Without --prompt it reads one question a line and remembers the turns. Boxes, points and poses in an answer are drawn on
the original picture and written to --output. Everything else the model needs travels inside the checkpoint (or beside
released weights: an official SPHINX folder is read as it is).
"""

import pathlib
import sys

import numpy as np
from absl import flags

from sphinx_jax.core import cli, errors
from sphinx_jax.data import images, record
from sphinx_jax.generate import conversation, load
from sphinx_jax.parallel import mesh as meshes
from sphinx_jax.report import draw

FLAGS = flags.FLAGS


def read_image(path) -> np.ndarray:
  """The picture in a file, uint8[Y, X, 3]. Raises SphinxError when there is none."""
  try:
    return images.decode(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise errors.make(
      f"image '{path}'", error.strerror or str(error), 'a picture file', 'check --image'
    ) from error
  except record.BadExample as error:
    raise errors.make(
      f"image '{path}'", str(error), 'a readable PNG, JPEG or the like', 'check the file'
    ) from error


def write_drawing(picture, question, answer, output) -> bool:
  """Draws an answer's boxes and points on the original picture; False when there is nothing to draw."""
  if picture is None or not output or not draw.is_drawable(answer):
    return False
  try:
    draw.draw(picture, answer, asked=question, edge=640).save(output)
  except (OSError, ValueError) as error:
    raise errors.make(
      f"output '{output}'",
      str(error),
      'a picture file that can be written, such as answer.png',
      'change --output',
    ) from error
  return True


def questions(prompt):
  """The one question of the command line, or lines of the standard input until an empty one."""
  if prompt:
    yield prompt
    return
  while True:
    try:
      line = input('> ' if sys.stdin.isatty() else '').strip()
    except EOFError:
      return
    if not line:
      return
    yield line


def chat(checkpoint, image, prompt, output, mesh=None, **sampling) -> None:
  """Prints the answers, and writes what is drawn.

  Args:
    checkpoint: directory of a run or of one of its checkpoints, or an official SPHINX folder.
    image: picture file, or None to talk about none.
    prompt: one question, or None to read questions from the standard input.
    output: picture file for drawings; '' for none.
    mesh: as of `sphinx_jax.load`.
    sampling: as in `Generator.answers`.

  Raises:
    SphinxError: no checkpoint, an image that cannot be read, an output that cannot be written.
  """
  picture = read_image(image) if image else None
  talk = conversation.Conversation(load.load_model(checkpoint, mesh=mesh).generator, picture)
  for question in questions(prompt):
    answer = talk.ask(question, **sampling)
    print(answer, flush=True)
    if write_drawing(picture, question, answer, output):
      print(f'drawn: {output}', flush=True)


def main() -> None:
  chat(
    FLAGS.checkpoint,
    FLAGS.image,
    FLAGS.prompt,
    FLAGS.output,
    FLAGS.mesh,
    max_new_tokens=FLAGS.max_new_tokens,
    temperature=FLAGS.temperature,
    top_p=FLAGS.top_p,
    seed=FLAGS.seed,
  )


if __name__ == '__main__':
  flags.DEFINE_string(
    'checkpoint',
    None,
    'Directory of a run or of one of its checkpoints, or an official folder.',
    required=True,
  )
  flags.DEFINE_string('image', None, 'The picture to talk about; leave out to talk about none.')
  flags.DEFINE_string('prompt', None, 'One question; leave out to be asked for questions.')
  flags.DEFINE_string(
    'output', 'answer.png', 'Where a picture with the boxes or the pose of an answer is written.'
  )
  flags.DEFINE_enum(
    'mesh',
    None,
    list(meshes.PRESETS),
    'Layout over all devices; leave out for the first device alone.',
  )
  flags.DEFINE_float(
    'temperature', 0.0, '0 takes the likeliest token, more is more random.', lower_bound=0.0
  )
  flags.DEFINE_float(
    'top_p', 1.0, 'Share of the probability sampled from.', lower_bound=1e-6, upper_bound=1.0
  )
  flags.DEFINE_integer('max_new_tokens', 512, 'Longest answer.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of the sampling.')
  cli.run(main)
