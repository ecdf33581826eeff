"""Transport problems and capacity trees against exact solvers."""

import functools

import jax
import numpy as np
import pytest
from scipy import optimize
from scipy import special

from sidrec.tokenizers import kmeans
from sidrec.tokenizers import transport
from sidrec.tokenizers import tree


def _clustered(num, dim, seed=0, centers=12):
  rng = np.random.default_rng(seed)
  means = rng.normal(size=(centers, dim))
  share = rng.dirichlet(np.full(centers, .5))  # Uneven, so bounds bind.
  x = means[rng.choice(centers, num, p=share)]
  return (x + .3 * rng.normal(size=x.shape)).astype(np.float32)


def _exact_cost(cost, capacity):
  columns = np.repeat(np.arange(cost.shape[1]), capacity)
  rows, slots = optimize.linear_sum_assignment(cost[:, columns])
  return cost[rows, columns[slots]].sum()


@pytest.mark.parametrize('exact', [True, False, None])
@pytest.mark.parametrize('slack', [1., 1.25])
def test_assign_is_near_the_optimum(exact, slack):
  x = _clustered(720, 8)
  centers = x[np.random.default_rng(1).choice(720, 40, replace=False)]
  cost = kmeans.squared(x, centers)
  capacity = int(np.ceil(slack * 720 / 40))
  labels = transport.assign(cost, capacity, exact=exact)
  assert np.bincount(labels, minlength=40).max() <= capacity
  best = _exact_cost(cost, [capacity] * 40)
  got = cost[np.arange(720), labels].sum()
  assert best * (1 - 1e-6) <= got <= best * 1.0001
  assert got > cost.min(1).sum()  # The capacities do bind.


def test_assign_with_uneven_capacities_and_edges():
  cost = np.array([[0., 1.], [0., 2.], [0., 5.]])
  labels = transport.assign(cost, np.array([2, 1]), exact=False)
  np.testing.assert_array_equal(labels, [1, 0, 0])
  for exact in (True, False):
    np.testing.assert_array_equal(
        transport.assign(cost, np.array([3, 0]), exact=exact), [0, 0, 0])
    np.testing.assert_array_equal(
        transport.assign(cost[:, ::-1], np.array([3, 0]), exact=exact),
        [0, 0, 0])
  assert transport.assign(np.zeros((0, 3)), 1).shape == (0,)
  # Rows that are all the same still spread.
  labels = transport.assign(np.ones((9, 3)), 3, exact=False)
  np.testing.assert_array_equal(np.bincount(labels), [3, 3, 3])
  with pytest.raises(ValueError, match='3 rows do not fit into 2 columns'):
    transport.assign(cost, 1)
  with pytest.raises(ValueError, match='that hold 4 to 6'):
    transport.assign(cost, 3, 2)


def _bounded_optimum(cost, low, high):
  """The transport program with bounds on the columns, by linear programming."""
  rows, columns = cost.shape
  each = np.kron(np.eye(rows), np.ones(columns))
  every = np.kron(np.ones(rows), np.eye(columns))
  high, low = (np.broadcast_to(v, columns) for v in (high, low))
  found = optimize.linprog(
      cost.reshape(-1), A_eq=each, b_eq=np.ones(rows),
      A_ub=np.concatenate([every, -every]), b_ub=np.r_[high, -low])
  return found.fun


UNEVEN = (np.arange(12) % 3, np.arange(12) + 4)


@pytest.mark.parametrize(
    'low, high', [(3, 9), (5, 5), (0, 8), (4, 60), UNEVEN])
@pytest.mark.parametrize('exact', [True, False])
def test_assign_within_bounds_is_near_the_optimum(low, high, exact):
  x = _clustered(60, 3)
  cost = kmeans.squared(x, x[:12])
  labels = transport.assign(cost, high, low, exact=exact)
  count = np.bincount(labels, minlength=12)
  assert (low <= count).all() and (count <= high).all()
  got = cost[np.arange(60), labels].sum()
  want = _bounded_optimum(cost.astype(np.float64), low, high)
  assert want * (1 - 1e-4) <= got <= want * (1 + 1e-4 if exact else 1.35)


def test_prices_are_near_the_optimum_where_rows_move_greedily():
  x = _clustered(720, 8)
  centers = x[np.random.default_rng(1).choice(720, 40, replace=False)]
  cost = kmeans.squared(x, centers)
  labels = transport.assign(cost, 18, exact=False, max_chains=0)
  np.testing.assert_array_equal(np.bincount(labels), 18)
  got = cost[np.arange(720), labels].sum()
  assert got <= 1.06 * _exact_cost(cost, [18] * 40)


def test_a_column_within_its_bounds_has_no_price():
  cost = np.array([[0., 9, 9], [0, 9, 9], [1, 0, 9], [0, 3, 9]], np.float32).T
  price = transport.prices(
      cost, np.zeros(3), np.array([2, 2, 2]), np.zeros(3))
  assert price[0] < -1 and np.abs(price[1:]).max() < 1e-6
  price = transport.prices(
      cost, np.array([0, 0, 1]), np.full(3, 4), np.zeros(3))
  assert price[2] > 1 and np.abs(price[:2]).max() < 1e-6


def _plain_plan(dist):
  """Sinkhorn's iteration in float64 logarithms; returns [B, K]."""
  middle, half = (dist.max() + dist.min()) / 2, np.ptp(dist) / 2 + 1e-5
  plan = -(dist - middle) / (half * .003)
  for _ in range(50):
    plan -= special.logsumexp(plan, 1, keepdims=True) + np.log(len(dist))
    plan -= special.logsumexp(plan, 0, keepdims=True) + np.log(dist.shape[1])
  return plan


def _distances(rows, columns=16, seed=0):
  rng = np.random.default_rng(seed)
  return np.square(rng.normal(size=(rows, 1, 4))
                   - .5 * rng.normal(size=(1, columns, 4))).sum(-1)


_log_plan = jax.jit(functools.partial(transport.log_plan, epsilon=.003))
_spread = jax.jit(functools.partial(transport.spread, epsilon=.003))


@pytest.mark.parametrize('rows', [64, 200])
def test_sinkhorn_equals_float64_and_fills_columns(rows):
  dist = _distances(rows)
  want = _plain_plan(dist)
  got = np.asarray(_log_plan(dist.astype(np.float32)))
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got, want, atol=5e-3, rtol=1e-4)
  np.testing.assert_allclose(np.exp(got).sum(0) * 16, 1, atol=.01)
  codes = np.asarray(_spread(dist.astype(np.float32)))
  np.testing.assert_array_equal(codes, want.argmax(1))
  even = np.bincount(codes, minlength=16).max()
  assert even < np.bincount(dist.argmin(1), minlength=16).max()
  # What float32 makes of the plain form.
  middle, half = (dist.max() + dist.min()) / 2, np.ptp(dist) / 2 + 1e-5
  with np.errstate(over='ignore'):
    assert not np.isfinite(
        np.exp(np.float32(-(dist - middle) / (half * .003)))).all()


def test_few_rows_take_the_columns_that_are_most_theirs():
  """Odds rank columns as masses do, where masses have no digits left."""
  for seed in range(5):
    dist = _distances(3, 32, seed)
    plan = _plain_plan(dist)
    odds = np.stack([
        row - special.logsumexp(np.delete(plan, i, 0), 0)
        for i, row in enumerate(plan)])
    got = np.asarray(_spread(dist.astype(np.float32)))
    np.testing.assert_array_equal(got, odds.argmax(1))
    assert len(np.unique(got)) == 3
    # Also among the largest masses, up to rounding.
    np.testing.assert_allclose(
        plan[np.arange(3), got], plan.max(1), atol=1e-9)


def _even(seed, x, num_codes):
  return kmeans.lloyd(seed, x, num_codes, kmeans.Even(), start_rows=0)[1]


def _nodes(codes, level):
  _, node = np.unique(codes[:, :level], axis=0, return_inverse=True)
  return node.reshape(-1) if level else np.zeros(len(codes), int)


@pytest.mark.parametrize('sizes', [(10, 10, 10), (6, 14, 9)])
@pytest.mark.parametrize('slack', [1., 1.25])
def test_tree_tuples_are_distinct_and_nodes_within_capacity(slack, sizes):
  x = _clustered(700, 8)
  grown = tree.grow(
      x, sizes, lambda level, r: _even(level, r, sizes[level]), slack=slack)
  assert len(np.unique(grown.codes, axis=0)) == 700
  rest = x.copy()
  for level, size in enumerate(sizes):
    assert grown.books[level].shape == (size, 8)
    two = np.sort(kmeans.squared(rest, grown.books[level]), 1)[:, :2]
    np.testing.assert_allclose(
        grown.gaps[level], np.diff(two).mean(), rtol=1e-4)
    rest -= grown.books[level][grown.codes[:, level]]
    parent = _nodes(grown.codes, level)
    for p in np.unique(parent):
      count = np.bincount(grown.codes[parent == p, level], minlength=size)
      room = int(np.prod(sizes[level + 1:]))
      even = np.ceil(slack * (parent == p).sum() / size)
      assert count.max() <= (1 if room == 1 else min(even, room))


@pytest.mark.parametrize('sizes', [(4, 4, 4), (2, 8, 4)])
def test_tree_fills_every_tuple_when_the_catalog_is_full(sizes):
  x = _clustered(64, 5)
  grown = tree.grow(x, sizes, lambda level, r: _even(level, r, sizes[level]))
  assert len(np.unique(grown.codes, axis=0)) == 64


def test_tree_on_the_same_books_is_the_same_tree():
  x = _clustered(300, 8)
  first = tree.grow(
      x, (8,) * 3, lambda level, r: _even(level, r, 8), exact=True)
  again = tree.grow(
      x, (8,) * 3, lambda level, _: first.books[level], exact=True,
      old=first.codes, bonus=np.zeros(3))
  np.testing.assert_array_equal(first.codes, again.codes)
  np.testing.assert_allclose(first.gaps, again.gaps)


def test_bonus_keeps_codes():
  x = _clustered(400, 8)
  first = tree.grow(x, (8,) * 3, lambda level, r: _even(level, r, 8))
  moved = x + .15 * np.random.default_rng(0).normal(size=x.shape)
  churn = []
  for margin in (0., 2., 1e6):
    grown = tree.grow(
        moved, (8,) * 3, lambda level, _: first.books[level], slack=1.25,
        old=first.codes, bonus=margin * first.gaps)
    assert len(np.unique(grown.codes, axis=0)) == 400
    churn.append(np.mean((grown.codes != first.codes).any(1)))
  assert churn[0] > churn[1] > churn[2] == 0
