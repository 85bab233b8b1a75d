"""Asks a checkpoint about an image, or several.

    python -m sphinx_jax.chat --checkpoint=DIR --image=FILE --prompt="Where is the red circle?"

Without --prompt it reads one question a line and remembers the turns. On a terminal an answer is
shown while it is made. Boxes, points and poses in an answer about one image are drawn on it and
written to --output. `<image>` in the prompt marks where an image stands if there are several
(--image=A --image=B). A checkpoint carries everything else that the model needs. Released folders
are read as they are.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from sphinx_jax.core import cli, errors, paths, text
from sphinx_jax.core.progress import log
from sphinx_jax.data import images, record
from sphinx_jax.generate import load, model_flags
from sphinx_jax.report import drawing

FLAGS = flags.FLAGS


def read_image(path: str | pathlib.Path, **options: Any) -> np.ndarray:
  """Reads an image file as uint8[Y,X,3]; `options` are those of `images.decode`.

  Raises:
    SphinxError: it is absent or unreadable.
  """
  try:
    return images.decode(pathlib.Path(path).read_bytes(), **options)
  except OSError as error:
    raise errors.make(
      f"image '{path}'", error.strerror or str(error), 'an image file', 'check --image'
    ) from error
  except record.BadExample as error:
    raise errors.make(
      f"image '{path}'", str(error), 'a readable PNG, JPEG or the like', 'check the file'
    ) from error


def write_drawing(
  image: np.ndarray | None, question: str, answer: str, output: str | pathlib.Path
) -> bool:
  """Draws an answer's boxes and points on the original image.

  Args:
    image: uint8[Y,X,3], or None.
    question: what was asked.
    answer: the model's answer.
    output: image file to write; '' writes none.

  Returns:
    Whether a file was written: the answer may have nothing to draw.

  Raises:
    SphinxError: the file cannot be written.
  """
  if image is None or not output or not drawing.is_drawable(answer):
    return False
  try:
    drawing.draw_answer(image, answer, asked=question, edge=640).save(output)
  except (OSError, ValueError) as error:
    raise errors.make(
      f"output '{output}'",
      str(error),
      'an image file that can be written, such as answer.png',
      'change --output',
    ) from error
  return True


def questions(prompt: str | None) -> Iterator[str]:
  """Yields the one question of the command line, or lines of stdin until an empty one."""
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


class Shown:
  """An answer on a terminal, which is shown while it is made."""

  def __init__(self) -> None:
    self._length = 0

  def show(self, piece: str) -> None:
    """Shows the next piece. Control characters would act on the terminal."""
    print(text.printable(piece), end='', flush=True)
    self._length += len(piece)

  def end(self, answer: str) -> None:
    """Shows what is left of the whole answer, and ends its line."""
    print(text.printable(answer[self._length :]), flush=True)


def chat(
  checkpoint: str | pathlib.Path,
  image: str | pathlib.Path | Sequence[str | pathlib.Path] | None,
  prompt: str | None,
  output: str | pathlib.Path,
  mesh: str | None = None,
  adapter: str | pathlib.Path | None = None,
  **sampling: Any,
) -> None:
  """Prints the answers, and writes an image where an answer has boxes, points or a pose.

  Images are encoded once for all questions.

  Args:
    checkpoint: as `directory` of `sphinx_jax.load`.
    image: image file or several of them, or None to talk about text only.
    prompt: one question, or None to read questions from stdin.
    output: image file for drawings; '' for none.
    mesh, adapter: as in `sphinx_jax.load`.
    sampling: `max_new_tokens`, `temperature`, `top_p`, `seed`, as in `Model.complete`.

  Raises:
    SphinxError: no checkpoint, an image that cannot be read, an output that cannot be written, a
      prompt that is not unicode.
  """
  if prompt is not None and not text.is_unicode(prompt):
    raise errors.make(
      '--prompt', f'{ascii(prompt)}, which is not unicode', 'UTF-8', 'change the encoding'
    )
  files = [image] if isinstance(image, str | pathlib.Path) else list(image or ())
  for file in files:  # A wrong file is reported before weights are read.
    read_image(file)
  if files and output:
    paths.check_file(output)
  model = load.load_model(checkpoint, mesh=mesh, adapter=adapter)
  options = {
    'alpha': model.alpha,
    'upright': model.slot_rule.upright,
    'note': lambda phrase: log.info('the image has %s', phrase),
  }
  pixels = [read_image(file, **options) for file in files]
  one = pixels[0] if len(pixels) == 1 else None
  if prompt:
    model.compile_ahead([(prompt, None)], len(pixels), **sampling)
  visual = model.encode([pixels if one is None else one]) if pixels else None
  turns = []
  for question in questions(prompt):
    shown = Shown() if sys.stdout.isatty() else None
    (answer,) = model.answers(
      [[*turns, (question, None)]], visual=visual, deliver=shown and shown.show, **sampling
    )
    turns.append((question, answer))
    if shown is None:
      print(answer, flush=True)
    else:
      shown.end(answer)
    if write_drawing(one, question, answer, output):
      print(f'drawn: {output}', flush=True)


def main() -> None:
  chat(
    FLAGS.checkpoint,
    FLAGS.image,
    FLAGS.prompt,
    FLAGS.output,
    FLAGS.mesh,
    FLAGS.adapter,
    max_new_tokens=FLAGS.max_new_tokens,
    temperature=FLAGS.temperature,
    top_p=FLAGS.top_p,
    seed=FLAGS.seed,
  )


if __name__ == '__main__':
  model_flags.define_model()
  cli.define_repeated_path(
    'image', 'Image to talk about; give it again for more. Without it, the chat is text only.'
  )
  flags.DEFINE_string('prompt', None, 'One question. Without it, questions are read from stdin.')
  cli.define_path(
    'output',
    'answer.png',
    "Image file for the boxes, points or pose of an answer; '' for none.",
    may_be_empty=True,
  )
  model_flags.define_sampling()
  cli.run(main)
