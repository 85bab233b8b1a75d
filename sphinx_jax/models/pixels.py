"""Pixels as the numbers that a vision model reads."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """uint8[...,3] pixels -> float32[...,3], `(x / 255 - mean) / std`."""
  scaled = _divide(images.astype(jnp.float32), 255)
  return _divide(scaled - jnp.asarray(mean, jnp.float32), std)


def renormalize(
  images: jax.Array,
  from_mean: Sequence[float],
  from_std: Sequence[float],
  mean: Sequence[float],
  std: Sequence[float],
) -> jax.Array:
  """Normalized pixels [...,3] -> the same pixels normalized with another mean and deviation."""
  from_mean, from_std = np.float32(from_mean), np.float32(from_std)
  return (images * from_std + from_mean - np.float32(mean)) / np.float32(std)


def _divide(x: jax.Array, by: float | Sequence[float]) -> jax.Array:
  # XLA turns division by a broadcast constant into a product with its rounded reciprocal, and
  # half_round would then round some pixels the other way. The barrier hides the constant.
  divisor = jnp.broadcast_to(jnp.asarray(by, jnp.float32), x.shape)
  return x / jax.lax.optimization_barrier(divisor)
