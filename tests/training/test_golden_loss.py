"""Loss and gradients against recorded ones of the official code, with frozen encoders."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import sphinx_jax
from sphinx_jax.core import trees
from sphinx_jax.data import packing
from sphinx_jax.models import families, variants
from sphinx_jax.training import state, step
from tests.generate import golden

RECORDED = np.load(golden.FOLDER / 'forward/loss.npz')
RECORDED_NORMS = json.loads((golden.FOLDER / 'forward/loss_grad_norms.json').read_text())
VISUAL_TOKENS, LENGTH = golden.WORDS['llama_ens'], 48


@pytest.fixture(scope='module')
def model():
  return sphinx_jax.load(golden.FOLDER / 'models/llama_ens/mp1')


@pytest.fixture(scope='module')
def update(model):
  """batch -> (state, metrics). The optimizer only keeps the gradient as its state."""
  module = families.build(model.config)
  apply = functools.partial(families.apply, module)
  keep = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, _, params: (jax.tree.map(jnp.zeros_like, params), gradient),
  )
  trained, frozen = state.split(model.params, (('encoders/.*', 'frozen'), ('.*', 'train')))
  begin = state.State(jnp.int32(0), trained, frozen, keep.init(trained))
  run = jax.jit(step.make_train_step(step.likelihood(apply, 1), keep, lambda count: jnp.float32(0)))
  return lambda batch: run(begin, batch)


def batch_of(images, ids=RECORDED['examples'], labels=RECORDED['labels']):
  """The recorded examples, one per row. The first ends at its last token, the second is padded."""
  assert np.array_equal(labels[labels > 0], ids[labels > 0])
  lengths = 1 + np.flatnonzero(ids[0])[-1], LENGTH
  files = [(), ()] if images is None else [(png(pixels),) for pixels in images]
  rows = []
  for tokens, row_labels, length, file in zip(ids, labels, lengths, files):
    weights = (row_labels[:length] > 0).astype(np.float32)
    rows.append([packing.Example(tokens[:length].astype(np.int32), weights, file, task=0)])
  visual_tokens, slots = (0, 0) if images is None else (VISUAL_TOKENS, 1)
  return packing.assemble(rows, visual_tokens + LENGTH, slots, 224, VISUAL_TOKENS, report_bad=None)


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def mean(metrics):
  return float(metrics['loss']) / max(float(metrics['weight']), 1)


def official_gradients(model, new):
  """Name in the official code -> gradient in its shape, for every trained parameter."""
  gradients, result = trees.flatten(new.opt_state), {}
  for weight in variants.weights(model.config):
    for index, key in weight.places():
      if weight.path in gradients:
        result[key] = weight.to_foreign(np.asarray(gradients[weight.path])[index])
  return result


@pytest.fixture(scope='module')
def images():
  return golden.forward('llama_ens')['image_u8']


@pytest.fixture(scope='module', params=['image', 'text'])
def case(request, model, update, images):
  new, metrics = update(batch_of(images if request.param == 'image' else None))
  return request.param, metrics, official_gradients(model, new)


def test_loss_is_the_official_one(case):
  """The zero labels at the end of rows, which the official code cuts off, change nothing."""
  name, metrics, _ = case
  assert not RECORDED['labels'][:, -10:].any()
  assert mean(metrics) == pytest.approx(float(RECORDED[f'loss_{name}']), abs=1e-5)
  assert metrics['weight'] == (RECORDED['labels'][:, 1:] > 0).sum()


def test_every_gradient_norm_is_the_official_one(case):
  name, metrics, gradients = case
  norms = {key.removeprefix('llma.'): norm for key, norm in RECORDED_NORMS[name].items()}
  assert gradients.keys() == norms.keys()  # Everything trained, and nothing frozen.
  for key, norm in norms.items():
    expected = norm or 0  # None: not part of the official graph.
    assert np.linalg.norm(gradients[key]) == pytest.approx(expected, rel=1e-3), key
  assert metrics['grad_norm'] == pytest.approx(RECORDED_NORMS[f'{name}_total'], rel=1e-3)


def test_gradients_are_the_official_ones(case):
  name, _, gradients = case
  keys = [key for key in RECORDED if key.startswith(f'grad_{name}/')]
  assert len(keys) >= 5
  for key in keys:
    gradient, recorded = gradients[key.partition('/')[2]], RECORDED[key]
    tolerance = 1e-4 * np.abs(recorded).max()
    np.testing.assert_allclose(gradient, recorded, rtol=1e-3, atol=tolerance, err_msg=key)


@pytest.mark.parametrize('with_image', [True, False])
def test_a_fully_masked_batch_has_loss_zero_and_no_gradient(update, images, with_image):
  labels = np.zeros_like(RECORDED['labels'])
  new, metrics = update(batch_of(images if with_image else None, labels=labels))
  assert RECORDED['loss_all_masked'] == 0 and metrics['loss'] == 0 and metrics['grad_norm'] == 0
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(new.opt_state))


def test_the_frozen_q_former_has_no_dropout_where_the_official_one_drops(update, images):
  """The official Q-Former stays in train mode (docs/official_sphinx.md, "Training").

  Ours uses no random numbers. The recorded loss was computed in eval mode.
  """
  first, first_metrics = update(batch_of(images))
  second, second_metrics = update(batch_of(images))
  assert first_metrics['loss'] == second_metrics['loss']
  jax.tree.map(np.testing.assert_array_equal, first.opt_state, second.opt_state)


def test_the_padding_of_a_row_changes_nothing(update):
  ids = RECORDED['examples'].copy()
  ids[1, -20:] = 7  # After the end of the row, without labels.
  _, metrics = update(batch_of(None, ids=ids))
  assert mean(metrics) == pytest.approx(float(RECORDED['loss_text']), abs=1e-5)
