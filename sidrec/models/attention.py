"""Attention and what stands around it, as plain functions of arrays."""

from typing import Any, Callable

import chex
import jax
import jax.numpy as jnp

from sidrec import rng
from sidrec import types
from sidrec.config import ranges

_MASKED = -1e9  # Finite: a row with nothing to attend to stays finite.
DROPOUT = ranges.number(0, .99)  # Rounded to 1 / 256: at 1 nothing is left.


def visible(segment: types.Array, causal: bool = True) -> jax.Array:
  """Says which places of a row read which: those of their own segment.

  Args:
    segment: [B, N] int32, 0 = nothing, which nobody reads.
    causal: only up to the own place.

  Returns:
    [B, N, N] bool, True where place n reads place m.
  """
  chex.assert_rank(segment, 2)
  segment = jnp.asarray(segment)
  mask = (segment[:, :, None] == segment[:, None]) & (segment > 0)[:, None]
  if causal:
    mask = mask & jnp.tril(jnp.ones(mask.shape[1:], bool))[None]
  return mask


def places(segment: types.Array) -> jax.Array:
  """Counts the places of each segment from 0.

  Args:
    segment: [B, N] int32; a segment stands together.

  Returns:
    [B, N] int32; those of segment 0 count as well.
  """
  chex.assert_rank(segment, 2)
  segment = jnp.asarray(segment)
  place = jnp.arange(segment.shape[1], dtype=jnp.int32)[None]
  new = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)))
  return place - jax.lax.cummax(jnp.where(new, place, 0), axis=1)


def rms_norm(scale: types.Array, x: types.Array, epsilon: float = 1e-6
             ) -> jax.Array:
  """Divides [..., D] by its root mean square: no mean, no bias."""
  wide = x.astype(jnp.float32)
  mean = jnp.mean(jnp.square(wide), -1, keepdims=True)
  shape = (1,) * (x.ndim - 1) + (-1,)
  return (wide * jax.lax.rsqrt(mean + epsilon) * scale.reshape(shape)).astype(
      x.dtype)


def feed_forward(norm: types.Array, up: types.Array, down: types.Array,
                 x: types.Array) -> jax.Array:
  """Maps each place [..., D] by itself: norm, [D, F], ReLU, [F, D]."""
  return project(jax.nn.relu(project(rms_norm(norm, x), up)), down)


def project(x: types.Array, weight: types.Array) -> jax.Array:
  """Maps [..., D] by weights [D, ...] in the dtype of x.

  As one product of two matrices: the gradient of a product over several axes
  copies its operands on CPUs, which took 1.8 times as long.
  """
  flat = _product(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype).reshape(
      weight.shape[0], -1))
  return flat.reshape(*x.shape[:-1], *weight.shape[1:])


@jax.custom_vjp
def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
  """Returns x @ weight for [N, D] and [D, E]."""
  return x @ weight


def _product_forward(x, weight):
  return x @ weight, (x, weight)


def _product_backward(kept, grad):
  """The gradient of the weights with the shorter side first.

  On CPUs [1024, N] @ [N, 128] takes twice as long as [128, N] @ [N, 1024]. The
  barrier keeps XLA from turning the one into the other.
  """
  x, weight = kept
  if weight.shape[0] > weight.shape[1]:
    of_weight = jax.lax.optimization_barrier(grad.T @ x).T
  else:
    of_weight = x.T @ grad
  return grad @ weight.T, of_weight


_product.defvjp(_product_forward, _product_backward)


def attend(query: types.Array, keys: types.Array, values: types.Array,
           bias: types.Array) -> jax.Array:
  """Softmax attention, not scaled, with the softmax in float32.

  Args:
    query: [B, Q, H, d].
    keys, values: [B, N, H, d].
    bias: broadcasts to [B, H, Q, N]; `mask_bias` where masked.

  Returns:
    [B, Q, H, d].
  """
  # Heads first, once: products of [B, Q, H, d] as they stand move the axes of
  # every operand anew, also backward, which took 1.4 times as long on CPUs.
  query, keys, values = (
      jnp.moveaxis(x, 2, 1) for x in (query, keys, values))
  logits = jnp.einsum('bhqd,bhnd->bhqn', query, keys).astype(jnp.float32)
  weight = jax.nn.softmax(logits + bias, -1).astype(values.dtype)
  return jnp.moveaxis(jnp.einsum('bhqn,bhnd->bhqd', weight, values), 1, 2)


def mask_bias(mask: types.Array) -> jax.Array:
  """Returns 0 where mask is True or positive, a large negative elsewhere."""
  return jnp.where(mask > 0, 0., _MASKED)


def turns(position: types.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
  """Returns cosine and sine [B, N, 1, d / 2] of what `rotate` turns by.

  Args:
    position: [B, N] int32, in [0, N).
    head_dim: d, even.
  """
  half = head_dim // 2
  rate = 1e4 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  place = jnp.arange(position.shape[1], dtype=jnp.float32)
  angle = place[:, None, None] * rate[None, None]
  # Rows of constants: XLA would compute those of positions in every loop anew.
  return jnp.cos(angle)[position], jnp.sin(angle)[position]


def rotate(x: types.Array, turn: tuple[types.Array, types.Array]) -> jax.Array:
  """Rotary position embedding (arXiv 2104.09864): only distances matter.

  Args:
    x: [B, N, H, d], d even.
    turn: of `turns`.
  """
  half = x.shape[-1] // 2
  cos, sin = (y.astype(x.dtype) for y in turn)
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def dropout(key: jax.Array | None, rate: float, x: types.Array,
            row: types.Array | None) -> jax.Array:
  """Zeroes entries and scales the others up.

  Args:
    key: None = nothing is dropped.
    rate: share that is dropped, to 1 / 256.
    x: [B, ...].
    row: [B] int32 global rows: what is dropped does not depend on how many
      devices share the batch.
  """
  threshold = round(rate * 256)
  if key is None or not threshold:
    return x
  keys = rng.per_row(key, row)
  bits = jax.vmap(
      lambda k: jax.random.bits(k, x.shape[1:], jnp.uint8))(keys)
  scale = jnp.asarray(256 / (256 - threshold), x.dtype)
  return jnp.where(bits >= threshold, x * scale, 0)


def dropping(key: jax.Array | None, rate: float, row: types.Array | None
             ) -> Callable[..., jax.Array]:
  """Returns (x, name, layer=0) -> `dropout` of x by a key of that place."""
  def drop(x: jax.Array, name: str, layer: int = 0) -> jax.Array:
    own = None if key is None else rng.stream(key, name, layer)
    return dropout(own, rate, x, row)
  return drop
