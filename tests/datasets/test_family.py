"""What all families share: reading, the padded square, mirroring, counts of dropped boxes."""

import numpy as np
import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import family, fields
from sphinx_jax.tasks import TASKS
from tests.datasets import image_files


class Listed(family.Family):
  """A family of the items that its setting `items` lists."""

  NAME = 'listed'
  TASKS = ('rec', 'pose', 'layout')
  SPLITS = ('train',)

  def _open(self, *, items=()):
    self._items = items

  def __len__(self):
    return len(self._items)

  def item(self, index):
    return self._items[index]


def records(*items, task='rec', **settings):
  return family.Records(Listed('.', task=task, items=items), **settings)


def thing(name, box):
  return {'name': name, 'box': box, 'expressions': [f'the {name} on the left']}


def test_boxes_are_cut_at_the_edge_and_put_on_the_padded_square():
  item = family.Item(
    '1', (image_files.encoded(40, 30),), {'objects': [thing('cup', [-5, 3, 20, 99])]}
  )
  record = records(item)[0]
  assert record.truth[0]['box'] == pytest.approx([0, (3 + 5) / 40, 0.5, 35 / 40])
  assert record.task == 'rec' and not record.mirrored


def test_a_mirrored_image_has_mirrored_boxes_and_words():
  item = family.Item(
    '1', (image_files.encoded(40, 30),), {'objects': [thing('cup', [0, 3, 10, 23])]}
  )
  record = records(item, mirror=1.0)[0]
  assert record.mirrored and record.truth[0]['box'] == pytest.approx([0.75, 8 / 40, 1, 28 / 40])
  assert 'on the right' in record.turns[0][0]
  shares = [records(*[item] * 200, mirror=0.3)[i].mirrored for i in range(200)]
  assert 30 < sum(shares) < 90 and shares == [
    records(*[item] * 200, mirror=0.3)[i].mirrored for i in range(200)
  ]


def test_an_epoch_asks_in_its_own_words_and_the_same_each_time():
  items = [
    family.Item(str(i), (image_files.encoded(40, 30),), {'objects': [thing('cup', [0, 3, 10, 23])]})
    for i in range(20)
  ]
  turns_of_epoch = lambda epoch: [
    records(*items, mirror=0.5).read(i, epoch).turns for i in range(20)
  ]
  assert turns_of_epoch(0) == turns_of_epoch(0) == [
    records(*items, mirror=0.5)[i].turns for i in range(20)
  ] and turns_of_epoch(1) == turns_of_epoch(1)
  assert 5 < sum(a != b for a, b in zip(turns_of_epoch(0), turns_of_epoch(1))) and {
    len(turns) for turns in turns_of_epoch(1)
  } == {1}


def test_empty_and_foreign_boxes_are_left_out_and_counted():
  wrong = [[50, 1, 60, 9], [5, 5, 5, 9], [9, 5, 5, 9], [1, 2, 3], [float('nan'), 1, 2, 3], None]
  item = family.Item(
    '1',
    (image_files.encoded(),),
    {'objects': [thing('cup', [1, 1, 9, 9]), *(thing('hat', box) for box in wrong)]},
  )
  source = records(item)
  assert 'cup' in source[0].turns[0][0] and source.dropped.total() == len(wrong)
  nothing = records(
    family.Item('2', (image_files.encoded(),), {'objects': [thing('hat', wrong[0])]})
  )
  with pytest.raises(BadExample):
    nothing[0]


def test_a_image_of_another_scale_scales_its_boxes_and_one_of_another_shape_is_refused():
  annotation = {'size': (80, 60), 'objects': [thing('cup', [0, 0, 40, 60])]}
  assert records(family.Item('1', (image_files.encoded(40, 30),), annotation))[0].truth[0][
    'box'
  ] == pytest.approx([0, 5 / 40, 0.5, 35 / 40])
  with pytest.raises(BadExample, match='annotated for 80 x 60'):
    records(family.Item('1', (image_files.encoded(30, 30),), annotation))[0]


@pytest.mark.parametrize(
  'image, reason',
  [(b'', 'empty image'), (b'no picture', 'unreadable image'), ('missing.jpg', 'missing image')],
)
def test_images_that_cannot_be_read_are_bad_examples(tmp_path, image, reason):
  image = tmp_path / image if isinstance(image, str) else image
  with pytest.raises(BadExample) as caught:
    records(family.Item('1', (image,), {'objects': [thing('cup', [1, 1, 9, 9])]}))[0]
  assert caught.value.reason == reason


@pytest.mark.parametrize(
  'annotation', [{}, {'objects': [{'name': 'cup'}]}, {'objects': [7]}, {'objects': None}]
)
def test_an_annotation_of_an_unknown_form_is_a_bad_example(annotation):
  with pytest.raises(BadExample) as caught:
    records(family.Item('1', (image_files.encoded(),), annotation))[0]
  assert caught.value.reason in ('malformed annotation', 'nothing to ask')


def test_settings_are_checked(tmp_path):
  with pytest.raises(errors.SphinxError, match='does not read text'):
    records(task='layout', mirror=0.5)
  entry = dict(source='coco', root='coco', task='pose', split='train2017', weight=1.0)
  with pytest.raises(errors.SphinxError, match="source 'coco': got root .*does not exist"):
    sources.open_source(entry, tmp_path)
  for change, words in (
    (dict(source='coca'), "did you mean 'coco'"),
    (dict(task='layout'), "task of source 'coco'"),
    (dict(split='train2016'), "did you mean 'train201"),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      sources.open_source(entry | change, tmp_path)


@pytest.mark.parametrize('name', sources.FAMILIES)
def test_the_table_holds_each_family_under_its_name(name):
  cls = sources.FAMILIES[name]
  assert issubclass(cls, family.Family) and cls.NAME == name and set(cls.TASKS) <= set(TASKS)
  assert (cls.PATTERN is not None) == ('files' in cls.settings())


def test_unknown_settings_are_refused_with_the_nearest_name(tmp_path):
  entry = dict(source='plain_text', root='.', task='text')
  (tmp_path / 'a.txt').write_text('some words')
  for change, words in (
    (dict(documents='line'), "did you mean 'document'"),
    (dict(max_turn=3), "did you mean 'max_turns'"),
  ):
    with pytest.raises(errors.SphinxError, match=f"setting of source 'plain_text'.*{words}"):
      sources.open_source(entry | change, tmp_path)
  with pytest.raises(errors.SphinxError, match="setting of source 'listed'.*did you mean 'items'"):
    Listed('.', item=())


def test_the_old_name_of_prepared_datasets_is_still_read(tmp_path):
  with pytest.raises(errors.SphinxError, match="source 'array_record': got no build.json"):
    sources.open_source(dict(source='built', root='.', task='caption'), tmp_path)


def test_questions_of_one_image_stay_together_and_none_is_lost():
  rows = [('a', i) for i in range(5)] + [('b', 9), ('a', 7)]
  cut = list(fields.chunks(fields.group_by(rows, lambda row: row[0]), 4))
  assert [len(piece) for piece in cut] == [4, 2, 1] and sorted(sum(cut, [])) == sorted(rows)
  assert all(len({name for name, _ in piece}) == 1 for piece in cut)


def test_relations_follow_their_objects():
  from sphinx_jax.data import geometry

  things = [thing('hat', [90, 0, 99, 9]), thing('cup', [0, 0, 9, 9]), thing('dog', [9, 9, 20, 20])]
  annotation = {
    'objects': things,
    'relations': [
      dict(subject=1, predicate='left of', object=2),
      dict(subject=0, predicate='on', object=1),
    ],
  }
  placed = geometry.on_square(annotation, 40, 30, mirrored=True)
  assert placed['relations'] == [dict(subject=0, predicate='right of', object=1)]
  assert annotation['relations'][0]['predicate'] == 'left of'
  points = [[i, i, 2] for i in range(17)]
  person = geometry.on_square(
    {'people': [dict(box=[0, 0, 20, 20], keypoints=points)]}, 40, 40, mirrored=True
  )['people'][0]
  assert np.allclose(
    person['keypoints'][1], [(40 - 2) / 40, 2 / 40, 2]
  )  # In the mirror, the left eye is the former right eye.
