"""Choosing the next token from logits: greedy, or temperature and nucleus sampling with a random stream per row."""

import jax
import jax.numpy as jnp


def greedy(logits):
  """The likeliest token: float32[B, V] -> int32[B]."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def nucleus(logits, keys, temperature, top_p):
  """Samples from the smallest set of tokens that holds `top_p` of the probability.

  Args:
    logits: float32[B, V].
    keys: B random keys, one a row, so that a row's draw does not depend on its neighbours.
    temperature: float32[], > 0.
    top_p: float32[] in (0, 1]; 1 samples from all tokens.
  Returns:
    int32[B].
  """
  logits = logits / temperature
  ranked = jnp.sort(logits, axis=-1, descending=True)
  probabilities = jax.nn.softmax(ranked, axis=-1)
  before = jnp.cumsum(probabilities, axis=-1) - probabilities  # the likeliest token always stays
  floor = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), axis=-1, keepdims=True)
  kept = jnp.where(logits >= floor, logits, -jnp.inf)
  return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
