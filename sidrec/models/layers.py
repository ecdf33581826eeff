"""Building blocks: MLP, embedding bags, DIN attention, DCNv2, MoE."""

import math
from typing import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sidrec import types


def flat(x: jax.Array | None) -> jax.Array | None:
  """Joins the leading axes: [..., D] to [N, D]; None, of no column, stays."""
  return x if x is None else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def join(parts: Sequence[jax.Array | None]) -> jax.Array | None:
  """Concatenates [..., D_i] of what is not None; None where all are."""
  there = [x for x in parts if x is not None]
  return jnp.concatenate(there, -1) if there else None


class MLP(nn.Module):
  """Dense layers with SiLU between them and none after the last.

  widths: output width of each layer.
  """
  widths: Sequence[int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [..., D] to [..., widths[-1]]."""
    for i, width in enumerate(self.widths):
      x = nn.Dense(width)(x)
      if i + 1 < len(self.widths):
        x = nn.silu(x)
    return x


class FeatureEncoder(nn.Module):
  """Concatenates the embedded fields of a `types.FeatureTable`.

  spec: which columns belong to which field.
  dim: width of one categorical field.
  vector_dim: width that dense vectors are projected to.
  init_scale: standard deviation of fresh embedding rows.
  """
  spec: types.FeatureSpec
  dim: int
  vector_dim: int
  init_scale: float

  @nn.compact
  def __call__(self, table: types.FeatureTable) -> jax.Array | None:
    """Encodes R rows.

    Args:
      table: features with leading [R].

    Returns:
      [R, width] float32: the mean of a field's non-missing categories, field
      by field, then the numbers, then the projected vectors. None where there
      is no field.
    """
    parts = []
    if self.spec.vocabulary > 1:
      rows = self.param(
          'embedding', nn.initializers.normal(self.init_scale),
          (self.spec.vocabulary, self.dim))
      for field in self.spec.fields:
        if field.kind == 'category':
          ids = table.ids[:, field.start:field.stop]
          known = (ids > 0).astype(jnp.float32)[..., None]
          total = jnp.sum(rows[ids] * known, 1)
          parts.append(total / jnp.maximum(jnp.sum(known, 1), 1.))
    if self.spec.num_values:
      parts.append(table.values)
    if self.spec.num_dims:
      parts.append(nn.Dense(self.vector_dim, name='vectors')(table.vectors))
    return join(parts)


class TargetAttention(nn.Module):
  """DIN's activation unit (arXiv 1706.06978, eq. 3), factorized.

  The unit is an MLP of [q, k, q - k, q * k]. Its first layer is linear in q,
  in k and in q * k, so the part of k is computed once a user and shared by
  all of that user's candidates: the same function, several times cheaper.

  hidden: width of the unit's hidden layer.
  """
  hidden: int

  @nn.compact
  def __call__(
      self, keys: jax.Array, mask: jax.Array, query: jax.Array) -> jax.Array:
    """Pools a history for each candidate.

    Args:
      keys: [B, T, D] history vectors.
      mask: [B, T] 1 = valid.
      query: [B, C, D] candidate vectors.

    Returns:
      [B, C, D] weighted sums of keys; weights are not normalized to one (as
      in DIN: the sum keeps the strength of the interest) but scaled by the
      root of the history's length.
    """
    dim = keys.shape[-1]
    of_key = nn.Dense(self.hidden, name='key')(keys)
    of_query = nn.Dense(self.hidden, use_bias=False, name='query')(query)
    kernel = self.param(
        'product', nn.initializers.lecun_normal(), (dim, self.hidden))
    # q * k enters only through its product with `kernel`, so the unit is one
    # matrix product a user: [T, D] x [D, C * hidden].
    (b, t, _), c = keys.shape, query.shape[1]
    weighted = jnp.swapaxes(query, 1, 2)[..., None] * kernel[None, :, None]
    unit = jnp.matmul(keys, weighted.reshape(b, dim, c * self.hidden))
    unit = unit.reshape(b, t, c, self.hidden)
    unit = unit + of_key[:, :, None] + of_query[:, None]
    out = self.param(
        'weight', nn.initializers.lecun_normal(), (self.hidden, 1))
    weight = jnp.sum(nn.silu(unit) * out[None, None, None, :, 0], -1)
    length = jnp.maximum(jnp.sum(mask, -1), 1.)
    weight = weight * (mask * jax.lax.rsqrt(length)[:, None])[..., None]
    return jnp.matmul(jnp.swapaxes(weight, 1, 2), keys)


class CrossNetwork(nn.Module):
  """DCNv2's low-rank cross layers (arXiv 2008.13535, eq. 2).

  layers: number of cross layers.
  rank: rank of each layer's matrix.
  """
  layers: int
  rank: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [N, D] to [N, D]: x_{l+1} = x_0 * (U V x_l + b) + x_l."""
    first = x
    for _ in range(self.layers):
      low = nn.Dense(self.rank, use_bias=False)(x)
      x = first * nn.Dense(first.shape[-1])(low) + x
    return x


class MixtureOfExperts(nn.Module):
  """Softly gated experts (arXiv 1701.06538, all experts active).

  experts: number of experts.
  width: hidden width of one expert.
  """
  experts: int
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [N, D] to [N, width]."""
    gate = nn.softmax(nn.Dense(self.experts, name='gate')(x))
    hidden = nn.silu(nn.Dense(self.experts * self.width, name='experts')(x))
    hidden = hidden.reshape(x.shape[0], self.experts, self.width)
    return jnp.einsum('ne,new->nw', gate, hidden)


class BatchNorm(nn.Module):
  """Batch norm whose statistics span all devices of the axis.

  axis_name: data-parallel axis, or None on one device.
  momentum: of the running statistics.
  affine: whether a learned scale and bias follow.
  """
  axis_name: str | None
  momentum: float = 0.95
  affine: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Normalizes [N, D] over N (and over devices when training)."""
    return nn.BatchNorm(
        use_running_average=not train, momentum=self.momentum,
        use_scale=self.affine, use_bias=self.affine,
        axis_name=self.axis_name if train else None)(x)
