"""Human pose: the 17 COCO keypoints of a person, `nose [x, y], left eye [x, y], ...`."""

from sphinx_jax.core import coordinates
from sphinx_jax.data.record import BadExample
from sphinx_jax.data.tasks import base

INSTRUCTIONS = (
    'Detect the keypoints of {}.',
    'Find the keypoints of {}.',
    'What is the pose of {}?',
    'Estimate the pose of {}.',
)

TOLERANCE = 0.1  # Of the figure's size, the longest edge of its box.


def turns(annotation, rng, max_turns):
  """One turn for each of up to max_turns people; where there are several, the person is pointed out by a box."""
  result = []
  alone = len(annotation['people']) == 1
  for person in base.sample(annotation['people'], rng, max_turns, 'people'):
    box = base.checked_box(person['box'])
    points = _annotated(person['keypoints'])
    who = 'the person' if alone else f'the person in {coordinates.format_box(box)}'
    answer = coordinates.format_keypoints(points.items())
    result.append(base.Turn(base.choose(INSTRUCTIONS, rng).format(who), answer, {'keypoints': points, 'box': box}))
  return result


def _annotated(keypoints):
  if len(keypoints) != len(coordinates.KEYPOINTS):
    raise BadExample('wrong number of keypoints', f'{len(keypoints)}, expected {len(coordinates.KEYPOINTS)}')
  points = {name: [float(x), float(y)] for name, (x, y, visible) in zip(coordinates.KEYPOINTS, keypoints) if visible > 0}
  for name, point in points.items():
    if not all(0 <= number <= 1 for number in point):
      raise BadExample('keypoint outside the image', f'{name} {point}, expected 0 <= x, y <= 1')
  return points


def score(answer, truth):
  """(annotated keypoints within TOLERANCE of the figure's size, annotated keypoints); a name counts once, the first."""
  x1, y1, x2, y2 = truth['box']
  reach = TOLERANCE * max(x2 - x1, y2 - y1)
  predicted = {}
  for name, group in coordinates.parse_groups(answer):
    if len(group[0]) == 2:
      predicted.setdefault(base.normalize(name), group[0])
  hits = 0
  for name, (x, y) in truth['keypoints'].items():
    if name in predicted:
      px, py = predicted[name]
      hits += (px - x) ** 2 + (py - y) ** 2 <= reach**2
  return float(hits), float(len(truth['keypoints']))


TASK = base.Task('pose', 'keypoints within 0.1', INSTRUCTIONS, turns, score)
