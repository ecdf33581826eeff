"""Reads places of every user's row: one flat look-up, without bounds checks."""

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types

_MAX_INT32 = np.iinfo(np.int32).max


def at(x: types.Array, index: types.Array) -> jax.Array:
  """Returns x[index] for indices that are known to lie in range.

  Args:
    x: [n, ...].
    index: integers of any shape, in [0, n).
  """
  return jnp.asarray(x).at[index].get(
      mode='promise_in_bounds', wrap_negative_indices=False)


def take(x: types.Array, index: types.Array) -> jax.Array:
  """Reads [B, m, ...] from x [B, n, ...] at the places index [B, m].

  Args:
    x: [B, n, ...].
    index: [B, m] integers in [0, n).
  """
  batch, size, *rest = x.shape
  if batch * size > _MAX_INT32:  # Flat places would not fit.
    return jax.vmap(at)(x, index)
  start = jnp.arange(batch, dtype=jnp.int32)[:, None] * size
  return at(jnp.reshape(x, (batch * size, *rest)), index + start)
