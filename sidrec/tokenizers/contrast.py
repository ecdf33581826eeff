"""Contrasts within the global batch."""

import chex
import jax
import jax.numpy as jnp

from sidrec import losses


def unit(x: jax.Array) -> jax.Array:
  """Scales rows [B, D] to length one; a row of zeros stays."""
  square = jnp.sum(x * x, -1, keepdims=True)
  # The gradient of a root at 0 is not finite.
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def in_batch(
    anchor: jax.Array, candidate: jax.Array, *, tau: float,
    item: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
  """Tells each row's own candidate from those of all other rows.

  InfoNCE in one direction (arXiv 1807.03748, eq. 4): the anchors choose among
  candidates, which are gathered from all devices.

  Args:
    anchor: [B, D].
    candidate: [B, D]; row i belongs to anchor i.
    tau: temperature of the inner products.
    item: [B] int32 ids: another row of the same item is no negative; None =
      all rows are different items.
    axis_name: data-parallel axis, or None.

  Returns:
    [B] float32 nats. Gradients reach both sides, on all devices.
  """
  chex.assert_equal_shape([anchor, candidate])
  chex.assert_rank([anchor, candidate], 2)
  num_rows = anchor.shape[0]
  gather = lambda v: v if axis_name is None else jax.lax.all_gather(
      v, axis_name, tiled=True)
  first = 0 if axis_name is None else (
      jax.lax.axis_index(axis_name) * num_rows)
  logits = jnp.matmul(
      anchor, gather(candidate).T, precision=jax.lax.Precision.HIGHEST) / tau
  keep = None
  if item is not None:
    keep = item[:, None] != gather(item)[None]  # The own one always counts.
  return losses.softmax_cross_entropy(
      logits, first + jnp.arange(num_rows), keep)
