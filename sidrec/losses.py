"""Computes losses per example, and reduces them once.

No loss here averages over the batch: `reduce` does, with a mask and a count
that is shared by all devices. Distances are means over the last axis; a paper
that sums over D has its weight multiplied by D here.
"""

import chex
import jax
import jax.numpy as jnp

from sidrec import types


def sigmoid_bce(logits: types.Array, labels: types.Array) -> jax.Array:
  """Computes the binary cross entropy of each logit.

  Args:
    logits: [...] float.
    labels: [...] float in [0, 1], of the same shape.

  Returns:
    [...] nats, -y log s(x) - (1 - y) log(1 - s(x)), without overflow.
  """
  chex.assert_equal_shape([logits, labels])
  chex.assert_type([logits, labels], float)
  # log_sigmoid keeps the digits of small losses that softplus(x) - x y drops.
  return (-labels * jax.nn.log_sigmoid(logits)
          - (1 - labels) * jax.nn.log_sigmoid(-logits))


def softmax_cross_entropy(
    logits: types.Array,
    labels: types.Array,
    class_mask: types.Array | None = None,
) -> jax.Array:
  """Computes the cross entropy of each integer label.

  Args:
    logits: [..., K] float.
    labels: [...] integers in [0, K). A label outside gives NaN.
    class_mask: None or [..., K], 1 = the class takes part (0 for instance for
      a false negative). The label's own class always does.

  Returns:
    [...] nats.
  """
  chex.assert_equal_rank([logits, labels[..., None]])
  chex.assert_equal_shape_prefix([logits, labels], labels.ndim)
  chex.assert_type([logits, labels], [float, int])
  num_classes = logits.shape[-1]
  own = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode='fill')
  own = jnp.where(labels < 0, jnp.nan, own[..., 0])
  if class_mask is not None:
    chex.assert_equal_shape([logits, class_mask])
    keep = class_mask.astype(bool) | jax.nn.one_hot(
        labels, num_classes, dtype=bool)
    logits = jnp.where(keep, logits, -jnp.inf)
  return jax.nn.logsumexp(logits, axis=-1) - own


def mse_per_example(prediction: types.Array,
                    target: types.Array) -> jax.Array:
  """Computes the mean squared error over the last axis.

  Args:
    prediction: [..., D] float.
    target: [..., D] float.

  Returns:
    [...] mean over D of the squared difference. Gradients reach both sides.
  """
  chex.assert_equal_shape([prediction, target])
  chex.assert_type([prediction, target], float)
  return jnp.mean(jnp.square(prediction - target), axis=-1)


def commitment(vector: types.Array, quantized: types.Array) -> jax.Array:
  """Computes the pull of a vector towards what it was quantized to.

  The commitment term of VQ-VAE (arXiv 1711.00937, equation 3). With the two
  arguments swapped it is the codebook term: only the first gets a gradient.

  Args:
    vector: [..., D] float, for instance the residual before a level.
    quantized: [..., D] float; no gradient.

  Returns:
    [...] mean over D of the squared difference.
  """
  chex.assert_equal_shape([vector, quantized])
  chex.assert_type([vector, quantized], float)
  return mse_per_example(vector, jax.lax.stop_gradient(quantized))


def pairwise_within_user(
    logits: types.Array, labels: types.Array, user: types.Array,
    axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
  """Computes the logistic loss of pairs of one user's rows.

  GAUC is the share of such pairs that are in order; this is its smooth form.

  Args:
    logits: [B] float.
    labels: [B] in {0, 1}.
    user: [B] int32; rows pair up across all devices of the axis.
    axis_name: the mapped axis, or None.

  Returns:
    (per_example [B] in nats, the mean over the user's negatives of
    softplus(negative - positive) for a positive row; mask [B], 1 = a positive
    row whose user has a negative in the batch).
  """
  chex.assert_rank([logits, labels, user], 1)
  chex.assert_equal_shape([logits, labels, user])
  gather = lambda x: x if axis_name is None else jax.lax.all_gather(
      x, axis_name, tiled=True)
  other, other_label, other_user = gather(logits), gather(labels), gather(user)
  pair = ((user[:, None] == other_user[None]) & (labels[:, None] > .5)
          & (other_label[None] < .5)).astype(jnp.float32)
  loss = jax.nn.softplus(other[None].astype(jnp.float32) - logits[:, None])
  count = jnp.sum(pair, -1)
  mean = jnp.sum(loss * pair, -1) / jnp.maximum(count, 1.)
  return mean, (count > 0).astype(jnp.float32)


def reduce(
    per_example: types.Array,
    mask: types.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
  """Computes this device's share of the global masked mean.

  The share is local sum / global count. The psum of the shares is the mean
  over all devices, and the psum (not the mean) of their gradients its
  gradient, however unevenly the valid examples are spread.

  Args:
    per_example: [...] float. Where the mask is 0 it may be anything, NaN too.
    mask: None (all valid) or [...] weights >= 0, 1 = valid.
    axis_name: the mapped axis, or None on one device, where the share is the
      mean itself.

  Returns:
    [] float32; 0 where nothing is valid on any device.
  """
  if mask is None:
    mask = jnp.ones_like(per_example, dtype=jnp.float32)
  chex.assert_equal_shape([per_example, mask])
  chex.assert_type(per_example, float)
  mask = jnp.asarray(mask, jnp.float32)
  total = jnp.sum(jnp.where(mask > 0, per_example, 0) * mask)
  # No gradient may flow through the count: the transpose of its psum would
  # send one, for masks that depend on parameters, to every device.
  count = jax.lax.stop_gradient(jnp.sum(mask))
  if axis_name is not None:
    count = jax.lax.psum(count, axis_name)
  return total / jnp.where(count > 0, count, 1)
