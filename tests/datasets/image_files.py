"""Small encoded images of every unusual kind."""

import io

import numpy as np
from PIL import Image


def encoded(
  width: int = 40, height: int = 30, mode: str = 'RGB', form: str = 'JPEG', seed: int = 0
) -> bytes:
  """An image of noise, in mode 'RGB', 'L' (gray), 'CMYK', 'RGBA', ... and form 'JPEG' or 'PNG'."""
  pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, form)
  return file.getvalue()


def write(path, data: bytes | None = None, **kind) -> None:
  """Writes an image, or the given bytes, and creates the parent directories."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encoded(**kind) if data is None else data)


def truncated() -> bytes:
  """A JPEG that is cut short, with a complete header."""
  return encoded()[:-400]
