"""Diagnostics against scikit-learn, SciPy and brute force."""

import numpy as np
import pytest
from scipy import stats

from sidrec import types
from sidrec.tokenizers import diagnostics
from sidrec.tokenizers import kmeans

V, L, K, D = 120, 3, 6, 5
SIZES = (K,) * L


def _codes(seed=0):
  rng = np.random.default_rng(seed)
  share = rng.dirichlet(np.full(K - 1, .7))  # Code K - 1 is never used.
  return rng.choice(K - 1, (V, L), p=share).astype(np.int32)


def _vectors(seed=1):
  return np.random.default_rng(seed).normal(size=(V, D))


def test_levels_and_paths():
  codes = _codes()
  found = diagnostics.report(codes, SIZES)
  for level in range(L):
    count = np.bincount(codes[:, level], minlength=K)
    name = lambda what, level=level: found[f'tokenizer/{what}@{level + 1}']
    np.testing.assert_allclose(name('entropy'), stats.entropy(count))
    np.testing.assert_allclose(
        name('perplexity'), np.exp(stats.entropy(count)))
    assert name('dead') == (count == 0).sum() >= 1
    assert name('usage') == np.mean(count > 0)
    np.testing.assert_allclose(name('spread'), count.std())
    np.testing.assert_allclose(  # Gini as half the relative mean difference.
        name('gini'), np.abs(count[:, None] - count[None]).mean()
        / (2 * count.mean()))
    rows = [tuple(row) for row in codes[:, :level + 1]]
    assert name('alone') == np.mean([rows.count(row) == 1 for row in rows])
  rows = [tuple(row) for row in codes]
  assert found['tokenizer/paths'] == len(set(rows)) / K**L
  assert found['tokenizer/largest_group'] == max(map(rows.count, rows))
  assert found['tokenizer/collision_rate'] == np.mean(
      [rows.count(row) > 1 for row in rows])


def test_a_uniform_level_has_gini_0_and_all_its_codes():
  codes = np.arange(24)[:, None] % 4
  found = diagnostics.report(codes, (4,))
  assert found['tokenizer/gini@1'] == 0 and found['tokenizer/dead@1'] == 0
  np.testing.assert_allclose(found['tokenizer/entropy@1'], np.log(4))


def test_embedding_neighbours_are_those_of_scikit_learn():
  neighbors = pytest.importorskip('sklearn.neighbors')
  x = _vectors()
  search = neighbors.NearestNeighbors(metric='cosine').fit(x)
  for sample in (V, 30):
    items, near = diagnostics.embedding_neighbours(
        x, num_neighbours=7, sample=sample)
    assert len(items) == sample and (np.diff(items) > 0).all()
    want = search.kneighbors(x[items], 8, return_distance=False)
    for item, row, other in zip(items, near, want):
      assert set(row) == set(other) - {item}


def test_unexplained_variance_is_that_of_a_regression_on_prefixes():
  linear_model = pytest.importorskip('sklearn.linear_model')
  codes, x = _codes(), _vectors()
  found = diagnostics.report(codes, SIZES, vectors=x)
  for length in range(1, L + 1):
    _, group = np.unique(codes[:, :length], axis=0, return_inverse=True)
    one_hot = np.eye(group.max() + 1)[group.ravel()]
    left = x - linear_model.LinearRegression(fit_intercept=False).fit(
        one_hot, x).predict(one_hot)
    np.testing.assert_allclose(
        found[f'tokenizer/unexplained@{length}'],
        np.square(left).sum() / np.square(x - x.mean(0)).sum(), atol=1e-6)


def test_shared_prefixes_by_brute_force():
  codes, x = _codes(), _vectors()
  items, near = diagnostics.embedding_neighbours(x)
  taken = np.random.default_rng(0).integers(-1, V, (V, 4))
  found = diagnostics.report(codes, SIZES, vectors=x, neighbours=taken)
  for length in range(1, L + 1):
    same = lambda a, b, n=length: (codes[a, :n] == codes[b, :n]).all()
    np.testing.assert_allclose(
        found[f'tokenizer/near_prefix@{length}'],
        np.mean([same(i, j) for i, row in zip(items, near) for j in row]))
    np.testing.assert_allclose(
        found[f'tokenizer/taken_prefix@{length}'],
        np.mean([same(i, j) for i, row in enumerate(taken)
                 for j in row if j >= 0]))
  nobody = diagnostics.report(codes, SIZES, neighbours=np.full((V, 2), -1))
  assert np.isnan(nobody['tokenizer/taken_prefix@1'])


def test_purity_is_that_of_the_contingency_table():
  cluster = pytest.importorskip('sklearn.metrics.cluster')
  codes = _codes()
  category = np.random.default_rng(4).integers(-1, 4, V)
  found = diagnostics.report(codes, SIZES, category=category)
  known = category >= 0
  for length in range(1, L + 1):
    prefix = codes[known, :length] @ K**np.arange(length)
    table = cluster.contingency_matrix(category[known], prefix)
    np.testing.assert_allclose(
        found[f'tokenizer/purity@{length}'], table.max(0).sum() / known.sum())


def test_churn_and_reconstruction():
  metrics = pytest.importorskip('sklearn.metrics')
  codes, x = _codes(), _vectors()
  previous = codes.copy()
  previous[:30, 1] = K - 1
  guess = x + .3 * _vectors(9)
  found = diagnostics.report(
      codes, SIZES, previous=previous, vectors=x, reconstruction=guess)
  assert found['tokenizer/churn'] == found['tokenizer/churn@2'] == .25
  assert found['tokenizer/churn@1'] == 0
  want = 1 - metrics.r2_score(x, guess, multioutput='variance_weighted')
  np.testing.assert_allclose(
      found['tokenizer/reconstruction'], want, rtol=1e-4)
  with pytest.raises(ValueError, match='needs vectors'):
    diagnostics.report(codes, SIZES, reconstruction=guess)
  with pytest.raises(ValueError, match='previous has 3 rows'):
    diagnostics.report(codes, SIZES, previous=previous[:3])


def _entropies(*entropies, left=(.8, .5, .3)):
  return {f'tokenizer/{name}@{level}': value
          for name, values in (('entropy', entropies), ('unexplained', left))
          for level, value in enumerate(values, 1)}


def test_collapse_is_told_in_one_line():
  sizes = (256,) * 3
  diagnostics.check_collapse(_entropies(2., 1.5, 1.2), sizes, 1.)
  with pytest.raises(types.InputError, match='level 2 has collapsed') as error:
    diagnostics.check_collapse(_entropies(2., .4, .1), sizes, 1.)
  assert '\n' not in str(error.value)
  with pytest.raises(types.InputError, match='level 1'):
    diagnostics.check_collapse(_entropies(float('nan')), (256,), 1.)


def test_levels_without_work_have_not_collapsed():
  found = _entropies(5.3, 1.2, 0., left=(.2, .001, 0.))
  diagnostics.check_collapse(found, (256,) * 3, 1.)
  with pytest.raises(types.InputError, match='level 3'):
    diagnostics.check_collapse(
        found | {'tokenizer/unexplained@2': .1}, (256,) * 3, 1.)
  diagnostics.check_collapse(_entropies(.6), (2,), 1.)  # Of log 2 = .69.
  with pytest.raises(types.InputError, match='level 1'):
    diagnostics.check_collapse(_entropies(.3), (2,), 1.)


@pytest.mark.parametrize('num_items', [100, 300])
def test_a_small_catalog_has_not_collapsed(num_items):
  x = np.random.default_rng(0).normal(size=(num_items, 16)).astype(np.float32)
  codes, left = [], x.copy()
  for level in range(3):
    labels, book = kmeans.lloyd(level, left, 64, num_steps=10)
    left -= book[labels]
    codes.append(labels)
  sizes = (64,) * 3
  diagnostics.check_collapse(
      diagnostics.report(np.stack(codes, 1), sizes, vectors=x), sizes, 1.)



@pytest.mark.parametrize('num', [1, 3])
@pytest.mark.parametrize('level', [1, 2, 3])
def test_pruned_tokens_lead_back_to_the_items(num, level):
  codes = np.unique(_codes(), axis=0)  # One item a tuple.
  pruned = diagnostics.prune_top_tokens(codes, level, num)
  count = np.bincount(codes[:, level - 1], minlength=K)
  assert set(count[pruned.tokens]) <= set(np.sort(count)[-num:])
  back = {}
  for item, (row, length) in enumerate(zip(pruned.codes, pruned.length)):
    tokens = tuple(row[:length])
    assert (row[length:] == -1).all() and (row[:length] >= 0).all()
    if codes[item, level - 1] in pruned.tokens:
      assert tokens == tuple(np.delete(codes[item], level - 1))
    else:
      assert tokens == tuple(codes[item])
    back.setdefault(tokens, []).append(item)
  if num == 1:
    assert all(len(items) == 1 for items in back.values())
  for tokens, items in back.items():
    for item in items:  # A removed token restores the tuple.
      assert tuple(codes[item]) in {tokens} | {
          tokens[:level - 1] + (int(t),) + tokens[level - 1:]
          for t in pruned.tokens}


def test_taken_together_is_the_count_of_common_users():
  rng = np.random.default_rng(5)
  num = 300  # More than one chunk.
  user, item = rng.integers(0, 40, 900), rng.integers(0, num, 900)
  taken = [set(user[item == i]) for i in range(num)]
  got = diagnostics.taken_together(user, item, num, 4)
  for i in range(num):
    count = [(-len(taken[i] & taken[j]), j) for j in range(num)
             if j != i and taken[i] & taken[j]]
    want = [j for _, j in sorted(count)[:4]]
    assert got[i].tolist() == want + [-1] * (4 - len(want))
