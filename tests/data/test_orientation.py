import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from sphinx_jax.data import images, orientation


def photo(number, stored):
  """A photo with an EXIF orientation, as JPEG."""
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = number
  buffer = io.BytesIO()
  Image.fromarray(stored).save(buffer, 'JPEG', exif=exif, quality=95)
  return buffer.getvalue()


@pytest.mark.parametrize('number', range(1, 9))
def test_what_is_seen_upright_is_found_in_the_stored_pixels(number, tmp_path):
  stored = np.zeros((48, 80, 3), np.uint8)
  stored[8:24, 16:64] = 255
  data = photo(number, stored)
  (tmp_path / 'a.jpg').write_bytes(data)
  frame = images.frame(data)
  assert frame == images.frame(tmp_path / 'a.jpg') == (80, 48, number)
  shown = images.decode(data, upright=True)
  assert orientation.shown_size(frame) == shown.shape[1::-1]
  rows, columns = np.nonzero(shown[..., 0] > 128)
  box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
  assert orientation.stored_box(box, frame) == (16, 8, 64, 24)


def test_an_image_without_exif_is_as_it_is_stored(tmp_path):
  Image.new('L', (3, 2)).save(tmp_path / 'a.tif')
  assert images.frame(tmp_path / 'a.tif') == (3, 2, 1)
