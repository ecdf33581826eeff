"""Tokenizers that only know stored codes: no vectors, no unknown items."""

import functools
from typing import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.tokenizers import base


def assemble(
    num_items: int, codebook_sizes: Sequence[int], fit_fn: base.FitFn
) -> base.Tokenizer:
  """Makes a tokenizer whose codes are a table.

  Args:
    num_items: V.
    codebook_sizes: codes of each level.
    fit_fn: fills the table.

  Returns:
    The tokenizer. params: {}. codebook: 'codes' [V, L] int32.
  """
  sizes = tuple(int(size) for size in codebook_sizes)
  return base.Tokenizer(
      num_levels=len(sizes), codebook_sizes=sizes,
      init=functools.partial(_init, num_items, sizes),
      encode=functools.partial(_encode, sizes), loss=None, update=base.keep,
      prefix=None, fit=fit_fn, refresh=None, codes=base.stored_codes)


def _init(
    num_items: int, sizes: tuple[int, ...], key: jax.Array, sample: jax.Array
) -> tuple[types.PyTree, types.PyTree]:
  """Placeholder codes until `fit`."""
  del key, sample
  codes = np.zeros((num_items, len(sizes)), np.int32)
  return {}, {'codes': jnp.asarray(codes)}


def _encode(
    sizes: tuple[int, ...], params: types.PyTree, codebook: types.PyTree,
    x: jax.Array, *, key: jax.Array | None = None,
    item: jax.Array | None = None, noise: jax.Array | float = 0.,
    live: jax.Array | float = 1., train: bool = False,
    axis_name: str | None = None
) -> types.TokenizerOutput:
  """Reads the table; logits are 0 for the code and -inf for all others."""
  del params, key, noise, live, train, axis_name
  chex.assert_rank(x, 2)
  if item is None:
    raise ValueError('This tokenizer has no codes for unknown items.')
  codes = codebook['codes'][item]
  nothing = jnp.zeros((len(x), len(sizes), 0), jnp.float32)
  own = codes[..., None] == jnp.arange(max(sizes))[None, None]
  return types.TokenizerOutput(
      codes=codes, quantized=nothing, residuals=nothing,
      logits=jnp.where(own, 0., -jnp.inf), aux={})
