import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from sphinx_jax.core import errors
from sphinx_jax.models import quantized

SHAPES = [(256, 192), (192, 3, 64), (96, 40), (32, 8)]


def kernel(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('form', quantized.STORED)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_values_are_those_of_qwix_within_half_a_step(form, shape):
  weights = kernel(*shape)
  leaves = quantized.quantize(weights, form)
  shapes = quantized.shapes(shape, form)
  assert {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()} == {
    name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()
  }
  wide = quantized.widen(leaves)
  array = qwix.quantize(
    weights,
    quantized.FORMS[form].qtype,
    channelwise_axes=range(1, len(shape)),
    tiled_axes={0: quantized.tile_of(shape[0], form)},
  )
  np.testing.assert_allclose(wide, qwix.dequantize(array), rtol=1e-6, atol=1e-7)
  # The largest distance between neighbors, in units of the scale.
  levels = quantized.FORMS[form].levels
  step = 1.0 if levels is None else max(np.diff(levels))
  scale = np.repeat(leaves[quantized.SCALE], quantized.tile_of(shape[0], form), axis=0)
  assert np.all(np.abs(wide - weights) <= step / 2 * scale * (1 + 1e-4))


@pytest.mark.parametrize('form', quantized.STORED)
@pytest.mark.parametrize(('rows', 'width'), [(3, 256), (3, 192), (40, 256)])
def test_a_product_in_parts_and_its_gradient_are_those_of_the_widened_matrix(
  monkeypatch, form, rows, width
):
  monkeypatch.setattr(quantized, '_WIDE', 2**11)
  monkeypatch.setattr(quantized, '_NARROW', 2**11)
  leaves = quantized.quantize(kernel(width, 48), form)
  wide, x = quantized.widen(leaves), kernel(rows, width)
  weights = kernel(rows, 48)
  product = lambda x: (quantized.matmul(x, leaves) * weights).sum()
  np.testing.assert_allclose(quantized.matmul(x, leaves), x @ wide, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(jax.grad(product)(x), weights @ wide.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(('form', 'share'), [('int8', 0.56), ('int4', 0.32), ('nf4', 0.32)])
def test_a_layer_of_7b_takes_its_share_of_bfloat16(form, share):
  leaves = quantized.shapes((4096, 11008), form)
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
  assert size <= share * 2 * 4096 * 11008


@pytest.mark.parametrize('form', quantized.FORMS)
def test_no_product_holds_a_widened_matrix(optimized, form):
  """The temporaries of forward and backward pass are a few parts of the matrix, not all of it."""
  width, out = 4096, 8192
  leaves = quantized.shapes((width, out), form)
  x = jax.ShapeDtypeStruct((64, width), jnp.float32)
  loss = lambda x, leaves: jnp.square(quantized.matmul(x, leaves)).sum()
  compiled = jax.jit(jax.grad(loss)).lower(x, leaves).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * width * out / 2


@pytest.mark.parametrize('rows', [3, 40])
def test_a_dynamic_product_rounds_both_sides_to_8_bits(rows):
  leaves, x = quantized.quantize(kernel(256, 48), quantized.DYNAMIC), kernel(rows, 256)
  rounded = qwix.quantize(x, jnp.int8, channelwise_axes=[0], tiled_axes={1: 128})
  assert rounded.scale.shape == (rows, 2)
  codes = np.asarray(rounded.qvalue, int).reshape(rows, 2, 128)
  sums = np.einsum('rtk,tkn->rtn', codes, np.reshape(leaves['int8_dynamic'], (2, 128, 48)))
  expected = np.einsum('rtn,rt,tn->rn', sums, rounded.scale, leaves[quantized.SCALE])
  np.testing.assert_allclose(quantized.matmul(x, leaves), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('rows', [1, 2048])
def test_a_dynamic_product_is_one_of_8_bit_numbers_on_a_gpu_or_tpu(rows):
  leaves = quantized.shapes((1024, 4096), quantized.DYNAMIC)
  x = jax.ShapeDtypeStruct((rows, 1024), jnp.bfloat16)
  for platform in ('tpu', 'cuda'):
    lowered = jax.jit(quantized.matmul).trace(x, leaves).lower(lowering_platforms=(platform,))
    products = re.findall(
      r'dot_general.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\) -> tensor<\S*x(\w+)>',
      lowered.as_text(),
    )
    assert products == [('i8', 'i8', 'i32')]


def test_an_odd_matrix_has_no_pairs():
  assert quantized.tile_of(129, 'int8') == 43
  with pytest.raises(errors.SphinxError, match='a matrix of 129 rows, expected an even number'):
    quantized.tile_of(129, 'nf4')
