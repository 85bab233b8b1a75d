"""Training with kept features in place of pixels computes the same numbers."""

import jax
import numpy as np
import pytest

from sphinx_jax import run as run_lib
from sphinx_jax.core import errors
from tests.models import idefics2_golden, small
from tests.tiny import make_batch, run, tiny

IMAGES = [0, 1, 2, 2, 1, 2, 1, 0]  # Of each row.
USED = sum(IMAGES)
BATCHES = 2  # Of an epoch.
STEPS = 2 * BATCHES


def config(**changes):
  """Class tokens, patches and queries of views and sub-images; rows with two image slots."""
  encoders = small.config().encoders
  used = {name: encoders[name].to_dict() for name in ('clip', 'qformer')}
  model = small.config(pool=2, encoders=used, llm=tiny().model.llm.to_dict())
  batch = {'batch.images': 2, 'batch.seq_len': 160, 'batch.size': 8}
  return tiny(**({'model': model} | batch | changes))


def packed(settings, position):
  """A batch whose rows have no, one or two images. It is that of an epoch of BATCHES batches."""
  batch = make_batch(settings, position % BATCHES)
  words = run_lib.families.visual_tokens(settings.model)
  index = batch['visual_index']
  index[:] = -1
  for row, images in enumerate(IMAGES):
    index[row, 1 : 1 + images * words] = np.arange(images * words)
    batch['images'][row, images:] = 0
    batch['image_size'][row, images:] = 0
  batch['images'][4, 0] = batch['images'][1, 0]  # An image twice in a batch.
  return batch


@pytest.fixture(scope='module')
def params():
  return small.weights(run_lib.Program(config()).params)


def test_epochs_with_features_equal_those_with_pixels(params, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(run_lib.log, 'propagate', True)
  settings = config(cache_features=str(tmp_path))
  with caplog.at_level('INFO'):
    (losses, after), again = (run(settings, params, STEPS, packed) for _ in range(2))
  assert again[0] == losses
  jax.tree.map(np.testing.assert_array_equal, again[1], after)
  # Up to rounding: XLA may fuse the rest of an update in another way without the encoders. Where
  # this was written it does not, and all numbers are equal.
  expected_losses, expected = run(config(), params, STEPS, packed)
  np.testing.assert_allclose(losses, expected_losses, rtol=3e-7)
  for path, leaf in expected.items():
    np.testing.assert_allclose(after[path], leaf, atol=1e-6, err_msg=path)
  # The first run computes each image once, although two slots of a batch have the same one.
  assert caplog.messages[-1] == f'features: {STEPS * USED} read, 0 computed, 0 damaged'
  computed = BATCHES * (USED - 1)
  assert f'features: {STEPS * USED - BATCHES * USED} read, {computed} computed, 0' in caplog.text


def test_features_of_other_encoders_are_not_read(params, tmp_path):
  settings = config(cache_features=str(tmp_path))
  program = run_lib.Program(settings)
  open_features = lambda params: run_lib.open_features(settings, program, params, iter(())).folder
  other = jax.tree.map(np.copy, params)
  other['llm']['norm']['scale'] += 1
  assert open_features(other) == open_features(params)
  other['encoders']['clip']['patch']['kernel'].flat[0] += 1
  assert open_features(other) != open_features(params)
  half_round = config(cache_features=str(tmp_path), **{'model.half_round': True})
  folder = run_lib.open_features(half_round, run_lib.Program(half_round), params, iter(())).folder
  assert folder != open_features(params)


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {
        'trainable': (('encoders/clip/.*bias', 'train'), ('encoders/.*', 'frozen'), ('.*', 'train'))
      },
      r"encoders/clip/\S+bias, by the pattern 'encoders/clip/\.\*bias' of trainable",
    ),
    ({'batch.images': 0}, 'cache_features: got batch.images 0'),
    ({'model': idefics2_golden.config()}, 'got a model that has no features of single images'),
  ],
)
def test_features_that_change_or_do_not_exist_are_refused(changes, words, tmp_path):
  with pytest.raises(errors.SphinxError, match=words):
    run_lib.Program(config(cache_features=str(tmp_path), **changes))


def test_a_bucket_is_refused(params):
  settings = config(cache_features='gs://bucket/features')
  with pytest.raises(errors.SphinxError, match="cache_features: got the bucket 'gs://bucket/fea"):
    run_lib.open_features(settings, run_lib.Program(settings), params, iter(()))
