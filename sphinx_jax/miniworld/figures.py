"""Stick figures with the 17 COCO keypoints.

A figure faces the viewer, so its left side is on the image's right. Left limbs are warm (red arm,
orange leg), right limbs are cool (blue arm, green leg).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sphinx_jax.core.coordinates import KEYPOINTS
from sphinx_jax.miniworld.draw import COLORS, DARK, Canvas, Point, jitter, lattice, shade

# Angles in degrees from straight down, outward positive: (upper arm, forearm) and (thigh, shin).
# The first pair is the side that acts, the second one the other side.
_POSES = {
  'standing': dict(arms=((14, 8), (14, 8)), legs=((9, 4), (9, 4))),
  'waving': dict(arms=((118, 172), (14, 8)), legs=((9, 4), (9, 4))),
  'arms up': dict(arms=((158, 174), (158, 174)), legs=((10, 5), (10, 5))),
  'arms out': dict(arms=((90, 90), (90, 90)), legs=((14, 8), (14, 8))),
  'hands on hips': dict(arms=((52, -48), (52, -48)), legs=((12, 6), (12, 6))),
  'jumping': dict(arms=((132, 150), (132, 150)), legs=((58, -38), (58, -38))),
  'sitting': dict(arms=((24, -18), (24, -18)), legs=((78, 2), (78, 2))),
  'kicking': dict(arms=((48, 40), (58, 70)), legs=((74, 66), (6, 2))),
}
ACTIONS = tuple(_POSES)
SIDED = ('waving', 'kicking')
_SKIN = (236, 190, 150)
# Radius of the head and lengths of the limbs' parts, in units of the body.
_HEAD = 0.105
_ARM = (0.155, 0.15)
_LEG = (0.2, 0.2)


def _toward(start: Point, angle: float, length: float, sign: int) -> Point:
  """Returns the end of a limb. The angle is in degrees; sign 1 is the left side, -1 the right."""
  angle = math.radians(angle)
  return start[0] + sign * math.sin(angle) * length, start[1] + math.cos(angle) * length


def _jitter_angles(angles: Sequence[float], rng: np.random.Generator) -> list[float]:
  return [angle + rng.uniform(-4, 4) for angle in angles]


def _joints(rng: np.random.Generator, action: str, acting: str) -> dict[str, Point]:
  """Returns {keypoint: (x, y)} in units of the body, with the hips at 0."""
  pose, points = _POSES[action], {}
  lean = rng.uniform(-0.03, 0.03)
  for side, sign in (('left', 1), ('right', -1)):
    which = 0 if side == acting else 1
    (upper, fore), (thigh, shin) = (
      _jitter_angles(pose[limb][which], rng) for limb in ('arms', 'legs')
    )
    points[f'{side} hip'] = hip = (sign * 0.055, 0.0)
    points[f'{side} knee'] = knee = _toward(hip, thigh, _LEG[0], sign)
    points[f'{side} ankle'] = _toward(knee, shin, _LEG[1], sign)
    points[f'{side} shoulder'] = shoulder = (sign * 0.115 + lean, -0.27)
    points[f'{side} elbow'] = elbow = _toward(shoulder, upper, _ARM[0], sign)
    points[f'{side} wrist'] = _toward(elbow, fore, _ARM[1], sign)
  center, tilt = (lean * 1.4, -0.27 - 0.045 - _HEAD), math.radians(rng.uniform(-5, 5))
  c, s = math.cos(tilt), math.sin(tilt)
  face = {
    'nose': (0, 0.15),
    'left eye': (0.42, -0.2),
    'right eye': (-0.42, -0.2),
    'left ear': (1, 0),
    'right ear': (-1, 0),
  }
  for name, (x, y) in face.items():
    points[name] = (center[0] + _HEAD * (c * x - s * y), center[1] + _HEAD * (s * x + c * y))
  points['head'] = center
  return points


def _paint(
  canvas: Canvas, points: Mapping[str, Point], unit: float, rng: np.random.Generator
) -> list[float]:
  """Draws a figure from its joints in [0, 1]; returns its tight box."""
  canvas.begin()
  thick = 0.055 * unit
  ink = {'left': (COLORS['red'], COLORS['orange']), 'right': (COLORS['blue'], COLORS['green'])}
  for side in ('right', 'left'):
    arm, leg = (jitter(color, rng, 8) for color in ink[side])
    hip, knee, ankle = (points[f'{side} {joint}'] for joint in ('hip', 'knee', 'ankle'))
    canvas.line(hip, knee, thick, leg)
    canvas.line(knee, ankle, thick, leg)
    shoulder, elbow, wrist = (points[f'{side} {joint}'] for joint in ('shoulder', 'elbow', 'wrist'))
    canvas.line(shoulder, elbow, thick, arm)
    canvas.line(elbow, wrist, thick, arm)
    canvas.dot(ankle, 0.034 * unit, shade(leg, 0.6))
    canvas.dot(wrist, 0.034 * unit, shade(arm, 0.6))
  canvas.polygon(
    [points[name] for name in ('left shoulder', 'right shoulder', 'right hip', 'left hip')],
    (92, 92, 104),
  )
  head, radius = points['head'], _HEAD * unit
  for name in ('left ear', 'right ear'):
    canvas.dot(points[name], 0.28 * radius, shade(_SKIN, 0.75))
  canvas.dot(head, radius, _SKIN)
  for name, dot in (('left eye', 0.17), ('right eye', 0.17), ('nose', 0.14)):
    canvas.dot(points[name], dot * radius, (190, 90, 70) if name == 'nose' else DARK)
  return canvas.box()


def _stage(canvas: Canvas, action: str, points: Mapping[str, Point], unit: float) -> None:
  """Draws the stool of a sitting figure, or the shadow of a jumping one."""
  x = (points['left hip'][0] + points['right hip'][0]) / 2
  floor = max(points['left ankle'][1], points['right ankle'][1]) + 0.03 * unit
  if action == 'sitting':
    seat = points['left hip'][1] + 0.03 * unit
    canvas.rectangle((x - 0.12 * unit, seat, x + 0.12 * unit, floor), (176, 150, 120))
  if action == 'jumping':
    y = min(floor + 0.07, 0.975)
    canvas.ellipse((x - 0.2 * unit, y - 0.016, x + 0.2 * unit, y + 0.016), (186, 186, 190))


def draw(rng: np.random.Generator, size: int) -> tuple[Canvas, list[dict]]:
  """Draws one figure.

  Returns:
    (canvas, [{'box', 'keypoints', 'action', 'side'}]). 'keypoints' are 17 of [x, y, 2]; visibility
    2 is visible. 'side' is the figure's own side that acts ('left' or 'right') for waving and
    kicking, and '' for other actions.
  """
  action = ACTIONS[int(rng.integers(len(ACTIONS)))]
  acting = ('left', 'right')[int(rng.integers(2))]
  joints = _joints(rng, action, acting)
  across, down = zip(*joints.values(), strict=True)
  left, right, bottom = min(across) - 0.04, max(across) + 0.04, max(down) + 0.04
  top = min(min(down) - 0.04, joints['head'][1] - _HEAD - 0.02)
  unit = min(float(rng.choice((0.6, 0.85))) / (bottom - top), 0.96 / (right - left), 1.0)
  x0 = lattice(rng, unit * (right - left)) - unit * left
  y0 = lattice(rng, unit * (bottom - top)) - unit * top
  points = {name: (x0 + unit * x, y0 + unit * y) for name, (x, y) in joints.items()}
  canvas = Canvas(size)
  _stage(canvas, action, points, unit)
  box = _paint(canvas, points, unit, rng)
  keypoints = [[round(points[name][0], 4), round(points[name][1], 4), 2] for name in KEYPOINTS]
  return canvas, [
    {
      'box': box,
      'keypoints': keypoints,
      'action': action,
      'side': acting if action in SIDED else '',
    }
  ]
