"""Transportation problems: rows to columns of bounded size, and soft plans.

Host: the assignment of n rows to K columns, each with a least and a most number
of rows, has a dual with one price a column. Log-domain Sinkhorn steps with a
falling temperature come near to the prices, and so near to the sizes; the rows
left over then move along cheapest chains of columns (a -> b -> c), which keeps
the assignment optimal. Only where too many rows are left over are they moved
greedily, one hop each. Small problems are solved exactly.

Traced: the entropic plan of a batch, by Sinkhorn's iteration in log space, as
LC-Rec (arXiv 2311.09049, eq. 5-6) and LETTER (arXiv 2405.07314) use it on the
last level of a residual quantizer. Their exp(-d / .003) needs float64; with
logarithms float32 does.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

_EXACT_SIZE = 1 << 14  # Cells up to which the exact solver is the faster one.
_MAX_CHAINS = 1000  # Rows to move by chains; about .5 ms each.
_COLDEST = .01  # Last temperature, in standard deviations of the cost.


def log_plan(
    dist: jax.Array, mask: jax.Array | None = None, *, epsilon: float,
    num_steps: int = 50
) -> jax.Array:
  """Spreads rows evenly over the columns.

  Distances are first moved and scaled to [-1, 1] over all of them. A step gives
  each row the mass 1 / B and then each column the mass 1 / K.

  Args:
    dist: [B, K] distances, finite, in any unit.
    mask: [B] bool, True = a row, at least one; None = all are.
    epsilon: temperature, in half-ranges of the distances.
    num_steps: rounds.

  Returns:
    [B, K] float32 log of the mass; columns sum to 1 / K. No gradient.
  """
  chex.assert_rank(dist, 2)
  dist = jax.lax.stop_gradient(jnp.asarray(dist, jnp.float32))
  valid = jnp.ones(dist.shape[:1], bool) if mask is None else mask
  valid = jnp.broadcast_to(valid[:, None], dist.shape)
  high = jnp.max(dist, where=valid, initial=-jnp.inf)
  low = jnp.min(dist, where=valid, initial=jnp.inf)
  middle, half = (high + low) / 2, (high - low) / 2 + 1e-5
  start = jnp.where(valid, -(dist - middle) / (half * epsilon), -jnp.inf)
  log_rows = -jnp.log(jnp.sum(valid[:, 0]))
  log_columns = -jnp.log(dist.shape[1])

  def step(plan: jax.Array, _: None) -> tuple[jax.Array, None]:
    plan += log_rows - jax.nn.logsumexp(plan, 1, keepdims=True)
    plan = jnp.where(valid, plan, -jnp.inf)  # Nothing over nothing.
    plan += log_columns - jax.nn.logsumexp(plan, 0, keepdims=True)
    return plan, None

  return jax.lax.scan(step, start, length=num_steps)[0]


def spread(
    dist: jax.Array, mask: jax.Array | None = None, *, epsilon: float,
    num_steps: int = 50, axis_name: str | None = None
) -> jax.Array:
  """Returns the column of most mass for each row: [B, K] -> [B] int32.

  Args:
    dist, mask, epsilon, num_steps: as `log_plan`.
    axis_name: data-parallel axis that the rows span, or None; there is no mask
      then.
  """
  num_rows = dist.shape[0]
  if axis_name is not None:
    dist = jax.lax.all_gather(dist, axis_name, tiled=True)
  plan = log_plan(dist, mask, epsilon=epsilon, num_steps=num_steps)
  # Of fewer rows than columns, one has columns for itself: their masses are
  # alike to the last digit of float32, the odds against the other rows not.
  total = jax.nn.logsumexp(plan, 0, keepdims=True)
  first = jnp.arange(len(plan))[:, None] == jnp.argmax(plan, 0)[None]
  rest = jax.nn.logsumexp(
      jnp.where(first, -jnp.inf, plan), 0, keepdims=True)
  others = jnp.where(
      first, rest, total + jnp.log1p(-jnp.minimum(
          jnp.exp(plan - total), .5)))
  codes = jnp.argmax(plan - others, 1).astype(jnp.int32)
  if axis_name is None:
    return codes
  return jax.lax.dynamic_slice_in_dim(
      codes, jax.lax.axis_index(axis_name) * num_rows, num_rows)


def prices(
    cost: np.ndarray, low: np.ndarray, high: np.ndarray, start: np.ndarray, *,
    hot: float = 1., num_steps: int = 50
) -> np.ndarray:
  """Finds column prices by annealed Sinkhorn steps.

  Args:
    cost: [K, n] float32, transposed: reductions over K then vectorize.
    low, high: [K] bounds of the column sums; whole or not. A column whose mass
      is in bounds without a price has none (complementary slackness).
    start: [K] prices to start from.
    hot: first temperature in standard deviations of the cost.
    num_steps: number of steps.

  Returns:
    [K] float32 prices v; rows belong to the column of the smallest cost - v.
  """
  scale = float(np.std(cost)) or 1.
  found = np.asarray(start, np.float64)
  with np.errstate(divide='ignore'):  # No least number is no bound.
    log_low, log_high = np.log(low), np.log(np.maximum(high, 1e-9))
  logits = np.empty_like(cost)
  for eps in np.geomspace(hot, _COLDEST, num_steps) * scale:
    np.subtract(found.astype(np.float32)[:, None], cost, out=logits)
    logits /= np.float32(eps)
    logits -= logits.max(0)
    np.exp(logits, out=logits)
    mass = logits @ (1 / logits.sum(0))
    # The log of the mass that the column would have at price 0.
    free = np.log(np.maximum(mass, 1e-9)) - found / eps
    found = eps * (np.clip(free, log_low, log_high) - free)
  return found.astype(np.float32)


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
    cost: np.ndarray, price: np.ndarray, capacity: np.ndarray, max_chains: int
) -> np.ndarray:
  """Assigns rows by prices, then brings the columns to their capacities.

  Args:
    cost: [K, n].
    price: [K].
    capacity: [K] int, at least n in all.
    max_chains: rows over capacity up to which chains are sought.

  Returns:
    [n] int64 columns.
  """
  reduced = cost.astype(np.float64) - price.astype(np.float64)[:, None]
  labels = np.argmin(reduced, 0)
  excess = np.bincount(labels, minlength=capacity.size) - capacity
  if np.maximum(excess, 0).sum() > max_chains:
    return _repair(reduced, labels, capacity)
  return _Chains(cost.astype(np.float64), labels, capacity).settle()


def _exact(
    cost: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
  """Solves [n, K] by SciPy, with a place for each row a column may have."""
  columns = np.repeat(np.arange(len(high)), high)
  places = cost[:, columns]
  if low.any():
    # Rows without cost fill what is left open; the places that must be filled
    # are closed to them.
    place = np.arange(columns.size) - np.repeat(np.cumsum(high) - high, high)
    must = place < low[columns]
    span = float(np.ptp(cost)) * len(cost) + 1.
    open_rows = np.tile(
        np.where(must, span, 0.), (columns.size - len(cost), 1))
    places = np.concatenate([places - cost.min(), open_rows])
  rows, slots = optimize.linear_sum_assignment(places)
  labels = np.empty(len(places), np.int64)
  labels[rows] = columns[slots]
  return labels[:len(cost)]


def _sizes_within(
    count: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
  """Moves counts into [low, high] by as little as their sum allows."""
  sizes = np.clip(count, low, high)
  while sizes.sum() != count.sum():
    gap = int(count.sum() - sizes.sum())
    room = high - sizes if gap > 0 else sizes - low
    order = np.argsort(-room, kind='stable')[:abs(gap)]
    order = order[room[order] > 0]
    sizes[order] += np.sign(gap)
  return sizes


def assign(
    cost: np.ndarray, high: int | np.ndarray, low: int | np.ndarray = 0, *,
    exact: bool | None = None, max_chains: int = _MAX_CHAINS
) -> np.ndarray:
  """Assigns each row to a column, minimizing cost within bounds of the sizes.

  Args:
    cost: [n, K] float, finite.
    high: rows that a column may take, one number or [K] int.
    low: rows that a column must take, likewise.
    exact: True calls an exact solver (time grows with n ** 3), False goes by
      prices, None takes the first way where the problem is small.
    max_chains: see `settle`.

  Returns:
    [n] int64 columns.

  Raises:
    ValueError: n rows cannot be divided in this way.
  """
  num_rows, num_columns = cost.shape
  bounds = (np.broadcast_to(np.asarray(bound, np.int64), (num_columns,))
            for bound in (low, high))
  low, high = (np.minimum(bound, num_rows) for bound in bounds)
  if not low.sum() <= num_rows <= high.sum() or np.any(low > high):
    raise ValueError(
        f'{num_rows} rows do not fit into {num_columns} columns that hold '
        f'{int(low.sum())} to {int(high.sum())}.')
  if num_rows == 0:
    return np.zeros(0, np.int64)
  if exact is None:
    exact = num_rows * high.sum() <= _EXACT_SIZE
  if exact:
    return _exact(cost, low, high)
  cost = np.ascontiguousarray(cost.T, np.float32)
  labels = np.argmin(cost, 0)
  count = np.bincount(labels, minlength=num_columns)
  if np.all(count <= high) and np.all(count >= low):
    return labels  # No bound binds.
  # Where all must be full the sizes are known, and a price has no sign.
  least = high if high.sum() == num_rows else low
  found = prices(cost, least, high, np.zeros(num_columns),
                 num_steps=60 if low.any() else 50)
  sizes = high
  if low.any():
    labels = np.argmin(cost - found[:, None], 0)
    sizes = _sizes_within(
        np.bincount(labels, minlength=num_columns), low, high)
  return settle(cost, found, sizes, max_chains)
