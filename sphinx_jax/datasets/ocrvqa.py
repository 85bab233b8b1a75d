"""OCR-VQA: questions about book covers, answered by reading them.

    root/
      dataset.json              key -> {imageURL, questions, answers, title, authorName, genre,
                                split (1 train, 2 val, 3 test)}
      images/0143035983.jpg     <key> with the extension of imageURL, as the authors' loadDataset.py
                                saves them, or .jpg; or the directory of the setting `images`

Licence: see the homepage; the covers belong to their publishers.
Homepage: https://ocr-vqa.github.io
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import as_id, field, id_field, texts_field
from sphinx_jax.datasets.files import image_folder
from sphinx_jax.datasets.qa import Questions, question


class _Asked(NamedTuple):
  """A question about a cover."""

  image: str
  id: str
  question: str
  answer: str


class OcrVqa(Questions):
  """Questions with one answer. The ids of a cover's questions are <key>-0, <key>-1, ...

  Settings:
    images: directory of the images, relative to root.
  """

  NAME = 'ocrvqa'
  TASKS = ('ocr', 'vqa')
  SPLITS = ('train', 'val', 'test')

  def _open(self, *, images: str = '') -> None:
    self._folder = image_folder(self.root, images, 'images')
    books = self._read_json(self._find('dataset.json'), dict)
    split_number = 1 + self.SPLITS.index(self.split)
    self._set_records(_find_questions(books, split_number))

  def _read(self, record: _Asked) -> tuple[str, dict[str, Any]]:
    return record.image, question(record.id, record.question, [record.answer])

  def _image(self, image: str) -> Path:
    path = self._folder / image
    # Many downloads have all covers as JPEG. Only the few other extensions need a look.
    return path if path.suffix == '.jpg' or path.exists() else path.with_suffix('.jpg')


def _find_questions(books: dict[str, Any], split: int) -> Iterator[_Asked | BadExample]:
  """The questions of a split. A book without a readable split is a bad example of the first."""
  for key, book in books.items():
    number = as_id(book.get('split')) if isinstance(book, dict) else None
    if (number if number in (1, 2, 3) else 1) != split:
      continue
    try:
      id_field(book, 'split')
      extension = PurePosixPath(field(book, 'imageURL', str, '')).suffix or '.jpg'
      questions, answers = texts_field(book, 'questions'), texts_field(book, 'answers')
    except BadExample as error:
      yield error
      continue
    for n, (text, answer) in enumerate(zip_longest(questions, answers, fillvalue='')):
      yield _Asked(key + extension, f'{key}-{n}', text, answer)
