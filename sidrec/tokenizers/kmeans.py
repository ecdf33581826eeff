"""k-means on the host: one loop, with several ways to assign rows to centers.

Work on many rows goes through matrix products over chunks of them, so that a
million rows need little memory beside their own.
"""

import math
from typing import Callable

import numpy as np
from scipy import sparse

from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import transport

STEPS = ranges.whole(1, 10000)  # Rounds that a setting may ask for.
CHUNK = 1 << 15  # Rows a matrix product.
_START_ROWS = 32  # Rows a cluster that the k-means++ start looks at.
_EXACT_PLACES = 1 << 10  # Up to here the exact solver is fast.
_BLOCK = 64  # Centers a product when they are filled in turn.
_MAX_CHAINS = 20  # Centers move again after this: not worth long chains.

# (x [n, D], centers [K, D]) -> (labels [n], squared distances [n] to them).
Assign = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def squared(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
  """Returns squared Euclidean distances [n, K] of [n, D] to [K, D]."""
  cross = x @ centers.T
  cross *= -2
  cross += np.sum(x * x, 1)[:, None]
  cross += np.sum(centers * centers, 1)[None]
  return np.maximum(cross, 0, out=cross)


def nearest(
    x: np.ndarray, centers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the nearest center of each row.

  Args:
    x: [n, D] float32.
    centers: [K, D] float32.

  Returns:
    (labels [n] int32, squared distances [n] float32).
  """
  labels = np.empty(len(x), np.int32)
  dist = np.empty(len(x), np.float32)
  half = np.sum(centers * centers, 1) / 2
  for start in range(0, len(x), CHUNK):
    rows = x[start:start + CHUNK]
    score = rows @ centers.T
    score -= half[None]
    best = np.argmax(score, 1)
    labels[start:start + CHUNK] = best
    dist[start:start + CHUNK] = np.einsum('nd,nd->n', rows, rows) - 2 * score[
        np.arange(len(rows)), best]
  return labels, np.maximum(dist, 0, out=dist)


def bounded(
    x: np.ndarray, centers: np.ndarray, *, low: int, high: int
) -> tuple[np.ndarray, np.ndarray]:
  """Assigns rows so that each center has `low` to `high` of them.

  Exact where the problem is small, near the optimum by prices elsewhere.

  Args:
    x: [n, D] float32.
    centers: [K, D] float32.
    low, high: bounds of the number of rows of a center.

  Returns:
    (labels [n], squared distances [n]).

  Raises:
    types.InputError: n rows cannot be divided in this way.
  """
  num_rows, num_columns = len(x), len(centers)
  if not num_columns * low <= num_rows <= num_columns * high or low > high:
    raise types.InputError(
        f'{num_rows} rows cannot make {num_columns} clusters of {low} to '
        f'{high}; change the bounds or the number of clusters.')
  cost = squared(x, centers)
  labels = np.argmin(cost, 1)
  count = np.bincount(labels, minlength=num_columns)
  if count.min() < low or count.max() > high:
    labels = transport.assign(
        cost, high, low, exact=num_columns * high <= _EXACT_PLACES,
        max_chains=_MAX_CHAINS)
  return labels, cost[np.arange(num_rows), labels]


class Even:
  """Assigns rows so that sizes are floor(n / K) or ceil(n / K).

  Remembers the prices of the last call, as good ones to start from: a new one
  for each run of `lloyd`.
  """

  def __init__(self):
    self._prices = None

  def __call__(
      self, x: np.ndarray, centers: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns (labels [n], squared distances [n]) of x [n, D]."""
    cost = np.ascontiguousarray(squared(x, centers).T)
    num_columns, num_rows = cost.shape
    share = np.full(num_columns, num_rows / num_columns)
    first = self._prices is None
    self._prices = transport.prices(
        cost, share, share, np.zeros(num_columns) if first else self._prices,
        hot=1. if first else .1, num_steps=40 if first else 12)
    labels = np.argmin(cost - self._prices[:, None], 0)
    fullest = np.argsort(
        -np.bincount(labels, minlength=num_columns), kind='stable')
    sizes = np.full(num_columns, num_rows // num_columns)
    sizes[fullest[:num_rows % num_columns]] += 1
    labels = transport.settle(cost, self._prices, sizes, _MAX_CHAINS)
    return labels, cost[labels, np.arange(num_rows)]


def in_turn(
    x: np.ndarray, centers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Lets centers take their nearest rows, one center after the other.

  The greedy even filling of OneRec (arXiv 2502.18965, algorithm 1).

  Args:
    x: [n, D] float32.
    centers: [K, D] float32; the first n mod K of them take one row more.

  Returns:
    (labels [n], squared distances [n]).
  """
  num_rows, num_columns = len(x), len(centers)
  sizes = np.full(num_columns, num_rows // num_columns)
  sizes[:num_rows % num_columns] += 1
  square = np.einsum('nd,nd->n', x, x)
  labels = np.empty(num_rows, np.int64)
  own = np.empty(num_rows, np.float32)
  free = np.arange(num_rows)
  for k, size in enumerate(sizes):
    if k % _BLOCK == 0:  # All of them at once would be too large an array.
      block = centers[k:k + _BLOCK]
      cross = block @ x.T
      half = np.sum(block * block, 1) / 2
    if not size:
      continue
    at = k % _BLOCK
    dist = square[free] - 2 * (cross[at, free] - half[at])
    taken = np.argpartition(dist, size - 1)[:size]
    labels[free[taken]], own[free[taken]] = k, dist[taken]
    free = np.delete(free, taken)
  return labels, np.maximum(own, 0, out=own)


def means(
    x: np.ndarray, labels: np.ndarray, centers: np.ndarray
) -> np.ndarray:
  """Returns cluster means [K, D] float32; an empty one keeps its center.

  Args:
    x: [n, D] float32.
    labels: [n] integers in [0, K).
    centers: [K, D].
  """
  num = len(centers)
  total = np.zeros(centers.shape, np.float64)
  for start in range(0, len(x), CHUNK):
    rows = x[start:start + CHUNK]
    member = sparse.csr_matrix(
        (np.ones(len(rows), np.float32),
         (labels[start:start + CHUNK], np.arange(len(rows)))),
        shape=(num, len(rows)))
    total += member @ rows
  count = np.bincount(labels, minlength=num)[:, None]
  return np.where(
      count > 0, total / np.maximum(count, 1), centers).astype(np.float32)


def plus_plus(
    rng: np.random.Generator, x: np.ndarray, num_clusters: int
) -> np.ndarray:
  """Draws k-means++ centers [K, D] from rows x [n, D]."""
  chosen = [int(rng.integers(len(x)))]
  near = squared(x, x[chosen])[:, 0].astype(np.float64)
  for _ in range(num_clusters - 1):
    total = np.cumsum(near)
    # Fewer distinct points than clusters: the rest are repeats.
    pick = (np.searchsorted(total, rng.random() * total[-1])
            if total[-1] > 0 else rng.integers(len(x)))
    chosen.append(min(int(pick), len(x) - 1))
    np.minimum(near, squared(x, x[chosen[-1:]])[:, 0], out=near)
  return x[chosen]


def start_centers(
    seed: int, x: np.ndarray, num_clusters: int, start_rows: int = _START_ROWS
) -> np.ndarray:
  """Draws k-means++ centers [K, D] from (a sample of) the rows.

  Args:
    seed: of the draws.
    x: [n, D] float32.
    num_clusters: K.
    start_rows: rows a cluster to look at; 0 = all.
  """
  rng = np.random.default_rng(seed)
  most = start_rows * num_clusters
  if 0 < most < len(x):
    x = x[np.sort(rng.choice(len(x), most, replace=False))]
  return plus_plus(rng, x, num_clusters)


def _revive(
    x: np.ndarray, labels: np.ndarray, dist: np.ndarray, centers: np.ndarray
) -> bool:
  """Moves empty centers onto the rows farthest from theirs, in place."""
  empty = np.flatnonzero(
      np.bincount(labels, minlength=len(centers)) == 0)[:len(x)]
  if not empty.size:
    return False
  rows = np.argpartition(-dist, empty.size - 1)[:empty.size]
  rows = rows[np.argsort(-dist[rows], kind='stable')]
  rows = rows[dist[rows] > 0]  # Fewer distinct rows than centers.
  centers[empty[:rows.size]] = x[rows]
  return bool(rows.size)


def lloyd(
    seed: int, x: np.ndarray, num_clusters: int, assign: Assign = nearest, *,
    num_steps: int = 20, num_starts: int = 1,
    start_rows: int = _START_ROWS, sample: int = 0, tolerance: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
  """Clusters rows by rounds of assignment and means from a k-means++ start.

  Args:
    seed: of the draws.
    x: [n, D] float32.
    num_clusters: K.
    assign: how rows find a center: `nearest`, `bounded` (with its bounds),
      `Even()` or `in_turn`.
    num_steps: rounds at most.
    num_starts: the best of so many starts is kept.
    start_rows: of `start_centers`.
    sample: rows that move the centers, of `nearest` alone; 0 = all.
    tolerance: stop when a round lowers the sum of squares by less than this
      share.

  Returns:
    (labels [n], centers [K, D] float32): of `nearest`, each row's nearest
    center, all of them used as long as there are enough distinct rows; of the
    others, centers are the means of their rows.
  """
  x = np.ascontiguousarray(x, np.float32)
  free = assign is nearest
  part = x
  if free and 0 < sample < len(x):
    rng = np.random.default_rng([seed, 1])
    part = x[np.sort(rng.choice(len(x), sample, replace=False))]
  best, result = math.inf, None
  for start in range(num_starts):
    centers = start_centers(seed + start, part, num_clusters, start_rows)
    last = math.inf
    for _ in range(num_steps):
      labels, dist = assign(part, centers)
      total = float(np.sum(dist, dtype=np.float64))
      old, centers = centers, means(part, labels, centers)
      # Means lower the sum by what they moved.
      left = total - float(np.sum(
          np.bincount(labels, minlength=num_clusters)
          * np.square(centers - old, dtype=np.float64).sum(1)))
      if free:
        _revive(part, labels, dist, centers)
      if left < best:
        best, result = left, (labels, centers)
      if total >= last * (1 - tolerance) or np.array_equal(centers, old):
        break
      last = total
  if not free:
    return result
  centers = result[1].copy()
  for _ in range(num_steps):  # Empty clusters may appear in the last round.
    labels, dist = nearest(x, centers)
    if not _revive(x, labels, dist, centers):
      break
  return labels, centers
