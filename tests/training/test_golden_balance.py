"""Loss, balancing loss and gradients of a mixture of experts against the official code.

The encoders are frozen, so their recorded outputs take the place of images.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sphinx_jax
from sphinx_jax.core import batch as batch_contract, trees
from sphinx_jax.models import families, variants
from sphinx_jax.training import state, step
from tests.generate import golden

NAME = 'mixtral_sparse_ens'
RECORDED = np.load(golden.FOLDER / f'forward/{NAME}_loss.npz')
FACTS = json.loads((golden.FOLDER / f'forward/{NAME}_loss.json').read_text())
LENGTH = RECORDED['tokens'].shape[1] - 3  # The official code cuts columns without labels.


def features():
  """What the frozen encoders make of the recorded images, as `families.features` lays it out."""
  recorded = golden.forward(NAME)
  convnext = recorded['convnext_raw'].reshape(2, 32, -1).swapaxes(1, 2)
  convnext = np.concatenate([convnext.mean(axis=1, keepdims=True), convnext], axis=1)
  mixed = np.concatenate([recorded['clip'], convnext, recorded['dinov2']], axis=-1)
  return np.concatenate([x.reshape(2, 1, -1) for x in (recorded['qformer'], mixed)], axis=-1)


def batch_of(with_image):
  words = golden.WORDS[NAME]
  rows = [
    batch_contract.interleave(tokens, (1,) if with_image else (), words)
    for tokens in RECORDED['tokens'][:, :LENGTH].astype(np.int32)
  ]
  tokens, index = (np.stack(field) for field in zip(*rows))
  targets = np.zeros_like(tokens)
  targets[:, -LENGTH:-1] = RECORDED['labels'][:, 1:LENGTH]
  shared = {
    'tokens': tokens,
    'visual_index': index,
    'targets': targets,
    'loss_weight': (targets > 0).astype(np.float32),
    'positions': np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    'segments': np.ones_like(tokens),  # The official code masks no padding.
    'task': np.zeros_like(tokens),
  }
  size = golden.forward(NAME)['image_u8'].shape[1]
  images = {'images': np.zeros((2, 0, size, size, 3), np.uint8)}
  images['image_size'] = np.zeros((2, 0, 2), np.int32)
  return shared | ({'features': features()} if with_image else images)


@pytest.fixture(scope='module')
def model():
  return sphinx_jax.load(golden.FOLDER / f'models/{NAME}/mp2', dtype='float32')


def gradients_of(model, with_image, weight):
  """Metrics and gradients, by official name, of an update with a weight of the balancing loss."""
  config = model.config.copy_and_resolve_references()
  with config.unlocked():
    config.llm.balance_weight, config.llm.count_padding = weight, True
  apply = functools.partial(families.apply, families.build(config))
  keep = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, _, params: (jax.tree.map(jnp.zeros_like, params), gradient),
  )
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model.params)
  trained, frozen = state.split(params, (('encoders/.*', 'frozen'), ('.*', 'train')))
  begin = state.State(jnp.int32(0), trained, frozen, keep.init(trained))
  update = step.make_train_step(step.likelihood(apply, 1), keep, lambda count: jnp.float32(0))
  new, metrics = jax.jit(update)(begin, batch_of(with_image))
  gradients, named = trees.flatten(new.opt_state), {}
  for row in variants.weights(config):
    for index, key in row.places():
      if row.path in gradients:
        named[f'llma.{key}'] = row.to_foreign(np.asarray(gradients[row.path])[index])
  return metrics, named


@pytest.fixture(scope='module', params=['image', 'text'])
def case(request, model):
  return request.param, gradients_of(model, request.param == 'image', FACTS['image']['weight'])


def test_both_losses_are_the_official_ones(case):
  name, (metrics, _) = case
  mean = lambda key: float(metrics[key]) / float(metrics['weight'])
  assert mean('loss') == pytest.approx(FACTS[name]['c_loss'], rel=1e-5)
  assert mean('mean/router/balance') == pytest.approx(FACTS[name]['load_balancing'], rel=1e-5)
  total = mean('loss') + float(metrics['penalty'])
  assert total == pytest.approx(FACTS[name]['total'], rel=1e-5)
  assert sum(mean(f'mean/router/share_{i}') for i in range(4)) == pytest.approx(1)


def test_every_gradient_norm_is_the_official_one(case):
  name, (metrics, gradients) = case
  for key, norm in FACTS[name]['grad_norms_total'].items():
    assert np.linalg.norm(gradients[key]) == pytest.approx(norm or 0, rel=1e-3), key
  assert metrics['grad_norm'] == pytest.approx(FACTS[name]['grad_norm_total'], rel=1e-4)


def test_gradients_are_the_official_ones(case):
  name, (_, gradients) = case
  keys = [key for key in RECORDED if key.startswith(f'grad_{name}/')]
  assert len(keys) >= 5
  for key in keys:
    gradient, recorded = gradients[key.partition('/')[2]], RECORDED[key]
    tolerance = 1e-4 * np.abs(recorded).max()
    np.testing.assert_allclose(gradient, recorded, rtol=1e-3, atol=tolerance, err_msg=key)


def test_without_weight_the_balancing_loss_has_no_gradient(model):
  _, gradients = gradients_of(model, False, 0.0)
  for key, norm in FACTS['text']['grad_norms_c_loss'].items():
    assert np.linalg.norm(gradients[key]) == pytest.approx(norm or 0, rel=1e-3), key
