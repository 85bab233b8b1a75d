"""Idefics2 beside numbers recorded from HF transformers (tests/golden/idefics2)."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors, trees
from sphinx_jax.models import families, idefics2, pixels
from sphinx_jax.models.encoders import siglip
from sphinx_jax.parallel import mesh as meshes
from tests.models import idefics2_golden as golden

FEATURES, LOGITS = 5e-5, 1e-4  # Largest differences: tests/golden/idefics2/README.md, "Tolerances".


@functools.cache
def outputs(case):
  """Recorded arrays, logits, and what every module returned (name -> its outputs)."""
  arrays = golden.recorded(case)
  model = families.build(golden.config())
  apply = functools.partial(
    model.apply,
    capture_intermediates=lambda module, method: (
      type(module).__name__ in ('Tower', 'Perceiver') or method in ('_embed', 'hidden_states')
    ),
    mutable='intermediates',
  )
  logits, state = jax.jit(apply)({'params': golden.params()}, **golden.batch(arrays))
  return arrays, logits, state['intermediates']


@pytest.mark.parametrize('case', golden.some('batch'))
def test_logits_are_the_recorded_ones(case):
  arrays, logits, _ = outputs(case)
  for got, want in zip(
    golden.text_positions(logits, arrays), golden.unpadded(arrays['logits'], arrays)
  ):
    np.testing.assert_allclose(got, want, atol=LOGITS, rtol=0)


@pytest.mark.parametrize('case', golden.some('two_images', of=('one_image', 'two_images', 'batch')))
def test_settings_of_the_first_release_give_its_differences(case):
  """As far from today's logits as those of transformers 4.40 are; either setting shows."""
  arrays = golden.recorded(case)
  config = golden.config(**{'vision.patch_rule': 'any', 'perceiver.eps': 1e-5})
  hidden, (matrix,), _ = families.apply(
    families.build(config), golden.params(), golden.batch(arrays)
  )
  pairs = zip(
    golden.text_positions(hidden @ matrix, arrays), golden.unpadded(arrays['logits'], arrays)
  )
  recorded = golden.FACTS['other_versions']['4.40.0']['max_logit_difference'][case]
  assert max(np.abs(got - want).max() for got, want in pairs) == pytest.approx(recorded, abs=2e-5)


@pytest.mark.parametrize('case', golden.some('batch', of=golden.CASES[1:]))
def test_features_are_the_recorded_ones(case):
  arrays, _, inner = outputs(case)
  used = golden.real_images(arrays).reshape(-1)
  patches, vectors = inner['vision']['__call__'][0], inner['perceiver']['__call__'][0]
  want_real = arrays['patch_attention_mask'].reshape(used.sum(), -1).astype(bool)
  is_real = np.arange(want_real.shape[1]) < want_real.sum(axis=1)[:, None]
  np.testing.assert_allclose(
    patches[used][is_real], arrays['vision_last'][want_real], atol=FEATURES, rtol=0
  )
  np.testing.assert_allclose(vectors[used], arrays['perceiver'], atol=FEATURES, rtol=0)
  merged = inner['_embed'][0]
  for got, want in zip(
    golden.text_positions(merged, arrays), golden.unpadded(arrays['merged'], arrays)
  ):
    np.testing.assert_allclose(got, want, atol=FEATURES, rtol=0)


def test_pixels_are_normalized_as_recorded():
  arrays = golden.recorded('batch')
  batch = golden.batch(arrays)
  inside = arrays['pixel_attention_mask'].astype(bool) & golden.real_images(arrays)[..., None, None]
  got = np.asarray(pixels.normalize(batch['images'], siglip.MEAN, siglip.STD))
  want = arrays['pixel_values'].transpose(0, 1, 3, 4, 2)
  np.testing.assert_array_equal(got[inside], want[inside])


@pytest.mark.parametrize('pos_grid', [7, 70])
def test_positions_are_the_recorded_ones(pos_grid):
  """Also those that float32 rounds down, as patch 5 of 25."""
  want = np.load(golden.FOLDER / 'positions.npz')[f'buckets_{pos_grid}']
  np.testing.assert_array_equal(
    siglip.position_buckets(pos_grid, pos_grid), np.where(want < 0, 0, want)
  )


@pytest.mark.parametrize('case', [case for case in golden.CASES if case != 'text'])
def test_patches_stand_at_the_recorded_positions(case):
  arrays = golden.recorded(case)
  sizes = golden.batch(arrays)['image_size'].reshape(-1, 2)
  used = golden.real_images(arrays).reshape(-1)
  canvas = arrays['patch_attention_mask'].shape[1:]
  grid_size = siglip.grid_sizes(jnp.asarray(sizes[used]), 14, 'all')
  index, ids, segments, fits = siglip.place_patches(
    grid_size[:, None], canvas, 7, math.prod(canvas)
  )
  want_real = arrays['patch_attention_mask'].reshape(used.sum(), -1).astype(bool)
  is_real = np.asarray(segments) > 0
  assert fits.all()
  np.testing.assert_array_equal(index[is_real], np.nonzero(want_real)[1])
  np.testing.assert_array_equal(ids[is_real], arrays['position_ids'][want_real])


def test_the_rule_of_the_first_release_takes_patches_that_pixels_touch():
  sizes = jnp.array([[28, 29], [27, 42]])
  assert siglip.grid_sizes(sizes, 14, 'all').tolist() == [[2, 2], [1, 3]]
  assert siglip.grid_sizes(sizes, 14, 'any').tolist() == [[2, 3], [2, 3]]


def next_labels(arrays):
  """Recorded labels at the positions that predict them, right-padded; -100 elsewhere."""
  labels = np.full(arrays['labels'].shape, -100)
  for row, (want, mask) in enumerate(zip(arrays['labels'], arrays['attention_mask'])):
    want = want[mask.astype(bool)]
    labels[row, : len(want) - 1] = want[1:]
  return labels


def mean_loss(logits, labels):
  picked = jnp.take_along_axis(
    jax.nn.log_softmax(logits), jnp.maximum(labels, 0)[..., None], axis=-1
  )[..., 0]
  return -(picked * (labels >= 0)).sum() / (labels >= 0).sum()


@pytest.mark.parametrize('case', golden.some('batch', of=('text', 'one_image', 'batch')))
def test_loss_is_the_recorded_one(case):
  """Left padding predicts the first token of its row there, which has no counterpart here."""
  arrays, logits, _ = outputs(case)
  recorded = np.zeros_like(logits)
  for row, values in enumerate(golden.unpadded(arrays['logits'], arrays)):
    recorded[row, : len(values)] = values
  labels = next_labels(arrays)
  want = mean_loss(recorded, labels)
  assert float(mean_loss(logits, labels)) == pytest.approx(float(want), rel=1e-5)
  if arrays['attention_mask'].all():
    assert float(want) == pytest.approx(golden.FACTS['loss'][case]['loss'], rel=1e-5)


def test_gradients_are_the_recorded_ones():
  arrays, facts = golden.recorded('one_image'), golden.FACTS['loss']['one_image']
  batch = {name: jnp.asarray(field) for name, field in golden.batch(arrays).items()}
  model, labels = families.build(golden.config()), next_labels(arrays)
  gradient = jax.grad(lambda params: mean_loss(model.apply({'params': params}, **batch), labels))
  flat = trees.flatten(jax.jit(gradient)(golden.params()))
  recorded = dict(np.load(golden.FOLDER / 'forward' / 'one_image_gradients.npz'))
  squares = 0
  for weight in idefics2.weights(golden.config()):
    for index, key in weight.places():
      got = weight.to_foreign(np.asarray(flat[weight.path])[index or ...])
      norm = np.linalg.norm(got)
      assert norm == pytest.approx(facts['norms'][key], rel=1e-4, abs=1e-6), key
      squares += norm**2
      if key in recorded:
        largest = np.abs(recorded[key]).max()
        np.testing.assert_allclose(got, recorded[key], atol=max(1e-4 * largest, 1e-6), err_msg=key)
  assert squares**0.5 == pytest.approx(facts['total_grad_norm'], rel=1e-4)


def test_a_cache_continues_as_the_whole_sequence():
  arrays = golden.recorded('two_images')
  batch = {name: jnp.asarray(field) for name, field in golden.batch(arrays).items()}
  model, variables = families.build(golden.config()), {'params': golden.params()}
  visual = model.apply(variables, batch['images'], batch['image_size'], method='encode')
  length = batch['tokens'].shape[1]
  cache, steps = families.init_cache(golden.config(), len(visual), length), []
  for part in (slice(0, length - 2), slice(length - 2, length - 1), slice(length - 1, length)):
    fields = [batch[name][:, part] for name in ('tokens', 'visual_index', 'positions')]
    decode = jax.jit(functools.partial(model.apply, method='decode'))
    logits, cache = decode(variables, *fields, visual, cache)
    steps.append(logits)
  np.testing.assert_allclose(jnp.concatenate(steps, axis=1), arrays['logits'], atol=LOGITS, rtol=0)


def test_a_larger_canvas_changes_nothing():
  arrays = golden.recorded('one_image')
  batch = golden.batch(arrays)
  height, width = batch['images'].shape[2:4]
  room = [(0, 0), (0, 0), (0, 98 - height), (0, 98 - width), (0, 0)]
  batch['images'] = np.pad(batch['images'], room, constant_values=7)
  model = families.build(golden.config())
  logits = jax.jit(model.apply)({'params': golden.params()}, **batch)
  want = golden.unpadded(arrays['logits'], arrays)
  np.testing.assert_allclose(golden.text_positions(logits, arrays)[0], want[0], atol=LOGITS)


@pytest.mark.parametrize('shape', [(13, 98), (98, 112)])
def test_a_canvas_that_has_no_positions_is_refused(shape):
  model, variables = families.build(golden.config()), {'params': golden.params()}
  images = jnp.zeros((1, 1, *shape, 3), jnp.uint8)
  with pytest.raises(errors.SphinxError, match='expected 14 to 111 along each side'):
    jax.eval_shape(lambda: model.apply(variables, images, method='encode'))


def test_a_full_size_model_has_the_released_names_and_shapes():
  for release, vocab in (('idefics2-8b', 32003), ('idefics2-8b-base', 32002)):
    full = json.loads((golden.FOLDER / 'full_size_keys.json').read_text())[release]
    config = idefics2.full_size(vocab=vocab)
    native = trees.flatten(families.abstract_params(config))
    assert trees.count(native) == full['parameters']
    names = {}
    for weight in idefics2.weights(config):
      for _, key in weight.places():
        names[key] = list(weight.foreign_shape(native[weight.path].shape))
    assert len(names) == full['keys_in_file']
    for key, shape in full['shapes_with_layer_0_for_all'].items():
      assert names[key] == shape, key


def test_weights_there_and_back_are_the_same_bits():
  native, seen = trees.flatten(golden.params()), set()
  for weight in idefics2.weights(golden.config()):
    for index, key in weight.places():
      back = weight.to_foreign(native[weight.path][index or ...])
      np.testing.assert_array_equal(back, golden.tensors()[key])
      seen.add(key)
  assert seen == set(golden.tensors())


def encode(images, size, length=None, **changes):
  """Visual tokens of images [B,N,Y,X,3], and a gradient of all parameters."""
  model = families.build(golden.config(**changes))

  def total(params):
    visual = model.apply({'params': params}, images, size, length, method='encode')
    of_image = visual.reshape(*size.shape[:2], 4, -1)
    weight = jnp.linspace(0.5, 1.5, size.shape[1])[:, None, None] * size.any(-1)[..., None, None]
    return jnp.sum(jnp.sin(of_image) * weight), of_image

  gradient, visual = jax.jit(jax.grad(total, has_aux=True))(golden.params())
  return np.asarray(visual), trees.flatten(gradient)


def mixed_images():
  """Two rows of up to four images of several sizes, with noise around them."""
  size = np.array(
    [[[42, 98], [60, 45], [14, 14], [0, 0]], [[98, 14], [43, 57], [42, 42], [28, 14]]], np.int32
  )
  return np.random.default_rng(0).integers(0, 256, (2, 4, 98, 98, 3), np.uint8), size


def test_packed_images_are_those_on_canvases():
  """Whatever stands beside them, with the same gradients, and patches that reach over the edge."""
  images, size = mixed_images()
  changes = {'vision.patch_rule': 'any'}
  want, want_gradient = encode(images, size, **changes)
  got, gradient = encode(images, size, **changes, **{'vision.patches_per_row': 60})
  used = size.any(axis=-1)
  np.testing.assert_allclose(got[used], want[used], atol=FEATURES, rtol=0)
  for path, value in want_gradient.items():
    largest = max(np.abs(value).max(), 1e-2)
    np.testing.assert_allclose(gradient[path], value, atol=1e-4 * largest, err_msg=path)


def test_packed_rows_are_the_same_on_a_mesh_that_splits_their_patches():
  images, size = mixed_images()
  model = families.build(golden.config(**{'vision.patches_per_row': 60}))
  encode = functools.partial(model.apply, method='encode')
  want = jax.jit(encode)({'params': golden.params()}, images, size)
  mesh = meshes.make_mesh(data=1, fsdp=2, tensor=2)
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    whole, rows = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((), (('data', 'fsdp'),)))
    params = jax.device_put({'params': golden.params()}, whole)
    got = jax.jit(encode)(params, *jax.device_put((images, size), rows))
  np.testing.assert_allclose(got, want, atol=FEATURES, rtol=0)


def test_images_beyond_the_patches_of_a_row_are_not_a_number():
  images, size = mixed_images()
  most, count = idefics2.Idefics2.patch_limit(golden.config(**{'vision.patches_per_row': 32}))
  patches = [sum(count(*map(int, image)) for image in row) for row in size]
  assert most == 32 and patches == [34, 30]
  visual, _ = encode(images, size, 32)
  assert np.isnan(visual[0]).all() and np.isfinite(visual[1]).all()


def test_a_slot_without_an_image_is_not_in_gram_matrices():
  batch = golden.batch(golden.recorded('two_images'))
  unused = {
    'images': np.full_like(batch['images'][:, :1], 255),
    'image_size': np.zeros_like(batch['image_size'][:, :1]),
  }
  more = {name: np.concatenate([batch[name], slot], axis=1) for name, slot in unused.items()}
  model = families.build(golden.config())
  params = golden.params()
  measure = jax.jit(lambda batch: families.grams(model, params, batch))
  one, other = measure(batch), measure({**batch, **more})
  assert 'perceiver/layers/wk/kernel' in one and 'vision/trunk/layers/mlp/up/kernel' in one
  for path, gram in one.items():
    np.testing.assert_allclose(gram, other[path], rtol=1e-4, atol=1e-4, err_msg=path)
