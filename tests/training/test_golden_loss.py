"""Loss and gradients of the official model, through our batch, our update and frozen encoders."""

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
from sphinx_jax.models import sphinx, variants as official
from sphinx_jax.training import state, step
from tests.generate import golden

WANT = np.load(golden.FOLDER / 'forward/loss.npz')
NORMS = json.loads((golden.FOLDER / 'forward/loss_grad_norms.json').read_text())
WORDS, LENGTH = golden.WORDS['llama_ens'], 48


@pytest.fixture(scope='module')
def model():
  return sphinx_jax.load(golden.FOLDER / 'models/llama_ens/mp1')


@pytest.fixture(scope='module')
def update(model):
  """state, batch -> (state, metrics); the optimizer changes nothing and keeps the gradient as its state."""
  module = sphinx.build(model.config)
  apply = functools.partial(sphinx.apply, module)
  keep = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, _, params: (jax.tree.map(jnp.zeros_like, params), gradient),
  )
  trained, frozen = state.split(model.params, (('encoders/.*', 'frozen'), ('.*', 'train')))
  begin = state.State(jnp.int32(0), trained, frozen, keep.init(trained))
  run = jax.jit(step.make_train_step(apply, keep, lambda count: jnp.float32(0), tasks=1))
  return lambda batch: run(begin, batch)


def batch_of(images, ids=WANT['examples'], labels=WANT['labels']):
  """The golden examples, a row each; the first is cut behind its last token, the second keeps the zeros that end it."""
  assert np.array_equal(labels[labels > 0], ids[labels > 0])
  lengths = 1 + np.flatnonzero(ids[0])[-1], LENGTH
  rows = [
    [
      packing.Example(
        ids[i, :n].astype(np.int32), (labels[i, :n] > 0).astype(np.float32), file, task=0
      )
    ]
    for i, (n, file) in enumerate(
      zip(lengths, [None, None] if images is None else map(png, images))
    )
  ]
  words, slots = (0, 0) if images is None else (WORDS, 1)
  return packing.assemble(rows, words + LENGTH, slots, 224, WORDS, report_bad=None)


def png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def mean(metrics):
  return float(metrics['loss']) / max(float(metrics['weight']), 1)


def official_gradients(model, new):
  """Official name -> gradient in the official layout, of every trained parameter."""
  gradients, found = trees.flatten(new.opt_state), {}
  for weight in official.weights(model.config):
    for index, key in weight.places():
      if weight.path in gradients:
        found[key] = weight.to_foreign(np.asarray(gradients[weight.path])[index])
  return found


@pytest.fixture(scope='module')
def images():
  return golden.forward('llama_ens')['image_u8']


@pytest.fixture(scope='module', params=['image', 'text'])
def case(request, model, update, images):
  new, metrics = update(batch_of(images if request.param == 'image' else None))
  return request.param, metrics, official_gradients(model, new)


def test_loss_is_the_official_one(case):
  """Rows end in zero labels, which the official code cuts first: they change nothing. Both encode without dropout here."""
  name, metrics, _ = case
  assert not WANT['labels'][:, -10:].any()
  assert mean(metrics) == pytest.approx(float(WANT[f'loss_{name}']), abs=1e-5)
  assert metrics['weight'] == (WANT['labels'][:, 1:] > 0).sum()


def test_every_gradient_norm_is_the_official_one(case):
  name, metrics, gradients = case
  norms = {key.removeprefix('llma.'): norm for key, norm in NORMS[name].items()}
  assert gradients.keys() == norms.keys()  # What is trained, and nothing frozen.
  for key, norm in norms.items():
    assert np.linalg.norm(gradients[key]) == pytest.approx(norm or 0, rel=1e-3), (
      key
    )  # None: not in the official graph.
  assert metrics['grad_norm'] == pytest.approx(NORMS[f'{name}_total'], rel=1e-3)


def test_gradients_are_the_official_ones(case):
  name, _, gradients = case
  keys = [key for key in WANT if key.startswith(f'grad_{name}/')]
  assert len(keys) >= 5
  for key in keys:
    want = WANT[key]
    np.testing.assert_allclose(
      gradients[key.partition('/')[2]], want, rtol=1e-3, atol=1e-4 * np.abs(want).max(), err_msg=key
    )


@pytest.mark.parametrize('picture', [True, False])
def test_all_masked_is_zero_with_finite_gradients(update, images, picture):
  new, metrics = update(batch_of(images if picture else None, labels=np.zeros_like(WANT['labels'])))
  assert WANT['loss_all_masked'] == 0 and metrics['loss'] == 0 and metrics['grad_norm'] == 0
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(new.opt_state))


def test_the_frozen_q_former_has_no_dropout_where_the_official_one_drops(update, images):
  """FACTS "Training": theirs stays in train mode. Ours takes no random numbers, and the loss above is of eval mode."""
  (one, first), (two, second) = (update(batch_of(images)) for _ in range(2))
  assert first['loss'] == second['loss']
  jax.tree.map(np.testing.assert_array_equal, one.opt_state, two.opt_state)


def test_what_pads_a_row_is_irrelevant(update):
  ids = WANT['examples'].copy()
  ids[1, -20:] = 7  # Behind the row's end, without labels.
  _, metrics = update(batch_of(None, ids=ids))
  assert mean(metrics) == pytest.approx(float(WANT['loss_text']), abs=1e-5)
