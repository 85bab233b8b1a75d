"""MMBench's official tab-separated file; every question is asked with each rotation of its choices.

    root/data/mmbench/mmbench_dev_20230712.tsv
      index, question, hint, A, B, C, D, answer, category, l2-category, image (base64)

In files that hold the rotations themselves, index % 1e6 names the question, and 'image' may be the index of the row that
has the picture. https://github.com/open-compass/MMBench (Apache 2.0).
"""

import base64
import binascii
import csv
from pathlib import Path

from sphinx_jax.core import errors
from sphinx_jax.datasets import files
from sphinx_jax.evaluation.benchmarks import choices
from sphinx_jax.evaluation.benchmarks.benchmark import Question, field

_ROUND = 10**6
_REFERENCE = 64  # An 'image' of no more characters is the index of another row.
_EMPTY = ('', 'nan', 'None')


def read(name: str, root: Path, prompt: str, file: str | tuple[str, ...]) -> list[Question]:
  """The questions of a file, all rotations of one together; file may be several names of which any will do.

  Raises:
    SphinxError: a missing or wrong file, a picture that is not base64, an answer that is not one of the choices.
  """
  path = files.find(name, root, *((file,) if isinstance(file, str) else file))
  rows = _rows(path)
  numbers = [_index(name, row, path) for row in rows]
  pictures = {number: field(name, row, 'image', path) for number, row in zip(numbers, rows)}
  decoded: dict[str, bytes] = {}
  rotated = any(number >= _ROUND for number in numbers)
  questions = []
  for number, row in sorted(zip(numbers, rows), key=lambda pair: (pair[0] % _ROUND, pair[0])):
    text = pictures[number]
    if len(text) <= _REFERENCE and text.isdecimal():
      text = pictures.get(int(text), text)
    image = decoded.setdefault(text, _picture(name, number, text))
    offered, letter = _choices(name, row, number, path)
    for rotation in [number // _ROUND] if rotated else range(len(offered)):
      turned, answer = (offered, letter) if rotated else rotate(offered, letter, rotation)
      entry = {
        'index': number,
        'group': number % _ROUND,
        'rotation': rotation,
        'question': row['question'],
        'choices': turned,
        'gt_answers': answer,
        'category': row.get('category') or '',
        'l2-category': row.get('l2-category') or '',
      }
      hint = row.get('hint') or ''
      asked = choices.write(row['question'], turned, '' if hint in _EMPTY else hint)
      questions.append(
        Question(f'{number % _ROUND}-{rotation}', image, prompt.format(asked), entry)
      )
  return questions


def rotate(offered: dict[str, str], letter: str, by: int) -> tuple[dict[str, str], str]:
  """The choices moved up by some places, round about, and the letter that the answer then has ('' stays '')."""
  letters = list(offered)
  turned = {place: offered[letters[(i + by) % len(letters)]] for i, place in enumerate(letters)}
  return turned, letters[(letters.index(letter) - by) % len(letters)] if letter else ''


def _rows(path: Path) -> list[dict[str, str]]:
  before = csv.field_size_limit(2**31 - 1)  # A picture is one field.
  try:
    with path.open(newline='') as lines:
      return list(csv.DictReader(lines, delimiter='\t'))
  finally:
    csv.field_size_limit(before)


def _index(name, row, path):
  text = field(name, row, 'index', path)
  if not text.isdecimal():
    raise errors.make(
      f"benchmark '{name}'",
      f'index {text!r} in {str(path)!r}',
      'a number',
      'download the official file',
    )
  return int(text)


def _choices(name, row, number, path):
  field(name, row, 'question', path)
  offered = {letter: row[letter] for letter in 'ABCDE' if (row.get(letter) or '') not in _EMPTY}
  letter = row.get('answer') or ''
  if not offered or letter not in (*offered, ''):
    raise errors.make(
      f"benchmark '{name}'",
      f'answer {letter!r} to question {number} with the choices {sorted(offered)}',
      'one of the choices',
      f'download {str(path)!r} again',
    )
  return offered, letter


def _picture(name, number, text):
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise errors.make(
      f"benchmark '{name}'",
      f'a picture of question {number} that is not base64 ({error})',
      'the official file',
      'download it again',
    ) from error
