import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import trees
from sphinx_jax.models import families, narrow
from tests.models import small


@pytest.mark.parametrize('rows', [1, 16, 17])
@pytest.mark.parametrize('width, out', [(16, 8), (64, 256), (200, 300)])
def test_a_product_with_bits_is_that_with_the_widened_weights(rows, width, out):
  x, weights = (
    jax.random.normal(jax.random.key(i), shape)
    for i, shape in enumerate([(rows, width), (width, out)])
  )
  weights = weights.astype(jnp.bfloat16)
  bits = narrow.bits(weights)
  assert bits.dtype == narrow.BITS
  np.testing.assert_array_equal(narrow.widen(bits), weights.astype(jnp.float32))
  got = jax.jit(narrow.matmul)(x, bits)
  np.testing.assert_allclose(got, x @ weights.astype(jnp.float32), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('rows', [1, 64])
def test_no_widened_matrix_is_held(rows):
  size = 4096
  x = jax.ShapeDtypeStruct((rows, size), jnp.float32)
  weights = jax.ShapeDtypeStruct((size, size), narrow.BITS)
  memory = jax.jit(narrow.matmul).lower(x, weights).compile().memory_analysis()
  assert memory.temp_size_in_bytes < size * size * 4 / 3


def test_separate_layers_share_the_memory_of_the_stack():
  # Layers of any real size are aligned as JAX needs it.
  stack = jnp.ones((3, 64, 64), jnp.bfloat16)
  config = small.light()
  params = {'llm': {'layers': {'wq': {'kernel': stack}}, 'embed': jnp.ones((4, 64))}}
  with config.unlocked():
    config.llm.layers = 3
  weights = trees.flatten(families.for_decoding(config, params))
  begin = stack.unsafe_buffer_pointer()
  found = [weights[f'llm/layers_{i}/wq/kernel'].unsafe_buffer_pointer() for i in range(3)]
  assert found == [begin + i * 64 * 64 * 2 for i in range(3)]
