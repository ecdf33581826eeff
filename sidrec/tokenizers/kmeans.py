"""k-means on the host: plain, with bounded sizes, and by greedy even filling.

Work on many rows goes through matrix products over chunks of them, so that a
million rows need little memory beside their own.
"""

import math

import numpy as np
from scipy import sparse

from sidrec import types
from sidrec.tokenizers import balance

CHUNK = 1 << 15  # Rows a matrix product.
_START_ROWS = 32  # Rows a cluster that the k-means++ start looks at.
_EXACT_SLOTS = 1 << 10  # Up to here the exact solver is fast.
_BLOCK = 64  # Centers a product when filling greedily.
_MAX_CHAINS = 20  # Centers move again after this: not worth long chains.


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


def subtract(x: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> None:
  """Subtracts each row's center from x [n, D], in place and in chunks."""
  for start in range(0, len(x), CHUNK):
    x[start:start + CHUNK] -= centers[labels[start:start + CHUNK]]


def start_centers(seed: int, x: np.ndarray, num_clusters: int) -> np.ndarray:
  """Draws k-means++ centers [K, D] from (a sample of) the rows.

  Args:
    seed: of the draws.
    x: [n, D] float32.
    num_clusters: K.
  """
  rng = np.random.default_rng(seed)
  most = _START_ROWS * num_clusters
  if len(x) > most:
    x = x[np.sort(rng.choice(len(x), most, replace=False))]
  return balance.plus_plus(rng, x, num_clusters)


def _revive(
    x: np.ndarray, labels: np.ndarray, dist: np.ndarray, centers: np.ndarray
) -> None:
  """Moves empty centers onto the rows farthest from theirs, in place."""
  empty = np.flatnonzero(
      np.bincount(labels, minlength=len(centers)) == 0)[:len(x)]
  if empty.size:
    rows = np.argpartition(-dist, empty.size - 1)[:empty.size]
    rows = rows[np.argsort(-dist[rows], kind='stable')]
    rows = rows[dist[rows] > 0]  # Fewer distinct rows than centers.
    centers[empty[:rows.size]] = x[rows]


def lloyd(
    seed: int, x: np.ndarray, num_clusters: int, *, num_steps: int = 20,
    sample: int = 0, tolerance: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
  """Clusters rows by Lloyd's algorithm from a k-means++ start.

  Args:
    seed: of the draws.
    x: [n, D] float32.
    num_clusters: K.
    num_steps: rounds of assignment and means at most.
    sample: rows that move the centers; 0 = all.
    tolerance: stop when a round lowers the sum of squares by less than this
      share.

  Returns:
    (labels [n] int32, centers [K, D] float32); a label is the nearest center.
    All are used as long as there are enough distinct rows.
  """
  part = x
  if 0 < sample < len(x):
    rng = np.random.default_rng([seed, 1])
    part = x[np.sort(rng.choice(len(x), sample, replace=False))]
  centers = start_centers(seed, part, num_clusters)
  last = math.inf
  for _ in range(num_steps):
    labels, dist = nearest(part, centers)
    centers = means(part, labels, centers)
    _revive(part, labels, dist, centers)
    total = float(np.sum(dist, dtype=np.float64))
    if total >= last * (1 - tolerance):
      break
    last = total
  for _ in range(num_steps):  # Empty clusters may appear in the last round.
    labels, dist = nearest(x, centers)
    before = centers.copy()
    _revive(x, labels, dist, centers)
    if np.array_equal(before, centers):
      break
  return labels, centers


def _bounded_prices(
    cost: np.ndarray, low: int, high: int, num_steps: int = 60
) -> np.ndarray:
  """Finds prices [K] that keep the sizes of [K, n] costs in bounds.

  Annealed Sinkhorn steps for a range of column sums: a column whose mass at
  price 0 is in bounds has price 0 (complementary slackness).
  """
  scale = float(np.std(cost)) or 1.
  prices = np.zeros(len(cost), np.float32)
  bounds = np.log(max(low, 1e-9)), np.log(high)
  for eps in np.geomspace(1., .01, num_steps) * scale:
    logits = (prices[:, None] - cost) / np.float32(eps)
    logits -= logits.max(0)
    np.exp(logits, out=logits)
    mass = logits @ (1 / logits.sum(0))
    free = np.log(np.maximum(mass, 1e-9)) - prices / eps
    prices = (eps * (np.clip(free, *bounds) - free)).astype(np.float32)
  return prices


def _sizes_within(count: np.ndarray, low: int, high: int) -> np.ndarray:
  """Moves counts into [low, high] by as little as their sum allows."""
  sizes = np.clip(count, low, high)
  while sizes.sum() != count.sum():
    gap = int(count.sum() - sizes.sum())
    room = high - sizes if gap > 0 else sizes - low
    order = np.argsort(-room, kind='stable')[:abs(gap)]
    order = order[room[order] > 0]
    sizes[order] += np.sign(gap)
  return sizes


def bounded_assign(cost: np.ndarray, low: int, high: int) -> np.ndarray:
  """Assigns rows to columns whose sizes stay in [low, high].

  Exact where the problem is small, near the optimum by prices elsewhere.

  Args:
    cost: [n, K] float, finite.
    low, high: bounds of a column's number of rows.

  Returns:
    [n] int64 columns.

  Raises:
    types.InputError: n rows cannot be divided in this way.
  """
  num_rows, num_columns = cost.shape
  if not num_columns * low <= num_rows <= num_columns * high or low > high:
    raise types.InputError(
        f'{num_rows} rows cannot make {num_columns} clusters of {low} to '
        f'{high}; change the bounds or the number of clusters.')
  labels = np.argmin(cost, 1)
  count = np.bincount(labels, minlength=num_columns)
  if count.min() >= low and count.max() <= high:
    return labels
  slots = num_columns * high
  if slots <= _EXACT_SLOTS:
    # Rows without cost fill what is left open; the places that must be filled
    # are closed to them.
    filled = np.tile(np.arange(high) < low, num_columns)
    span = float(np.ptp(cost)) * num_rows + 1.
    square = np.where(filled, span, 0.) * np.ones((slots, 1))
    square[:num_rows] = np.repeat(cost, high, axis=1) - cost.min()
    return balance.capacity_assign(square, 1, exact=True)[:num_rows] // high
  cost = np.ascontiguousarray(cost.T, np.float32)
  prices = _bounded_prices(cost, low, high)
  labels = np.argmin(cost - prices[:, None], 0)
  sizes = _sizes_within(np.bincount(labels, minlength=num_columns), low, high)
  return balance.settle(cost, prices, sizes, _MAX_CHAINS)


def constrained(
    seed: int, x: np.ndarray, num_clusters: int, low: int, high: int, *,
    num_steps: int = 10, num_starts: int = 1, tolerance: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
  """Clusters rows into clusters of bounded size (LETTER, arXiv 2405.07314).

  Args:
    seed: of the k-means++ starts.
    x: [n, D] float32.
    num_clusters: K.
    low, high: bounds of the sizes.
    num_steps: rounds at most.
    num_starts: the best of so many starts is kept.
    tolerance: as `lloyd`.

  Returns:
    (labels [n] int64, centers [K, D] float32).

  Raises:
    types.InputError: as `bounded_assign`.
  """
  best, result = math.inf, None
  for start in range(num_starts):
    centers = start_centers(seed + start, x, num_clusters)
    last = math.inf
    for _ in range(num_steps):
      labels = bounded_assign(
          balance.squared_distances(x, centers), low, high)
      centers = means(x, labels, centers)
      total = float(np.sum(np.square(x - centers[labels]), dtype=np.float64))
      if total < best:
        best, result = total, (labels, centers)
      if total >= last * (1 - tolerance):
        break
      last = total
  return result


def greedy_even(
    seed: int, x: np.ndarray, num_clusters: int, *, num_steps: int = 20
) -> tuple[np.ndarray, np.ndarray]:
  """Fills clusters one after the other (OneRec, arXiv 2502.18965, alg. 1).

  Args:
    seed: of the k-means++ start.
    x: [n, D] float32.
    num_clusters: K; the first n mod K clusters take one row more.
    num_steps: rounds at most; the best of them is kept.

  Returns:
    (labels [n] int64, centers [K, D] float32).
  """
  centers = start_centers(seed, x, num_clusters)
  sizes = np.full(num_clusters, len(x) // num_clusters)
  sizes[:len(x) % num_clusters] += 1
  square = np.einsum('nd,nd->n', x, x)
  best, result = math.inf, None
  for _ in range(num_steps):
    labels = np.empty(len(x), np.int64)
    free, new, total = np.arange(len(x)), centers.copy(), 0.
    for k, size in enumerate(sizes):
      if k % _BLOCK == 0:  # Centers move after their turn: one product is due.
        cross = centers[k:k + _BLOCK] @ x.T
      if not size:
        continue
      dist = square[free] - 2 * cross[k % _BLOCK, free]
      taken = np.argpartition(dist, size - 1)[:size]
      rows = free[taken]
      labels[rows] = k
      new[k] = x[rows].mean(0, dtype=np.float64)
      total += float(np.sum(np.square(x[rows] - new[k]), dtype=np.float64))
      free = np.delete(free, taken)
    if total < best:
      best, result = total, (labels, new)
    if np.array_equal(new, centers):
      break
    centers = new
  return result
