"""Human pose: the 17 COCO keypoints of a person, `nose [x, y], left eye [x, y], ...`, or of everyone.

Everyone's are `person [box]: nose [x, y], ...` for each, from left to right, one to a line. Joints without annotation are not
mentioned, and neither are people who have none.
"""

from sphinx_jax.core import coordinates
from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import task as base

INSTRUCTIONS = (
  'Detect the keypoints of {}.',
  'Find the keypoints of {}.',
  'What is the pose of {}?',
  'Estimate the pose of {}.',
)
EVERYONE = 'every person'

TOLERANCE = 0.1  # Of the figure's size, the longest edge of its box.
FEW = 4  # More people than this are not asked for at once: each takes some 250 tokens.


def turns(annotation, rng, max_turns):
  """One turn for each of up to max_turns people, or at times one for all of them.

  A person is pointed out by a box where there are several, or, in annotations with 'every', may be others.
  """
  every = bool(annotation.get('every'))
  people = [
    person
    for person in base.single(annotation['people'])
    if any(visible > 0 for *_, visible in person['keypoints'])
  ]
  if every and 0 < len(people) <= FEW and rng.random() < 0.5:
    return [_everyone(people, rng)]
  result = []
  alone = len(annotation['people']) == 1 and not every
  for person in base.sample(people, rng, max_turns, 'people with keypoints'):
    box = base.checked_box(person['box'])
    points = _annotated(person['keypoints'])
    who = 'the person' if alone else f'the person in {coordinates.format_box(box)}'
    answer = coordinates.format_keypoints(points.items())
    result.append(
      base.Turn(
        base.choose(INSTRUCTIONS, rng).format(who), answer, {'keypoints': points, 'box': box}
      )
    )
  return result


def _everyone(people, rng):
  people = [
    {'box': base.checked_box(person['box']), 'keypoints': _annotated(person['keypoints'])}
    for person in sorted(people, key=base.center)
  ]
  answer = '\n'.join(
    f'person {coordinates.format_box(person["box"])}: '
    f'{coordinates.format_keypoints(person["keypoints"].items())}'
    for person in people
  )
  return base.Turn(base.choose(INSTRUCTIONS, rng).format(EVERYONE), answer, {'people': people})


def _annotated(keypoints):
  if len(keypoints) != len(coordinates.KEYPOINTS):
    raise BadExample(
      'wrong number of keypoints', f'{len(keypoints)}, expected {len(coordinates.KEYPOINTS)}'
    )
  points = {
    name: [float(x), float(y)]
    for name, (x, y, visible) in zip(coordinates.KEYPOINTS, keypoints)
    if visible > 0
  }
  for name, point in points.items():
    if not all(0 <= number <= 1 for number in point):
      raise BadExample('keypoint outside the image', f'{name} {point}, expected 0 <= x, y <= 1')
  return points


def parse(answer):
  """The people an answer tells of: [{keypoint: (x, y)}, ...]; a box begins the next one, a name counts once, the first."""
  people = [{}]
  for name, group in coordinates.parse_groups(answer):
    if len(group[0]) == 4 and people[-1]:
      people.append({})
    elif len(group[0]) == 2:
      people[-1].setdefault(base.normalize(name), group[0])
  return people


def score(answer, truth):
  """(annotated keypoints within TOLERANCE of the figure's size, annotated keypoints).

  Of everyone, each person of the answer stands for the one whose keypoints it meets most, best first.
  """
  said = parse(answer)
  if 'people' not in truth:
    return float(_hits(said[0], truth)), float(len(truth['keypoints']))
  people = truth['people']
  pairs = sorted(
    ((_hits(one, person), p, t) for p, one in enumerate(said) for t, person in enumerate(people)),
    key=lambda pair: (-pair[0], *pair[1:]),
  )
  total, used_said, used_true = 0, set(), set()
  for hits, p, t in pairs:
    if p not in used_said and t not in used_true:
      total += hits
      used_said.add(p)
      used_true.add(t)
  return float(total), float(sum(len(person['keypoints']) for person in people))


def _hits(points, person):
  x1, y1, x2, y2 = person['box']
  reach = TOLERANCE * max(x2 - x1, y2 - y1)
  return sum(
    (points[name][0] - x) ** 2 + (points[name][1] - y) ** 2 <= reach**2
    for name, (x, y) in person['keypoints'].items()
    if name in points
  )


TASK = base.Task('pose', 'keypoints within 0.1', INSTRUCTIONS, turns, score)
