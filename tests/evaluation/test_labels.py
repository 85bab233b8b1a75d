import contextlib
import io
from collections import Counter

import pytest
from pycocotools.coco import COCO

from sphinx_jax.core import errors
from sphinx_jax.data.images import Frame
from sphinx_jax.evaluation import coco_labels, labels
from tests.evaluation.protocols.test_answer_forms import HEIGHT, MARKED, TRUTH, WIDTH

NONE = 'answers without boxes'
FRAME = Frame(WIDTH, HEIGHT, 1)


def read(answer, schema='boxes', form='square', frame=FRAME, upright=False):
  counts = Counter()
  return labels.read(answer, schema, frame, upright, form, counts), counts


@pytest.mark.parametrize('form', MARKED)
def test_boxes_of_every_form_are_in_pixels(form):
  ((label, box),) = (found.values() for found in read(MARKED[form])[0])
  assert box == pytest.approx(TRUTH, abs=0.7)
  assert label == ('It spans' if 'sentence' in form else label and label.rstrip(' 2') and label)
  assert '"' not in label


def test_labels_are_those_of_the_text():
  found, _ = read(
    'red circle [0.10, 0.20, 0.30, 0.40; 0.5, 0.6, 0.7, 0.8], cat [0.1, 0.2, 0.2, 0.3]'
  )
  assert [thing['label'] for thing in found] == ['red circle', 'red circle', 'cat']
  assert found[0]['box'] == [6.0, 2.0, 18.0, 14.0]  # The square has 10 rows above the image.
  listed = (
    '```json\n[\n\t{"bbox_2d": [167, 125, 667, 750], "label": "dog\'s bowl"},\n'
    '\t{"label": "dog", "bbox_2d": [0, 0, 500, 500]}\n]\n```'
  )
  assert read(listed, form='thousandths')[0] == [
    {'label': "dog's bowl", 'box': [10.02, 5.0, 40.02, 30.0]},
    {'label': 'dog', 'box': [0.0, 0.0, 30.0, 20.0]},
  ]


@pytest.mark.parametrize(
  'answer, form, point',
  [
    ('nose [0.50, 0.30]', 'square', [30.0, 8.0]),
    ('nose [30, 8]', 'pixels', [30.0, 8.0]),
    ('nose [500, 200]', 'thousandths', [30.0, 8.0]),
    ('nose [0.5, 0.2]', 'image', [30.0, 8.0]),
    ('nose<|box_start|>(500,200)<|box_end|>', 'square', [30.0, 8.0]),
    ('nose [0.50, 0.16]', 'square', [30.0, 0.0]),  # Two decimals are above the first row.
  ],
)
def test_points_are_in_pixels(answer, form, point):
  found, counts = read(answer, 'points', form)
  assert found == [{'label': 'nose', 'point': point}] and not counts


def test_what_cannot_be_used_is_left_out_and_counted():
  outside = f'boxes {labels.OUTSIDE}'
  assert read('a cat') == ([], {NONE: 1})
  assert read('[0.1, 0.2]')[0] == [] == read('[0.1, 0.2, 0.3, 0.4]', 'points')[0]
  assert read('[0.8, 0.8, 0.1, 0.1]') == ([], {outside: 1, NONE: 1})
  assert read('[0.1, 0.0, 0.9, 0.1]') == ([], {outside: 1, NONE: 1})  # In the padding.
  assert read('[10, 5, 40, 30]')[1] == {f'boxes {labels.UNKNOWN_SCALE}': 1, NONE: 1}
  found, counts = read('[0.5, 0.5, 1.1, 1.2], [0.5, 0.5, 0.5, 0.9]')
  assert found == [{'label': '', 'box': [30.0, 20.0, 60.0, 40.0]}] and counts == {outside: 1}
  assert read('nose [0.5, 0.1]', 'points')[1] == {
    f'points {labels.OUTSIDE}': 1,
    'answers without points': 1,
  }


def test_a_model_that_sees_a_photo_upright_labels_its_stored_pixels():
  """The camera was held upright: 60 x 40 stored pixels are shown as 40 x 60."""
  frame = Frame(60, 40, 6)
  upper_left = '[0.17, 0.0, 0.5, 0.5]'  # Of the square with 10 columns beside the shown image.
  ((_, box),) = (found.values() for found in read(upper_left, frame=frame, upright=True)[0])
  assert box == pytest.approx([0, 20, 30, 40], abs=0.3)  # Clockwise: the left edge is the top.
  assert read(upper_left, frame=frame) == (read(upper_left)[0], {labels.TURNED: 1})


LINES = [
  {'image': 'a.png', 'width': 60, 'height': 40, 'boxes': [{'label': 'cat', 'box': [1, 2, 4, 6]}]},
  {'image': 'кот/b.png', 'width': 6, 'height': 4, 'boxes': []},
  {'image': 'c.png', 'error': 'missing image: c.png'},
  {
    'image': 'a.png',
    'width': 60,
    'height': 40,
    'boxes': [{'label': '', 'box': [0, 0, 60, 40]}, {'label': 'cat', 'box': [0.25, 0, 1, 1.5]}],
  },
]


def test_pycocotools_reads_the_boxes(tmp_path):
  coco_labels.write(tmp_path / 'coco.json', lambda: iter(LINES))
  with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO(tmp_path / 'coco.json')
    results = truth.loadRes([dict(annotation) for annotation in truth.dataset['annotations']])
  assert [image['file_name'] for image in truth.loadImgs(truth.getImgIds())] == [
    'a.png',
    'кот/b.png',
  ]
  assert truth.imgs[1] == {'id': 1, 'file_name': 'a.png', 'width': 60, 'height': 40}
  names = {category['name']: category['id'] for category in truth.loadCats(truth.getCatIds())}
  assert names == {'cat': 1, coco_labels.UNNAMED: 2}
  for loaded in (truth, results):
    cats = loaded.loadAnns(loaded.getAnnIds(imgIds=[1], catIds=[names['cat']]))
    assert [cat['bbox'] for cat in cats] == [[1, 2, 3, 4], [0.25, 0, 0.75, 1.5]]
    assert [cat['area'] for cat in cats] == [12, pytest.approx(1.125, abs=0.01)]
    assert len(loaded.getAnnIds()) == 3
  coco_labels.check(tmp_path / 'coco.json')  # It may be written again.


def test_a_coco_file_of_the_user_is_not_replaced(tmp_path):
  (tmp_path / 'instances.json').write_text('{"info": {}, "images": []}')
  with pytest.raises(errors.SphinxError, match="instances.json': got a file of something else"):
    coco_labels.check(tmp_path / 'instances.json')
  coco_labels.check(tmp_path / 'new.json')
