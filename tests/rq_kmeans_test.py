"""k-means, RQ-KMeans and the controls against brute force and scikit-learn."""

import functools

import ml_collections
import numpy as np
import pytest

from sidrec import metrics
from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import walk


def _clustered(num, dim, seed=0, centers=12):
  rng = np.random.default_rng(seed)
  means = rng.normal(size=(centers, dim))
  share = rng.dirichlet(np.full(centers, .5))  # Uneven, so bounds bind.
  x = means[rng.choice(centers, num, p=share)]
  return (x + .3 * rng.normal(size=x.shape)).astype(np.float32)


def test_nearest_means_and_descent_over_chunks(monkeypatch):
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
  codes, (book,), rest = walk.descend(walk.to_nearest([centers]), x, 1)
  np.testing.assert_array_equal(codes[:, 0], labels)
  np.testing.assert_array_equal(rest, x - centers[labels])
  np.testing.assert_array_equal(book, centers)


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


def test_bounded_refuses_what_cannot_be():
  x, centers = np.zeros((10, 2), np.float32), np.zeros((3, 2), np.float32)
  for low, high in ((4, 9), (0, 3), (5, 2)):
    with pytest.raises(types.InputError, match='10 rows cannot make 3'):
      kmeans.bounded(x, centers, low=low, high=high)


def _bounded(seed, x, num, low, high, **settings):
  return kmeans.lloyd(
      seed, x, num, functools.partial(kmeans.bounded, low=low, high=high),
      **settings)


def test_bounded_sizes_are_within_bounds_at_little_cost():
  x = np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)
  labels, centers = _bounded(0, x, 32, 31, 124, num_steps=10)
  count = np.bincount(labels, minlength=32)
  assert 31 <= count.min() and count.max() <= 124
  free, means = kmeans.lloyd(0, x, 32)
  assert np.square(x - centers[labels]).sum() <= 1.03 * np.square(
      x - means[free]).sum()


@pytest.mark.parametrize('assign', [
    functools.partial(kmeans.bounded, low=5, high=40), kmeans.in_turn,
    kmeans.Even(), kmeans.nearest])
def test_every_way_to_assign_says_its_distances(assign):
  x = _clustered(200, 4)
  labels, dist = assign(x, x[:9])
  np.testing.assert_allclose(
      dist, np.square(x - x[labels]).sum(1), atol=1e-4)


def _even(seed, x, num, **settings):
  return kmeans.lloyd(
      seed, x, num, kmeans.Even(), start_rows=0, **settings)


def _greedy(seed, x, num):
  return kmeans.lloyd(seed, x, num, kmeans.in_turn, tolerance=-np.inf)


@pytest.mark.parametrize('fit', [_even, _greedy])
@pytest.mark.parametrize(
    'num, clusters', [(500, 8), (503, 8), (40, 40), (5, 8)])
def test_even_sizes_differ_by_one(fit, num, clusters):
  x = _clustered(num, 6)
  labels, centers = fit(0, x, clusters)
  count = np.bincount(labels, minlength=clusters)
  assert np.ptp(count) <= 1 and count.sum() == num
  for k in np.flatnonzero(count):
    np.testing.assert_allclose(centers[k], x[labels == k].mean(0), atol=1e-5)
  np.testing.assert_array_equal(labels, fit(0, x, clusters)[0])


def test_even_clusters_of_equal_points():
  labels, centers = _even(0, np.ones((20, 3)), 4)
  np.testing.assert_array_equal(np.bincount(labels), [5, 5, 5, 5])
  np.testing.assert_allclose(centers, 1.)


def test_even_clusters_find_planted_ones():
  rng = np.random.default_rng(0)
  means = 10 * rng.normal(size=(6, 4))
  truth = np.repeat(np.arange(6), 50)
  x = means[truth] + .1 * rng.normal(size=(300, 4))
  labels, _ = _even(3, x, 6, num_starts=5)
  assert len(np.unique(6 * truth + labels)) == 6


def test_even_clusters_against_the_constrained_package():
  package = pytest.importorskip('k_means_constrained')
  x = _clustered(600, 8)
  reference = package.KMeansConstrained(
      16, size_min=37, size_max=38, n_init=3, random_state=0).fit(x)
  labels, centers = _even(0, x, 16, num_starts=3)
  ours = np.square(x - centers[labels]).sum()
  assert ours <= 1.03 * reference.inertia_


def _config(**settings):
  return ml_collections.ConfigDict({**dict(
      name='rqkmeans', num_levels=3, codebook_size=8, balance='none',
      kmeans_steps=20, start_rows=0, fields=()), **settings})


def _spec(num_items, fields=()):
  items = types.FeatureSpec(
      fields=fields, vocabulary=1 + sum(f.size for f in fields),
      num_slots=sum(f.stop - f.start for f in fields))
  return types.DataSpec(
      num_items=num_items, num_users=1, items=items,
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)


def _items(x, features=types.FeatureTable()):
  return base.Items(np.arange(len(x)), x, features, np.ones(len(x)))


def _fit(tokenizer, x):
  """Returns (params, codes) of the whole fit."""
  params, _, codes = tokenizer.start(0, {}, {}, _items(x))
  if codes is None:
    codes, _ = tokenizer.assign(params, {}, _items(x), None)
  return params, codes


@pytest.mark.parametrize('size', [8, (8, 5, 11)])
def test_rqkmeans_codes_are_of_the_residuals(size):
  x = _clustered(403, 5)
  tokenizer = tokenizers.make(_config(codebook_size=size), _spec(403))
  params, codes = _fit(tokenizer, x)
  left = x.astype(np.float64)
  for level, book in enumerate(params['books']):
    assert len(book) == tokenizer.sizes[level]
    label = np.square(left[:, None] - book[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(codes[:, level], label)
    for k in np.unique(label):
      np.testing.assert_allclose(book[k], left[label == k].mean(0), atol=.05)
    left = left - book[label]
  # Along the codes that stand the same is left, and nothing else is needed.
  _, _, rest = walk.descend(walk.along(params['books'], codes), x, 3)
  np.testing.assert_allclose(rest, left, atol=1e-5)
  np.testing.assert_allclose(
      x - rest, walk.prefix(params['books'], codes), atol=1e-5)


@pytest.mark.parametrize('kind', ['greedy', 'prices'])
def test_balanced_rqkmeans_sizes_differ_by_one(kind):
  x = _clustered(403, 5)
  tokenizer = tokenizers.make(_config(balance=kind), _spec(403))
  params, codes = _fit(tokenizer, x)
  fresh, metric = tokenizer.assign(params, {}, _items(x), codes)
  assert metric['tokenizer/churn'] == np.mean((fresh != codes).any(1))
  for found in (codes, fresh):
    for level in range(3):
      assert np.ptp(np.bincount(found[:, level], minlength=8)) <= 1
  gini = metrics.code_statistics(codes, (8,) * 3)
  assert gini['tokenizer/gini@2'] < .01
  with pytest.raises(types.InputError, match='tokenizer.balance'):
    tokenizers.make(_config(balance='even'), _spec(403))


def test_rqkmeans_does_not_care_about_the_scale():
  x = _clustered(200, 5)
  tokenizer = tokenizers.make(_config(), _spec(200))
  np.testing.assert_array_equal(
      _fit(tokenizer, x)[1], _fit(tokenizer, x / 64)[1])


@pytest.mark.parametrize('num_levels, size', [
    (3, 8), (4, 256), (1, 500), (2, (20, 60))])
def test_random_codes_are_distinct_and_spread(num_levels, size):
  table = tokenizers.make(
      _config(name='random', num_levels=num_levels, codebook_size=size),
      _spec(500))
  codes = [table.fit(seed, _items(np.zeros((500, 1)))) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(codes[0], codes[1])
  assert (codes[0] != codes[2]).mean() > .8
  assert len(np.unique(codes[0], axis=0)) == 500
  found = metrics.code_statistics(codes[0], table.sizes)
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
  return fields, types.FeatureTable(ids=ids)


def _category(given, features, seed=0, **settings):
  table = tokenizers.make(
      _config(**{'name': 'category', 'codebook_size': 16, **settings}),
      _spec(40, given))
  return table, table.fit(seed, _items(np.zeros((40, 1)), features))


def test_category_codes_follow_the_fields_coarse_to_fine():
  fields, features = _catalog()
  table, codes = _category(fields, features)
  assert table.sizes == (3, 4, 16)  # 'top', 'tags', the items.
  row = np.arange(40)
  np.testing.assert_array_equal(codes[:, 0], row % 3)  # 0 = missing.
  want = row % 3 + 1
  want[1] = 0
  np.testing.assert_array_equal(codes[:, 1], want)
  assert len(np.unique(codes, axis=0)) == 40
  for cell in np.unique(codes[:, :2], axis=0):
    inside = codes[(codes[:, :2] == cell).all(1), 2]
    np.testing.assert_array_equal(np.sort(inside), np.arange(len(inside)))
  table, codes = _category(fields, features, fields=('leaf', 'tags.1'))
  assert table.sizes == (7, 4, 16)
  np.testing.assert_array_equal(codes[:, 0], row % 6 + 1)
  assert not codes[:, 1].any()  # Nobody has a second tag.


def test_category_leaves_out_what_is_the_same_of_all():
  fields, features = _catalog()
  one = types.Field('kind', types.Role.ITEM_STATIC, 'category', 20, 21, 1)
  ids = np.concatenate([features.ids, np.full((40, 1), 112, np.int32)], 1)
  wider = types.FeatureTable(ids=ids)
  assert _category((*fields, one), wider)[0].sizes == (3, 4, 16)
  assert _category((*fields, one), wider, fields=('kind', 'top'))[0].sizes == (
      2, 3, 16)  # Where it is asked for.


def test_category_fills_cells_in_random_order():
  """Numbers of items say when they came: they must not be read off a code."""
  fields, features = _catalog()
  last = [_category(fields, features, seed)[1][:, -1] for seed in range(30)]
  np.testing.assert_array_equal(
      last[3], _category(fields, features, 3)[1][:, -1])
  assert len(np.unique(last, axis=0)) == 30
  ranks = [np.corrcoef(np.arange(40), x)[0, 1] for x in last]
  assert abs(np.mean(ranks)) < .1


def test_category_says_what_is_missing():
  fields, features = _catalog()
  with pytest.raises(types.InputError, match='tokenizer.num_levels: 3 needs'):
    _category((), features)
  with pytest.raises(types.InputError, match="tokenizer.fields.*'title'"):
    _category(fields, features, fields=('top', 'title'))
  with pytest.raises(types.InputError, match='features'):
    _category(fields, types.FeatureTable())
  with pytest.raises(types.InputError, match='14 items share one cell'):
    _category(fields, features, codebook_size=13)
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    _category(fields, features, codebook_size=2)
