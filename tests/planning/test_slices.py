import pytest

from sphinx_jax.core import errors
from sphinx_jax.planning import slices


@pytest.mark.parametrize(
  'name, accelerator, devices',
  [
    ('v5p:4x4x4', 'v5p-128', 64),
    ('v4:2x2x1', 'v4-8', 4),
    ('v5e:4x8', 'v5litepod-32', 32),
    ('v6e:16x16', 'v6e-256', 256),
  ],
)
def test_a_slice_is_found_by_both_of_its_names(name, accelerator, devices):
  tpu_slice = slices.find(name)
  assert tpu_slice == slices.find(accelerator)
  assert (tpu_slice.name, tpu_slice.accelerator, tpu_slice.devices) == (name, accelerator, devices)
  assert len({device.coords for device in slices.absent_devices(tpu_slice)}) == devices


@pytest.mark.parametrize(
  'name, words',
  [
    ('v5p:3x3x3', 'v5p:2x2x1, .*v5p:4x4x4'),
    ('v5e-32', 'v5e:4x8'),
    ('v7:2x2', 'v4:2x2x1.*v6e:16x16'),
  ],
)
def test_the_error_for_a_slice_that_does_not_exist_lists_those_that_do(name, words):
  with pytest.raises(errors.SphinxError, match=words):
    slices.find(name)
