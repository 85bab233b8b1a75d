"""Human pose: the 17 COCO keypoints of a person, `nose [x, y], left eye [x, y], ...`, or of all.

For all people the answer is `person [box]: nose [x, y], ...`, one line per person, from left to
right. Joints without annotation are left out, and so are people without an annotated joint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.core import coordinates
from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task

INSTRUCTIONS = (
  'Detect the keypoints of {}.',
  'Find the keypoints of {}.',
  'What is the pose of {}?',
  'Estimate the pose of {}.',
)
EVERYONE = 'every person'

TOLERANCE = 0.1  # Of the person's size, the longest edge of the box.
FEW = 4  # More people are not asked for at once, because each takes about 250 tokens.


def turns(annotation: dict[str, Any], rng: np.random.Generator, max_turns: int) -> list[task.Turn]:
  """Returns one turn for each of up to max_turns people, or sometimes one for all of them.

  The question has a person's box if there are several people, or may be ('every').
  """
  every = bool(annotation.get('every'))
  people = [
    person
    for person in task.without_crowds(annotation['people'])
    if any(visibility > 0 for _, _, visibility in person['keypoints'])
  ]
  if every and 0 < len(people) <= FEW and rng.random() < 0.5:
    return [_everyone_turn(people, rng)]
  result = []
  is_alone = len(annotation['people']) == 1 and not every
  for person in task.sample(people, rng, max_turns, 'people with keypoints'):
    box = task.check_box(person['box'])
    points = _annotated_points(person['keypoints'])
    who = 'the person' if is_alone else f'the person in {coordinates.format_box(box)}'
    answer = coordinates.format_keypoints(points.items())
    instruction = task.choose(INSTRUCTIONS, rng).format(who)
    result.append(task.Turn(instruction, answer, {'keypoints': points, 'box': box}))
  return result


def _everyone_turn(people: Sequence[dict[str, Any]], rng: np.random.Generator) -> task.Turn:
  truth = [
    {'box': task.check_box(person['box']), 'keypoints': _annotated_points(person['keypoints'])}
    for person in sorted(people, key=task.center)
  ]
  lines = []
  for person in truth:
    keypoints = coordinates.format_keypoints(person['keypoints'].items())
    lines.append(f'person {coordinates.format_box(person["box"])}: {keypoints}')
  instruction = task.choose(INSTRUCTIONS, rng).format(EVERYONE)
  return task.Turn(instruction, '\n'.join(lines), {'people': truth})


def _annotated_points(keypoints: Sequence[Sequence[float]]) -> dict[str, list[float]]:
  """Returns {keypoint: [x, y]} of the annotated ones. Raises BadExample."""
  if len(keypoints) != len(coordinates.KEYPOINTS):
    raise BadExample(
      'wrong number of keypoints', f'{len(keypoints)}, expected {len(coordinates.KEYPOINTS)}'
    )
  points = {
    name: [float(x), float(y)]
    for name, (x, y, visibility) in zip(coordinates.KEYPOINTS, keypoints)
    if visibility > 0
  }
  for name, point in points.items():
    if not all(0 <= number <= 1 for number in point):
      raise BadExample('keypoint outside the image', f'{name} {point}, expected 0 <= x, y <= 1')
  return points


def parse(answer: str) -> list[dict[str, tuple[float, ...]]]:
  """Returns the people of an answer as {keypoint: (x, y)}.

  A box begins the next person. Of a repeated keypoint the first counts.
  """
  people: list[dict[str, tuple[float, ...]]] = [{}]
  for name, group in coordinates.parse_groups(answer):
    if len(group[0]) == 4 and people[-1]:
      people.append({})
    elif len(group[0]) == 2:
      people[-1].setdefault(task.normalize(name), group[0])
  return people


def score(answer: str, truth: dict[str, Any]) -> tuple[float, float]:
  """(annotated keypoints within TOLERANCE of the person's size, annotated keypoints).

  For all people, each person of the answer is matched to the true person with the most hits, best
  pairs first.
  """
  predicted = parse(answer)
  if 'people' not in truth:
    return float(_count_hits(predicted[0], truth)), float(len(truth['keypoints']))
  people = truth['people']
  pairs = [
    (_count_hits(points, person), p, t)
    for p, points in enumerate(predicted)
    for t, person in enumerate(people)
  ]
  pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
  total = 0
  used_predicted: set[int] = set()
  used_true: set[int] = set()
  for hits, p, t in pairs:
    if p not in used_predicted and t not in used_true:
      total += hits
      used_predicted.add(p)
      used_true.add(t)
  return float(total), float(sum(len(person['keypoints']) for person in people))


def _count_hits(points: Mapping[str, Sequence[float]], person: Mapping[str, Any]) -> int:
  x1, y1, x2, y2 = person['box']
  reach = TOLERANCE * max(x2 - x1, y2 - y1)
  return sum(
    (points[name][0] - x) ** 2 + (points[name][1] - y) ** 2 <= reach**2
    for name, (x, y) in person['keypoints'].items()
    if name in points
  )


TASK = task.Task('pose', 'keypoints within 0.1', INSTRUCTIONS, turns, score)
