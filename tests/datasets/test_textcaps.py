"""TextCaps: one caption per example; all captions of its image are the truth."""

import json

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.data.record import BadExample
from tests.datasets import image_files
from tests.datasets.question_trees import dump

CAPTIONS = ['A sign says «Köln».', 'A blue sign.', 'Sign with text.', '', 'A sign.']


def opened(root, **entry):
  return sources.open_source(dict(source='textcaps', root=str(root), max_turns=4) | entry, None)


@pytest.fixture
def root(tmp_path):
  dump(
    tmp_path / 'TextCaps_0.1_train.json',
    {
      'data': [
        {
          'image_id': 'ab',
          'caption_id': i,
          'caption_str': caption,
          'reference_strs': CAPTIONS,
          'set_name': 'train',
        }
        for i, caption in enumerate(CAPTIONS)
      ]
    },
  )
  dump(tmp_path / 'TextCaps_0.1_test.json', {'data': [{'image_id': 'cd', 'set_name': 'test'}]})
  image_files.write(tmp_path / 'train_images/ab.jpg')
  image_files.write(tmp_path / 'test_images/cd.jpg')
  return tmp_path


def test_each_caption_is_a_record(root):
  source = opened(root)
  records = [source[i] for i in (0, 1, 2, 4)]
  assert (
    source.task == 'caption' and len(source) == 5 and len({record.id for record in records}) == 4
  )
  assert [record.turns[0][1] for record in records] == [caption for caption in CAPTIONS if caption]
  assert records[0].truth[0]['answers'] == CAPTIONS
  with pytest.raises(BadExample) as caught:
    source[3]
  assert caught.value.reason == 'empty answer'


def test_the_test_split_has_images_alone(root):
  source = opened(root, split='test')
  assert source.family.item(0).images[0] == root / 'test_images/cd.jpg'
  with pytest.raises(BadExample):
    source[0]


def test_wrong_records_are_counted(root):
  path = root / 'TextCaps_0.1_train.json'
  value = json.loads(path.read_text())
  good = value['data'][0]
  value['data'] = [
    good,
    good,
    {**good, 'caption_str': 'Another.'},
    {**good, 'caption_str': 3},
    {**good, 'reference_strs': [None]},
    [],
    'x',
  ]
  path.write_text(json.dumps(value))
  source = opened(root)
  assert len(source) == 6 and [source.family.item(i).id for i in range(2)] == ['0', '0#2']
  for i in range(2, 6):
    with pytest.raises(BadExample) as caught:
      source[i]
    assert caught.value.reason == 'malformed record'
