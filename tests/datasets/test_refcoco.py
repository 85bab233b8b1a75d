"""RefCOCO, + and g in the refer API's layout; the pickle can hold nothing that runs."""

import os
import pickle

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import refcoco
from tests.datasets import box_trees, image_files

NAMES = ('person', 'cup')
THINGS = [
  box_trees.box(7, 1, [0, 10, 10, 10]),
  box_trees.box(7, 1, [20, 10, 10, 10]),
  box_trees.box(8, 2, [-5, 20, 15, 99]),
]
REFS = [
  box_trees.reference(1, 1, 7, 'left guy', 'man on the left', 'left guy'),
  box_trees.reference(2, 2, 7, 'man in red'),
  box_trees.reference(3, 3, 8, 'café cup', split='testA'),
]


def things():
  return [dict(thing) for thing in THINGS]


def opened(root, source='refcoco', **settings):
  return sources.open_source(dict(source=source, root=root.name, **settings), root.parent)


def layout(tmp_path, refs=REFS, name='refcoco', annotations=None, **how):
  return box_trees.refcoco(
    tmp_path / 'refer', name, refs, (7, 8), annotations or things(), NAMES, **how
  )


def asked(source):
  """[(id, expression, box in pixels)] of all items."""
  return [
    [
      (thing['id'], thing['expressions'], thing['box'])
      for thing in source.family.item(i).annotation['objects']
    ]
    for i in range(len(source))
  ]


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_every_sentence_is_asked_and_no_item_has_one_thing_twice(tmp_path, protocol):
  source = opened(layout(tmp_path, protocol=protocol), max_turns=4)
  left, red = [0, 10, 10, 20], [20, 10, 30, 20]
  assert asked(source) == [
    [('10', ['left guy'], left), ('20', ['man in red'], red)],
    [('11', ['man on the left'], left)],
    [('12', ['left guy'], left)],
  ]
  assert [source.family.item(i).id for i in range(3)] == ['10', '11', '12']
  record = source[0]
  image = tmp_path / 'refer/images/mscoco/images/train2014/COCO_train2014_000000000007.jpg'
  assert len(record.turns) == 2 and record.images[0] == image.read_bytes()
  boxes = {turn['label']: turn['box'] for turn in record.truth}
  assert boxes == {
    'left guy': pytest.approx([0, 15 / 40, 0.25, 25 / 40]),
    'man in red': pytest.approx([0.5, 15 / 40, 0.75, 25 / 40]),
  }
  single = opened(tmp_path / 'refer', max_turns=1)
  assert len(single) == 4 and all(len(single[i].turns) == 1 for i in range(4))


def test_descriptions_know_the_other_sentences(tmp_path):
  source = opened(layout(tmp_path), task='reg')
  assert [thing for (thing,) in asked(source)][2] == (
    '11',
    ['man on the left', 'left guy'],
    [0, 10, 10, 20],
  )
  assert [source[i].turns[0][1] for i in range(4)] == [
    'left guy',
    'man in red',
    'man on the left',
    'left guy',
  ]
  assert source[2].truth[0]['answers'] == ['man on the left', 'left guy']


def test_a_box_over_the_edge_is_cut_and_unicode_stays(tmp_path):
  record = opened(layout(tmp_path), split='testA')[0]
  assert 'café cup' in record.turns[0][0] and record.truth[0]['box'] == pytest.approx(
    [0, 25 / 40, 0.25, 35 / 40]
  )


def as_bytes(value):
  if isinstance(value, dict):
    return {as_bytes(key): as_bytes(item) for key, item in value.items()}
  if isinstance(value, list):
    return [as_bytes(item) for item in value]
  return value.encode('latin-1') if isinstance(value, str) else value


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_pickle_of_bytes_in_latin1_is_read(tmp_path, protocol):
  """As Python 3 saves what it has loaded with encoding='bytes'."""
  root = layout(tmp_path)
  (root / 'refcoco/refs(unc).p').write_bytes(pickle.dumps(as_bytes(REFS), protocol))
  assert 'café cup' in opened(root, split='testA')[0].turns[0][0]
  assert len(opened(root)) == 4


def test_two_annotations_of_one_id_are_counted(tmp_path):
  twice = [*things(), box_trees.box(8, 1, [5, 5, 9, 9], id=2)]
  source = opened(layout(tmp_path, annotations=twice))
  reasons = []
  for index in range(len(source)):
    try:
      source[index]
    except BadExample as error:
      reasons.append(error.reason)
  assert reasons == ['duplicate id']


@pytest.mark.parametrize(
  'source, name, split, by, settings',
  [
    ('refcoco', 'refcoco', 'test', 'google', dict(by='google')),
    ('refcoco+', 'refcoco+', 'testB', 'unc', {}),
    ('refcocog', 'refcocog', 'test', 'umd', {}),
    ('refcocog', 'refcocog', 'val', 'google', dict(by='google')),
  ],
)
def test_the_other_files_and_splits(tmp_path, source, name, split, by, settings):
  refs = [
    box_trees.reference(1, 1, 7, 'left guy', split=split),
    box_trees.reference(2, 2, 7, 'x', split='train'),
  ]
  records = opened(layout(tmp_path, refs, name, by=by), source, split=split, **settings)
  assert len(records) == 1 and records[0].truth[0]['label'] == 'left guy'


@pytest.mark.parametrize(
  'folder, root, images',
  [
    ('train2014', '', ''),
    ('images/train2014', '', ''),
    ('images/mscoco/images/train2014', 'refcoco', ''),
    ('../coco/train2014', '', ''),
    ('elsewhere/train2014', '', 'elsewhere'),
  ],
)
def test_trees_in_use(tmp_path, folder, root, images):
  home = layout(tmp_path, folder=folder)
  assert opened(home / root if root else home, images=images)[0].images[0]


def test_splits_that_are_not_there_are_named(tmp_path):
  home = layout(tmp_path)
  with pytest.raises(
    errors.SphinxError, match="no ref of split 'test' in .*expected one of testA, train"
  ):
    opened(home, split='test')
  with pytest.raises(errors.SphinxError, match=r'none of refcoco\+/refs'):
    opened(home, 'refcoco+')
  with pytest.raises(errors.SphinxError, match='none of images/mscoco'):
    (home / 'images').rename(home / 'pictures')
    opened(home)


class Harm:
  def __init__(self, what, *values):
    self._what = what, values

  def __reduce__(self):
    return self._what


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize(
  'harm, words',
  [
    (lambda path: Harm(os.mkdir, str(path)), 'posix.mkdir|nt.mkdir'),
    (lambda path: Harm(eval, f'open({str(path)!r}, "w")'), 'eval'),
    (lambda path: Harm(getattr, os, 'sep'), 'getattr'),
  ],
)
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, protocol, harm, words):
  home = layout(tmp_path)
  sign = tmp_path / 'it ran'
  if words == 'getattr':
    data = b'cbuiltins\ngetattr\n(cos\nsystem\nS"__call__"\ntR.'
  else:
    data = pickle.dumps([*REFS, harm(sign)], protocol=protocol)
  (home / 'refcoco/refs(unc).p').write_bytes(data)
  with pytest.raises(errors.SphinxError, match=f'({words}).*not run'):
    opened(home)
  assert not sign.exists()


@pytest.mark.parametrize(
  'data, words',
  [
    (b'', 'cannot be read'),
    (pickle.dumps(REFS)[:-9], 'cannot be read'),
    (b'PK\x03\x04', 'cannot be read'),
    (pickle.dumps({'refs': REFS}), 'a dict in'),
  ],
)
def test_damaged_pickles_are_named(tmp_path, data, words):
  home = layout(tmp_path)
  (home / 'refcoco/refs(unc).p').write_bytes(data)
  with pytest.raises(errors.SphinxError, match=words):
    opened(home)


def test_texts_of_python_2_are_read(tmp_path):
  path = tmp_path / 'refs.p'
  path.write_bytes(
    b'(lp0\n(dp1\nS"sent"\np2\nS"caf\\xc3\\xa9"\np3\nsS"tokens"\n'
    b'c__builtin__\nset\n((lp4\nS"a"\natRsS"n"\nL12L\nsa.'
  )
  assert refcoco.read_pickle("source 'refcoco'", path) == [
    {'sent': 'café', 'tokens': {'a'}, 'n': 12}
  ]


@pytest.mark.parametrize(
  'ref, reason',
  [
    ('text', 'malformed record'),
    ({}, 'malformed record'),
    ({**REFS[1], 'split': 3}, 'malformed record'),
    ({**REFS[1], 'ann_id': 99}, 'malformed record'),
    ({**REFS[1], 'ann_id': [2]}, 'malformed record'),
    ({**REFS[1], 'sentences': [{'sent_id': 5}]}, 'malformed record'),
    ({**REFS[1], 'sentences': 7}, 'malformed record'),
    ({**REFS[1], 'sentences': []}, 'empty question'),
    ({**REFS[1], 'sentences': [{'sent_id': 5, 'sent': '  '}]}, 'empty question'),
    ({**REFS[1], 'image_id': 55}, 'unknown image'),
    ({**REFS[1], 'image_id': None}, 'malformed record'),
  ],
)
def test_malformed_refs_are_counted_and_leave_the_others(tmp_path, ref, reason):
  source = opened(layout(tmp_path, [REFS[0], ref]), max_turns=2)
  assert len(source) == 4 and all(source[i].turns for i in range(3))
  with pytest.raises(BadExample) as caught:
    source[3]
  assert caught.value.reason == reason


def test_repeated_refs_count_once_and_other_sentences_of_one_id_stay(tmp_path):
  other = box_trees.reference(2, 2, 7, 'tall man')
  source = opened(layout(tmp_path, [REFS[1], REFS[1], other]), max_turns=9)
  assert [thing[:2] for thing in asked(source)[0]] == [
    ('20', ['man in red']),
    ('20#2', ['tall man']),
  ]


def test_malformed_instances_spoil_only_their_refs(tmp_path):
  annotations = things()
  annotations[0]['bbox'] = [1, 2]
  source = opened(layout(tmp_path, annotations=annotations + [None, {'id': 'x'}, {'id': [1]}]))
  assert source[0].truth[0]['label'] == 'man in red' and len(source) == 1 + 3
  with pytest.raises(BadExample, match='box'):
    source[1]


def test_odd_images(tmp_path):
  source = opened(layout(tmp_path), split='testA')
  path = tmp_path / 'refer/images/mscoco/images/train2014/COCO_train2014_000000000008.jpg'
  for mode in ('L', 'CMYK'):
    path.write_bytes(image_files.encoded(mode=mode))
    assert source[0].turns
  for data, reason in ((b'', 'empty image'), (b'no', 'unreadable image'), (None, 'missing image')):
    path.unlink() if data is None else path.write_bytes(data)
    with pytest.raises(BadExample) as caught:
      source[0]
    assert caught.value.reason == reason
