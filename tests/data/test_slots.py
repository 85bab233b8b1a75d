"""Slots of images beside the processor of HF transformers (tests/golden/idefics2/preproc)."""

import json

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.data import images, slots
from sphinx_jax.data.record import BadExample
from sphinx_jax.models import pixels
from sphinx_jax.models.encoders import siglip
from tests.models.idefics2_golden import FOLDER

META = json.loads((FOLDER / 'preproc' / 'meta.json').read_text())
IMAGES = ('square', 'wide3to1', 'tall1to3', 'tiny', 'large', 'gray', 'rgba', 'palette')


@pytest.mark.parametrize('name', IMAGES)
@pytest.mark.parametrize('kind', ['whole', 'split'])
def test_pixels_are_the_recorded_ones(name, kind):
  """The image processor composites on white; the full processor drops transparency before it."""
  recorded = np.load(FOLDER / 'preproc' / f'{name}.npz')
  image = images.to_rgb(Image.open(FOLDER / 'images' / f'{name}.png'), alpha='white')
  parts = slots.Fit(42, 98, split=kind == 'split')(image).pixels
  canvas, sizes = slots.on_canvas(parts, (98, 98))
  np.testing.assert_array_equal(sizes, recorded[f'sizes_{kind}'])
  want = recorded[f'pixel_values_{kind}'][0].transpose(0, 2, 3, 1)
  mask = recorded[f'pixel_attention_mask_{kind}'][0].astype(bool)
  got = np.asarray(pixels.normalize(canvas, siglip.MEAN, siglip.STD))
  height, width = want.shape[1:3]
  np.testing.assert_array_equal(got[:, :height, :width][mask], want[mask])


def test_transparency_is_dropped_as_by_the_full_processor():
  want = np.load(FOLDER / 'preproc' / 'rgba.npz')['pixel_values_whole_through_processor']
  (slot,) = slots.Fit(42, 98)(images.to_rgb(Image.open(FOLDER / 'images' / 'rgba.png'))).pixels
  got = np.asarray(pixels.normalize(slot, siglip.MEAN, siglip.STD))
  np.testing.assert_array_equal(got, want.reshape(3, *slot.shape[:2]).transpose(1, 2, 0))


def test_sizes_at_the_released_edges_are_the_recorded_ones():
  whole, split = slots.Fit(378, 980), slots.Fit(378, 980, split=True)
  for row in META['full_size']:
    image = Image.new('RGB', (row['width'], row['height']))
    (slot,) = whole(image).pixels
    assert list(slot.shape[:2]) == row['resized_height_width'], row
    if None in row['split']:
      with pytest.raises(BadExample, match='cannot be split'):
        split(image)
    else:
      assert [list(slot.shape[:2]) for slot in split(image).pixels] == row['split'], row
      assert [[height, width] for width, height in split.sizes(*image.size)] == row['split']
  assert (whole.count, split.count) == (1, 5)


def test_a_canvas_has_zeros_around_its_slot():
  canvas, sizes = slots.on_canvas([np.full((2, 3, 3), 9, np.uint8)], (4, 4))
  assert sizes.tolist() == [[2, 3]] and canvas.sum() == 9 * 2 * 3 * 3
  assert canvas[0, :2, :3].min() == 9
  assert [array.shape for array in slots.on_canvas([], (4, 4), 2)] == [(2, 4, 4, 3), (2, 2)]
