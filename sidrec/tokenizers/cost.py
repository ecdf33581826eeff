"""CoST: residual quantization trained by contrast instead of reconstruction.

Paper: arXiv 2404.14774. An item's vector has to find its own reconstruction
among those of the batch, by cosine and in this direction alone:

    L = alpha * -log softmax_j(cos(x_i, xhat_j) / tau)_i + L_rq
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import contrast
from sidrec.tokenizers import residual
from sidrec.tokenizers import residual_catalog


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer:
  """Makes CoST's tokenizer.

  Args:
    config: the `tokenizer` sub-tree, with what `residual.settings` reads, and
      contrast_weight (alpha), tau (temperature of the cosines) and
      reconstruction_weight (0 in the paper; 1 is its 'both').
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer, see `residual.init` for params and codebook.

  Raises:
    types.InputError: as `residual.settings`; tau or a weight out of range.
  """
  s = residual.settings(config, spec)
  for name, low in (('contrast_weight', 0), ('tau', 1e-6),
                    ('reconstruction_weight', 0)):
    base.check_range(config, name, low)
  return residual_catalog.assemble(s, functools.partial(
      _loss, s, config.contrast_weight, config.tau,
      config.reconstruction_weight))


def _loss(
    s: residual.Settings, contrast_weight: float, tau: float,
    reconstruction_weight: float, params: types.PyTree,
    codebook: types.PyTree, x: jax.Array, output: types.TokenizerOutput, *,
    item: jax.Array | None = None, key: jax.Array | None = None,
    axis_name: str | None = None
) -> tuple[jax.Array, types.Metrics]:
  """Contrast over the global batch and quantization loss."""
  del codebook, key
  x = jnp.asarray(x, jnp.float32)
  decoded = residual.decode(params, output)
  own = contrast.in_batch(
      contrast.unit(x), contrast.unit(decoded), tau=tau, item=item,
      axis_name=axis_name)
  reconstruction = residual.reconstruction_loss(s, params, x, output)
  quantization, metrics = residual.quantization_loss(s, params, output)
  metrics |= jax.lax.stop_gradient(dict(
      contrast=own, reconstruction=reconstruction, quantization=quantization))
  return (contrast_weight * own + reconstruction_weight * reconstruction
          + quantization), metrics
