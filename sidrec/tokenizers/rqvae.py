"""RQ-VAE: residual quantization trained by reconstruction (TIGER).

Paper: arXiv 2305.05065, section 3.1.
"""

import functools
from typing import Any

import jax

from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import residual
from sidrec.tokenizers import walk

RANGES, TREES = residual.RANGES, residual.TREES


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer:
  """Makes TIGER's tokenizer.

  Args:
    config: the `tokenizer` sub-tree, with what `residual.settings` reads:
      num_levels, codebook_size, hidden, latent_dim, commitment, next_residual,
      reduction, sinkhorn_epsilon, sinkhorn_steps, start_rows, kmeans_steps,
      revive.
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer, see `residual.init` for params and variables.

  Raises:
    types.InputError: as `residual.settings`.
  """
  s = residual.settings(config, spec)
  return residual.assemble(s, functools.partial(_loss, s))


def _loss(
    s: residual.Settings, params: types.PyTree, variables: types.PyTree,
    x: jax.Array, path: walk.Path, *, item: jax.Array | None = None,
    stored: jax.Array | None = None, explore: base.Explore | None = None,
    key: jax.Array | None = None, axis_name: str | None = None
) -> tuple[jax.Array, types.Metrics]:
  """Reconstruction and quantization loss (TIGER, eq. 1)."""
  del variables, item, stored, explore, key, axis_name
  reconstruction = residual.reconstruction_loss(s, params, x, path)
  quantization, metrics = residual.quantization_loss(s, path)
  metrics |= jax.lax.stop_gradient(dict(
      reconstruction=reconstruction, quantization=quantization))
  return reconstruction + quantization, metrics
