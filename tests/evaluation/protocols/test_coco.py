"""AP of boxes and of keypoints: pycocotools on answers that are text, against cases worked out by hand."""

import math

import pytest

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import EACH, PROTOCOLS, coco_oks

WIDTH, HEIGHT = 640, 480


def thing(name, x, y, width, height, crowd=0):
  return {'name': name, 'bbox': [x, y, width, height], 'area': width * height, 'iscrowd': crowd}


def written(name, x, y, width, height):
  """A box in pixels as an answer, with enough decimals to lose nothing."""
  box = boxes.pad_box((x, y, x + width, y + height), WIDTH, HEIGHT)
  return f'{name} {coordinates.format_box(box, 8)}'


def picture(answer, objects, image=1):
  return {'image_id': image, 'width': WIDTH, 'height': HEIGHT, 'objects': objects, 'answer': answer}


def precision(*pictures):
  return PROTOCOLS['coco_ap'](list(pictures))


CAT, DOG = thing('cat', 100, 100, 200, 200), thing('dog', 350, 50, 120, 300)


def test_perfect_boxes(capfd):
  scores = precision(
    picture(
      ', '.join([written('cat', 100, 100, 200, 200), written('Dog', 350, 50, 120, 300)]), [CAT, DOG]
    )
  )
  assert scores == pytest.approx({'AP': 1, 'AP50': 1, 'AP75': 1, 'AP large': 1})
  assert capfd.readouterr().out == ''  # pycocotools says nothing.


def test_no_box_and_no_readable_box():
  for answer in ('', 'a cat', 'cat [0.1, 0.2]', written('cat', 600, 0, 30, 30)):
    assert precision(picture(answer, [CAT, DOG]))['AP'] == 0


def test_a_shifted_box_counts_up_to_its_iou():
  # Shifted by a ninth of its width: IoU = (8/9) / (10/9) = 0.8, so the seven thresholds from 0.5 to 0.8 are met.
  scores = precision(picture(written('cat', 100 + 199.99 / 9, 100, 200, 200), [CAT]))
  assert scores == pytest.approx({'AP': 0.7, 'AP50': 1, 'AP75': 1, 'AP large': 0.7})


def test_a_missed_object_halves_recall():
  other = thing('cat', 400, 100, 200, 200)
  # Precision 1 up to recall 0.5: 51 of the 101 recall levels.
  assert precision(picture(written('cat', 100, 100, 200, 200), [CAT, other]))[
    'AP'
  ] == pytest.approx(51 / 101)


def test_a_wrong_class_is_a_miss_for_one_class_and_counts_against_the_other():
  answer = ', '.join([written('dog', 100, 100, 200, 200), written('dog', 350, 50, 120, 300)])
  # Cat: nothing found. Dog: the wrong one comes first in the text, so precision is 1/2 at every recall.
  assert precision(picture(answer, [CAT, DOG]))['AP'] == pytest.approx((0 + 0.5) / 2)
  right_first = ', '.join([written('dog', 350, 50, 120, 300), written('dog', 100, 100, 200, 200)])
  assert precision(picture(right_first, [CAT, DOG]))['AP'] == pytest.approx((0 + 1) / 2)


def test_boxes_on_a_crowd_neither_count_nor_harm():
  crowd = thing('cat', 300, 0, 300, 400, crowd=1)
  in_crowd = [written('cat', 310 + 90 * i, 10, 80, 300) for i in range(3)]
  answer = ', '.join([*in_crowd, written('cat', 100, 100, 200, 200)])
  assert precision(picture(answer, [CAT, crowd]))['AP'] == pytest.approx(1)
  assert precision(picture(answer, [CAT]))['AP'] == pytest.approx(1 / 4)


def test_a_class_that_is_nowhere_cannot_count_and_an_empty_picture_can_harm():
  unicorn, cat = written('unicorn', 0, 0, 100, 100), written('cat', 100, 100, 200, 200)
  assert precision(picture(f'{unicorn}, {cat}', [CAT]))['AP'] == pytest.approx(1)
  assert precision(picture(cat, [], image=0), picture(cat, [CAT]))['AP'] == pytest.approx(1 / 2)


def test_sizes():
  objects = [
    thing('cat', 10, 10, 20, 20),
    thing('cat', 100, 100, 60, 60),
    thing('cat', 300, 100, 200, 200),
  ]
  scores = precision(picture(', '.join(written('cat', *o['bbox']) for o in objects[:2]), objects))
  assert (scores['AP small'], scores['AP medium'], scores['AP large']) == pytest.approx((1, 1, 0))


def test_f1_of_each_picture():
  lines = [
    picture(written('cat', 100, 100, 200, 200), [CAT, DOG]),
    picture('', [CAT]),
    picture('', []),
    picture(written('cat', 100, 100, 200, 200), [CAT, thing('cat', 0, 0, 9, 9, crowd=1)]),
  ]
  assert EACH['coco_ap'](lines) == pytest.approx([2 / 3, 0, None, 1])


def test_pictures_without_any_object_are_refused():
  with pytest.raises(SphinxError, match='nothing in them'):
    precision(picture('', []))


# Keypoints. A person of 17 keypoints on a grid, in a box of 160 x 200 pixels.
POINTS = [(120 + 8 * i, 100 + 11 * i) for i in range(17)]
AREA = 20000.0


def person(points=POINTS, visible=(2,) * 17, area=AREA, crowd=0):
  flat = [
    number for (x, y), v in zip(points, visible) for number in ((x, y, v) if v else (0, 0, 0))
  ]
  return {
    'bbox': [110, 90, 160, 200],
    'area': area,
    'iscrowd': crowd,
    'keypoints': flat,
    'num_keypoints': sum(v > 0 for v in visible),
  }


def said(points):
  """{name: (x, y) in pixels} as an answer."""
  places = {name: boxes.pad_box((x, y, x, y), WIDTH, HEIGHT)[:2] for name, (x, y) in points.items()}
  return ', '.join(f'{name} [{x:.8f}, {y:.8f}]' for name, (x, y) in places.items())


def pose(answer, truth, image=1, others=()):
  return {
    'image_id': image,
    'width': WIDTH,
    'height': HEIGHT,
    'person': truth,
    'others': list(others),
    'answer': answer,
  }


NAMED = dict(zip(coordinates.KEYPOINTS, POINTS))


def test_oks_by_hand():
  # The nose is off by d = 2 sigma sqrt(area): exp(-1/2). The left eye is missing, its right one exact.
  truth = person(visible=(2, 2, 1) + (0,) * 14)
  off = 2 * coco_oks.SIGMAS[0] * math.sqrt(AREA)
  answer = said(
    {'nose': (POINTS[0][0] + off, POINTS[0][1]), 'right eye': POINTS[2], 'left hip': (1, 1)}
  )
  expected = (math.exp(-0.5) + 0 + 1) / 3
  assert EACH['coco_oks']([pose(answer, truth)]) == pytest.approx([expected])
  # 0.5355 meets the lowest of the ten thresholds only.
  assert PROTOCOLS['coco_oks']([pose(answer, truth)])['AP'] == pytest.approx(0.1)


@pytest.mark.parametrize('offset', [3.0, 6.0, 9.0, 14.0, 20.0])
def test_average_precision_is_the_share_of_thresholds_below_the_oks(offset):
  answer = said({name: (x + offset, y) for name, (x, y) in NAMED.items()})
  line = pose(answer, person())
  met = sum(EACH['coco_oks']([line])[0] >= 0.5 + 0.05 * i for i in range(10))
  assert PROTOCOLS['coco_oks']([line])['AP'] == pytest.approx(met / 10)


def test_poses_perfect_and_wrong():
  assert PROTOCOLS['coco_oks']([pose(said(NAMED), person())]) == pytest.approx(
    {'AP': 1, 'AP50': 1, 'AP75': 1, 'AP large': 1, 'AR': 1}
  )
  for answer in (
    '',
    'nose',
    'nose [0.1, 0.2, 0.3, 0.4]',
    said({'tail': (1, 1)}),
    said({'nose': (600, 400)}),
  ):
    assert PROTOCOLS['coco_oks']([pose(answer, person())])['AP'] == 0


def test_people_nobody_asks_about_do_not_lower_recall():
  others = [person(visible=(0,) * 17), person(crowd=1)]
  assert PROTOCOLS['coco_oks']([pose(said(NAMED), person(), others=others)])['AP'] == pytest.approx(
    1
  )
  assert EACH['coco_oks']([pose('', person(visible=(0,) * 17))]) == [None]


def test_a_second_person_who_is_missed_halves_recall():
  far = person([(x + 200, y) for x, y in POINTS])
  lines = [pose(said(NAMED), person()), pose('', far)]
  assert PROTOCOLS['coco_oks'](lines)['AP'] == pytest.approx(51 / 101)
