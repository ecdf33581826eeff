"""Product quantization: each level codes a part of the vector of its own.

Codes of a level say nothing of the others', unlike residual codes: the control
for coarse-to-fine. The rotation is that of optimized product quantization
(Ge et al., CVPR 2013, eigenvalue allocation), as VQ-Rec (arXiv 2210.12316)
cuts its text vectors.
"""

import functools
from typing import Any

import numpy as np

from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import checks
from sidrec.tokenizers import kmeans

RANGES: ranges.Table = {**base.RANGES, 'kmeans_steps': kmeans.STEPS}


def make(config: Any, spec: types.DataSpec) -> base.Table:
  """Makes a product quantizer.

  Args:
    config: the `tokenizer` sub-tree: num_levels, codebook_size, kmeans_steps.
    spec: of the data set; only the number of items is read.

  Returns:
    The table.

  Raises:
    types.InputError: a size out of range, or fewer tuples than items; in
      `fit`, fewer dimensions than levels.
  """
  sizes = checks.check_capacity(config, spec, RANGES)
  return base.Table(
      sizes, functools.partial(_fit, sizes, config.kmeans_steps))


def parts(vectors: np.ndarray, num_levels: int) -> list[np.ndarray]:
  """Rotates vectors [V, D] to L uncorrelated parts [V, d] of like variance.

  Principal components go, largest first, to the part with room whose product
  of variances is the least so far.

  Raises:
    types.InputError: fewer dimensions than levels.
  """
  dim = vectors.shape[1]
  if dim < num_levels:
    raise types.InputError(
        f'config.tokenizer.num_levels={num_levels}: the item vectors have only '
        f'{dim} dimensions to share out')
  centered = vectors - vectors.mean(0)
  strength, axes = np.linalg.eigh(
      centered.T.astype(np.float64) @ centered / len(vectors))
  # Over the least of them: logarithms below 0 would pile up in one part.
  share = np.log(np.maximum(strength, max(1e-9 * strength.max(), 1e-30)))
  share -= share.min()
  room, weight = -(-dim // num_levels), np.zeros(num_levels)
  own = [[] for _ in range(num_levels)]
  for column in np.argsort(-strength, kind='stable'):
    free = [part for part in range(num_levels) if len(own[part]) < room]
    part = min(free, key=lambda p: (weight[p], len(own[p]), p))
    own[part].append(column)
    weight[part] += share[column]
  return [(centered @ axes[:, columns]).astype(np.float32) for columns in own]


def _fit(
    sizes: tuple[int, ...], num_steps: int, seed: int, items: base.Items
) -> np.ndarray:
  """Clusters each part by itself."""
  pieces = parts(checks.rows(items.vectors, items), len(sizes))
  codes = [
      kmeans.lloyd(seed + level, piece, size, num_steps=num_steps)[0]
      for level, (piece, size) in enumerate(zip(pieces, sizes))]
  return np.stack(codes, 1).astype(np.int32)
