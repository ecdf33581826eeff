"""Tests the metrics against scikit-learn, double loops and literal values."""

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics

from sidrec import metrics
from sidrec import types


def _rows(seed, ties):
  rng = np.random.default_rng(seed)
  num_rows = int(rng.integers(2, 300))
  labels = (rng.random(num_rows) < rng.uniform(.1, .9)).astype(np.float32)
  labels[:2] = 0, 1
  scores = rng.normal(size=num_rows) + labels
  if ties:
    scores = np.round(scores * 2)
  users = rng.integers(0, 20, num_rows) * 7 - 3
  return rng, labels, scores, users


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', range(10))
def test_auc_and_gauc_against_sklearn(seed, ties):
  rng, labels, scores, users = _rows(seed, ties)
  weights = rng.random(labels.size)
  assert metrics.auc(labels, scores) == pytest.approx(
      sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)
  assert metrics.auc(labels, scores, weights) == pytest.approx(
      sklearn.metrics.roc_auc_score(labels, scores, sample_weight=weights),
      abs=1e-12)
  total, count = 0., 0
  for user in np.unique(users):
    own = users == user
    if len(set(labels[own])) == 2:
      total += own.sum() * sklearn.metrics.roc_auc_score(
          labels[own], scores[own])
      count += own.sum()
  got = metrics.gauc(labels, scores, users)
  assert math.isnan(got) if not count else got == pytest.approx(
      total / count, abs=1e-12)


def test_gauc_by_hand_with_string_users():
  # a: 1 of 1 pair in 2 rows; b: one class; c: 0.5 (tie) in 2 rows, plus one.
  users = np.array(['c', 'a', 'b', 'c', 'a', 'c'])
  labels = np.array([1, 0, 1, 0, 1, 0])
  scores = np.array([.5, .1, .9, .5, .2, .7])
  assert metrics.gauc(labels, scores, users) == pytest.approx(
      (2 * 1. + 3 * .25) / 5)


@pytest.mark.parametrize('labels', [[], [1, 1], [0, 0]])
def test_undefined_is_nan(labels):
  scores = np.linspace(.1, .9, len(labels))
  assert math.isnan(metrics.auc(labels, scores))
  assert math.isnan(metrics.gauc(labels, scores, np.zeros(len(labels))))
  assert math.isnan(metrics.logloss(labels, scores)) == (not labels)
  assert math.isnan(metrics.ece(labels, scores)) == (not labels)
  assert math.isnan(metrics.auc([0, 1], [1, 2], [1, 0]))
  empty = metrics.retrieval(np.zeros((0, 3), int), np.zeros((0, 3)),
                            np.zeros(0, int))
  assert all(map(math.isnan, empty.values()))


@pytest.mark.parametrize('seed', range(5))
def test_logloss_and_ece(seed):
  rng, labels, _, _ = _rows(seed, False)
  values = rng.random(labels.size)
  assert metrics.logloss(labels, values) == pytest.approx(
      sklearn.metrics.log_loss(labels, values), abs=1e-9)
  for bins in (1, 10, 15):
    want = 0.
    for i in range(bins):
      own = (values >= i / bins) & (values < (i + 1) / bins)
      if own.any():
        gap = np.mean(labels[own], dtype=np.float64) - values[own].mean()
        want += own.mean() * abs(gap)
    assert metrics.ece(labels, values, bins) == pytest.approx(want, abs=1e-12)


def test_logloss_and_ece_at_the_ends():
  assert metrics.logloss([1, 0], [0., 1.]) == pytest.approx(-math.log(1e-7))
  assert metrics.logloss([1, 0], [1., 0.]) == pytest.approx(1e-7, rel=1e-6)
  assert metrics.ece([1, 0], [1., 0.]) == 0.
  assert metrics.ece([0, 1], [1., 0.]) == 1.


def test_ranking_names():
  assert set(metrics.ranking([0, 1], [.2, .4], [5, 5])) == {
      'ranking/auc', 'ranking/gauc', 'ranking/logloss', 'ranking/ece'}


@pytest.mark.parametrize('call, words', [
    (lambda: metrics.auc([0, 1], [np.nan, 1]), 'NaN'),
    (lambda: metrics.auc([0, 2], [0, 1]), '0 or 1'),
    (lambda: metrics.auc([0, 1], [0, 1, 2]), 'one length'),
    (lambda: metrics.auc([0, 1], [0, 1], [-1, 1]), '>= 0'),
    (lambda: metrics.gauc([0, 1], [0, 1], [1]), 'users'),
    (lambda: metrics.logloss([0, 1], [0, 1.5]), 'logits'),
    (lambda: metrics.recall_ndcg([[1]], [[1, 1]], [1]), 'mask'),
    (lambda: metrics.recall_ndcg([[1]], [[1]], [1], scores=[1]), 'scores'),
])
def test_bad_rows(call, words):
  with pytest.raises(ValueError, match=words):
    call()


def _recall_ndcg_loop(items, mask, target, k):
  """One row, by walking down the list."""
  place, seen = 0, set()
  for item, valid in zip(items, mask):
    if not valid or item in seen:
      continue
    seen.add(item)
    place += 1
    if place > k:
      break
    if item == target:
      return 1., 1 / math.log2(1 + place)
  return 0., 0.


@pytest.mark.parametrize('seed', range(5))
def test_recall_ndcg_against_a_loop(seed):
  rng = np.random.default_rng(seed)
  items = rng.integers(0, 15, (40, 12))
  mask = rng.random((40, 12)) < .8
  target = rng.integers(-1, 15, 40)
  got = metrics.recall_ndcg(items, mask, target, (1, 3, 5, 50))
  means = metrics.retrieval(items, mask, target, (1, 3, 5, 50), 'unified')
  for k in (1, 3, 5, 50):
    want = np.array([_recall_ndcg_loop(*row, k)
                     for row in zip(items, mask, target)])
    np.testing.assert_array_equal(got[f'recall@{k}'], want[:, 0])
    np.testing.assert_allclose(got[f'ndcg@{k}'], want[:, 1], atol=1e-14)
    assert means[f'unified/recall@{k}'] == want[:, 0].mean()
    assert means[f'unified/ndcg@{k}'] == pytest.approx(want[:, 1].mean())


def _orders(items, mask, scores):
  """Every list that sorts valid entries by score, best first."""
  kept = [i for i in range(len(items)) if mask[i]]
  number = lambda i: -math.inf if math.isnan(scores[i]) else scores[i]
  for order in itertools.permutations(kept):
    if all(number(a) >= number(b) for a, b in zip(order, order[1:])):
      yield items[list(order)]


@pytest.mark.parametrize('limit', [None, 3])
@pytest.mark.parametrize('seed', range(8))
def test_ties_get_the_mean_over_their_orders(seed, limit):
  rng = np.random.default_rng(seed)
  items = np.stack([rng.permutation(9)[:6] for _ in range(6)])
  mask = rng.random((6, 6)) < .8
  scores = -np.sort(rng.integers(0, 3, (6, 6)).astype(np.float32), 1)
  scores[:2][scores[:2] == -2] = np.nan  # They stand last, and tie.
  target = items[np.arange(6), rng.integers(0, 6, 6)]
  ks = (1, 2, 4, 10)
  got = metrics.recall_ndcg(
      items, mask, target, ks, scores=scores, limit=limit)
  for row in range(6):
    lists = list(_orders(items[row], mask[row], scores[row]))
    for k in ks:
      own = [_recall_ndcg_loop(
          found[:limit], np.ones(6), target[row], k) for found in lists]
      recall, ndcg = np.mean(own, 0)
      assert got[f'recall@{k}'][row] == pytest.approx(recall, abs=1e-12)
      assert got[f'ndcg@{k}'][row] == pytest.approx(ndcg, abs=1e-12)


def test_one_tie_of_all_is_a_draw_by_lot():
  items = np.tile(np.arange(50), (50, 1))
  got = metrics.retrieval(items, np.ones_like(items), np.arange(50), (10,),
                          scores=np.zeros(items.shape), limit=20)
  assert got['retrieval/recall@10'] == pytest.approx(10 / 50)
  # A list whose order means something is left as it is.
  plain = metrics.retrieval(items, np.ones_like(items), np.arange(50), (10,),
                            scores=-items.astype(float))
  assert plain == metrics.retrieval(
      items, np.ones_like(items), np.arange(50), (10,))


def test_places_are_those_of_the_given_order():
  items = np.array([[4, 7, 7, 2], [4, 7, 7, 2], [4, 7, 7, 2]])
  mask = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]])
  assert metrics.places(items, mask, [2, 2, 2]).tolist() == [3, 2, 0]
  assert metrics.places(items, mask, [2, 2, 4], 2).tolist() == [0, 2, 1]


def test_ndcg_against_sklearn():
  items = np.array([[4, 2, 7, 1, 0, 3, 5, 6]])
  for target in range(8):
    relevance = np.zeros((1, 8))
    relevance[0, target] = 1
    scores = np.empty((1, 8))
    scores[0, items[0]] = np.arange(8, 0, -1)
    got = metrics.recall_ndcg(items, np.ones_like(items), np.array([target]),
                              (5,))
    assert got['ndcg@5'][0] == pytest.approx(
        sklearn.metrics.ndcg_score(relevance, scores, k=5))


def test_code_statistics_by_hand():
  codes = np.array([[0, 0], [0, 0], [1, 2], [0, 1]])
  got = metrics.code_statistics(codes, (2, 4))
  assert got['tokenizer/collision_rate'] == .5
  assert got['tokenizer/usage@1'] == 1.
  assert got['tokenizer/usage@2'] == .75
  assert got['tokenizer/perplexity@1'] == pytest.approx(
      math.exp(-.75 * math.log(.75) - .25 * math.log(.25)))
  assert got['tokenizer/perplexity@2'] == pytest.approx(
      math.exp(1.5 * math.log(2)))
  assert got['tokenizer/gini@1'] == pytest.approx(.25)
  # Mean absolute difference over twice the mean of (0, 1, 1, 2).
  counts = np.array([0, 1, 1, 2])
  assert got['tokenizer/gini@2'] == pytest.approx(
      np.abs(counts[:, None] - counts[None]).mean() / 2)


def test_code_statistics_extremes_and_collisions():
  even = metrics.code_statistics(np.arange(8)[:, None], (8,))
  assert even == pytest.approx({
      'tokenizer/collision_rate': 0., 'tokenizer/usage@1': 1.,
      'tokenizer/perplexity@1': 8., 'tokenizer/gini@1': 0.})
  one = metrics.code_statistics(np.zeros((8, 1), int), (8,))
  assert one == pytest.approx({
      'tokenizer/collision_rate': 1., 'tokenizer/usage@1': 1 / 8,
      'tokenizer/perplexity@1': 1., 'tokenizer/gini@1': 7 / 8})
  codes = np.random.default_rng(0).integers(0, 6, (200, 3))
  _, inverse, counts = np.unique(codes, axis=0, return_inverse=True,
                                 return_counts=True)
  got = metrics.code_statistics(codes, (6, 6, 6))
  assert got['tokenizer/collision_rate'] == np.mean(
      counts[inverse.reshape(-1)] > 1)


@pytest.mark.parametrize('codes, words', [
    ([[0, 4]], 'row 0, level 2: code 4'), ([[0, -1]], 'code -1'),
    ([[0]], r'\[V, 2\]'), (np.zeros((0, 2), int), 'V >= 1')])
def test_bad_codes(codes, words):
  with pytest.raises(types.InputError, match=words):
    metrics.code_statistics(np.array(codes), (4, 4))


def test_interval():
  assert metrics.interval([.5]) == (.5, 0.)
  mean, spread = metrics.interval([1., 2., 4.])
  assert mean == pytest.approx(7 / 3)
  assert spread == pytest.approx(math.sqrt(7 / 3))
  assert all(map(math.isnan, metrics.interval([])))
