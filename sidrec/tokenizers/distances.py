"""Squared distances to codewords, as JAX functions."""

import jax
import jax.numpy as jnp


def squared(x: jax.Array, book: jax.Array) -> jax.Array:
  """Returns squared Euclidean distances [B, K] of [B, D] to [K, D]."""
  # Full precision: differences of distances decide, and TPUs would round.
  cross = jnp.matmul(x, book.T, precision=jax.lax.Precision.HIGHEST)
  return (jnp.sum(x * x, -1)[:, None] - 2 * cross
          + jnp.sum(book * book, -1)[None])


def top_two_gap(dist: jax.Array) -> jax.Array:
  """Returns second smallest minus smallest of each row: [B, K] -> [B]."""
  first = jnp.argmin(dist, -1)
  others = jnp.where(
      jnp.arange(dist.shape[-1])[None] == first[:, None], jnp.inf, dist)
  return jnp.min(others, -1) - jnp.min(dist, -1)
