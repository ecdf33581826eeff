"""Checks of settings and of item vectors; each names what is wrong."""

import math
from typing import Any

import numpy as np

from sidrec import config as config_lib
from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base

_RMS = (.2, 5.)  # Of standardized vectors it is 1.


def check_capacity(
    config: Any, spec: types.DataSpec, table: ranges.Table = base.RANGES
) -> tuple[int, ...]:
  """Refuses settings out of range, and sizes too small for the catalog.

  Args:
    config: the `tokenizer` sub-tree.
    spec: of the data set.
    table: of the tokenizer, `base.RANGES` among it.

  Returns:
    (K_1, ..., K_L).

  Raises:
    types.InputError: a setting out of range, or V > K_1 * ... * K_L.
  """
  config_lib.check_part(config, table, 'tokenizer')
  sizes = base.sizes(config)
  capacity = math.prod(sizes)
  if spec.num_items > capacity:
    raise types.InputError(
        f'tokenizer.codebook_size: {config.codebook_size} codes on '
        f'{config.num_levels} levels name {capacity} items, the catalog has '
        f'{spec.num_items}; raise it, or tokenizer.num_levels.')
  return sizes


def rows(
    vectors: types.Array | None, items: base.Items, dim: int | None = None
) -> np.ndarray:
  """Checks vectors of items, such as `items.latents`.

  Args:
    vectors: [V, D].
    items: whose they are.
    dim: D, or None for any.

  Returns:
    The vectors as [V, D] float32; not a copy where they are that already.

  Raises:
    ValueError: none are given, or of another shape.
    FloatingPointError: a value that is not finite.
  """
  if vectors is None:
    raise ValueError('This tokenizer reads vectors of the items: give them.')
  vectors = np.asarray(vectors, np.float32)
  want = (len(items.ids), vectors.shape[-1] if dim is None else dim)
  if vectors.shape != want:
    raise ValueError(f'Vectors have shape {vectors.shape}, not {want}.')
  # A sum is not finite where an entry is not, and needs no array of bools.
  if not np.isfinite(np.sum(vectors, dtype=np.float64)):
    raise FloatingPointError('Item vectors are not finite.')
  return vectors


def latents(items: base.Items, dim: int | None = None) -> np.ndarray:
  """Returns what a tokenizer without an encoder quantizes.

  Args:
    items: with latents, or vectors, which then are the latents.
    dim: their width, or None for any.

  Returns:
    [V, d] float32, see `rows`.
  """
  return rows(items.vectors if items.latents is None else items.latents, items,
              dim)


def check_scale(vectors: np.ndarray) -> None:
  """Refuses vectors on which losses of distances mean something else.

  An auto-encoder whose errors are means over dimensions stands still where a
  dimension varies by 1 / sqrt(D), as in vectors of length one: reconstruction
  has next to nothing to give, and commitment pulls all latents together.

  Args:
    vectors: [V, D].

  Raises:
    types.InputError: the root mean square is far from 1.
  """
  rms = float(np.sqrt(np.mean(np.square(vectors), dtype=np.float64)))
  if not _RMS[0] <= rms <= _RMS[1]:
    raise types.InputError(
        f'item vectors: their root mean square is {rms:.3g}, this tokenizer '
        f'needs about 1; standardize each dimension.')
