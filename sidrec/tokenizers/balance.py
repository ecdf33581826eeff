"""Balanced clustering on the host: capacities by prices.

The assignment of n rows to K columns of limited capacity is a transportation
problem whose dual has one price a column. Log-domain Sinkhorn steps with a
falling temperature come near to the prices, and so near to the sizes; the rows
left over then move along cheapest chains of columns (a -> b -> c), which keeps
the assignment optimal. Only where too many rows are left over are they moved
greedily, one hop each. `exact=True` calls SciPy's solver instead.
"""

import math
from typing import Callable, NamedTuple

import numpy as np
from scipy import optimize

_EXACT_SIZE = 1 << 14  # Cells up to which the exact solver is the faster one.
_MAX_CHAINS = 1000  # Rows to move by chains; about .5 ms each.


class Tree(NamedTuple):
  """A tree of codes.

  codes: [V, L] int32, all tuples distinct.
  books: [L, K, D] float32, the codewords of each level.
  gaps: [L] float32, mean difference of the two smallest squared distances.
  """
  codes: np.ndarray
  books: np.ndarray
  gaps: np.ndarray


def squared_distances(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
  """Returns squared Euclidean distances [n, K] of [n, D] to [K, D]."""
  cross = x @ centers.T
  cross *= -2
  cross += np.sum(x * x, 1)[:, None]
  cross += np.sum(centers * centers, 1)[None]
  return np.maximum(cross, 0, out=cross)


def top_two_gap(cost: np.ndarray) -> np.ndarray:
  """Returns second smallest minus smallest of each row: [n, K] -> [n]."""
  two = np.partition(cost, 1, axis=1)
  return two[:, 1] - two[:, 0]


def _prices(
    cost: np.ndarray, target: np.ndarray, start: np.ndarray, bounded: bool,
    hot: float, num_steps: int
) -> np.ndarray:
  """Finds column prices by annealed Sinkhorn steps.

  Args:
    cost: [K, n] float32, transposed: reductions over K then vectorize.
    target: [K] column sums to reach (`bounded`: not to exceed).
    start: [K] prices to start from.
    bounded: True where a column may stay below its target; its price is then
      never positive.
    hot: first temperature in standard deviations of the cost; the last is .01.
    num_steps: number of steps.

  Returns:
    [K] prices v; rows belong to the column of the smallest cost - v.
  """
  scale = float(np.std(cost)) or 1.
  prices = start.astype(np.float32)
  log_target = np.log(np.maximum(target, 1e-9))
  logits = np.empty_like(cost)
  for eps in np.geomspace(hot, .01, num_steps) * scale:
    np.subtract(prices[:, None], cost, out=logits)
    logits /= np.float32(eps)
    logits -= logits.max(0)
    np.exp(logits, out=logits)
    mass = logits @ (1 / logits.sum(0))
    prices -= np.float32(eps) * (
        np.log(np.maximum(mass, 1e-9)) - log_target).astype(np.float32)
    if bounded:
      np.minimum(prices, 0, out=prices)
  return prices


def _rank_in_group(group: np.ndarray) -> np.ndarray:
  """Counts, for each entry, the earlier entries of the same group."""
  order = np.argsort(group, kind='stable')
  ordered = group[order]
  new = np.r_[True, ordered[1:] != ordered[:-1]]
  start = np.maximum.accumulate(np.where(new, np.arange(group.size), 0))
  rank = np.empty(group.size, np.int64)
  rank[order] = np.arange(group.size) - start
  return rank


def _repair(
    reduced: np.ndarray, labels: np.ndarray, capacity: np.ndarray
) -> np.ndarray:
  """Moves rows of least regret until no column is over its capacity.

  Args:
    reduced: [K, n] cost minus price.
    labels: [n] columns, possibly over capacity; changed in place.
    capacity: [K] int, at least n in all.

  Returns:
    `labels`, [n].
  """
  num_columns = capacity.size
  while True:
    count = np.bincount(labels, minlength=num_columns)
    excess = count - capacity
    rows = np.flatnonzero(excess[labels] > 0)
    if not rows.size:
      return labels
    free = np.flatnonzero(excess < 0)
    options = reduced[np.ix_(free, rows)]
    best = np.argmin(options, 0)
    regret = options[best, np.arange(rows.size)] - reduced[labels[rows], rows]
    order = np.argsort(regret, kind='stable')
    rows, goal = rows[order], free[best[order]]
    # A round takes only as many as the source must lose and the goal can hold.
    # The row of least regret always moves, so rounds end.
    keep = _rank_in_group(labels[rows]) < excess[labels[rows]]
    rows, goal = rows[keep], goal[keep]
    keep = _rank_in_group(goal) < -excess[goal]
    labels[rows[keep]] = goal[keep]


class _Chains:
  """Moves rows along cheapest chains of columns.

  Labels that minimize cost - price are the optimum for their own column
  counts. Moving one row a column along a shortest path of the graph of
  columns keeps that true of the new counts (successive shortest paths).
  """

  def __init__(self, cost: np.ndarray, labels: np.ndarray,
               capacity: np.ndarray):
    self._cost = cost  # [K, n] float64
    self._labels = labels
    self._capacity = capacity
    self._tolerance = 1e-9 * (float(np.std(cost)) or 1.)
    size = capacity.size
    self._weight = np.full((size, size), np.inf)
    self._mover = np.zeros((size, size), np.int64)
    for column in range(size):
      self._measure(column)

  def _measure(self, column: int) -> None:
    """Finds the cheapest row to move from a column to each other one."""
    rows = np.flatnonzero(self._labels == column)
    self._weight[column] = np.inf
    if rows.size:
      extra = self._cost[:, rows] - self._cost[column, rows]
      best = np.argmin(extra, 1)
      self._weight[column] = extra[np.arange(len(extra)), best]
      self._mover[column] = rows[best]
      self._weight[column, column] = np.inf

  def _shortest(self, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (distance [K], previous column [K]) by Bellman-Ford."""
    distance = np.where(source, 0., np.inf)
    previous = np.full(distance.size, -1)
    for _ in range(distance.size):
      through = distance[:, None] + self._weight
      via = np.argmin(through, 0)
      length = through[via, np.arange(via.size)]
      better = length < distance - self._tolerance
      if not better.any():
        break
      distance = np.where(better, length, distance)
      previous = np.where(better, via, previous)
    return distance, previous

  def settle(self) -> np.ndarray:
    """Returns labels [n] within the capacities, at the least cost."""
    while True:
      excess = np.bincount(
          self._labels, minlength=self._capacity.size) - self._capacity
      over = excess > 0
      room = excess < 0
      if not room.any():
        return self._labels
      source = over if over.any() else np.ones_like(over)
      distance, previous = self._shortest(source)
      goal = int(np.argmin(np.where(room, distance, np.inf)))
      if not over.any() and distance[goal] >= -self._tolerance:
        return self._labels
      path = [goal]
      while previous[path[-1]] >= 0:
        path.append(int(previous[path[-1]]))
        assert len(path) <= excess.size, 'A chain of columns has a cycle.'
      for to, column in zip(path[:-1], path[1:]):
        self._labels[self._mover[column, to]] = to
      for column in path:
        self._measure(column)


def settle(
    cost: np.ndarray, prices: np.ndarray, capacity: np.ndarray, max_chains: int
) -> np.ndarray:
  """Assigns [K, n] costs by prices, then brings columns to capacity."""
  reduced = cost.astype(np.float64) - prices.astype(np.float64)[:, None]
  labels = np.argmin(reduced, 0)
  excess = np.bincount(labels, minlength=capacity.size) - capacity
  if np.maximum(excess, 0).sum() > max_chains:
    return _repair(reduced, labels, capacity)
  return _Chains(cost.astype(np.float64), labels, capacity).settle()


def capacity_assign(
    cost: np.ndarray, capacity: int | np.ndarray, *, exact: bool | None = None
) -> np.ndarray:
  """Assigns each row to a column, minimizing cost within the capacities.

  Args:
    cost: [n, K] float, finite.
    capacity: rows that a column may take, one number or [K] int.
    exact: True calls an exact solver (time grows with n ** 3), False goes by
      prices, None takes the first way where the problem is small.

  Returns:
    [n] int64 columns, none used more often than its capacity.

  Raises:
    ValueError: the capacities together hold fewer than n rows.
  """
  num_rows, num_columns = cost.shape
  capacity = np.minimum(
      np.broadcast_to(np.asarray(capacity, np.int64), (num_columns,)), num_rows)
  if capacity.sum() < num_rows:
    raise ValueError(
        f'{num_rows} rows do not fit into {int(capacity.sum())} places.')
  if num_rows == 0:
    return np.zeros(0, np.int64)
  if exact is None:
    exact = num_rows * capacity.sum() <= _EXACT_SIZE
  if exact:
    columns = np.repeat(np.arange(num_columns), capacity)
    rows, slots = optimize.linear_sum_assignment(cost[:, columns])
    labels = np.empty(num_rows, np.int64)
    labels[rows] = columns[slots]
    return labels
  cost = np.ascontiguousarray(cost.T, np.float32)
  labels = np.argmin(cost, 0)
  if np.all(np.bincount(labels, minlength=num_columns) <= capacity):
    return labels  # No capacity binds.
  bounded = capacity.sum() > num_rows
  prices = _prices(
      cost, capacity, np.zeros(num_columns), bounded, hot=1., num_steps=50)
  return settle(cost, prices, capacity, _MAX_CHAINS)


def plus_plus(
    rng: np.random.Generator, x: np.ndarray, num_clusters: int
) -> np.ndarray:
  """Draws k-means++ centers [K, D]."""
  chosen = [int(rng.integers(len(x)))]
  nearest = squared_distances(x, x[chosen])[:, 0].astype(np.float64)
  for _ in range(num_clusters - 1):
    total = np.cumsum(nearest)
    # Fewer distinct points than clusters: the rest are repeats.
    pick = (np.searchsorted(total, rng.random() * total[-1])
            if total[-1] > 0 else rng.integers(len(x)))
    chosen.append(min(int(pick), len(x) - 1))
    np.minimum(nearest, squared_distances(x, x[chosen[-1:]])[:, 0], out=nearest)
  return x[chosen]


def _even_assign(
    cost: np.ndarray, prices: np.ndarray, first: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Assigns [K, n] costs with column sizes floor(n / K) or ceil(n / K)."""
  num_columns, num_rows = cost.shape
  target = np.full(num_columns, num_rows / num_columns)
  prices = _prices(
      cost, target, prices, bounded=False,
      hot=1. if first else .1, num_steps=40 if first else 12)
  labels = np.argmin(cost - prices[:, None], 0)
  fullest = np.argsort(
      -np.bincount(labels, minlength=num_columns), kind='stable')
  capacity = np.full(num_columns, num_rows // num_columns)
  capacity[fullest[:num_rows % num_columns]] += 1
  # Centers move again after this: not worth long chains.
  return settle(cost, prices, capacity, _MAX_CHAINS // 50), prices


def balanced_kmeans(
    seed: int, x: np.ndarray, num_clusters: int, *, num_steps: int = 20,
    num_starts: int = 1, tolerance: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
  """Clusters points into clusters whose sizes differ by at most one.

  Args:
    seed: of the k-means++ starts.
    x: [n, D] points.
    num_clusters: K.
    num_steps: rounds of assignment and means at most.
    num_starts: the best of so many starts is kept.
    tolerance: stop when a round lowers the sum of squares by less than this
      share.

  Returns:
    (labels [n] int64, centers [K, D] float32); sizes are floor(n / K) or
    ceil(n / K); a center is the mean of its points.
  """
  x = np.ascontiguousarray(x, np.float32)
  rng = np.random.default_rng(seed)
  best, result = math.inf, None
  for _ in range(num_starts):
    centers = plus_plus(rng, x, num_clusters)
    prices = np.zeros(num_clusters, np.float32)
    last = math.inf
    for step in range(num_steps):
      cost = np.ascontiguousarray(squared_distances(x, centers).T)
      labels, prices = _even_assign(cost, prices, first=step == 0)
      centers = _means(x, labels, centers)
      total = float(np.sum(np.square(x - centers[labels]), dtype=np.float64))
      if total < best:
        best, result = total, (labels, centers)
      if total >= last * (1 - tolerance):
        break
      last = total
  return result


def _means(
    x: np.ndarray, labels: np.ndarray, centers: np.ndarray
) -> np.ndarray:
  """Returns cluster means [K, D]; an empty cluster keeps its center."""
  count = np.bincount(labels, minlength=len(centers))
  order = np.argsort(labels, kind='stable')
  sums = np.zeros(centers.shape, np.float64)
  used = count > 0
  starts = (np.cumsum(count) - count)[used]
  sums[used] = np.add.reduceat(x[order].astype(np.float64), starts, axis=0)
  means = sums / np.maximum(count, 1)[:, None]
  return np.where(used[:, None], means, centers).astype(np.float32)


def tree(
    vectors: np.ndarray, num_levels: int, num_codes: int,
    book_fn: Callable[[int, np.ndarray], np.ndarray], *, slack: float = 1.,
    old: np.ndarray | None = None, bonus: np.ndarray | None = None,
    exact: bool | None = None
) -> Tree:
  """Gives each vector a code tuple of its own, level by level.

  Within each node of the tree the vectors are assigned to the codewords of the
  level with capacity min(ceil(slack * n / K), room below), and 1 on the last
  level, so that tuples are distinct by construction.

  Args:
    vectors: [V, D].
    num_levels: L.
    num_codes: K; K ** L must be at least V.
    book_fn: (level, residuals [V, D]) -> codewords [K, D].
    slack: how much fuller than even a code may be.
    old: [V, L] earlier codes to stay near to, or None.
    bonus: [L] squared distance that an unchanged code is given for free.
    exact: see `capacity_assign`.
  """
  residual = np.array(vectors, np.float32)
  num_items = len(residual)
  node, num_nodes = np.zeros(num_items, np.int64), 1
  same = np.ones(num_items, bool)
  codes = np.zeros((num_items, num_levels), np.int32)
  books, gaps = [], []
  for level in range(num_levels):
    book = np.asarray(book_fn(level, residual), np.float32)
    cost = squared_distances(residual, book)
    gaps.append(top_two_gap(cost).mean())
    if old is not None:
      rows = np.flatnonzero(same)
      cost[rows, old[rows, level]] -= bonus[level]
    room = num_codes**(num_levels - level - 1)
    order = np.argsort(node, kind='stable')
    bounds = np.searchsorted(node[order], np.arange(num_nodes + 1))
    for first, last in zip(bounds[:-1], bounds[1:]):
      rows = order[first:last]
      capacity = min(math.ceil(slack * len(rows) / num_codes - 1e-9), room)
      codes[rows, level] = capacity_assign(cost[rows], capacity, exact=exact)
    if old is not None:
      same &= codes[:, level] == old[:, level]
    residual -= book[codes[:, level]]
    names, node = np.unique(
        node * num_codes + codes[:, level], return_inverse=True)
    num_nodes = len(names)
    books.append(book)
  assert num_nodes == num_items, 'Code tuples are not distinct.'
  return Tree(codes, np.stack(books), np.asarray(gaps, np.float32))
