import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.generate import sampling

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])


def draws(temperature, top_p, count=4000):
  logits = jnp.broadcast_to(jnp.log(PROBABILITIES), (count, 4))
  return np.asarray(
    sampling.nucleus(logits, jax.random.split(jax.random.key(0), count), temperature, top_p)
  )


def shares(ids):
  return np.bincount(ids, minlength=4) / len(ids)


def test_all_tokens_are_drawn_by_their_probability():
  np.testing.assert_allclose(shares(draws(1.0, 1.0)), PROBABILITIES, atol=0.03)


def test_the_nucleus_is_the_smallest_set_that_holds_top_p():
  np.testing.assert_allclose(shares(draws(1.0, 0.7)), [0.625, 0.375, 0, 0], atol=0.03)
  assert set(draws(1.0, 0.01)) == {0}


def test_temperature_sharpens():
  np.testing.assert_allclose(
    shares(draws(0.5, 1.0)), PROBABILITIES**2 / (PROBABILITIES**2).sum(), atol=0.03
  )


def test_greedy_takes_the_likeliest():
  assert list(sampling.greedy(jnp.array([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]]))) == [1, 0]
