"""Draws what an answer's text says on the picture it is about: boxes with labels, keypoints with the COCO skeleton.

Works from the text alone (`core.coordinates.parse_groups`), so one function serves every task. Coordinates live on
the padded square; here they are taken back to the original picture (FACTS "Boxes and points in text").
"""

from PIL import Image, ImageDraw, ImageFont

from sphinx_jax.core import boxes, coordinates

# The limbs between COCO's 17 keypoints.
SKELETON = (
  (15, 13),
  (13, 11),
  (16, 14),
  (14, 12),
  (11, 12),
  (5, 11),
  (6, 12),
  (5, 6),
  (5, 7),
  (6, 8),
  (7, 9),
  (8, 10),
  (1, 2),
  (0, 1),
  (0, 2),
  (1, 3),
  (2, 4),
  (3, 5),
  (4, 6),
)

# DocLayNet's classes keep one colour each; other labels take the palette's colours as they come.
LAYOUT = {
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
_ASKED = '#111111'
_LEFT, _RIGHT, _MIDDLE = '#2f6fde', '#d9822b', '#2a9d6f'


def draw(image, answer, asked='', scale=None, edge=320):
  """The picture with the boxes and keypoints of an answer.

  Args:
    image: uint8[Y, X, 3], the original picture.
    answer: text in the official form, coordinates on the padded square of this picture.
    asked: text of the question; its boxes are drawn in black, so that one sees what was asked about.
    scale: the picture is enlarged by this whole number; None makes its longer edge about `edge` pixels.
    edge: pixels.

  Returns:
    PIL image.
  """
  height, width = image.shape[:2]
  scale = scale or max(1, round(edge / max(width, height)))
  picture = (
    Image.fromarray(image)
    .convert('RGB')
    .resize((width * scale, height * scale), Image.Resampling.NEAREST)
  )
  brush = _Brush(picture, width, height, scale)
  for _, numbers in coordinates.parse_groups(asked):
    for group in numbers:
      brush.mark('', group, _ASKED)
  colours, people = {}, [{}]
  for label, numbers in coordinates.parse_groups(answer):
    name = _keypoint(label)
    if name is not None and len(numbers[0]) == 2:
      if name in people[-1]:  # a name that comes again begins the next person
        people.append({})
      people[-1][name] = brush.pixels(numbers[0])
      continue
    people.append({})  # a box is of the next person, if people are what the answer tells of
    colour = colours.setdefault(label, LAYOUT.get(label, PALETTE[len(colours) % len(PALETTE)]))
    for group in numbers:
      brush.mark(label, group, colour)
  for person in people:
    brush.pose(person)
  return picture


def is_drawable(answer) -> bool:
  """Whether an answer holds anything that `draw` would show."""
  return bool(coordinates.parse_groups(answer))


def _keypoint(label):
  """Index of the keypoint that a label names, or None; words before the name are allowed ("person: nose")."""
  words = label.lower().split()
  for count in (2, 1):
    name = ' '.join(words[-count:])
    if name in coordinates.KEYPOINTS:
      return coordinates.KEYPOINTS.index(name)
  return None


class _Brush:
  """Draws in coordinates of the padded square onto an enlarged picture."""

  def __init__(self, picture, width, height, scale):
    self._size = (width, height)
    self._scale = scale
    self._to = ImageDraw.Draw(picture)
    self._limits = picture.size
    self._font = ImageFont.load_default(max(11, min(picture.size) // 26))
    self._line = max(2, max(picture.size) // 100)

  def pixels(self, numbers):
    """Two or four coordinates in [0, 1] as pixels of the enlarged picture."""
    x1, y1, x2, y2 = (*numbers, *numbers) if len(numbers) == 2 else numbers
    box = boxes.unpad_box((x1, y1, x2, y2), *self._size)
    return tuple(value * self._scale for value in box)[: len(numbers)]

  def mark(self, label, numbers, colour):
    """A box, or a point, with its label."""
    place = self.pixels(numbers)
    if len(place) == 2:
      self._dot(place, colour, 2 * self._line)
      self._label(label, place, place[1], colour)
      return
    x1, y1, x2, y2 = place
    if x2 <= x1 or y2 <= y1:  # an inverted box is shown as the two corners that were said
      self._dot((x1, y1), colour, self._line)
      self._dot((x2, y2), colour, self._line)
    else:
      self._to.rectangle((x1, y1, x2, y2), outline=colour, width=self._line)
    self._label(label, (x1, y1), y2, colour)

  def pose(self, person):
    """Limbs, then joints: {keypoint index: (x, y) pixels}."""
    for a, b in SKELETON:
      if a in person and b in person:
        self._to.line((*person[a], *person[b]), fill=_side(max(a, b), min(a, b)), width=self._line)
    for index, place in person.items():
      self._dot(place, _side(index, index), self._line + 1)

  def _dot(self, place, colour, radius):
    x, y = place
    self._to.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline='white')

  def _label(self, label, corner, bottom, colour):
    if not label:
      return
    x, y = corner
    left, top, right, low = self._to.textbbox((0, 0), label, font=self._font)
    width, height = right - left + 6, low - top + 6
    x = min(max(x, 0), max(self._limits[0] - width, 0))
    y = (
      y - height if y >= height else min(bottom, self._limits[1] - height)
    )  # above, or below at the top edge
    self._to.rectangle((x, y, x + width, y + height), fill=colour)
    self._to.text((x + 3 - left, y + 3 - top), label, fill='white', font=self._font)


def _side(a, b):
  """Colour of a joint or limb: left, right, or between both sides."""
  sides = {coordinates.KEYPOINTS[index].split()[0] for index in (a, b)}
  return _LEFT if sides == {'left'} else _RIGHT if sides == {'right'} else _MIDDLE
