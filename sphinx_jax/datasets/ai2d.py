"""AI2D: questions with four choices about the diagrams of school books.

    root/                          or root/ai2d/
      questions/0.png.json         {imageName, questions: {text: {questionId, answerTexts,
                                   correctAnswer, abcLabel}}}
      images/0.png
      annotations/0.png.json       {text: {T0: {rectangle, replacementText, ...}}}
      abc_images/0.png
      ai2d_test_ids.csv            one number per line: the test split; all others are train

A question with abcLabel refers to letters that cover the words of the image. The images of
abc_images have these letters. If the directory is missing, the letters are drawn from the
annotations. '{}' is an empty choice in the files.
Licence: see the homepage.
Homepage: https://prior.allenai.org/projects/diagram-understanding
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import field, id_field, index_field, texts_field
from sphinx_jax.datasets.files import read_image, read_json
from sphinx_jax.datasets.qa import Questions, choice_question, question

FORMS = ('choice', 'direct')
_NO_CHOICE = '{}'


class _Asked(NamedTuple):
  """A question about an image; `details` are its JSON fields."""

  image: str
  text: str
  details: Any


class Ai2d(Questions):
  """Questions in the order of the images' names.

  Settings:
    form: 'choice' trains the letter of the right choice. 'direct' lists the choices in lines and
      trains one of them, like annotations/ai2diagram_test.json of the official evaluation.
  """

  NAME = 'ai2d'
  TASKS = ('vqa',)
  SPLITS = ('train', 'test')

  def _open(self, *, form: str = 'choice') -> None:
    if form not in FORMS:
      raise errors.unknown(f'form of {self._who()}', form, FORMS)
    self._form = form
    self._folder = self._find('questions', 'ai2d/questions').parent
    ids_file = self._find('ai2d_test_ids.csv', 'ai2d/ai2d_test_ids.csv', '../ai2d_test_ids.csv')
    ids = ids_file.read_text('utf-8-sig', 'replace').split()
    test_ids = {Path(text.strip('",')).stem for text in ids}
    abc_images = self._folder / 'abc_images'
    self._abc_images = abc_images if abc_images.is_dir() else None
    paths = sorted(
      (self._folder / 'questions').glob('*.json'), key=lambda path: (len(path.name), path.name)
    )
    is_test = self.split == 'test'
    paths = [path for path in paths if (path.name.split('.')[0] in test_ids) == is_test]
    self._set_records(_read_questions(paths))

  def _read(self, record: _Asked) -> tuple[tuple[str, bool], dict[str, Any]]:
    question_id = id_field(record.details, 'questionId')
    choices = texts_field(record.details, 'answerTexts')
    index = index_field(record.details, 'correctAnswer')
    if index is not None and not 0 <= index < len(choices):
      raise BadExample(
        'malformed record', f'question {question_id}: choice {index} of {len(choices)}'
      )
    if self._form == 'direct':
      # No line break before the first choice, as in the official evaluation.
      text = record.text + '\n'.join(choices)
      entry = question(question_id, text, [] if index is None else [choices[index]])
    else:
      kept = [choice for n, choice in enumerate(choices) if choice != _NO_CHOICE or n == index]
      if index is not None:
        index -= choices[:index].count(_NO_CHOICE)
      entry = choice_question(question_id, record.text, kept, index)
    has_letters = field(record.details, 'abcLabel', bool, False)
    return (record.image, has_letters), entry

  def _image(self, image: tuple[str, bool]) -> Path | bytes:
    name, has_letters = image
    path = self._folder / 'images' / name
    if not has_letters:
      return path
    if self._abc_images:
      return self._abc_images / name
    return _draw_letters(path, self._folder / 'annotations' / f'{name}.json')


def _read_questions(paths: Sequence[Path]) -> Iterator[_Asked | BadExample]:
  """The questions of all files."""
  for path in Progress(paths, what='ai2d: files', unit='files'):
    try:
      value = _read_object(path)
      image = field(value, 'imageName', str, path.stem)
      questions = field(value, 'questions', dict, {})
    except BadExample as error:
      yield error
      continue
    for text, details in questions.items():
      yield _Asked(image, text, details)


def _read_object(path: Path) -> dict[str, Any]:
  """A JSON object. One wrong file of thousands is one bad example."""
  try:
    return read_json("source 'ai2d'", path, dict)
  except errors.SphinxError as error:
    raise BadExample('not json', str(error)) from error


def _draw_letters(path: Path, annotation: Path) -> bytes:
  """Returns the image as PNG, with each word covered by the letter that stands for it.

  Raises:
    BadExample: 'not json', 'malformed record', or the image cannot be read.
  """
  words = field(_read_object(annotation), 'text', dict, {})
  image = Image.fromarray(images.decode(read_image(path.name, path)))
  draw = ImageDraw.Draw(image)
  try:
    for word in words.values():
      (left, top), (right, bottom) = sorted(field(word, 'rectangle', list))
      draw.rectangle([left, top, right, bottom], 'white')
      font_size = min(max(8.0, 0.8 * min(right - left, bottom - top)), 64.0)
      draw.text(
        ((left + right) / 2, (top + bottom) / 2),
        field(word, 'replacementText', str),
        'black',
        ImageFont.load_default(font_size),
        'mm',
      )
  except (ValueError, TypeError, ArithmeticError) as error:
    raise BadExample('malformed record', f'{annotation}: {error}') from error
  out = io.BytesIO()
  image.save(out, 'PNG')
  return out.getvalue()
