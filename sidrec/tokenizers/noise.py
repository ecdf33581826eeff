"""Exploration noise keyed by item, so that all replicas draw the same."""

from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def _scramble(x: jax.Array) -> jax.Array:
  """Mixes the bits of uint32 (multiply and xor-shift, a bijection)."""
  for shift, factor in ((16, 0x7feb352d), (15, 0x846ca68b)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)


def gumbel(
    key: jax.Array, item: jax.Array, sizes: Sequence[int]
) -> tuple[jax.Array, ...]:
  """Draws Gumbel noise that depends on the key and the item id only.

  Args:
    key: PRNG key (consumed).
    item: [N] int32 item ids.
    sizes: (K_1, ..., K_L).

  Returns:
    L of [N, K_l] float32, finite; equal rows for equal items.
  """
  # A hash of (key, item, position): a key of its own for each row costs more
  # than the rest of the quantizer on a CPU.
  words = jax.random.bits(key, (2,), jnp.uint32)
  row = _scramble(item.astype(jnp.uint32) ^ words[0])
  place = jnp.arange(sum(sizes), dtype=jnp.uint32)
  place = _scramble(place * jnp.uint32(0x9e3779b9) ^ words[1])
  bits = _scramble(_scramble(row[:, None] ^ place[None]) + row[:, None])
  # 23 bits and a half: neither 0 nor 1 once rounded to float32.
  uniform = ((bits >> 9).astype(jnp.float32) + .5) * 2.**-23
  return tuple(jnp.split(
      -jnp.log(-jnp.log(uniform)), np.cumsum(sizes)[:-1], axis=1))
