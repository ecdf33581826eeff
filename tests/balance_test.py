"""Tests of balanced clustering against exact solvers and other packages."""

import numpy as np
import pytest
from scipy import optimize

from sidrec.tokenizers import balance


def _clustered(num, dim, seed=0, centers=12):
  rng = np.random.default_rng(seed)
  means = rng.normal(size=(centers, dim))
  share = rng.dirichlet(np.full(centers, .5))  # Uneven, so balance binds.
  x = means[rng.choice(centers, num, p=share)]
  return (x + .3 * rng.normal(size=x.shape)).astype(np.float32)


def _exact_cost(cost, capacity):
  columns = np.repeat(np.arange(cost.shape[1]), capacity)
  rows, slots = optimize.linear_sum_assignment(cost[:, columns])
  return cost[rows, columns[slots]].sum()


@pytest.mark.parametrize('exact', [True, False, None])
@pytest.mark.parametrize('slack', [1., 1.25])
def test_capacity_assign_is_near_the_optimum(exact, slack):
  x = _clustered(720, 8)
  centers = x[np.random.default_rng(1).choice(720, 40, replace=False)]
  cost = balance.squared_distances(x, centers)
  capacity = int(np.ceil(slack * 720 / 40))
  labels = balance.capacity_assign(cost, capacity, exact=exact)
  assert np.bincount(labels, minlength=40).max() <= capacity
  best = _exact_cost(cost, [capacity] * 40)
  got = cost[np.arange(720), labels].sum()
  assert best * (1 - 1e-6) <= got <= best * 1.0001
  assert got > cost.min(1).sum()  # The capacities do bind.


def test_capacity_assign_with_uneven_capacities_and_edges():
  cost = np.array([[0., 1.], [0., 2.], [0., 5.]])
  labels = balance.capacity_assign(cost, np.array([2, 1]), exact=False)
  np.testing.assert_array_equal(labels, [1, 0, 0])
  np.testing.assert_array_equal(
      balance.capacity_assign(cost, np.array([3, 0])), [0, 0, 0])
  assert balance.capacity_assign(np.zeros((0, 3)), 1).shape == (0,)
  # Rows that are all the same still spread.
  labels = balance.capacity_assign(np.ones((9, 3)), 3, exact=False)
  np.testing.assert_array_equal(np.bincount(labels), [3, 3, 3])
  with pytest.raises(ValueError, match='3 rows do not fit into 2'):
    balance.capacity_assign(cost, 1)


@pytest.mark.parametrize('num,clusters', [(500, 8), (503, 8), (40, 40), (5, 8)])
def test_balanced_kmeans_sizes(num, clusters):
  x = _clustered(num, 6)
  labels, centers = balance.balanced_kmeans(0, x, clusters)
  count = np.bincount(labels, minlength=clusters)
  assert count.min() >= num // clusters
  assert count.max() <= -(-num // clusters)
  for k in np.flatnonzero(count):
    np.testing.assert_allclose(centers[k], x[labels == k].mean(0), atol=1e-5)
  again, _ = balance.balanced_kmeans(0, x, clusters)
  np.testing.assert_array_equal(labels, again)


def test_balanced_kmeans_of_equal_points():
  labels, centers = balance.balanced_kmeans(0, np.ones((20, 3)), 4)
  np.testing.assert_array_equal(np.bincount(labels), [5, 5, 5, 5])
  np.testing.assert_allclose(centers, 1.)


def test_balanced_kmeans_finds_planted_clusters():
  rng = np.random.default_rng(0)
  means = 10 * rng.normal(size=(6, 4))
  truth = np.repeat(np.arange(6), 50)
  x = means[truth] + .1 * rng.normal(size=(300, 4))
  labels, _ = balance.balanced_kmeans(3, x, 6, num_starts=5)
  assert len(np.unique(6 * truth + labels)) == 6


def test_balanced_kmeans_against_the_constrained_package():
  package = pytest.importorskip('k_means_constrained')
  x = _clustered(600, 8)
  reference = package.KMeansConstrained(
      16, size_min=37, size_max=38, n_init=3, random_state=0).fit(x)
  labels, centers = balance.balanced_kmeans(0, x, 16, num_starts=3)
  ours = np.square(x - centers[labels]).sum()
  assert ours <= 1.03 * reference.inertia_


def test_price_form_is_near_the_optimum_where_rows_move_greedily(monkeypatch):
  monkeypatch.setattr(balance, '_MAX_CHAINS', 0)
  x = _clustered(720, 8)
  centers = x[np.random.default_rng(1).choice(720, 40, replace=False)]
  cost = balance.squared_distances(x, centers)
  labels = balance.capacity_assign(cost, 18, exact=False)
  np.testing.assert_array_equal(np.bincount(labels), 18)
  got = cost[np.arange(720), labels].sum()
  assert got <= 1.06 * _exact_cost(cost, [18] * 40)


def _nodes(codes, level):
  _, node = np.unique(codes[:, :level], axis=0, return_inverse=True)
  return node.reshape(-1) if level else np.zeros(len(codes), int)


@pytest.mark.parametrize('slack', [1., 1.25])
def test_tree_tuples_are_distinct_and_nodes_within_capacity(slack):
  x, num_codes, num_levels = _clustered(700, 8), 10, 3
  tree = balance.tree(
      x, num_levels, num_codes,
      lambda level, r: balance.balanced_kmeans(level, r, num_codes)[1],
      slack=slack)
  assert len(np.unique(tree.codes, axis=0)) == 700
  for level in range(num_levels):
    parent = _nodes(tree.codes, level)
    for p in np.unique(parent):
      count = np.bincount(tree.codes[parent == p, level], minlength=num_codes)
      size = (parent == p).sum()
      room = num_codes**(num_levels - level - 1)
      even = np.ceil(slack * size / num_codes)
      assert count.max() <= (1 if room == 1 else min(even, room))


def test_tree_fills_every_tuple_when_the_catalog_is_full():
  x = _clustered(64, 5)
  tree = balance.tree(
      x, 3, 4, lambda level, r: balance.balanced_kmeans(level, r, 4)[1])
  assert len(np.unique(tree.codes @ [16, 4, 1])) == 64


def test_tree_on_the_same_books_is_the_same_tree():
  x = _clustered(300, 8)
  first = balance.tree(
      x, 3, 8, lambda level, r: balance.balanced_kmeans(level, r, 8)[1],
      exact=True)
  again = balance.tree(
      x, 3, 8, lambda level, _: first.books[level], exact=True,
      old=first.codes, bonus=np.zeros(3))
  np.testing.assert_array_equal(first.codes, again.codes)
  np.testing.assert_allclose(first.gaps, again.gaps)


def test_bonus_keeps_codes():
  x = _clustered(400, 8)
  first = balance.tree(
      x, 3, 8, lambda level, r: balance.balanced_kmeans(level, r, 8)[1])
  moved = x + .15 * np.random.default_rng(0).normal(size=x.shape)
  churn = []
  for margin in (0., 2., 1e6):
    tree = balance.tree(
        moved, 3, 8, lambda level, _: first.books[level], slack=1.25,
        old=first.codes, bonus=margin * first.gaps)
    assert len(np.unique(tree.codes, axis=0)) == 400
    churn.append(np.mean((tree.codes != first.codes).any(1)))
  assert churn[0] > churn[1] > churn[2] == 0
