"""COCO: captions, instances and keypoints, well-formed and malformed."""

import json

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from tests.datasets import box_trees, image_files

NAMES = ('person', 'dog', 'traffic light')


def opened(root, task, split='train2017', **settings):
  return sources.open_source(
    dict(source='coco', root=root.name, task=task, split=split, **settings), root.parent
  )


def bad(source, index):
  with pytest.raises(BadExample) as caught:
    source[index]
  return caught.value.reason


def captions(*rows):
  return [{'image_id': image, 'caption': text, 'id': number} for number, image, text in rows]


def test_a_caption_is_an_item_and_knows_the_others(tmp_path):
  root = box_trees.coco(
    tmp_path / 'coco',
    'captions',
    'train2017',
    {9: '000000000009.jpg', 25: '000000000025.jpg'},
    captions((1, 9, ' A café,\n 2 dogs. '), (2, 25, 'Grass.'), (3, 9, 'Two dogs.')),
  )
  source = opened(root, 'caption')
  assert len(source) == 3 and [source.family.item(i).id for i in range(3)] == ['1', '3', '2']
  record = source[0]
  assert record.turns[0][1] == 'A café, 2 dogs.' and record.truth[0]['answers'] == [
    'A café, 2 dogs.',
    'Two dogs.',
  ]
  assert record.images[0] == (root / 'train2017/000000000009.jpg').read_bytes()
  assert source.family.item(1).annotation == {
    'caption': 'Two dogs.',
    'captions': ['A café, 2 dogs.', 'Two dogs.'],
    'size': (40, 30),
  }


@pytest.mark.parametrize('folder', ['val2014', 'images/val2014'])
def test_the_tree_of_2014_and_images_under_images(tmp_path, folder):
  name = 'COCO_val2014_000000000042.jpg'
  root = box_trees.coco(
    tmp_path / 'coco', 'captions', 'val2014', {42: name}, captions((1, 42, 'A cat.')), folder=folder
  )
  source = opened(root, 'caption', 'val2014')
  assert source[0].images[0] == (root / folder / name).read_bytes()


def test_repeated_captions_count_once_and_other_texts_of_one_id_stay(tmp_path):
  root = box_trees.coco(
    tmp_path / 'coco',
    'captions',
    'train2017',
    {9: 'a.jpg'},
    captions((1, 9, 'A dog.'), (1, 9, 'A dog.'), (1, 9, 'A cat.')),
  )
  source = opened(root, 'caption')
  assert [source[i].id for i in range(len(source))] == ['1', '1#2']
  assert [source[i].turns[0][1] for i in range(2)] == ['A dog.', 'A cat.']


def test_malformed_captions_are_counted_and_leave_the_others(tmp_path):
  rows = captions(
    (1, 9, 'A dog.'), (2, 9, ''), (3, 9, None), (4, 77, 'Nowhere.'), (5, [9], 'A list.')
  ) + ['text']
  root = box_trees.coco(tmp_path / 'coco', 'captions', 'train2017', {9: 'a.jpg'}, [])
  value = box_trees.coco_json({9: 'a.jpg', 12: 7}, []) | {
    'annotations': rows + captions((6, 12, 'No name.'))
  }
  del value['categories']
  box_trees.dump(root / 'annotations/captions_train2017.json', value)
  source = opened(root, 'caption')
  assert source[0].turns[0][1] == 'A dog.' and len(source) == 7
  assert source.family.item(0).annotation['captions'] == ['A dog.']
  assert [bad(source, i) for i in range(1, 7)] == [
    'empty answer',
    'malformed record',
    'unknown image',
    'unknown image',
    'unknown image',
    'malformed record',
  ]


def test_detection_has_boxes_classes_and_crowds(tmp_path):
  images = {1: 'a.jpg', 2: 'b.jpg', 3: 'c.jpg', 4: 'd.jpg'}
  rows = [
    box_trees.box(1, 1, [0, 10, 10, 10]),
    box_trees.box(1, 3, [20.5, 0, 10, 5], id=77),
    box_trees.box(1, 1, [0, 0, 40, 30], crowd=1),
    box_trees.box(2, 2, [1, 1, 9, 9], crowd=1),  # Only a crowd: nothing to ask.
    box_trees.box(4, 2, [0, 0, 9, 9]),
  ]  # Image 3 has no annotation.
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'train2017', images, rows, NAMES)
  source = opened(root, 'detection')
  assert [source.family.item(i).id for i in range(len(source))] == ['1', '4']
  annotation = source.family.item(0).annotation
  assert annotation['objects'] == [
    dict(id='1', name='person', box=[0, 10, 10, 20], crowd=False),
    dict(id='77', name='traffic light', box=[20.5, 0, 30.5, 5], crowd=False),
    dict(id='3', name='person', box=[0, 0, 40, 30], crowd=True),
  ]
  assert annotation['classes'] == list(NAMES) and annotation['size'] == (40, 30)
  counting = opened(root, 'counting').family
  assert [counting.item(i) for i in range(2)] == [source.family.item(i) for i in range(2)]


def test_what_is_a_crowd_is_neither_detected_nor_counted(tmp_path):
  rows = [
    box_trees.box(1, 1, [0, 0, 9, 9]),
    box_trees.box(1, 2, [5, 5, 9, 9]),
    box_trees.box(1, 2, [9, 9, 9, 9]),
    box_trees.box(1, 1, [0, 0, 40, 30], crowd=1),
  ]
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'train2017', {1: 'a.jpg'}, rows, NAMES[:2])
  seen = [
    set(opened(root, 'detection', max_turns=2, seed=seed)[0].truth[0]['labels'])
    for seed in range(9)
  ]
  assert {'person', 'dog'} in seen
  for seed in range(9):
    record = opened(root, 'counting', max_turns=2, seed=seed)[0]
    assert [answer for _, answer in record.turns] == ['2'] and 'dog' in record.turns[0][0]


def rewritten(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def detected(tmp_path, change):
  """A source of one image with a dog, after a change of its file."""
  rows = [box_trees.box(1, 2, [1, 1, 9, 9])]
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'train2017', {1: 'a.jpg'}, rows, NAMES)
  rewritten(root / 'annotations/instances_train2017.json', change)
  return opened(root, 'detection')


@pytest.mark.parametrize('image', [1, 1.0, '1', '1.0'])
@pytest.mark.parametrize('category', [2, 2.0, '2'])
def test_ids_may_be_whole_floats_or_texts(tmp_path, image, category):
  def change(value):
    value['annotations'][0] |= {'image_id': image, 'category_id': category, 'id': 5.0}

  (thing,) = detected(tmp_path, change).family.item(0).annotation['objects']
  assert (thing['id'], thing['name'], thing['crowd']) == ('5', 'dog', False)


def test_white_space_makes_no_other_category(tmp_path):
  def change(value):
    value['categories'] += [{'id': 2, 'name': ' dog\n'}, {'id': 9, 'name': 'dog '}]
    value['annotations'][0]['category_id'] = 9

  (thing,) = detected(tmp_path, change).family.item(0).annotation['objects']
  assert thing['name'] == 'dog'


def test_two_categories_of_one_id_are_counted(tmp_path):
  source = detected(tmp_path, lambda value: value['categories'].append({'id': 2.0, 'name': 'lion'}))
  with pytest.raises(BadExample, match='two categories have the id 2') as caught:
    source[0]
  assert caught.value.reason == 'duplicate id'


@pytest.mark.parametrize(
  'changes, crowd, name',
  [
    ({'iscrowd': '0'}, False, 'dog'),
    ({'iscrowd': None}, False, 'dog'),
    ({'iscrowd': False, 'segmentation': {'counts': 'a', 'size': [3, 4]}}, False, 'dog'),
    ({'iscrowd': '1'}, True, 'dog'),
    ({'category_id': 3}, False, 'traffic light'),
  ],
)
def test_crowds_and_segments(tmp_path, changes, crowd, name):
  def change(value):
    value['annotations'][0] |= changes
    value['annotations'].append(box_trees.box(1, 1, [0, 0, 3, 3], id=9))
    value['images'][0] |= {'width': None}

  first, _ = detected(tmp_path, change).family.item(0).annotation['objects']
  assert (first['crowd'], first['name']) == (crowd, name)


def test_boxes_are_cut_at_the_edge(tmp_path):
  rows = [box_trees.box(4, 1, [-5, 20, 15, 99])]
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'train2017', {4: 'd.jpg'}, rows, NAMES[:1])
  assert opened(root, 'detection')[0].truth[0]['boxes'] == [
    pytest.approx([0, 25 / 40, 0.25, 35 / 40])
  ]


def test_keypoints_of_people_who_have_some(tmp_path):
  points = [8.0, 9.0, 2, 0, 0, 0] + [20, 15, 1] * 15
  people = [
    box_trees.box(1, 1, [5, 5, 20, 20], keypoints=points, num_keypoints=16),
    box_trees.box(1, 1, [0, 0, 5, 5], keypoints=[0] * 51, num_keypoints=0),
    box_trees.box(1, 1, [0, 0, 40, 30], crowd=1, keypoints=[0] * 51, num_keypoints=0),
    box_trees.box(2, 1, [0, 0, 5, 5], keypoints=[0] * 51, num_keypoints=0),
    box_trees.box(3, 1, [0, 0, 5, 5], num_keypoints=3),
    box_trees.box(4, 1, [0, 0, 5, 5], keypoints=[1, 1, 7] * 17, num_keypoints=17),
  ]
  images = {i: f'{i}.jpg' for i in range(1, 5)}
  root = box_trees.coco(
    tmp_path / 'coco', 'person_keypoints', 'train2017', images, people, NAMES[:1]
  )
  source = opened(root, 'pose')
  assert len(source) == 3
  (person,) = source.family.item(0).annotation['people']
  assert person['box'] == [5, 5, 25, 25] and person['keypoints'][:3] == [
    [8, 9, 2],
    [0, 0, 0],
    [20, 15, 1],
  ]
  truth = source[0].truth[0]
  truth = truth['people'][0] if 'people' in truth else truth  # Asked for everyone.
  assert (
    truth['keypoints']['nose'] == pytest.approx([8 / 40, 14 / 40])
    and 'left eye' not in truth['keypoints']
  )
  assert [bad(source, 1), bad(source, 2)] == ['malformed record'] * 2
  asked = {opened(root, 'pose', seed=seed)[0].turns[0][0].split(' of ')[-1] for seed in range(9)}
  # One of several people in the image: a box says which.
  assert any('every person' in text for text in asked) and any('[' in text for text in asked)


@pytest.mark.parametrize(
  'change',
  [
    dict(bbox=[1, 2, 3]),
    dict(bbox=None),
    dict(bbox=[1, 2, 'x', 4]),
    dict(bbox=[10**400, 1, 2, 3]),
    dict(category_id=99),
    dict(category_id=[1]),
    dict(category_id=None),
  ],
)
def test_a_malformed_box_spoils_only_its_image(tmp_path, change):
  rows = [
    box_trees.box(1, 1, [1, 1, 9, 9]),
    box_trees.box(1, 1, [1, 1, 9, 9]) | change,
    box_trees.box(2, 1, [1, 1, 9, 9]),
  ]
  root = box_trees.coco(
    tmp_path / 'coco', 'instances', 'train2017', {1: 'a.jpg', 2: 'b.jpg'}, rows, NAMES[:1]
  )
  source = opened(root, 'detection')
  assert bad(source, 0) == 'malformed record' and source[1].truth[0]['labels'] == ['person']


def test_boxes_that_are_no_place_are_left_out_and_counted(tmp_path):
  rows = [box_trees.box(1, 1, [1, 1, 9, 9])] + [
    box_trees.box(1, 2, box)
    for box in ([float('nan'), 1, 2, 3], [50, 1, 5, 5], [5, 5, 0, 5], [9, 9, -3, 4])
  ]
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'train2017', {1: 'a.jpg'}, rows, NAMES[:2])
  source = opened(root, 'detection')
  assert source[0].truth[0]['labels'] == ['person'] and source.dropped.total() == 4


def test_images_of_one_id(tmp_path):
  rows = [box_trees.box(1, 1, [1, 1, 9, 9]), box_trees.box(2, 1, [1, 1, 9, 9])]
  value = box_trees.coco_json({1: 'a.jpg', 2: 'b.jpg'}, rows, NAMES[:1])
  value['images'] += [
    value['images'][0],
    value['images'][1] | {'file_name': 'c.jpg'},
    {'file_name': 'd.jpg'},
    None,
  ]
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'train2017', {1: 'a.jpg'}, [], NAMES)
  box_trees.dump(root / 'annotations/instances_train2017.json', value)
  source = opened(root, 'detection')
  assert len(source) == 2 and source[0].id == '1' and bad(source, 1) == 'duplicate id'


@pytest.mark.parametrize(
  'data, reason',
  [
    (image_files.encoded(mode='L'), None),
    (image_files.encoded(mode='CMYK'), None),
    (image_files.truncated(), None),
    (b'', 'empty image'),
    (b'GIF', 'unreadable image'),
    (None, 'missing image'),
    (image_files.encoded(30, 30), 'image of another shape'),
  ],
)
def test_odd_images(tmp_path, data, reason):
  root = box_trees.coco(
    tmp_path / 'coco',
    'instances',
    'train2017',
    {1: 'a.jpg', 2: 'b.jpg'},
    [box_trees.box(1, 1, [0, 10, 10, 10]), box_trees.box(2, 1, [1, 1, 9, 9])],
    NAMES[:1],
  )
  path = root / 'train2017/a.jpg'
  path.unlink() if data is None else path.write_bytes(data)
  source = opened(root, 'detection')
  assert source[1].truth
  if reason:
    assert bad(source, 0) == reason
  else:  # Their size can be read. The pipeline counts those that it cannot decode.
    assert source[0].images[0] == data and source[0].truth[0]['boxes'] == [
      pytest.approx([0, 15 / 40, 0.25, 25 / 40])
    ]


@pytest.mark.parametrize(
  'text, words',
  [
    (None, 'none of annotations/instances_train2017.json'),
    ('', 'not JSON'),
    ('{"images": [', 'not JSON'),
    ('[]', 'a list in'),
    ('{"images": [], "annotations": {}}', "no list 'annotations'"),
    ('[' * 100_000, 'not JSON'),
    ('version https://git-lfs.github.com/spec/v1\noid', 'a git-lfs pointer'),
  ],
)
def test_wrong_files_are_named(tmp_path, text, words):
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'train2017', {1: 'a.jpg'}, [], NAMES)
  path = root / 'annotations/instances_train2017.json'
  path.unlink() if text is None else path.write_text(text)
  with pytest.raises(errors.SphinxError, match=words):
    opened(root, 'detection')


def test_images_of_the_split_must_be_there(tmp_path):
  root = box_trees.coco(
    tmp_path / 'coco', 'captions', 'train2017', {1: 'a.jpg'}, [], folder='val2017'
  )
  with pytest.raises(errors.SphinxError, match='none of train2017, images/train2017'):
    opened(root, 'caption')
