"""Small pictures of every awkward kind, as files of official layouts."""

import io

import numpy as np
from PIL import Image


def encoded(
  width: int = 40, height: int = 30, mode: str = 'RGB', form: str = 'JPEG', seed: int = 0
) -> bytes:
  """A picture of noise: mode 'RGB', 'L' (grey), 'CMYK', 'RGBA', ...; form 'JPEG' or 'PNG'."""
  pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(file, form)
  return file.getvalue()


def write(path, data: bytes | None = None, **kind) -> None:
  """Writes a picture (or these bytes) and the folders above it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encoded(**kind) if data is None else data)


def truncated() -> bytes:
  """A JPEG that ends too early, whose head is whole."""
  return encoded()[:-400]
