"""Draws an answer on its image: boxes with labels, keypoints with the COCO skeleton.

The drawing needs only the text of the answer (`core.coordinates.parse_groups`), so one function
serves every task. Coordinates in text are on the padded square and are converted to pixels of the
original image (docs/official_sphinx.md, "Boxes and points in text").
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sphinx_jax.core import boxes, coordinates, text as text_lib

# Limbs as pairs of COCO's 17 keypoints.
SKELETON = (
  *((15, 13), (13, 11), (16, 14), (14, 12)),  # legs
  *((11, 12), (5, 11), (6, 12), (5, 6)),  # torso
  *((5, 7), (6, 8), (7, 9), (8, 10)),  # arms
  *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),  # head
)

# Each class of DocLayNet has a fixed color. Other labels take colors of the palette in order.
LAYOUT_COLORS = {
  'Caption': '#e6a23c',
  'Footnote': '#909399',
  'Formula': '#9b59b6',
  'List-item': '#16a085',
  'Page-footer': '#7f8c8d',
  'Page-header': '#5d6d7e',
  'Picture': '#2ecc71',
  'Section-header': '#e74c3c',
  'Table': '#3498db',
  'Text': '#2f6fde',
  'Title': '#c0392b',
}
PALETTE = ('#e6194b', '#2f6fde', '#2a9d6f', '#d9822b', '#8e44ad', '#00a8b5', '#b5179e', '#7a8b00')
_QUESTION_COLOR = '#111111'
_LABEL_WIDTH = 80  # Characters.
_LEFT_COLOR, _RIGHT_COLOR, _MIDDLE_COLOR = '#2f6fde', '#d9822b', '#2a9d6f'

Point = tuple[float, float]


def draw_answer(
  image: np.ndarray,
  answer: str,
  asked: str = '',
  scale: int | None = None,
  edge: int = 320,
) -> Image.Image:
  """Returns the image with the boxes and keypoints of an answer.

  Args:
    image: uint8[Y,X,3], the original image.
    answer: text of the answer, with coordinates on the padded square of this image.
    asked: text of the question. Its boxes are drawn in black.
    scale: whole factor by which the image is enlarged. None makes the longer edge about `edge`
      pixels. Large images keep their size.
    edge: pixels.
  """
  height, width = image.shape[:2]
  scale = scale or max(1, round(edge / max(width, height)))
  canvas = Image.fromarray(image).convert('RGB')
  canvas = canvas.resize((width * scale, height * scale), Image.Resampling.NEAREST)
  brush = _Brush(canvas, width, height, scale)
  for _, groups in coordinates.parse_groups(asked):
    for numbers in groups:
      brush.mark('', numbers, _QUESTION_COLOR)
  colors: dict[str, str] = {}
  people: list[dict[int, Point]] = [{}]
  for label, groups in coordinates.parse_groups(answer):
    keypoint = _keypoint_index(label)
    if keypoint is not None and len(groups[0]) == 2:
      if keypoint in people[-1]:  # A keypoint that occurs again begins the next person.
        people.append({})
      people[-1][keypoint] = brush.pixels(groups[0])
      continue
    people.append({})  # If the answer is about people, a box begins the next one.
    if label not in colors:
      colors[label] = LAYOUT_COLORS.get(label, PALETTE[len(colors) % len(PALETTE)])
    for numbers in groups:
      brush.mark(label, numbers, colors[label])
  for person in people:
    brush.pose(person)
  return canvas


def is_drawable(answer: str) -> bool:
  """Whether an answer has boxes or points that `draw_answer` would draw."""
  return bool(coordinates.parse_groups(answer))


def _keypoint_index(label: str) -> int | None:
  """Returns the index of the keypoint at the end of a label ("person: nose"), or None."""
  words = label.lower().split()
  for count in (2, 1):
    name = ' '.join(words[-count:])
    if name in coordinates.KEYPOINTS:
      return coordinates.KEYPOINTS.index(name)
  return None


class _Brush:
  """Draws onto an enlarged image, from coordinates on the padded square.

  Args:
    canvas: the enlarged image.
    width: width of the original image in pixels.
    height: height of the original image in pixels.
    scale: factor from the original to the enlarged image.
  """

  def __init__(self, canvas: Image.Image, width: int, height: int, scale: int) -> None:
    self._image_size = (width, height)
    self._scale = scale
    self._draw = ImageDraw.Draw(canvas)
    self._canvas_size = canvas.size
    self._font = ImageFont.load_default(max(11, min(canvas.size) // 26))
    self._line_width = max(2, max(canvas.size) // 100)

  def pixels(self, numbers: Sequence[float]) -> tuple[float, ...]:
    """Converts two or four coordinates in [0, 1] to pixels of the enlarged image.

    What is far outside comes near, because Pillow takes minutes to draw it.
    """
    x1, y1, x2, y2 = (*numbers, *numbers) if len(numbers) == 2 else numbers
    box = boxes.unpad_box((x1, y1, x2, y2), *self._image_size)
    far = 2 * max(self._canvas_size)
    return tuple(min(max(value * self._scale, -far), far) for value in box)[: len(numbers)]

  def mark(self, label: str, numbers: Sequence[float], color: str) -> None:
    """Draws a box or a point with its label."""
    position = self.pixels(numbers)
    if len(position) == 2:
      self._dot(position, color, 2 * self._line_width)
      self._label(label, position, position[1], color)
      return
    x1, y1, x2, y2 = position
    if x2 <= x1 or y2 <= y1:  # An inverted box is drawn as its two corners.
      self._dot((x1, y1), color, self._line_width)
      self._dot((x2, y2), color, self._line_width)
    else:
      self._draw.rectangle((x1, y1, x2, y2), outline=color, width=self._line_width)
    self._label(label, (x1, y1), y2, color)

  def pose(self, person: Mapping[int, Point]) -> None:
    """Draws the limbs and then the joints of {keypoint index: (x, y) in pixels}."""
    for a, b in SKELETON:
      if a in person and b in person:
        color = side_color(max(a, b), min(a, b))
        self._draw.line((*person[a], *person[b]), fill=color, width=self._line_width)
    for index, point in person.items():
      self._dot(point, side_color(index, index), self._line_width + 1)

  def _dot(self, point: Sequence[float], color: str, radius: float) -> None:
    x, y = point
    circle = (x - radius, y - radius, x + radius, y + radius)
    self._draw.ellipse(circle, fill=color, outline='white')

  def _label(self, label: str, corner: Sequence[float], bottom: float, color: str) -> None:
    """Draws a label above `corner`. At the upper edge of the image it is below `bottom`."""
    label = text_lib.one_line(label, _LABEL_WIDTH)
    if not label:
      return
    x, y = corner
    left, top, right, low = self._draw.textbbox((0, 0), label, font=self._font)
    width, height = right - left + 6, low - top + 6
    x = min(max(x, 0), max(self._canvas_size[0] - width, 0))
    y = y - height if y >= height else min(bottom, self._canvas_size[1] - height)
    self._draw.rectangle((x, y, x + width, y + height), fill=color)
    self._draw.text((x + 3 - left, y + 3 - top), label, fill='white', font=self._font)


def side_color(a: int, b: int) -> str:
  """Returns the color of a joint or limb, by whether its keypoints are left, right or both."""
  sides = {coordinates.KEYPOINTS[index].split()[0] for index in (a, b)}
  if sides == {'left'}:
    return _LEFT_COLOR
  if sides == {'right'}:
    return _RIGHT_COLOR
  return _MIDDLE_COLOR
