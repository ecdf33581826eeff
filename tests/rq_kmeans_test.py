"""k-means, RQ-KMeans and the controls against brute force and scikit-learn."""

import ml_collections
import numpy as np
import pytest
from scipy import optimize

from sidrec import metrics
from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import balance
from sidrec.tokenizers import kmeans


def _clustered(num, dim, seed=0, centers=12):
  rng = np.random.default_rng(seed)
  means = rng.normal(size=(centers, dim))
  share = rng.dirichlet(np.full(centers, .5))  # Uneven, so bounds bind.
  x = means[rng.choice(centers, num, p=share)]
  return (x + .3 * rng.normal(size=x.shape)).astype(np.float32)


def test_nearest_means_and_subtract_over_chunks(monkeypatch):
  monkeypatch.setattr(kmeans, 'CHUNK', 7)
  x = _clustered(50, 4)
  centers = np.concatenate([x[:5], np.full((1, 4), 99., np.float32)])
  labels, dist = kmeans.nearest(x, centers)
  square = np.square(x[:, None].astype(np.float64) - centers[None]).sum(-1)
  np.testing.assert_array_equal(labels, square.argmin(1))
  np.testing.assert_allclose(dist, square.min(1), atol=1e-4)
  means = kmeans.means(x, labels, centers)
  for k in range(5):
    np.testing.assert_allclose(means[k], x[labels == k].mean(0), rtol=1e-5)
  np.testing.assert_array_equal(means[5], centers[5])  # Empty: it stays.
  left = x.copy()
  kmeans.subtract(left, labels, centers)
  np.testing.assert_array_equal(left, x - centers[labels])


def test_lloyd_uses_every_code_on_1024_points():
  x = np.random.default_rng(0).normal(size=(1024, 8)).astype(np.float32)
  labels, centers = kmeans.lloyd(0, x, 256)
  assert np.bincount(labels, minlength=256).min() >= 1
  np.testing.assert_array_equal(labels, kmeans.nearest(x, centers)[0])
  again, _ = kmeans.lloyd(0, x, 256)
  np.testing.assert_array_equal(labels, again)


@pytest.mark.parametrize('sample', [0, 1500])
def test_lloyd_is_as_good_as_scikit_learn(sample):
  cluster = pytest.importorskip('sklearn.cluster')
  x = _clustered(3000, 8)
  labels, centers = kmeans.lloyd(0, x, 32, num_steps=50, sample=sample)
  want = cluster.KMeans(32, n_init=3, random_state=0).fit(x).inertia_
  assert np.square(x - centers[labels]).sum() <= 1.05 * want


def test_lloyd_of_few_distinct_points():
  x = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
  labels, centers = kmeans.lloyd(0, x, 8)
  np.testing.assert_allclose(centers[labels], x)


def _bounded_optimum(cost, low, high):
  """The transport program with bounds on the columns, by linear programming."""
  rows, columns = cost.shape
  each = np.kron(np.eye(rows), np.ones(columns))
  every = np.kron(np.ones(rows), np.eye(columns))
  found = optimize.linprog(
      cost.reshape(-1), A_eq=each, b_eq=np.ones(rows),
      A_ub=np.concatenate([every, -every]),
      b_ub=np.r_[np.full(columns, high), np.full(columns, -low)])
  return found.fun


@pytest.mark.parametrize('low, high', [(3, 9), (5, 5), (0, 8), (4, 60)])
@pytest.mark.parametrize('exact', [True, False])
def test_bounded_assign_is_near_the_optimum(low, high, exact, monkeypatch):
  x = _clustered(60, 3)
  cost = balance.squared_distances(x, x[:12])
  monkeypatch.setattr(kmeans, '_EXACT_SLOTS', 1000 if exact else 0)
  labels = kmeans.bounded_assign(cost, low, high)
  count = np.bincount(labels, minlength=12)
  assert low <= count.min() and count.max() <= high
  got = cost[np.arange(60), labels].sum()
  want = _bounded_optimum(cost.astype(np.float64), low, high)
  assert got <= want * (1 + 1e-4 if exact else 1.35)


def test_bounded_assign_refuses_what_cannot_be():
  cost = np.zeros((10, 3), np.float32)
  for low, high in ((4, 9), (0, 3), (5, 2)):
    with pytest.raises(types.InputError, match='10 rows cannot make 3'):
      kmeans.bounded_assign(cost, low, high)


def test_constrained_sizes_are_within_bounds_at_little_cost():
  x = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
  labels, centers = kmeans.constrained(0, x, 32, 31, 124)
  count = np.bincount(labels, minlength=32)
  assert 31 <= count.min() and count.max() <= 124
  free, means = kmeans.lloyd(0, x, 32)
  assert np.square(x - centers[labels]).sum() <= 1.03 * np.square(
      x - means[free]).sum()


@pytest.mark.parametrize('num, clusters', [(500, 8), (503, 8), (5, 8)])
def test_greedy_sizes_differ_by_one(num, clusters):
  x = _clustered(num, 6)
  labels, centers = kmeans.greedy_even(0, x, clusters)
  count = np.bincount(labels, minlength=clusters)
  assert np.ptp(count) <= 1 and count.sum() == num
  for k in np.flatnonzero(count):
    np.testing.assert_allclose(centers[k], x[labels == k].mean(0), atol=1e-5)


def _config(**settings):
  config = ml_collections.ConfigDict(dict(
      num_levels=3, codebook_size=8, balance='none', kmeans_steps=20,
      start_rows=0, fields=()))
  config.update(settings)
  return config


def _spec(num_items, fields=()):
  items = types.FeatureSpec(
      fields=fields, vocabulary=1 + sum(f.size for f in fields),
      num_slots=sum(f.stop - f.start for f in fields))
  return types.DataSpec(
      num_items=num_items, num_users=1, items=items,
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)


def test_rqkmeans_codes_are_of_the_residuals():
  x = _clustered(403, 5)
  tokenizer = tokenizers.get('rqkmeans').make(_config(), _spec(403))
  params, codebook = tokenizer.fit(0, {}, {}, x)
  left = x.astype(np.float64)
  for level, book in enumerate(params['books']):
    label = np.square(left[:, None] - book[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(codebook['codes'][:, level], label)
    for k in np.unique(label):
      np.testing.assert_allclose(book[k], left[label == k].mean(0), atol=.05)
    left = left - book[label]
  assert np.square(left).sum() < .2 * np.square(x - x.mean(0)).sum()
  again, found = tokenizer.refresh(params, codebook, x)
  np.testing.assert_array_equal(again['codes'], codebook['codes'])
  assert found['tokenizer/churn'] == 0


@pytest.mark.parametrize('kind', ['greedy', 'prices'])
def test_balanced_rqkmeans_sizes_differ_by_one(kind):
  x = _clustered(403, 5)
  tokenizer = tokenizers.get('rqkmeans').make(
      _config(balance=kind), _spec(403))
  params, codebook = tokenizer.fit(0, {}, {}, x)
  fresh, _ = tokenizer.refresh(params, codebook, x)
  for codes in (codebook['codes'], fresh['codes']):
    for level in range(3):
      assert np.ptp(np.bincount(codes[:, level], minlength=8)) <= 1
  gini = metrics.code_statistics(codebook['codes'], (8,) * 3)
  assert gini['tokenizer/gini@2'] < .01
  with pytest.raises(types.InputError, match='tokenizer.balance'):
    tokenizers.get('rqkmeans').make(_config(balance='even'), _spec(403))


def test_rqkmeans_does_not_care_about_the_scale():
  x = _clustered(200, 5)
  tokenizer = tokenizers.get('rqkmeans').make(_config(), _spec(200))
  want = tokenizer.fit(0, {}, {}, x)[1]['codes']
  got = tokenizer.fit(0, {}, {}, x / 64)[1]['codes']
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('num_levels, size', [(3, 8), (4, 256)])
def test_random_codes_are_distinct_and_spread(num_levels, size):
  tokenizer = tokenizers.get('random').make(
      _config(num_levels=num_levels, codebook_size=size), _spec(500))
  codes = [tokenizer.fit(seed, {}, {}, np.zeros((500, 1)))[1]['codes']
           for seed in (0, 0, 1)]
  np.testing.assert_array_equal(codes[0], codes[1])
  assert (codes[0] != codes[2]).mean() > .8
  assert len(np.unique(codes[0], axis=0)) == 500
  found = metrics.code_statistics(codes[0], (size,) * num_levels)
  for level in range(1, num_levels + 1):
    assert found[f'tokenizer/usage@{level}'] > .8


def _catalog():
  """Returns (fields, features): words, two categories, tags in two slots."""
  make = lambda name, start, stop, size: types.Field(
      name, types.Role.ITEM_STATIC, 'category', start, stop, size)
  fields = (make('title', 0, 16, 100), make('leaf', 16, 17, 6),
            make('top', 17, 18, 2), make('tags', 18, 20, 3))
  rng = np.random.default_rng(0)
  row = np.arange(40)
  ids = np.zeros((40, 20), np.int32)
  ids[:, :16] = rng.integers(1, 101, (40, 16))
  ids[:, 16] = 101 + row % 6
  ids[:, 17] = np.where(row % 3, 107 + row % 3 - 1, 0)
  ids[:, 18] = 109 + row % 3
  ids[1, 18] = 0
  return fields, types.FeatureTable(
      ids=ids, values=np.zeros((40, 0)), vectors=np.zeros((40, 0)))


def _category(given, features, **settings):
  tokenizer = tokenizers.get('category').make(
      _config(**{'codebook_size': 16, **settings}), _spec(40, given))
  codebook = {'codes': np.zeros((40, tokenizer.num_levels), np.int32)}
  return tokenizer, tokenizer.fit(
      0, {}, codebook, np.zeros((40, 1)), features=features)[1]['codes']


def test_category_codes_follow_the_fields_coarse_to_fine():
  fields, features = _catalog()
  tokenizer, codes = _category(fields, features)
  assert tokenizer.codebook_sizes == (3, 4, 16)  # 'top', 'tags', the items.
  row = np.arange(40)
  np.testing.assert_array_equal(codes[:, 0], row % 3)  # 0 = missing.
  want = row % 3 + 1
  want[1] = 0
  np.testing.assert_array_equal(codes[:, 1], want)
  assert len(np.unique(codes, axis=0)) == 40
  for cell in np.unique(codes[:, :2], axis=0):
    inside = codes[(codes[:, :2] == cell).all(1), 2]
    np.testing.assert_array_equal(inside, np.arange(len(inside)))
  tokenizer, codes = _category(fields, features, fields=('leaf', 'tags.1'))
  assert tokenizer.codebook_sizes == (7, 4, 16)
  np.testing.assert_array_equal(codes[:, 0], row % 6 + 1)
  assert not codes[:, 1].any()  # Nobody has a second tag.


def test_category_says_what_is_missing():
  fields, features = _catalog()
  with pytest.raises(types.InputError, match='tokenizer.num_levels: 3 needs'):
    _category((), features)
  with pytest.raises(types.InputError, match="tokenizer.fields.*'title'"):
    _category(fields, features, fields=('top', 'title'))
  with pytest.raises(types.InputError, match='features'):
    _category(fields, None)
  with pytest.raises(types.InputError, match='14 items share one cell'):
    _category(fields, features, codebook_size=13)
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    _category(fields, features, codebook_size=2)
