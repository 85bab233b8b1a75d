"""Flickr30k Entities: marked sentences, boxes in XML, one item per sentence."""

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from tests.datasets import box_trees, image_files

MARKED = [
  '[/EN#1/people Two young guys] with [/EN#2/bodyparts/other shaggy hair ] '
  'wave at [/EN#0/notvisual nothing] .',
  'In [/EN#4/scene the yard] , [/EN#1/people men] and [/EN#3/animals a dog] sit .',
  'Ein Café .',
]
PLAIN = [
  'Two young guys with shaggy hair wave at nothing .',
  'In the yard , men and a dog sit .',
  'Ein Café .',
]
OBJECTS = [
  (['1'], (1, 11, 11, 21)),
  (['1', '2'], (21, 11, 31, 21)),
  (['3'], 'nobndbox'),
  (['4'], 'scene'),
]


def opened(root, task='grounded_caption', split='train', **settings):
  return sources.open_source(
    dict(source='flickr30k_entities', root=root.name, task=task, split=split, **settings),
    root.parent,
  )


def layout(tmp_path, sentences=None, objects=None, split='train'):
  return box_trees.flickr30k(
    tmp_path / 'flickr', split, sentences or {'36979': MARKED}, objects or {'36979': OBJECTS}
  )


def reason(source, index=0):
  with pytest.raises(BadExample) as caught:
    source[index]
  return caught.value.reason


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_pieces_join_to_the_sentence_and_have_the_boxes_of_their_entity(tmp_path, split):
  source = opened(layout(tmp_path, split=split), split=split)
  items = [source.family.item(i) for i in range(len(source))]
  assert [item.annotation['caption'] for item in items] == PLAIN
  assert [item.id for item in items] == [f'36979#{i}' for i in range(3)]
  for item, sentence in zip(items, PLAIN):
    assert ''.join(piece['text'] for piece in item.annotation['phrases']) == sentence
  first, second = [0, 10, 10, 20], [20, 10, 30, 20]
  assert items[0].annotation['phrases'] == [
    dict(text='Two young guys', boxes=[first, second]),
    dict(text=' with ', boxes=[]),
    dict(text='shaggy hair', boxes=[second]),
    dict(text=' wave at ', boxes=[]),
    dict(text='nothing', boxes=[]),
    dict(text=' .', boxes=[]),
  ]
  assert [piece['text'] for piece in items[1].annotation['phrases'] if piece['boxes']] == ['men']
  truth = source[0].truth[0]
  assert truth['labels'] == ['Two young guys', 'Two young guys', 'shaggy hair']
  assert truth['boxes'][0] == pytest.approx([0, 15 / 40, 0.25, 25 / 40])
  assert 'with <p>shaggy hair</p>' in source[0].turns[0][1]
  assert reason(source, 2) == 'nothing to ask'  # No phrase of it has a box.


def test_captions_know_the_others(tmp_path):
  source = opened(layout(tmp_path), 'caption')
  assert [source[i].turns[0][1] for i in range(3)] == PLAIN
  assert source.family.item(1).annotation['captions'] == PLAIN


def test_odd_boxes(tmp_path):
  objects = [(['1'], (-4, 11, 11, 99)), (['2'], (90, 1, 99, 9)), (['3'], (9, 9, 9, 9))]
  source = opened(layout(tmp_path, {'1': MARKED}, {'1': objects}))
  truth = source[0].truth[0]
  assert truth['labels'] == ['Two young guys'] and truth['boxes'] == [
    pytest.approx([0, 15 / 40, 0.25, 35 / 40])
  ]
  assert source.dropped.total() == 1


def test_repeated_images_count_once_and_missing_sentences_are_counted(tmp_path):
  root = layout(tmp_path)
  (root / 'train.txt').write_text('36979\n36979\r\n\n777\n36979\n')
  source = opened(root)
  assert len(source) == 4 and reason(source, 3) == 'missing sentence'
  (root / 'Sentences/777.txt').write_bytes(b'')
  assert reason(opened(root), 3) == 'missing sentence'


@pytest.mark.parametrize(
  'xml, words',
  [
    (None, 'missing annotation'),
    (b'', 'malformed record'),
    (b'<annotation><object>', 'malformed record'),
    (b'\xff\xfe<\x00', 'malformed record'),
    (b'<annotation><size><width>x</width></size></annotation>', 'malformed record'),
    (
      b'<annotation><size><width>40</width><height>30</height></size>'
      b'<object><name>1</name><bndbox><xmin>3</xmin></bndbox></object></annotation>',
      'malformed record',
    ),
    (
      b'<!DOCTYPE a [<!ENTITY x "xxxxxxxx"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>',
      'malformed record',
    ),
  ],
)
def test_damaged_boxes_are_counted_and_leave_the_captions(tmp_path, xml, words):
  root = layout(tmp_path)
  path = root / 'Annotations/36979.xml'
  path.unlink() if xml is None else path.write_bytes(xml)
  assert reason(opened(root)) == words
  assert opened(root, 'caption')[0].turns


def test_a_mark_without_end_is_counted(tmp_path):
  source = opened(
    layout(tmp_path, {'1': ['[/EN#1/people Two guys wave .', MARKED[0]]}, {'1': OBJECTS})
  )
  assert reason(source) == 'malformed record' and source[1].turns


def test_trees_in_use(tmp_path):
  root = layout(tmp_path)
  (root / 'annotations').mkdir()
  for name in ('Sentences', 'Annotations'):
    (root / name).rename(root / 'annotations' / name)
  (root / 'flickr30k-images').rename(root / 'flickr30k_images')
  assert opened(root)[0].turns
  (root / 'flickr30k_images').rename(root / 'elsewhere')
  with pytest.raises(errors.SphinxError, match='none of flickr30k-images'):
    opened(root)
  with pytest.raises(errors.SphinxError, match='none of val.txt'):
    opened(root, split='val')


def test_odd_images(tmp_path):
  root = layout(tmp_path)
  path = root / 'flickr30k-images/36979.jpg'
  for data in (
    image_files.encoded(mode='L'),
    image_files.encoded(mode='CMYK'),
    image_files.encoded(80, 60),
    image_files.truncated(),
  ):
    path.write_bytes(data)
    assert opened(root)[0].truth[0]['boxes'][0] == pytest.approx([0, 15 / 40, 0.25, 25 / 40])
  for data, why in (
    (b'', 'empty image'),
    (b'no', 'unreadable image'),
    (image_files.encoded(30, 30), 'image of another shape'),
    (None, 'missing image'),
  ):
    path.unlink() if data is None else path.write_bytes(data)
    assert reason(opened(root)) == why
