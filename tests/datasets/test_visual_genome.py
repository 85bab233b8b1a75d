"""Visual Genome: regions, relations and questions by image, with two image directories."""

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from tests.datasets import box_trees, image_files

IMAGES = {1: 'VG_100K_2', 20: 'VG_100K', 21: 'VG_100K'}


def region(number, phrase, box=(0, 10, 10, 10), image=1):
  x, y, width, height = box
  return {
    'region_id': number,
    'image_id': image,
    'phrase': phrase,
    'x': x,
    'y': y,
    'width': width,
    'height': height,
    'synsets': [
      {'synset_name': 'cat.n.01', 'entity_name': 'cat', 'entity_idx_start': 2, 'entity_idx_end': 5}
    ],
  }


def thing(number, name, box, key='name'):
  x, y, w, h = box
  return {
    'object_id': number,
    key: [name] if key == 'names' else name,
    'x': x,
    'y': y,
    'w': w,
    'h': h,
    'synsets': [],
    'merged_object_ids': [5],
  }


def relation(number, subject, predicate, other):
  return {
    'relationship_id': number,
    'subject': subject,
    'predicate': predicate,
    'object': other,
    'synsets': ['on.r.01'],
  }


def asking(number, question, answer, image=1):
  return {
    'qa_id': number,
    'image_id': image,
    'question': question,
    'answer': answer,
    'a_objects': [],
    'q_objects': [],
  }


def regions(rows, image=1, key='id'):
  return {key: image, 'regions': rows}


def opened(root, task='rec', split='all', **settings):
  return sources.open_source(
    dict(source='visual_genome', root=root.name, task=task, split=split, **settings), root.parent
  )


def layout(tmp_path, images=IMAGES, **files):
  return box_trees.visual_genome(tmp_path / 'vg', images, **files)


def reasons(source):
  """'' or the reason of each item."""

  def one(index):
    try:
      return '' if source[index].turns else 'no turns'
    except BadExample as error:
      return error.reason

  return [one(i) for i in range(len(source))]


ROWS = [
  regions(
    [
      region(1, 'the clock is green.'),
      region(2, 'Café  sign\n', (-4, -10, 14, 20)),
      region(3, 'a tree', (20, 0, 99, 99)),
      region(4, 'shade'),
      region(5, 'Shade', (9, 9, 9, 9)),
    ]
  ),
  regions([region(9, 'a cat', image=21)], 21, 'image_id'),
]


def test_every_region_is_asked_once(tmp_path):
  source = opened(layout(tmp_path, region_descriptions=ROWS), 'reg', max_turns=2)
  items = [source.family.item(i) for i in range(len(source))]
  assert [item.id for item in items] == ['1/0', '1/2', '1/4', '21/0']
  assert [[thing['id'] for thing in item.annotation['objects']] for item in items] == [
    ['1', '2'],
    ['3', '4'],
    ['5'],
    ['9'],
  ]
  assert items[0].annotation['objects'][1] == dict(
    id='2', name='Café sign', box=[-4, -10, 10, 10], expressions=['Café sign']
  )
  assert (
    items[0].images[0] == tmp_path / 'vg/VG_100K_2/1.jpg'
    and items[3].images[0] == tmp_path / 'vg/VG_100K/21.jpg'
  )
  record = source[0]
  boxes = {turn['answer']: turn['box'] for turn in record.truth}
  assert boxes == {
    'the clock is green': pytest.approx([0, 15 / 40, 0.25, 25 / 40]),
    'Café sign': pytest.approx([0, 5 / 40, 0.25, 15 / 40]),
  }


def test_phrases_of_several_regions_are_not_asked_for_their_box(tmp_path):
  source = opened(layout(tmp_path, region_descriptions=ROWS), 'rec', max_turns=2)
  assert [turn['label'] for turn in source[1].truth] == ['a tree']
  assert reasons(source) == ['', '', 'ambiguous expression', '']


@pytest.mark.parametrize(
  'split, ids', [('all', ['1/0', '20/0', '21/0']), ('train', ['1/0', '21/0']), ('val', ['20/0'])]
)
def test_splits_go_by_the_number_of_the_image(tmp_path, split, ids):
  rows = [regions([region(image, 'a cat')], image) for image in IMAGES]
  source = opened(layout(tmp_path, region_descriptions=rows), split=split)
  assert [source[i].id for i in range(len(source))] == ids


@pytest.mark.parametrize('key', ['name', 'names'])
def test_relations_between_the_objects_of_the_image(tmp_path, key):
  man, hat = thing(7, 'man', (0, 0, 20, 30), key), thing(8, 'hat.', (0, 0, 10, 10), key)
  dog = thing(9, 'dog', (20, 20, 20, 10), key)
  relations = [
    relation(1, man, 'WEARS', hat),
    relation(2, dog, 'next to', man),
    relation(3, hat, 'ON', man),
  ]
  rows = [{'image_id': 1, 'relationships': relations}]
  source = opened(layout(tmp_path, relationships=rows), 'relation', max_turns=2)
  first, second = (source.family.item(i).annotation for i in range(2))
  assert [thing['name'] for thing in first['objects']] == ['man', 'hat', 'dog']
  assert first['relations'] == [
    dict(subject=0, predicate='wears', object=1),
    dict(subject=2, predicate='next to', object=0),
  ]
  assert (
    second['relations'] == [dict(subject=0, predicate='on', object=1)]
    and len(second['objects']) == 3
  )
  assert first['objects'][1] == dict(id='8', name='hat', box=[0, 0, 10, 10])
  assert len(source[0].turns) == 2 and len(source[1].turns) == 1


def test_a_relation_to_what_is_outside_goes_with_it(tmp_path):
  man, hat, far = (
    thing(7, 'man', (0, 0, 20, 30)),
    thing(8, 'hat', (0, 0, 10, 10)),
    thing(9, 'dog', (90, 20, 20, 10)),
  )
  rows = [
    {
      'image_id': 1,
      'relationships': [relation(1, man, 'near', far), relation(2, man, 'wears', hat)],
    }
  ]
  source = opened(layout(tmp_path, relationships=rows), 'relation', max_turns=2)
  assert len(source[0].turns) == 1 and source.dropped.total() == 1


def test_questions(tmp_path):
  asked = [
    asking(1, 'What color is the clock?', 'Green.'),
    asking(2, 'Où ?', 'là'),
    asking(3, 'Why?', ''),
  ]
  rows = [{'id': 1, 'qas': asked}]
  source = opened(layout(tmp_path, question_answers=rows), 'vqa')
  assert [turn for i in range(2) for _, turn in source[i].turns] == ['Green', 'là']
  assert (
    'What color is the clock?' in source[0].turns[0][0] and reasons(source)[2] == 'empty answer'
  )


def test_malformed_rows_are_counted_and_leave_the_other_items(tmp_path):
  bad = [
    region(1, None),
    region(2, ' . '),
    {**region(3, 'x'), 'width': 'wide'},
    {**region(4, 'x'), 'x': 10**400},
    'text',
    None,
    {'regions': []},
  ]
  rows = [
    regions([region(8, 'a cat'), *bad]),
    regions([region(9, 'far')], 99),
    regions([region(9, 'x')], 'one'),
    {'id': 1},
    'text',
    None,
  ]
  source = opened(layout(tmp_path, region_descriptions=rows), 'reg')
  assert (
    reasons(source)
    == ['', 'malformed record', 'empty answer'] + ['malformed record'] * 5 + ['unknown image'] * 5
  )


def test_repeated_rows_and_images(tmp_path):
  hat = regions([region(1, 'a hat')])
  rows = [regions([region(1, 'a cat'), region(1, 'a cat'), region(1, 'a dog')]), hat, hat]
  root = layout(tmp_path, region_descriptions=rows)
  source = opened(root, 'reg')
  assert [source[i].id for i in range(len(source))] == ['1/0', '1/1', '1#2/0']
  entry = {'image_id': 1, 'width': 40, 'height': 30, 'url': 'x/VG_100K_2/1.jpg'}
  box_trees.dump(root / 'image_data.json', [entry, entry])
  assert reasons(opened(root, 'reg')) == [''] * 3
  box_trees.dump(root / 'image_data.json', [entry, entry | {'width': 41}, None, {'image_id': [2]}])
  assert reasons(opened(root, 'reg')) == ['unknown image'] * 3


@pytest.mark.parametrize(
  'change', [dict(url='http://x/y.jpg'), dict(url=None), dict(width=None), dict(height='30')]
)
def test_malformed_entries_of_images(tmp_path, change):
  root = layout(tmp_path, region_descriptions=ROWS[:1])
  box_trees.dump(
    root / 'image_data.json',
    [{'image_id': 1, 'width': 40, 'height': 30, 'url': 'x/VG_100K_2/1.jpg'} | change],
  )
  assert set(reasons(opened(root))) == {'malformed record'}


def test_trees_in_use_and_images_that_are_missing(tmp_path):
  rows = [regions([region(1, 'a cat')]), regions([region(2, 'a dog')], 20)]
  root = layout(tmp_path, region_descriptions=rows)
  (root / 'images').mkdir(), (root / 'images2').mkdir()
  (root / 'VG_100K').rename(root / 'images/VG_100K')
  (root / 'VG_100K_2').rename(root / 'images2/VG_100K_2')
  assert reasons(opened(root)) == ['', '']
  (root / 'images2/VG_100K_2/1.jpg').rename(root / 'images2/1.jpg')
  assert reasons(opened(root)) == ['missing image', '']
  for data, reason in (
    (b'', 'empty image'),
    (b'no', 'unreadable image'),
    (image_files.encoded(mode='CMYK'), ''),
    (image_files.encoded(80, 60, mode='L'), ''),
  ):
    (root / 'images/VG_100K/20.jpg').write_bytes(data)
    assert reasons(opened(root))[1] == reason
  (root / 'images').rename(root / 'a'), (root / 'images2').rename(root / 'b')
  with pytest.raises(errors.SphinxError, match='none of VG_100K, images/VG_100K'):
    opened(root)


@pytest.mark.parametrize(
  'name, text, words',
  [
    ('region_descriptions', None, 'none of region_descriptions.json'),
    ('image_data', None, 'none of image_data.json'),
    ('region_descriptions', '[{"id": 1', 'not JSON'),
    ('region_descriptions', '{"id": 1, "regions": []}', 'expected a list'),
    ('image_data', '', 'not JSON'),
  ],
)
def test_wrong_files_are_named(tmp_path, name, text, words):
  root = layout(tmp_path, region_descriptions=ROWS)
  path = root / f'{name}.json'
  path.unlink() if text is None else path.write_text(text)
  with pytest.raises(errors.SphinxError, match=words):
    opened(root)
