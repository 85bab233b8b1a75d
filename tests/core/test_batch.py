import numpy as np
import pytest

from sphinx_jax.core import batch as batch_lib, errors


def _batch():
  spec = batch_lib.spec(batch_size=2, seq_len=8, images=1, image_size=4)
  batch = {name: np.zeros(struct.shape, struct.dtype) for name, struct in spec.items()}
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


def test_visual_tokens_are_placed_among_the_ids():
  tokens, index = batch_lib.interleave([1, 7, 8], images_at=[1], visual_tokens=2, first_image=3)
  assert tokens.tolist() == [1, 0, 0, 7, 8] and index.tolist() == [-1, 6, 7, -1, -1]
  tokens, index = batch_lib.interleave([1, 7, 8], images_at=[1, 3], visual_tokens=1)
  assert tokens.tolist() == [1, 0, 7, 8, 0] and index.tolist() == [-1, 0, -1, -1, 1]
  tokens, index = batch_lib.interleave([1, 7], images_at=[], visual_tokens=2)
  assert tokens.tolist() == [1, 7] and index.tolist() == [-1, -1]
