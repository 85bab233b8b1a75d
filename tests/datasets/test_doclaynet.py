"""DocLayNet: blocks of pages, whose images may be resized copies of the annotated 1025 x 1025."""

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from tests.datasets import box_trees, image_files

NAMES = (
  'Caption',
  'Footnote',
  'Formula',
  'List-item',
  'Page-footer',
  'Page-header',
  'Picture',
  'Section-header',
  'Table',
  'Text',
  'Title',
)


def opened(root, split='train', **settings):
  return sources.open_source(
    dict(source='doclaynet', root=root.name, split=split, **settings), root.parent
  )


def layout(tmp_path, annotations, split='train'):
  return box_trees.doclaynet(
    tmp_path / 'doclaynet', split, {1: 'ab12.png', 2: 'cd34.png', 3: 'ef56.png'}, annotations, NAMES
  )


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_blocks_on_a_page_of_another_scale(tmp_path, split):
  blocks = [
    box_trees.box(1, 11, [0, 0, 1025, 102.5], precedence=0),
    box_trees.box(1, 4, [102.5, 205, 820, 2000]),
    box_trees.box(3, 9, [10, 10, -5, 5]),
  ]
  source = opened(layout(tmp_path, blocks, split), split)
  assert len(source) == 2  # Page 2 has no block.
  annotation = source.family.item(0).annotation
  assert annotation['blocks'][0] == dict(label='Title', box=[0, 0, 1025, 102.5])
  assert annotation['classes'] == list(NAMES) and annotation['size'] == (1025, 1025)
  truth = source[0].truth[0]
  assert truth['labels'] == ['Title', 'List-item']
  assert truth['boxes'] == [pytest.approx([0, 0, 1, 0.1]), pytest.approx([0.1, 0.2, 0.9, 1])]
  assert source.family.item(1).id == '3'


def test_odd_pages(tmp_path):
  root = layout(
    tmp_path,
    [box_trees.box(page, kind, [0, 0, 99, 99]) for page, kind in ((1, 11), (2, 99), (3, 9))],
  )
  source = opened(root)
  assert source[0].truth and source[2].truth
  for index, data, reason in (
    (1, None, 'malformed record'),
    (0, b'', 'empty image'),
    (0, b'%PDF', 'unreadable image'),
    (2, image_files.encoded(30, 20), 'image of another shape'),
  ):
    if data is not None:
      (root / 'PNG' / ('ab12.png', 'cd34.png', 'ef56.png')[index]).write_bytes(data)
    with pytest.raises(BadExample) as caught:
      source[index]
    assert caught.value.reason == reason
  (root / 'PNG/ab12.png').write_bytes(image_files.encoded(50, 50, mode='L', form='PNG'))
  assert source[0].truth


def test_wrong_trees_are_named(tmp_path):
  root = layout(tmp_path, [])
  assert len(opened(root)) == 0
  with pytest.raises(errors.SphinxError, match='none of COCO/test.json'):
    opened(root, 'test')
  (root / 'COCO/train.json').write_text('')
  with pytest.raises(errors.SphinxError, match='not JSON'):
    opened(root)
  with pytest.raises(errors.SphinxError, match='does not read text'):
    layout(tmp_path, []), opened(root, mirror=0.5)
