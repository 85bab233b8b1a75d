"""OCR-VQA: questions about the covers of books, answered by reading them.

root/
  dataset.json              key -> {imageURL, questions, answers, title, authorName, genre, split (1 train, 2 val, 3 test)}
  images/0143035983.jpg     <key> with the ending of imageURL, as the official loadDataset.py saves them, or .jpg; or in the
                            folder that the setting `images` names (relative to root)

Licence: see the homepage; the covers belong to their publishers.
Homepage: https://ocr-vqa.github.io
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import field, texts
from sphinx_jax.datasets.files import find, folder, read_json
from sphinx_jax.datasets.qa import Questions, question


class OcrVqa(Questions):
  """Questions of a cover with one answer each; they are named <key>-0, <key>-1, ..."""

  TASKS = ('ocr', 'vqa')
  SPLITS = ('train', 'val', 'test')

  def __init__(self, root: Path, split: str, task: str, max_turns: int, images: str = ''):
    del task
    self._folder = folder(root, images, 'images')
    books = read_json('ocrvqa', find('ocrvqa', root, 'dataset.json'), dict)
    super().__init__('ocrvqa', _asked(books, 1 + self.SPLITS.index(split)), max_turns)

  def _read(self, record: tuple[str, str, str, str]) -> tuple[str, dict]:
    picture, number, text, answer = record
    return picture, question(number, text, [answer])

  def _image(self, picture: str) -> Path:
    path = self._folder / picture
    # Many have saved all of them as JPEG; the few of another ending are looked for.
    return path if path.suffix == '.jpg' or path.exists() else path.with_suffix('.jpg')


def _asked(books: dict, split: int) -> Iterator[tuple[str, str, str, str] | BadExample]:
  """(picture, id, question, answer) of the books of a split; books without a readable one belong to the first."""
  for key, book in books.items():
    number = book.get('split') if isinstance(book, dict) else None
    if (number if number in (1, 2, 3) else 1) != split:
      continue
    try:
      field(book, 'split', int)
      ending = PurePosixPath(field(book, 'imageURL', str, '')).suffix or '.jpg'
      pairs = list(zip_longest(texts(book, 'questions'), texts(book, 'answers'), fillvalue=''))
    except BadExample as error:
      yield error
      continue
    yield from (
      (key + ending, f'{key}-{n}', text, answer) for n, (text, answer) in enumerate(pairs)
    )
