"""Chooses the next token from logits: greedy, or temperature and nucleus sampling."""

import jax
import jax.numpy as jnp


def greedy(logits: jax.Array) -> jax.Array:
  """The likeliest token of every row: float32[B, vocab] -> int32[B]."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def nucleus(
  logits: jax.Array, keys: jax.Array, temperature: jax.Array, top_p: jax.Array
) -> jax.Array:
  """Samples from the smallest set of tokens with at least `top_p` of the probability.

  Args:
    logits: float32[B, vocab].
    keys: B random keys, one a row, so that a row's draw does not depend on the other rows.
    temperature: float32[] or float32[B,1], > 0.
    top_p: float32[] or float32[B,1], in (0, 1]; 1 samples from all tokens.

  Returns:
    int32[B].
  """
  logits = logits / temperature
  ranked = jnp.sort(logits, axis=-1, descending=True)
  probabilities = jax.nn.softmax(ranked, axis=-1)
  # Probability of all likelier tokens. It is 0 for the likeliest token, which is always kept.
  before = jnp.cumsum(probabilities, axis=-1) - probabilities
  threshold = jnp.min(jnp.where(before < top_p, ranked, jnp.inf), axis=-1, keepdims=True)
  kept = jnp.where(logits >= threshold, logits, -jnp.inf)
  return jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
