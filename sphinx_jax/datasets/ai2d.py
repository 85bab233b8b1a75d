"""AI2D: questions with four choices about the diagrams of school books.

root/                          or root/ai2d/
  questions/0.png.json         {imageName, questions: {text: {questionId, answerTexts, correctAnswer, abcLabel}}}
  images/0.png
  annotations/0.png.json       {text: {T0: {rectangle, replacementText, ...}}}: for questions with abcLabel, which speak of
  abc_images/0.png             letters: they are drawn over the words of the picture, unless this folder is there
  ai2d_test_ids.csv            one number a line: the test split; all others are train

Settings: form 'choice' (the letter of the right choice) or 'direct' (choices in lines, the answer is one of them: the
wording of annotations/ai2diagram_test.json of the official evaluation). '{}' stands for no choice in the files.
Licence: see the homepage.
Homepage: https://prior.allenai.org/projects/diagram-understanding
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import family as base
from sphinx_jax.datasets.fields import field, index_of, name_of, texts
from sphinx_jax.datasets.files import find, read_json
from sphinx_jax.datasets.qa import Questions, chosen, question

FORMS = ('choice', 'direct')
_NO_CHOICE = '{}'


class Ai2d(Questions):
  """Questions in the order of the pictures' names."""

  TASKS = ('vqa',)
  SPLITS = ('train', 'test')

  def __init__(self, root: Path, split: str, task: str, max_turns: int, form: str = 'choice'):
    del task
    if form not in FORMS:
      raise errors.unknown("form of source 'ai2d'", form, FORMS)
    self._form, self._root = form, find('ai2d', root, 'questions', 'ai2d/questions').parent
    numbers = find(
      'ai2d', root, 'ai2d_test_ids.csv', 'ai2d/ai2d_test_ids.csv', '../ai2d_test_ids.csv'
    ).read_text(errors='replace')
    test = {Path(number.strip('",')).stem for number in numbers.split()}
    self._lettered = self._root / 'abc_images' if (self._root / 'abc_images').is_dir() else None
    paths = sorted(
      (self._root / 'questions').glob('*.json'), key=lambda path: (len(path.name), path.name)
    )
    own = [path for path in paths if (path.name.split('.')[0] in test) == (split == 'test')]
    super().__init__('ai2d', _asked(own), max_turns)

  def _read(self, record: tuple[str, str, Any]) -> tuple[tuple[str, bool], dict]:
    name, text, asked = record
    number, choices, index = (
      name_of(asked, 'questionId'),
      texts(asked, 'answerTexts'),
      index_of(asked, 'correctAnswer'),
    )
    if index is not None and not 0 <= index < len(choices):
      raise BadExample('malformed record', f'question {number}: choice {index} of {len(choices)}')
    if self._form == 'direct':
      # No line break before the first choice: so the official evaluation has it.
      entry = question(number, text + '\n'.join(choices), [] if index is None else [choices[index]])
    else:
      kept = [choice for n, choice in enumerate(choices) if choice != _NO_CHOICE or n == index]
      entry = chosen(
        number, text, kept, None if index is None else index - choices[:index].count(_NO_CHOICE)
      )
    return (name, field(asked, 'abcLabel', bool, False)), entry

  def _image(self, picture: tuple[str, bool]) -> Path | bytes:
    name, lettered = picture
    if lettered and self._lettered:
      return self._lettered / name
    path = self._root / 'images' / name
    return _with_letters(path, self._root / 'annotations' / f'{name}.json') if lettered else path


def _asked(paths: Sequence[Path]) -> Iterator[tuple[str, str, Any] | BadExample]:
  """(name of the picture, question, what is said of it) of a file each."""
  for path in Progress(paths, what='ai2d: files', unit='files'):
    try:
      about = _object(path)
      name, asked = field(about, 'imageName', str, path.stem), field(about, 'questions', dict, {})
    except BadExample as error:
      yield error
      continue
    yield from ((name, text, said) for text, said in asked.items())


def _object(path: Path) -> dict:
  try:
    return read_json('ai2d', path, dict)
  except errors.SphinxError as error:  # One of thousands of files is one bad example.
    raise BadExample('not json', str(error)) from error


def _with_letters(path: Path, annotation: Path) -> bytes:
  """The picture as PNG, with each word covered by the letter that questions use for it. Raises BadExample."""
  words = field(_object(annotation), 'text', dict, {})
  image = Image.fromarray(images.decode(base.read_image(path.name, path)))
  draw = ImageDraw.Draw(image)
  try:
    for word in words.values():
      (left, top), (right, bottom) = sorted(field(word, 'rectangle', list))
      draw.rectangle([left, top, right, bottom], 'white')
      font = ImageFont.load_default(min(max(8.0, 0.8 * min(right - left, bottom - top)), 64.0))
      draw.text(
        ((left + right) / 2, (top + bottom) / 2),
        field(word, 'replacementText', str),
        'black',
        font,
        'mm',
      )
  except (ValueError, TypeError, ArithmeticError) as error:
    raise BadExample('malformed record', f'{annotation}: {error}') from error
  out = io.BytesIO()
  image.save(out, 'PNG')
  return out.getvalue()
