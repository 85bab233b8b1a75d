"""MMBench's tab-separated file. Every question is asked with each rotation of its choices.

    root/data/mmbench/mmbench_dev_20230712.tsv
      index, question, hint, A, B, C, D, answer, category, l2-category, image (base64)

Some files have the rotations themselves. There, index % 1e6 is the question, and 'image' may be the
index of the row with the image.
Licence: Apache 2.0.
Homepage: https://github.com/open-compass/MMBench
"""

import base64
import binascii
import csv
import io
from pathlib import Path

from sphinx_jax.core import errors, files
from sphinx_jax.evaluation.benchmarks.benchmark import PublishedFile, Question
from sphinx_jax.tasks import questions as questions_lib

_ROTATION_STEP = 10**6  # index = rotation * _ROTATION_STEP + question
_REFERENCE_LENGTH = 64  # An 'image' of no more characters is the index of another row.
_EMPTY = ('', 'nan', 'None')


def read(who: str, root: Path, prompt: str, file: str | tuple[str, ...]) -> list[Question]:
  """Returns the questions of a file, with all rotations of a question together.

  `file` may be several paths, of which the first that exists is read.

  Raises:
    SphinxError: the file is missing or not the published one, an image is not base64, or an answer
      is not one of the choices.
  """
  published = PublishedFile.find(who, root, file)
  rows = _read_rows(who, published.path)
  indices = [_index(published, row) for row in rows]
  image_texts = {index: published.required(row, 'image') for index, row in zip(indices, rows)}
  decoded: dict[str, bytes] = {}
  has_rotations = any(index >= _ROTATION_STEP for index in indices)
  questions = []
  in_groups = sorted(zip(indices, rows), key=lambda pair: (pair[0] % _ROTATION_STEP, pair[0]))
  for index, row in in_groups:
    group = index % _ROTATION_STEP
    image_text = image_texts[index]
    if len(image_text) <= _REFERENCE_LENGTH and image_text.isdecimal():
      image_text = image_texts.get(int(image_text), image_text)
    if image_text not in decoded:
      decoded[image_text] = _decode_image(who, index, image_text)
    choices, letter = _read_choices(published, row, index)
    hint = row.get('hint') or ''
    hint = None if hint in _EMPTY else hint
    for rotation in [index // _ROTATION_STEP] if has_rotations else range(len(choices)):
      rotated, answer = choices, letter
      if not has_rotations:
        rotated, answer = rotate(choices, letter, rotation)
      entry = {
        'index': index,
        'group': group,
        'rotation': rotation,
        'question': row['question'],
        'choices': rotated,
        'gt_answers': answer,
        'category': row.get('category') or '',
        'l2-category': row.get('l2-category') or '',
      }
      asked = questions_lib.ask(prompt, row['question'], rotated, hint)
      image = decoded[image_text]
      questions.append(Question(f'{group}-{rotation}', (image,), asked, entry))
  return questions


def rotate(choices: dict[str, str], letter: str, by: int) -> tuple[dict[str, str], str]:
  """Moves the choices up by some places, cyclically.

  Args:
    choices: letter -> text.
    letter: the right letter, '' if it is hidden.
    by: number of places.

  Returns:
    The new choices, and the letter that the right answer has in them.
  """
  letters = list(choices)
  count = len(letters)
  rotated = {place: choices[letters[(i + by) % count]] for i, place in enumerate(letters)}
  return rotated, letters[(letters.index(letter) - by) % count] if letter else ''


def _read_rows(who: str, path: Path) -> list[dict[str, str]]:
  old_limit = csv.field_size_limit(2**31 - 1)  # An image is one field.
  try:
    with io.TextIOWrapper(files.open_seekable(path), 'utf-8-sig', newline='') as lines:
      rows = list(csv.DictReader(lines, delimiter='\t'))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise errors.make(who, f'{str(path)!r} ({error})', 'the published file', 'check it') from error
  finally:
    csv.field_size_limit(old_limit)
  for number, row in enumerate(rows, 1):
    if None in row or None in row.values():  # More or fewer fields than the header has.
      raise errors.make(
        who, f'row {number} of {str(path)!r} with other columns', 'those of the header', 'check it'
      )
  return rows


def _index(published: PublishedFile, row: dict[str, str]) -> int:
  text = published.required(row, 'index')
  if not text.isdecimal():
    raise errors.make(
      published.who,
      f'index {text!r} in {str(published.path)!r}',
      'a number',
      'download the published file',
    )
  return int(text)


def _read_choices(
  published: PublishedFile, row: dict[str, str], index: int
) -> tuple[dict[str, str], str]:
  """The nonempty choices by letter, and the right letter or ''."""
  published.required(row, 'question')
  choices = {letter: row[letter] for letter in 'ABCDE' if (row.get(letter) or '') not in _EMPTY}
  letter = row.get('answer') or ''
  if not choices or letter not in (*choices, ''):
    raise errors.make(
      published.who,
      f'answer {letter!r} to question {index} with the choices {sorted(choices)}',
      'one of the choices',
      f'download {str(published.path)!r} again',
    )
  return choices, letter


def _decode_image(who: str, index: int, text: str) -> bytes:
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise errors.make(
      who,
      f'an image of question {index} that is not base64 ({error})',
      'the published file',
      'download it again',
    ) from error
