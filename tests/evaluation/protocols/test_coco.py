"""AP of boxes and keypoints: pycocotools on text answers, against cases computed by hand."""

import math

import pytest

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS, coco_oks

WIDTH, HEIGHT = 640, 480


def thing(name, x, y, width, height, crowd=0):
  return {'name': name, 'bbox': [x, y, width, height], 'area': width * height, 'iscrowd': crowd}


def written(name, x, y, width, height):
  """A box in pixels as an answer, with enough decimals to be exact."""
  box = boxes.pad_box((x, y, x + width, y + height), WIDTH, HEIGHT)
  return f'{name} {coordinates.format_box(box, 8)}'


def image(answer, objects, image_id=1):
  return {
    'image_id': image_id,
    'width': WIDTH,
    'height': HEIGHT,
    'objects': objects,
    'answer': answer,
  }


def precision(*images):
  return PROTOCOLS['coco_ap'](list(images))


CAT, DOG = thing('cat', 100, 100, 200, 200), thing('dog', 350, 50, 120, 300)


def test_perfect_boxes(capfd):
  scores = precision(
    image(
      ', '.join([written('cat', 100, 100, 200, 200), written('Dog', 350, 50, 120, 300)]), [CAT, DOG]
    )
  )
  assert scores == pytest.approx({'AP': 1, 'AP50': 1, 'AP75': 1, 'AP large': 1})
  assert capfd.readouterr().out == ''  # The output of pycocotools is hidden.


def test_answers_without_a_valid_box_score_zero():
  for answer in ('', 'a cat', 'cat [0.1, 0.2]', written('cat', 600, 0, 30, 30)):
    assert precision(image(answer, [CAT, DOG]))['AP'] == 0


def test_a_shifted_box_counts_up_to_its_iou():
  # Shifted by a ninth of its width: IoU = (8/9) / (10/9) = 0.8, which meets the seven thresholds
  # from 0.5 to 0.8.
  scores = precision(image(written('cat', 100 + 199.99 / 9, 100, 200, 200), [CAT]))
  assert scores == pytest.approx({'AP': 0.7, 'AP50': 1, 'AP75': 1, 'AP large': 0.7})


def test_a_missed_object_halves_recall():
  other = thing('cat', 400, 100, 200, 200)
  # Precision 1 up to recall 0.5: 51 of the 101 recall levels.
  assert precision(image(written('cat', 100, 100, 200, 200), [CAT, other]))['AP'] == pytest.approx(
    51 / 101
  )


def test_a_wrong_class_is_a_miss_for_one_class_and_counts_against_the_other():
  answer = ', '.join([written('dog', 100, 100, 200, 200), written('dog', 350, 50, 120, 300)])
  # Cat: no prediction. Dog: the wrong box comes first, so precision is 1/2 at every recall.
  assert precision(image(answer, [CAT, DOG]))['AP'] == pytest.approx((0 + 0.5) / 2)
  right_first = ', '.join([written('dog', 350, 50, 120, 300), written('dog', 100, 100, 200, 200)])
  assert precision(image(right_first, [CAT, DOG]))['AP'] == pytest.approx((0 + 1) / 2)


def test_boxes_on_a_crowd_are_ignored():
  crowd = thing('cat', 300, 0, 300, 400, crowd=1)
  in_crowd = [written('cat', 310 + 90 * i, 10, 80, 300) for i in range(3)]
  answer = ', '.join([*in_crowd, written('cat', 100, 100, 200, 200)])
  assert precision(image(answer, [CAT, crowd]))['AP'] == pytest.approx(1)
  assert precision(image(answer, [CAT]))['AP'] == pytest.approx(1 / 4)


def test_a_class_without_truth_is_ignored_and_an_empty_image_can_lower_the_score():
  unicorn, cat = written('unicorn', 0, 0, 100, 100), written('cat', 100, 100, 200, 200)
  assert precision(image(f'{unicorn}, {cat}', [CAT]))['AP'] == pytest.approx(1)
  assert precision(image(cat, [], image_id=0), image(cat, [CAT]))['AP'] == pytest.approx(1 / 2)


def test_sizes():
  objects = [
    thing('cat', 10, 10, 20, 20),
    thing('cat', 100, 100, 60, 60),
    thing('cat', 300, 100, 200, 200),
  ]
  scores = precision(image(', '.join(written('cat', *o['bbox']) for o in objects[:2]), objects))
  assert (scores['AP small'], scores['AP medium'], scores['AP large']) == pytest.approx((1, 1, 0))


def test_f1_of_each_image():
  lines = [
    image(written('cat', 100, 100, 200, 200), [CAT, DOG]),
    image('', [CAT]),
    image('', []),
    image(written('cat', 100, 100, 200, 200), [CAT, thing('cat', 0, 0, 9, 9, crowd=1)]),
  ]
  assert PER_EXAMPLE['coco_ap'](lines) == pytest.approx([2 / 3, 0, None, 1])


def test_images_without_objects_are_an_error():
  with pytest.raises(SphinxError, match='images without objects'):
    precision(image('', []))


# A person of 17 keypoints on a line, in a box of 160 x 200 pixels.
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


def as_answer(points):
  """{name: (x, y) in pixels} as an answer."""
  places = {name: boxes.pad_box((x, y, x, y), WIDTH, HEIGHT)[:2] for name, (x, y) in points.items()}
  return ', '.join(f'{name} [{x:.8f}, {y:.8f}]' for name, (x, y) in places.items())


def pose(answer, truth, image_id=1, others=()):
  return {
    'image_id': image_id,
    'width': WIDTH,
    'height': HEIGHT,
    'person': truth,
    'others': list(others),
    'answer': answer,
  }


NAMED = dict(zip(coordinates.KEYPOINTS, POINTS))


def test_oks_by_hand():
  # The nose is off by d = 2 sigma sqrt(area): exp(-1/2). The left eye is missing, the right exact.
  truth = person(visible=(2, 2, 1) + (0,) * 14)
  off = 2 * coco_oks.SIGMAS[0] * math.sqrt(AREA)
  answer = as_answer(
    {'nose': (POINTS[0][0] + off, POINTS[0][1]), 'right eye': POINTS[2], 'left hip': (1, 1)}
  )
  expected = (math.exp(-0.5) + 0 + 1) / 3
  assert PER_EXAMPLE['coco_oks']([pose(answer, truth)]) == pytest.approx([expected])
  # 0.5355 meets the lowest of the ten thresholds only.
  assert PROTOCOLS['coco_oks']([pose(answer, truth)])['AP'] == pytest.approx(0.1)


@pytest.mark.parametrize('offset', [3.0, 6.0, 9.0, 14.0, 20.0])
def test_average_precision_is_the_share_of_thresholds_below_the_oks(offset):
  answer = as_answer({name: (x + offset, y) for name, (x, y) in NAMED.items()})
  line = pose(answer, person())
  met = sum(PER_EXAMPLE['coco_oks']([line])[0] >= 0.5 + 0.05 * i for i in range(10))
  assert PROTOCOLS['coco_oks']([line])['AP'] == pytest.approx(met / 10)


def test_poses_perfect_and_wrong():
  assert PROTOCOLS['coco_oks']([pose(as_answer(NAMED), person())]) == pytest.approx(
    {'AP': 1, 'AP50': 1, 'AP75': 1, 'AP large': 1, 'AR': 1}
  )
  for answer in (
    '',
    'nose',
    'nose [0.1, 0.2, 0.3, 0.4]',
    as_answer({'tail': (1, 1)}),
    as_answer({'nose': (600, 400)}),
  ):
    assert PROTOCOLS['coco_oks']([pose(answer, person())])['AP'] == 0


def test_people_without_a_question_do_not_lower_recall():
  others = [person(visible=(0,) * 17), person(crowd=1)]
  assert PROTOCOLS['coco_oks']([pose(as_answer(NAMED), person(), others=others)])[
    'AP'
  ] == pytest.approx(1)
  assert PER_EXAMPLE['coco_oks']([pose('', person(visible=(0,) * 17))]) == [None]


def test_missing_a_second_person_halves_recall():
  far = person([(x + 200, y) for x, y in POINTS])
  lines = [pose(as_answer(NAMED), person()), pose('', far)]
  assert PROTOCOLS['coco_oks'](lines)['AP'] == pytest.approx(51 / 101)
