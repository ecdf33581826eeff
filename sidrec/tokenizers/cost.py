"""CoST: residual quantization trained by contrast instead of reconstruction.

Paper: arXiv 2404.14774. An item's vector has to find its own reconstruction
among those of the batch, by cosine and in this direction alone:

    L = alpha * -log softmax_j(cos(x_i, xhat_j) / tau)_i + L_rq
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from sidrec import losses
from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import residual
from sidrec.tokenizers import walk

TREES = residual.TREES
RANGES: ranges.Table = {
    **residual.RANGES, 'contrast_weight': ranges.WEIGHT,
    'tau': ranges.number(1e-6), 'reconstruction_weight': ranges.WEIGHT}


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer:
  """Makes CoST's tokenizer.

  Args:
    config: the `tokenizer` sub-tree, with what `residual.settings` reads, and
      contrast_weight (alpha), tau (temperature of the cosines) and
      reconstruction_weight (0 in the paper; 1 is its 'both').
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer, see `residual.init` for params and variables.

  Raises:
    types.InputError: as `residual.settings`.
  """
  s = residual.settings(config, spec, RANGES)
  return residual.assemble(s, functools.partial(
      _loss, s, config.contrast_weight, config.tau,
      config.reconstruction_weight))


def unit(x: jax.Array) -> jax.Array:
  """Scales rows [N, D] to length one; a row of zeros stays."""
  square = jnp.sum(x * x, -1, keepdims=True)
  # The gradient of a root at 0 is not finite.
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def contrast(
    anchor: jax.Array, candidate: jax.Array, *, tau: float,
    item: jax.Array | None = None, axis_name: str | None = None
) -> jax.Array:
  """Tells each row's own candidate from those of all other rows.

  InfoNCE in one direction (arXiv 1807.03748, eq. 4): the anchors choose among
  candidates, which are gathered from all devices.

  Args:
    anchor: [N, D].
    candidate: [N, D]; row i belongs to anchor i.
    tau: temperature of the inner products.
    item: [N] int32 ids: another row of the same item is no negative; None =
      all rows are different items.
    axis_name: data-parallel axis, or None.

  Returns:
    [N] float32 nats. Gradients reach both sides, on all devices.
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


def _loss(
    s: residual.Settings, contrast_weight: float, tau: float,
    reconstruction_weight: float, params: types.PyTree,
    variables: types.PyTree, x: jax.Array, path: walk.Path, *,
    item: jax.Array | None = None, stored: jax.Array | None = None,
    explore: base.Explore | None = None, key: jax.Array | None = None,
    axis_name: str | None = None
) -> tuple[jax.Array, types.Metrics]:
  """Contrast over the global batch and quantization loss."""
  del variables, stored, explore, key
  x = jnp.asarray(x, jnp.float32)
  own = contrast(
      unit(x), unit(residual.decoded(params, path)), tau=tau, item=item,
      axis_name=axis_name)
  reconstruction = residual.reconstruction_loss(s, params, x, path)
  quantization, metrics = residual.quantization_loss(s, path)
  metrics |= jax.lax.stop_gradient(dict(
      contrast=own, reconstruction=reconstruction, quantization=quantization))
  return (contrast_weight * own + reconstruction_weight * reconstruction
          + quantization), metrics
