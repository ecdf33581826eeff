"""Distillation of u2i statistics to code prefixes (u2t), as pure functions.

At retrieval time a user's statistics with an item are unknown. DIG (arXiv
2605.14853) averages them over the items that share a prefix, and trains a
small network to predict them; this module joins the two without knowing
either tokenizer or network.
"""

import chex
import jax
import jax.numpy as jnp

from sidrec import types


def _gather(value: jax.Array, axis_name: str | None) -> jax.Array:
  if axis_name is None:
    return value
  return jax.lax.all_gather(value, axis_name, tiled=True)


def bucket_mean(
    values: types.Array, codes: types.Array, mask: types.Array,
    axis_name: str | None
) -> jax.Array:
  """Averages values over the rows of all devices that share a prefix.

  Exact for any K and L: buckets are runs of equal prefixes in sorted order, so
  there is no table of K ** l cells and no prefix number that could overflow.

  Args:
    values: [N, X] float32, N rows on this device.
    codes: [N, L] int32.
    mask: [N] 1 = valid; other rows are in no mean (their values may be
      anything) but get that of their bucket, 0 where it is empty.
    axis_name: data-parallel axis to average over, or None for one device.

  Returns:
    [N, L, X] float32; entry l is the mean over rows with equal codes[:, :l+1].
    No gradient passes.
  """
  chex.assert_rank([values, codes, mask], [2, 2, 1])
  chex.assert_equal_shape_prefix([values, codes, mask], 1)
  num_local, num_levels = codes.shape
  mask = mask.astype(bool)
  values = jnp.where(
      mask[:, None], jax.lax.stop_gradient(values.astype(jnp.float32)), 0.)
  values, codes, mask = (
      _gather(v, axis_name) for v in (values, codes, mask.astype(jnp.float32)))
  num_rows = codes.shape[0]
  *ordered, order = jax.lax.sort(
      [*codes.T, jnp.arange(num_rows, dtype=jnp.int32)], num_keys=num_levels)
  ordered = jnp.stack(ordered, 1)                                  # [N', L]
  new = jnp.cumsum(ordered[1:] != ordered[:-1], axis=1) > 0
  bucket = jnp.cumsum(jnp.pad(new, ((1, 0), (0, 0))), axis=0)
  place = jnp.zeros(num_rows, jnp.int32).at[order].set(
      jnp.arange(num_rows, dtype=jnp.int32))
  if axis_name is not None:
    first = jax.lax.axis_index(axis_name) * num_local
    place = jax.lax.dynamic_slice_in_dim(place, first, num_local)
  values, mask = values[order], mask[order]

  def level_mean(ids: jax.Array) -> jax.Array:
    add = lambda v: jax.ops.segment_sum(
        v, ids, num_rows, indices_are_sorted=True)
    mean = add(values) / jnp.maximum(add(mask), 1.)[:, None]
    return mean[ids[place]]

  return jnp.stack([level_mean(ids) for ids in bucket.T], 1)


def mix(
    keys: types.Array, u2t: types.Array, predicted: types.Array,
    p_mix: types.Array | float
) -> jax.Array:
  """Replaces bucket means by predictions, at random.

  So the shared tower sees in training what it gets at retrieval time, where
  bucket means do not exist.

  Args:
    keys: [N] PRNG keys, one a row (consumed), derived from the row's global
      index so that the draw does not depend on the number of devices.
    u2t: [N, ..., X] bucket means.
    predicted: [N, ..., X] predictions; no gradient passes.
    p_mix: [] probability of taking the prediction, drawn for each vector.

  Returns:
    [N, ..., X].
  """
  chex.assert_equal_shape([u2t, predicted])
  draw = jax.vmap(lambda key: jax.random.uniform(key, u2t.shape[1:-1]))(keys)
  return jnp.where(
      (draw < p_mix)[..., None], jax.lax.stop_gradient(predicted), u2t)


def match_counts(
    history: types.Array, weight: types.Array, codes: types.Array
) -> jax.Array:
  """Counts the history's items that share each prefix of a code.

  The part of u2i that is known at token level without a guess: what this user
  did with the items below a prefix.

  Args:
    history: [B, T, L] int32 codes of the history's items.
    weight: [B, T, A] what each counts for, 0 where not valid (one-hot of A
      actions).
    codes: [B, C, l] int32 prefixes, l <= L.

  Returns:
    [B, C, L, A] float32 sums of the weights; entry j is of the first j + 1
    codes, 0 for j >= l.
  """
  chex.assert_rank([history, weight, codes], 3)
  (b, c, given), levels = codes.shape, history.shape[-1]
  same, out = jnp.ones((b, c, history.shape[1]), jnp.float32), []
  for level in range(given):
    same = same * (
        codes[:, :, None, level] == history[:, None, :, level])
    out.append(jnp.matmul(same, weight))
  zero = jnp.zeros((b, c, weight.shape[-1]), jnp.float32)
  return jnp.stack(out + [zero] * (levels - given), 2)


def match_children(
    history: types.Array, weight: types.Array, prefix: types.Array,
    size: int, beam: types.Array, code: types.Array) -> jax.Array:
  """Counts the history's items below children of prefixes.

  What `match_counts` says of the last code of each child, many times as fast
  where a prefix has many.

  Args:
    history: [B, T, L] int32 codes of the history's items.
    weight: [B, T, A] what each counts for.
    prefix: [B, W, l] int32, l < L.
    size: K, codes of level l + 1.
    beam: [B, C] int32 the prefix of each child. code: [B, C] its own code.

  Returns:
    [B, C, A] float32 sums of the weights.
  """
  chex.assert_rank([history, weight, prefix], 3)
  level = prefix.shape[-1]
  same = jnp.all(
      prefix[:, :, None] == history[:, None, :, :level], -1)       # [B, W, T]
  cell = jax.nn.one_hot(history[..., level], size)[..., None] * (
      weight[:, :, None])                                       # [B, T, K, A]
  counts = jnp.einsum('bwt,btka->bwka', same.astype(jnp.float32), cell)
  row = jnp.arange(counts.shape[0])[:, None]
  return counts[row, beam, jnp.minimum(code, size - 1)]


def u2t_loss(predicted: types.Array, target: types.Array) -> jax.Array:
  """Returns the mean squared error over X: [..., X] twice -> [...].

  No gradient passes to the target. Without statistics (X = 0) it is 0.
  """
  chex.assert_equal_shape([predicted, target])
  if not predicted.shape[-1]:
    return jnp.zeros(predicted.shape[:-1], jnp.float32)
  error = predicted - jax.lax.stop_gradient(target)
  return jnp.mean(jnp.square(error.astype(jnp.float32)), -1)


def prefix_negative_mask(codes: types.Array, label: types.Array) -> jax.Array:
  """Drops negatives that cannot be told from the row's positive.

  Args:
    codes: [B, C, L] int32; candidate 0 is the positive.
    label: [B, C] in {0, 1}.

  Returns:
    [B, C, L] float32, 0 = a candidate of label 0 whose first l + 1 codes equal
    those of candidate 0, where that one has label 1; 1 = keep.
  """
  chex.assert_rank([codes, label], [3, 2])
  chex.assert_equal_shape_prefix([codes, label], 2)
  equal = jnp.cumprod((codes == codes[:, :1]).astype(jnp.float32), axis=-1)
  negative = (label < .5) & (label[:, :1] > .5)
  return 1. - equal * negative[..., None]
