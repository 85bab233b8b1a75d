"""EXIF orientation: from pixels as viewers show them to pixels as the file stores them.

Source: TIFF 6.0, tag 274. A viewer mirrors the stored pixels (2), turns them by half (3), mirrors
top and bottom (4), exchanges rows and columns (5), turns them a quarter clockwise (6), exchanges
rows and columns over the other diagonal (7), or turns them a quarter counterclockwise (8).
"""

from collections.abc import Sequence

from sphinx_jax.data.images import Frame

_EXCHANGED = (5, 6, 7, 8)  # Rows are shown as columns.
_FROM_RIGHT = (2, 3, 7, 8)  # The first stored column is shown last.
_FROM_BOTTOM = (3, 4, 6, 7)  # The first stored row is shown last.


def shown_size(frame: Frame) -> tuple[int, int]:
  """Returns width and height in pixels as viewers show an image."""
  width, height, orientation = frame
  return (height, width) if orientation in _EXCHANGED else (width, height)


def stored_point(point: Sequence[float], frame: Frame) -> tuple[float, float]:
  """Converts (x, y) from pixels as shown to pixels as stored."""
  x, y = point
  width, height, orientation = frame
  if orientation in _EXCHANGED:
    x, y = y, x
  return (
    width - x if orientation in _FROM_RIGHT else x,
    height - y if orientation in _FROM_BOTTOM else y,
  )


def stored_box(box: Sequence[float], frame: Frame) -> tuple[float, float, float, float]:
  """Converts (x1, y1, x2, y2) from pixels as shown to pixels as stored."""
  (ax, ay), (bx, by) = stored_point(box[:2], frame), stored_point(box[2:], frame)
  return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)
