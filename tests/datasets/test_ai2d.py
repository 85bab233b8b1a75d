"""AI2D: its split, empty choices, the official wording, and letters drawn over words."""

import json

import numpy as np
import pytest
from PIL import Image

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from tests.datasets import image_files
from tests.datasets.question_trees import dump


def opened(root, **entry):
  return sources.open_source(dict(source='ai2d', root=str(root), max_turns=4) | entry, None)


@pytest.fixture
def root(tmp_path):
  for n, letters in ((1, False), (2, True), (30, False)):
    dump(
      tmp_path / f'ai2d/questions/{n}.png.json',
      {
        'imageName': f'{n}.png',
        'questions': {
          'Which label is the stem?': {
            'questionId': f'{n}.png-0',
            'abcLabel': letters,
            'answerTexts': ['{}', 'A', '{}', 'B'],
            'correctAnswer': 3,
          }
        },
      },
    )
    image_files.write(tmp_path / f'ai2d/images/{n}.png', form='PNG', width=60, height=40)
  dump(
    tmp_path / 'ai2d/annotations/2.png.json',
    {
      'text': {
        'T0': {'rectangle': [[4, 4], [24, 18]], 'replacementText': 'A', 'value': 'stem'},
        'T1': {'rectangle': [[50, 36], [34, 24]], 'replacementText': 'B', 'value': 'leaf'},
      }
    },
  )
  (tmp_path / 'ai2d_test_ids.csv').write_text('30\n')
  return tmp_path


def test_the_ids_file_tells_the_split(root):
  assert [record.id for record in opened(root)] == ['1.png-0', '2.png-0']
  assert [record.id for record in opened(root, split='test')] == ['30.png-0']


def test_choices_that_are_none_are_left_out_or_written_as_the_official_evaluation_does(root):
  text, answer = opened(root)[0].turns[0]
  assert 'A. A\nB. B' in text and 'C.' not in text and answer == 'B'
  # ai2diagram_test.json: "Which label represents stem?{}\nA\n{}\nB" -> "B"
  text, answer = opened(root, form='direct')[0].turns[0]
  assert 'Which label is the stem?{}\nA\n{}\nB' in text and answer == 'B'
  with pytest.raises(errors.SphinxError, match="form of source 'ai2d'"):
    opened(root, form='letters')


def test_letters_cover_the_words_that_questions_speak_of(root):
  plain, drawn = opened(root)[0], images.decode(opened(root)[1].images[0])
  assert plain.images[0] == (root / 'ai2d/images/1.png').read_bytes()
  before = np.asarray(Image.open(root / 'ai2d/images/2.png'))
  changed = (drawn != before).any(-1)
  assert changed[5:18, 5:24].mean() > 0.9 and changed[25:36, 35:50].mean() > 0.9
  changed[4:19, 4:25] = changed[24:37, 34:51] = False
  assert not changed.any() and drawn[6:17, 6:23].min() < 40 and drawn[6:17, 6:23].max() == 255
  image_files.write(root / 'ai2d/abc_images/2.png', form='PNG', seed=3)
  assert (
    opened(root)[1].images[0] == (root / 'ai2d/abc_images/2.png').read_bytes()
  )  # The dataset's own, if it has them.


@pytest.mark.parametrize(
  'path, data, reason',
  [
    ('annotations/2.png.json', None, 'not json'),
    ('annotations/2.png.json', b'', 'not json'),
    (
      'annotations/2.png.json',
      b'{"text": {"T0": {"rectangle": [1, 2], "replacementText": "A"}}}',
      'malformed record',
    ),
    (
      'annotations/2.png.json',
      b'{"text": {"": {"rectangle": [[1, 2], ["", NaN]], "replacementText": ""}}}',
      'malformed record',
    ),
    (
      'annotations/2.png.json',
      b'{"text": {"T0": {"rectangle": [[1, 2], [9, 9]]}}}',
      'malformed record',
    ),
    ('annotations/2.png.json', b'{"text": []}', 'malformed record'),
    ('images/2.png', None, 'missing image'),
    ('images/2.png', b'', 'empty image'),
    ('images/2.png', b'x', 'unreadable image'),
    ('questions/2.png.json', b'', 'not json'),
    ('questions/2.png.json', b'{"questions": {"": {"questionId": "1"}}}', 'malformed record'),
    ('questions/2.png.json', b'{"questions": []}', 'malformed record'),
  ],
)
def test_one_broken_file_is_one_bad_example(root, path, data, reason):
  path = root / 'ai2d' / path
  path.unlink() if data is None else path.write_bytes(data)
  source = opened(root)
  assert len(source) == 2 and source[0].id == '1.png-0'
  with pytest.raises(BadExample) as caught:
    source[1]
  assert caught.value.reason == reason


def test_questions_about_letters_and_others_are_not_about_one_image(root):
  path = root / 'ai2d/questions/2.png.json'
  value = json.loads(path.read_text())
  value['questions']['Is it?'] = {
    'questionId': '2.png-1',
    'abcLabel': False,
    'answerTexts': ['no'],
    'correctAnswer': 0,
  }
  path.write_text(json.dumps(value))
  assert [len(record.turns) for record in opened(root)] == [1, 1, 1]
