"""ScienceQA: the official wording, and questions without an image."""

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks.questions import CHOICE_INSTRUCTIONS
from tests.datasets import image_files
from tests.datasets.question_trees import dump

COLONY = {
  'question': 'What is the name of the colony shown?',
  'choices': ['Maryland', 'New Hampshire', 'Rhode Island'],
  'answer': 1,
  'hint': '',
  'image': 'image.png',
  'split': 'test',
  'topic': 'us-history',
}


def opened(root, **entry):
  return sources.open_source(
    dict(source='scienceqa', root=str(root), split='test', max_turns=4) | entry, None
  )


@pytest.fixture
def root(tmp_path):
  text = {**COLONY, 'image': None, 'hint': 'Figure: «Tambor».\n84°F'}
  dump(
    tmp_path / 'problems.json',
    {'1': COLONY, '2': text, '3': {**COLONY, 'answer': 3}, '4': {**COLONY, 'choices': []}},
  )
  dump(tmp_path / 'pid_splits.json', {'test': ['1', '2', '3', '4', '5', '1'], 'minitest': ['2']})
  image_files.write(tmp_path / 'images/test/1/image.png', form='PNG')
  return tmp_path


def test_the_wording_is_the_official_evaluations(root):
  # As in scienceqa_test_img.json, except the last line, which has several phrasings.
  official = (
    'Context:\n\nQuestion:\nWhat is the name of the colony shown?\n'
    'Choices:\nA. Maryland\nB. New Hampshire\nC. Rhode Island'
  )
  record = opened(root)[0]
  ((text, answer),) = record.turns
  assert text in [form.replace('{}', official) for form in CHOICE_INSTRUCTIONS] and answer == 'B'
  assert record.id == '1' and record.truth[0]['choices'] == COLONY['choices']


def test_a_question_without_a_image_is_a_record_of_text(root):
  record = opened(root)[1]
  assert not record.images and record.turns[0][0].startswith(
    'Context:\nFigure: «Tambor».\n84°F\nQuestion:\nWhat'
  )
  assert not opened(root, split='minitest')[0].images


def test_wrong_problems_are_counted_and_a_split_that_is_not_there_is_said(root):
  source = opened(root)
  assert len(source) == 5  # One id occurs twice.
  for index in (2, 3, 4):
    with pytest.raises(BadExample) as caught:
      source[index]
    assert caught.value.reason == 'malformed record'
  with pytest.raises(errors.SphinxError, match="no list 'val'.*test, minitest"):
    opened(root, split='val')


def test_images_may_lie_in_root(root):
  (root / 'images/test').rename(root / 'test')
  (root / 'images').rmdir()
  assert opened(root)[0].images[0]
