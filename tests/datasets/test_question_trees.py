"""Question families: layouts beside the usual one, hidden splits, official wordings."""

import json

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from tests.datasets import image_files
from tests.datasets.question_trees import Asked, dump, vizwiz, vqav2, vsr


def opened(name, root, **entry):
  return sources.open_source(dict(source=name, root=str(root), max_turns=4) | entry, None)


def test_vqav2s_tests_are_hidden_and_share_their_images(tmp_path):
  for split in ('test2015', 'test-dev2015'):
    dump(
      tmp_path / f'v2_OpenEnded_mscoco_{split}_questions.json',
      {'questions': [{'image_id': 5, 'question': 'Is it?', 'question_id': 50}]},
    )
    source = opened('vqav2', tmp_path, split=split)
    item = source.family.item(0)
    assert item.images[0] == tmp_path / 'test2015/COCO_test2015_000000000005.jpg'
    assert item.annotation['questions'][0]['answer'] == ''
  image_files.write(item.images[0])
  with pytest.raises(BadExample, match='Is it'):
    source[0]


@pytest.mark.parametrize(
  'questions, coco',
  [('coco', 'coco'), ('coco/vqav2', 'coco'), ('vqav2', 'coco'), ('vqav2', 'vqav2/images')],
)
def test_cocos_images_are_found_beside_the_questions(tmp_path, questions, coco):
  vqav2(tmp_path / questions, [Asked(1, 1, 'Is it?')])
  image_files.write(tmp_path / coco / 'train2014/COCO_train2014_000000000001.jpg')
  root = tmp_path / ('coco' if questions == 'coco/vqav2' else questions)
  assert opened('vqav2', root)[0].turns[0][1] == 'yes'


def test_gqas_questions_may_be_in_many_files_and_hidden(tmp_path):
  for n in range(2):
    dump(
      tmp_path / f'train_all_questions/train_all_questions_{n}.json',
      {
        f'{n}{i}': {'imageId': str(i), 'question': f'Is it {n}?', 'answer': 'yes'} for i in range(3)
      },
    )
    for i in range(3):
      image_files.write(tmp_path / f'images/{i}.jpg')
  source = opened('gqa', tmp_path, split='train_all')
  assert len(source) == 3 and [len(record.turns) for record in source] == [
    2,
    2,
    2,
  ]  # Over both files.
  dump(
    tmp_path / 'questions/test_balanced_questions.json',
    {'1': {'imageId': 'n1', 'question': 'Is it?'}},
  )
  hidden = opened('gqa', tmp_path, split='test_balanced')
  assert hidden.family.item(0).images[0].name == 'n1.jpg'
  with pytest.raises(errors.SphinxError, match='challenge_all'):
    opened('gqa', tmp_path, split='challenge_all')


def test_ocrvqas_splits_are_numbers_and_covers_of_other_endings_may_be_saved_as_jpeg(tmp_path):
  book = {
    'imageURL': 'http://images.example/a.gif',
    'questions': ['Who is it by?', 'When?'],
    'answers': ['Ångström', '1905'],
  }
  dump(
    tmp_path / 'dataset.json',
    {
      '1': {**book, 'split': 2},
      '2': {**book, 'split': 2},
      '3': {**book, 'split': 1},
      '4': book,
      '5': {**book, 'split': 2, 'answers': ['X']},
    },
  )
  image_files.write(tmp_path / 'images/1.gif', form='GIF')
  for n in (2, 5):
    image_files.write(tmp_path / f'images/{n}.jpg')
  val = opened('ocrvqa', tmp_path, split='val')
  assert val.task == 'ocr' and len(val) == 4
  assert (
    [answer for _, answer in val[0].turns]
    == [answer for _, answer in val[1].turns]
    == ['Ångström', '1905']
  )
  assert val[2].turns[0][1] == 'X' and len(val[2].turns) == 1
  with pytest.raises(BadExample, match='When'):
    val[3]
  train = opened('ocrvqa', tmp_path, split='train')
  assert len(train) == 2  # Of the book without a split it is said so, once.
  with pytest.raises(BadExample, match="'split' is None"):
    train.family.item(1)
  assert len(opened('ocrvqa', tmp_path, split='test')) == 0


def test_vizwiz_is_asked_as_the_official_evaluation_does(tmp_path):
  image_files.write(vizwiz(tmp_path, [Asked(1, 3, 'What is it? ')])(3))
  text, _ = opened('vizwiz', tmp_path)[0].turns[0]
  assert text == (
    "What is it? When the provided information is insufficient, respond with 'Unanswerable'.\n"
    'Answer the question using a single word or phrase.'
  )
  dump(tmp_path / 'test.json', [{'image': 'VizWiz_test_00000000.jpg', 'question': 'What is it?'}])
  assert (
    opened('vizwiz', tmp_path, split='test').family.item(0).images[0]
    == tmp_path / 'test/VizWiz_test_00000000.jpg'
  )


def test_docvqa_in_the_newer_download(tmp_path):
  record = {
    'questionId': 1,
    'question': 'What is the date?',
    'image': 'documents/a_1.png',
    'question_types': ['form'],
  }
  dump(
    tmp_path / 'spdocvqa_qas/val_v1.0_withQT.json',
    {'data': [{**record, 'answers': ['1 May', '1 May 1990']}]},
  )
  dump(tmp_path / 'spdocvqa_qas/test_v1.0.json', {'data': [record]})
  image_files.write(tmp_path / 'spdocvqa_images/a_1.png', form='PNG')
  record = opened('docvqa', tmp_path, split='val')[0]
  assert record.turns[0][1] == '1 May' and record.truth[0]['answers'] == ['1 May', '1 May 1990']
  with pytest.raises(BadExample, match='What is the date'):
    opened('docvqa', tmp_path, split='test')[0]


def test_chartqas_parts_can_be_had_alone_and_numbers_are_answers(tmp_path):
  dump(tmp_path / 'val/val_human.json', [{'imgname': 'a.png', 'query': 'How much?', 'label': 0.57}])
  dump(
    tmp_path / 'val/val_augmented.json',
    [
      {'imgname': 'a.png', 'query': 'How many?', 'label': ['3']},
      {'imgname': 'b.png', 'query': 'How many?', 'label': []},
    ],
  )
  for name in 'ab':
    image_files.write(tmp_path / f'val/png/{name}.png', form='PNG')
  both = opened('chartqa', tmp_path, split='val')
  assert [answer for _, answer in both[0].turns] == ['0.57', '3'] and len(both) == 2
  assert len(opened('chartqa', tmp_path, split='val_human')) == 1
  assert opened('chartqa', tmp_path, split='val_augmented').family.item(0).id == 'augmented-0'
  with pytest.raises(errors.SphinxError, match='train_human.json'):
    opened('chartqa', tmp_path)


def test_vsrs_statements_in_the_official_wording_on_cocos_images(tmp_path):
  root = tmp_path / 'vsr'
  vsr(root, [Asked(1, 9, 'The cat is under the dog.', 'no')])
  (root / 'images').rmdir()
  (root / 'splits/zeroshot').mkdir()
  line = {
    'image': '000000000008.jpg',
    'image_link': 'http://images.cocodataset.org/val2017/000000000008.jpg',
    'caption': 'The «Hund» is left of the cat.',
    'label': 1,
  }
  (root / 'splits/zeroshot/dev.jsonl').write_bytes(
    b'{"image": \n\n\xff\n' + json.dumps(line).encode() + b'\n'
  )
  for split, n in (('train2017', 9), ('val2017', 8)):
    image_files.write(tmp_path / f'coco/{split}/{n:012d}.jpg')
  assert opened('vsr', root)[0].turns == (
    ('Is the following statement "The cat is under the dog." true or false?', 'false'),
  )
  dev = opened('vsr', root, split='zeroshot_dev')
  assert len(dev) == 3 and dev[0].turns[0][1] == 'true'
  for broken in (1, 2):
    with pytest.raises(BadExample, match='zeroshot_dev-'):
      dev[broken]
