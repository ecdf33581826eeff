"""Control: distinct random code tuples, which say nothing of the items."""

import functools
from typing import Any

import numpy as np

from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import lookup

_MOST = 1 << 62  # Tuples to draw from: their numbers are int64.


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer:
  """Makes the control.

  Args:
    config: the `tokenizer` sub-tree: num_levels, codebook_size.
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer, see `lookup.assemble`.

  Raises:
    types.InputError: a size out of range, or V > K ** L.
  """
  base.check_capacity(config, spec)
  num_levels, num_codes = config.num_levels, config.codebook_size
  return lookup.assemble(
      spec.num_items, (num_codes,) * num_levels,
      functools.partial(_fit, spec.num_items, num_levels, num_codes))


def _fit(
    num_items: int, num_levels: int, num_codes: int, seed: int,
    params: types.PyTree, codebook: types.PyTree, vectors: types.Array, *,
    features: types.FeatureTable | None = None,
    collaborative: types.Array | None = None
) -> tuple[types.PyTree, types.PyTree]:
  """Draws V of the K ** L tuples without replacement."""
  del codebook, vectors, features, collaborative
  rng = np.random.default_rng(seed)
  number = rng.choice(
      min(num_codes**num_levels, _MOST), num_items, replace=False)
  codes = np.empty((num_items, num_levels), np.int32)
  for level in reversed(range(num_levels)):
    number, codes[:, level] = np.divmod(number, num_codes)
  return params, {'codes': codes}
