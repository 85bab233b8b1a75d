"""LVIS: classes with senses, classes known to be absent, images of two folders."""

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.lvis import plain_name
from tests.datasets import box_trees, image_files

NAMES = (
  'bow_(decorative_ribbons)',
  'bow_(weapon)',
  'stop_sign',
  'first-aid_kit',
  'mouse_(computer_equipment)',
)


def opened(root, split='val', **settings):
  return sources.open_source(
    dict(source='lvis', root=root.name, split=split, **settings), root.parent
  )


def layout(tmp_path, annotations, **images):
  images = images or dict(
    a=('val2017/000000000001.jpg', [], []), b=('train2017/000000000002.jpg', [], [])
  )
  return box_trees.lvis(
    tmp_path / 'lvis', 'val', dict(enumerate(images.values(), 1)), annotations, NAMES
  )


def bad(source, index):
  with pytest.raises(BadExample) as caught:
    source[index]
  return caught.value.reason


@pytest.mark.parametrize(
  'name, text',
  [
    ('bow_(weapon)', 'bow'),
    ('stop_sign', 'stop sign'),
    ('first-aid_kit', 'first-aid kit'),
    ('pan_(for_cooking)', 'pan'),
    ('mouse_(computer_equipment)', 'mouse'),
  ],
)
def test_names_lose_their_sense(name, text):
  assert plain_name(name) == text


def test_objects_classes_and_what_is_known_of_the_others(tmp_path):
  source = opened(
    layout(
      tmp_path,
      [box_trees.box(1, 1, [0, 10, 10, 10]), box_trees.box(2, 3, [-3, 0, 13, 10])],
      a=('val2017/000000000001.jpg', [2, 3, 5], [4]),
      b=('train2017/000000000002.jpg', [], []),
    )
  )
  assert len(source) == 2
  annotation = source.family.item(0).annotation
  assert annotation['objects'] == [dict(id='1', name='bow', box=[0, 10, 10, 20], crowd=False)]
  assert annotation['classes'] == ['bow', 'stop sign', 'first-aid kit', 'mouse']
  # Category 2 is absent, but the other kind of bow is there under the same word.
  assert annotation['absent'] == ['stop sign', 'mouse'] and annotation['partial'] == [
    'first-aid kit'
  ]
  assert source[1].images[0] == (tmp_path / 'lvis/train2017/000000000002.jpg').read_bytes()
  assert source[1].truth[0]['boxes'] == [pytest.approx([0, 5 / 40, 0.25, 15 / 40])]


def test_images_without_objects_have_no_item(tmp_path):
  assert len(opened(layout(tmp_path, []))) == 0


def test_images_of_a_coco_folder_elsewhere(tmp_path):
  root = layout(tmp_path, [box_trees.box(1, 1, [0, 10, 10, 10])])
  coco = tmp_path / 'coco'
  coco.mkdir()
  (root / 'val2017').rename(coco / 'val2017'), (root / 'train2017').rename(coco / 'train2017')
  assert opened(root, images='../coco')[0].images[0] and opened(root, images=str(coco))[0].images[0]
  with pytest.raises(errors.SphinxError, match='none of train2017'):
    opened(root)


@pytest.mark.parametrize(
  'change',
  [
    dict(coco_url=None),
    dict(coco_url='a.jpg'),
    dict(neg_category_ids=[99]),
    dict(neg_category_ids=3),
    dict(not_exhaustive_category_ids=['x']),
  ],
)
def test_a_malformed_image_is_counted(tmp_path, change):
  root = layout(
    tmp_path, [box_trees.box(1, 1, [0, 10, 10, 10]), box_trees.box(2, 3, [0, 0, 10, 10])]
  )
  value = box_trees.coco_json(
    {1: '', 2: ''},
    [box_trees.box(1, 1, [0, 10, 10, 10]), box_trees.box(2, 3, [0, 0, 10, 10])],
    NAMES,
  )
  for entry, folder in zip(value['images'], ('val2017', 'train2017')):
    entry |= {
      'coco_url': f'http://x/{folder}/{entry["id"]:012d}.jpg',
      'neg_category_ids': [],
      'not_exhaustive_category_ids': [],
    }
  value['images'][0] |= change
  box_trees.dump(root / 'lvis_v1_val.json', value)
  source = opened(root)
  assert bad(source, 0) == 'malformed record' and source[1].truth


def test_odd_images(tmp_path):
  root = layout(
    tmp_path, [box_trees.box(1, 1, [0, 10, 10, 10]), box_trees.box(2, 3, [0, 0, 10, 10])]
  )
  source = opened(root)
  for data, reason in ((b'', 'empty image'), (b'no', 'unreadable image')):
    (root / 'val2017/000000000001.jpg').write_bytes(data)
    assert bad(source, 0) == reason
  (root / 'val2017/000000000001.jpg').unlink()
  assert bad(source, 0) == 'missing image'
  (root / 'train2017/000000000002.jpg').write_bytes(image_files.encoded(mode='L'))
  assert source[1].truth


def test_the_file_must_be_there(tmp_path):
  with pytest.raises(
    errors.SphinxError, match='lvis_v1_train.json, annotations/lvis_v1_train.json'
  ):
    opened(layout(tmp_path, []), 'train')
