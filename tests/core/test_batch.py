import numpy as np
import pytest

from sphinx_jax.core import batch as batch_lib, errors


def _batch():
  batch = {
    k: np.zeros(s.shape, s.dtype)
    for k, s in batch_lib.spec(batch_size=2, seq_len=8, images=1, image_size=4).items()
  }
  batch['visual_index'][:] = -1
  return batch


def test_a_good_batch_passes():
  batch_lib.check(_batch(), visual_tokens=3)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda b: b.pop('task'), 'fields'),
    (lambda b: b.update(tokens=b['tokens'].astype(np.int64)), "'tokens': got int64"),
    (lambda b: b['visual_index'].__setitem__((0, 0), 3), r'expected \[-1, 2\]'),
    (lambda b: b['loss_weight'].__setitem__((1, 2), 1), 'weight on padding'),
  ],
)
def test_a_broken_batch_is_refused_by_field(change, message):
  batch = _batch()
  change(batch)
  with pytest.raises(errors.SphinxError, match=message):
    batch_lib.check(batch, visual_tokens=3)
