"""Picks the best of a row of candidates, exactly and with a total order."""

import jax
import jax.numpy as jnp

from sidrec import types

_GROUP = 16  # Candidates that one maximum stands for.
_SMALL = 64  # Rows up to here are ranked by comparing all pairs.


def rank_key(score: types.Array, valid: types.Array) -> types.Array:
  """Maps scores to keys that `best` orders as documented.

  Top-k puts NaN first and tells -0 from 0. Here NaN comes last among the valid
  and zeros tie; a valid -inf still comes before everything that is not valid.
  """
  lowest = jnp.finfo(jnp.float32).min
  key = jnp.where(jnp.isnan(score), lowest, jnp.maximum(score, lowest))
  key = jnp.where(key == 0, 0., key)
  return jnp.where(valid, key, -jnp.inf)


def best(key: jax.Array, width: int) -> jax.Array:
  """Returns the places of the largest keys, largest first, ties by place.

  Args:
    key: [B, C] float32, no NaN.
    width: W <= C.

  Returns:
    [B, W] int32.
  """
  size = key.shape[1]
  if size <= _SMALL:
    return _by_pairs(key, width)
  if size <= 2 * _GROUP * width:
    return jax.lax.top_k(key, width)[1]
  # A key outside of the W best groups (by their maximum, ties by place) is
  # beaten by W maxima: it cannot be among the W best.
  groups = -(-size // _GROUP)
  full = jnp.pad(key, ((0, 0), (0, groups * _GROUP - size)),
                 constant_values=-jnp.inf).reshape(-1, groups, _GROUP)
  chosen = jnp.sort(best(jnp.max(full, -1), width), -1)
  few = jnp.take_along_axis(full, chosen[..., None], 1)
  inner = jax.lax.top_k(few.reshape(-1, width * _GROUP), width)[1]
  group = jnp.take_along_axis(chosen, inner // _GROUP, 1)
  return group * _GROUP + inner % _GROUP


def _by_pairs(key: jax.Array, width: int) -> jax.Array:
  """The same for short rows: every key counts those that come before it."""
  size = key.shape[1]
  place = jnp.arange(size, dtype=jnp.int32)
  earlier = (place[:, None] < place[None])[None]
  ahead = jnp.where(earlier, key[:, :, None] >= key[:, None],
                    key[:, :, None] > key[:, None])
  rank = jnp.sum(ahead.astype(jnp.int32), 1)
  wanted = rank[:, :, None] == jnp.arange(width, dtype=jnp.int32)[None, None]
  return jnp.sum(jnp.where(wanted, place[None, :, None], 0), 1)


def cap(key: jax.Array, group: jax.Array, most: int) -> jax.Array:
  """Drops (to -inf) all but the best keys of each group.

  Args:
    key: [B, C] float32.
    group: [B, C] int32.
    most: kept a group, ties by place.

  Returns:
    [B, C].
  """
  def one(key, group):
    place = jnp.arange(key.shape[0], dtype=jnp.int32)
    of, _, order = jax.lax.sort((group, -key, place), num_keys=3)
    new = jnp.concatenate([jnp.ones(1, bool), of[1:] != of[:-1]])
    start = jax.lax.cummax(jnp.where(new, place, 0))
    drop = jnp.zeros(key.shape, bool).at[order].set(place - start >= most)
    return jnp.where(drop, -jnp.inf, key)
  return jax.vmap(one)(key, group)
