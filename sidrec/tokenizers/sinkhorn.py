"""Balanced assignment of a batch by Sinkhorn's iteration, in log space.

As LC-Rec (arXiv 2311.09049, eq. 5-6) and LETTER (arXiv 2405.07314) use it on
the last level of a residual quantizer. Their exp(-d / .003) needs float64;
with logarithms float32 does.
"""

import chex
import jax
import jax.numpy as jnp


def log_plan(
    dist: jax.Array, *, epsilon: float, num_steps: int = 50,
    axis_name: str | None = None
) -> jax.Array:
  """Spreads the rows of a batch evenly over the columns.

  Distances are first moved and scaled to [-1, 1] over the whole batch. A step
  gives each row the mass 1 / B and then each column the mass 1 / K.

  Args:
    dist: [B, K] distances, finite, in any unit.
    epsilon: temperature, in half-ranges of the distances.
    num_steps: rounds.
    axis_name: data-parallel axis that the batch spans, or None.

  Returns:
    [B, K] float32 log of the mass; columns sum to 1 / K over the whole batch.
    No gradient.
  """
  chex.assert_rank(dist, 2)
  dist = jax.lax.stop_gradient(jnp.asarray(dist, jnp.float32))
  num_rows = dist.shape[0]
  if axis_name is not None:
    dist = jax.lax.all_gather(dist, axis_name, tiled=True)
  high, low = jnp.max(dist), jnp.min(dist)
  middle, half = (high + low) / 2, (high - low) / 2 + 1e-5
  start = -(dist - middle) / (half * epsilon)
  log_rows, log_columns = -jnp.log(dist.shape[0]), -jnp.log(dist.shape[1])

  def step(plan: jax.Array, _: None) -> tuple[jax.Array, None]:
    plan += log_rows - jax.nn.logsumexp(plan, 1, keepdims=True)
    plan += log_columns - jax.nn.logsumexp(plan, 0, keepdims=True)
    return plan, None

  plan, _ = jax.lax.scan(step, start, length=num_steps)
  if axis_name is None:
    return plan
  return jax.lax.dynamic_slice_in_dim(
      plan, jax.lax.axis_index(axis_name) * num_rows, num_rows)


def assign(
    dist: jax.Array, *, epsilon: float, num_steps: int = 50,
    axis_name: str | None = None
) -> jax.Array:
  """Returns the column of most mass for each row: [B, K] -> [B] int32.

  Args:
    dist, epsilon, num_steps, axis_name: as `log_plan`.
  """
  plan = log_plan(
      dist, epsilon=epsilon, num_steps=num_steps, axis_name=axis_name)
  return jnp.argmax(plan, 1).astype(jnp.int32)
