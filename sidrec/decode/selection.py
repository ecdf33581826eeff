"""Picks the best of a row of candidates, exactly and with a total order."""

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.decode import rows

GROUP = 16  # Candidates that one maximum stands for.
_LOWEST = np.finfo(np.float32).min
# What stands for NaN, for -inf, and the least that stands for itself.
_NAN_KEY, _INF_KEY, _LEAST_KEY = (
    _LOWEST, np.nextafter(_LOWEST, np.float32(0)),
    np.nextafter(np.nextafter(_LOWEST, np.float32(0)), np.float32(0)))


def rank_key(score: types.Array, valid: types.Array) -> jax.Array:
  """Maps scores to keys that `best` orders as documented.

  Top-k puts NaN first and tells -0 from 0. Here NaN comes last among the valid
  and zeros tie; a valid -inf still comes before everything that is not valid.
  The two lowest float32 count as the third.
  """
  key = jnp.where(score == 0, 0., jnp.maximum(score, _LEAST_KEY))
  key = jnp.where(score == -jnp.inf, _INF_KEY, key)
  key = jnp.where(jnp.isnan(score), _NAN_KEY, key)
  return jnp.where(valid, key, -jnp.inf)


def score_of(key: types.Array) -> jax.Array:
  """Returns the scores that gave keys; -inf where not valid."""
  score = jnp.where(key == _NAN_KEY, jnp.nan, key)
  return jnp.where(key == _INF_KEY, -jnp.inf, score)


def is_long(size: int, width: int) -> bool:
  """Whether the best `width` of `size` candidates are searched by groups.

  Below, one top-k over all was the faster one (measured on CPU).
  """
  return size > max(64 * width - 256, 32 * width)


def best(key: jax.Array, width: int) -> jax.Array:
  """Returns the places of the largest keys, largest first, ties by place.

  Args:
    key: [B, C] float32, no NaN.
    width: W <= C.

  Returns:
    [B, W] int32.
  """
  size = key.shape[1]
  if not is_long(size, width):
    if size == width:
      # XLA sorts the row where nothing is left out, which takes longer.
      key = jnp.pad(key, ((0, 0), (0, 1)), constant_values=-jnp.inf)
    return jax.lax.top_k(key, width)[1]
  # A key outside of the W best groups (by their maximum, ties by place) is
  # beaten by W maxima: it cannot be among the W best.
  if size % GROUP:
    key = jnp.pad(key, ((0, 0), (0, -size % GROUP)), constant_values=-jnp.inf)
  groups = key.reshape(key.shape[0], -1, GROUP)
  chosen = jnp.sort(best(jnp.max(groups, -1), width), -1)
  few = rows.take(groups, chosen).reshape(key.shape[0], -1)
  inner = jax.lax.top_k(few, width)[1]
  return rows.take(chosen, inner // GROUP) * GROUP + inner % GROUP


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
