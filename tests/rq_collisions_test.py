"""Collision rules: distinct tuples, order, displacement, by brute force."""

import ml_collections
import numpy as np
import pytest
from scipy import special

from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import collisions

V, K, WIDTH = 300, 8, 4


def _world(num=V, levels=3, seed=0, spread=3):
  """Returns codes with many collisions, residuals, book, popularity."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, spread, (num, levels)).astype(np.int32)
  book = rng.normal(size=(K, WIDTH)).astype(np.float32)
  residual = rng.normal(size=(num, WIDTH)).astype(np.float32)
  codes[:, -1] = np.square(
      residual[:, None] - book[None]).sum(-1).argmin(1)
  return codes, dict(
      residual=residual, book=book,
      popularity=rng.integers(0, 20, num).astype(np.float32))


def _distinct(codes):
  return len(np.unique(codes, axis=0)) == len(codes)


def test_groups_are_those_of_unique():
  codes, _ = _world()
  group, count = collisions.groups(codes)
  _, want, num = np.unique(
      codes, axis=0, return_inverse=True, return_counts=True)
  np.testing.assert_array_equal(group, want.reshape(-1))
  np.testing.assert_array_equal(count, num)


@pytest.mark.parametrize('rule', collisions.RULES)
def test_rules_on_distinct_codes_change_nothing(rule):
  codes = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)
  book = np.eye(4, dtype=np.float32)
  new, sizes, found = collisions.resolve(
      rule, codes, (4,) * 3, residual=book[codes[:, 2]], book=book)
  np.testing.assert_array_equal(new[:, :3], codes)
  assert new.dtype == np.int32
  if rule == 'suffix':  # Unique items have suffix 0.
    assert sizes == (4, 4, 4, 256) and not new[:, 3].any()
  else:
    assert sizes == (4, 4, 4)
  for name in ('before', 'after', 'moved', 'displacement', 'left_prefix'):
    assert found[f'collisions/{name}'] == 0
  assert found['collisions/largest_group'] == 1


@pytest.mark.parametrize('rule', collisions.RULES)
def test_rules_are_deterministic_and_metrics_are_true(rule):
  codes, given = _world()
  # 300 items fit into 512 tuples, not into the 72 that they use.
  (new, sizes, found), again = (
      collisions.resolve(rule, codes, (8, 8, K), num_rounds=3, **given)
      for _ in range(2))
  np.testing.assert_array_equal(new, again[0])
  assert found == again[2] and len(sizes) == new.shape[1]
  assert (new >= 0).all() and (new < np.array(sizes)).all()
  assert _distinct(new) == (rule in ('suffix', 'capacity'))
  _, index, count = np.unique(
      new, axis=0, return_inverse=True, return_counts=True)
  assert found['collisions/after'] == np.mean(count[index.reshape(-1)] > 1)
  assert found['collisions/moved'] == np.mean(
      (new[:, :3] != codes).any(1))
  assert found['collisions/left_prefix'] == np.mean(
      (new[:, :2] != codes[:, :2]).any(1))


def test_suffix_counts_by_popularity_then_id():
  codes = np.array([[1, 1], [0, 1], [1, 1], [1, 1], [1, 1], [0, 0]], np.int32)
  new, sizes, found = collisions.resolve(
      'suffix', codes, (2, 2), popularity=np.array([1., 9, 5, 1, 7, 0]),
      suffix_size=4)
  np.testing.assert_array_equal(new[:, 2], [2, 0, 1, 3, 0, 0])
  assert sizes == (2, 2, 4) and found['collisions/largest_group'] == 4
  plain, *_ = collisions.resolve('suffix', codes, (2, 2))
  np.testing.assert_array_equal(plain[:, 2], [0, 0, 1, 2, 3, 0])
  with pytest.raises(
      types.InputError, match='codes.suffix_size: 3, but 4') as error:
    collisions.resolve('suffix', codes, (2, 2), suffix_size=3)
  assert '\n' not in str(error.value)


def test_sinkhorn_repair_is_that_of_a_plain_loop():
  codes, given = _world(60, spread=4)
  want, residual = codes.copy(), given['residual'].astype(np.float64)
  for rounds in range(20):
    names, group, count = np.unique(
        want, axis=0, return_inverse=True, return_counts=True)
    if count.max() == 1:
      break
    for g in np.flatnonzero(count > 1):
      rows = np.flatnonzero(group.reshape(-1) == g)
      dist = np.square(residual[rows, None] - given['book'][None]).sum(-1)
      middle, half = (dist.max() + dist.min()) / 2, np.ptp(dist) / 2
      plan = -(dist - middle) / (half + 1e-5) / .003
      for _ in range(50):
        plan -= special.logsumexp(plan, 1, keepdims=True) + np.log(len(rows))
        plan -= special.logsumexp(plan, 0, keepdims=True) + np.log(K)
      odds = np.stack([  # As mass, which has no digits for them all.
          row - special.logsumexp(np.delete(plan, i, 0), 0)
          for i, row in enumerate(plan)])
      want[rows, -1] = odds.argmax(1)
  got, _, found = collisions.resolve('sinkhorn', codes, (4, 4, K), **given)
  np.testing.assert_array_equal(got, want)
  assert found['collisions/after'] < found['collisions/before']
  assert 0 < found['collisions/rounds'] <= 20
  np.testing.assert_array_equal(got[:, :2], codes[:, :2])


def test_sinkhorn_repair_may_leave_groups():
  """Equal residuals choose alike, however often: no rule of distinct codes."""
  codes, book = np.zeros((3, 2), np.int32), np.eye(4, dtype=np.float32)
  new, _, found = collisions.resolve(
      'sinkhorn', codes, (2, 4), residual=np.ones((3, 4)), book=book)
  assert not _distinct(new)
  assert found['collisions/rounds'] == 20


def test_capacity_moves_the_less_popular_to_the_nearest_free_code():
  book = np.arange(5, dtype=np.float32)[:, None]
  residual = np.array([[1.1], [1.2], [.9], [3.], [1.4]], np.float32)
  codes = np.array([[0, 1], [0, 1], [0, 1], [0, 3], [1, 1]], np.int32)
  new, _, found = collisions.resolve(
      'capacity', codes, (2, 5), residual=residual, book=book,
      popularity=np.array([1., 5, 3, 0, 0]))
  # Item 1 stays; 2 takes 0 (nearest to .9), 0 the next (2); 3 and 4 stay.
  np.testing.assert_array_equal(
      new, [[0, 2], [0, 1], [0, 0], [0, 3], [1, 1]])
  before = np.array([.01, .04, .01, 0, .16]).mean()
  growth = np.mean([.81 - .01, .81 - .01])
  np.testing.assert_allclose(
      found['collisions/displacement'], growth / before, rtol=1e-4)
  np.testing.assert_allclose(found['collisions/moved'], .4)


def test_capacity_keeps_whoever_collides_with_nobody():
  codes, given = _world(spread=8, seed=3)
  new, *_ = collisions.resolve('capacity', codes, (8, 8, K), **given)
  group, count = collisions.groups(codes)
  cell, num = collisions.groups(codes[:, :2])
  fits = num[cell] <= K
  alone = (count[group] == 1) & fits
  assert alone.any()
  np.testing.assert_array_equal(new[alone], codes[alone])
  np.testing.assert_array_equal(new[fits][:, :2], codes[fits][:, :2])


def test_capacity_fills_every_tuple_and_refuses_one_more():
  codes, given = _world(2 * 3 * K, spread=2)
  new, *_ = collisions.resolve('capacity', codes, (2, 3, K), **given)
  assert _distinct(new) and (new < np.array([2, 3, K])).all()
  # Those that left kept the longest beginning that had room.
  small = dict(given, residual=np.zeros((9, WIDTH)), popularity=None)
  crowd = np.zeros((9, 3), np.int32)
  new, _, found = collisions.resolve('capacity', crowd, (2, 3, K), **small)
  assert (new[:, 0] == 0).all() and (new[:, 1] != 0).sum() == 1
  assert new[8, 1] != 0  # The last by popularity, then id.
  np.testing.assert_allclose(found['collisions/left_prefix'], 1 / 9)
  with pytest.raises(types.InputError, match='name 48 items.* has 49'):
    collisions.resolve(
        'capacity', np.zeros((49, 3), np.int32), (2, 3, K),
        residual=np.zeros((49, WIDTH)), book=given['book'])


def test_capacity_of_one_level():
  book = np.arange(4, dtype=np.float32)[:, None]
  new, *_ = collisions.resolve(
      'capacity', np.ones((4, 1), np.int32), (4,),
      residual=np.ones((4, 1)), book=book)
  np.testing.assert_array_equal(np.sort(new[:, 0]), np.arange(4))


def test_wrong_use_says_what_to_do():
  codes, given = _world()
  settings = ml_collections.ConfigDict(dict(
      collisions='capacity', suffix_size=4))
  with pytest.raises(types.InputError, match='codes.collisions: capacity'):
    collisions.check(settings, base.Table((4,), None))
  collisions.check(settings, base.Tokenizer((4,), *[None] * 9))
  for key, value in (('collisions', 'best'), ('suffix_size', 0)):
    wrong = ml_collections.ConfigDict({**settings, key: value})
    with pytest.raises(types.InputError, match=f'codes.{key}'):
      collisions.check(wrong, base.Table((4,), None))
  with pytest.raises(types.InputError, match='codes.collisions.*suffix'):
    collisions.resolve('best', codes, (8, 8, K))
  for rule in ('capacity', 'sinkhorn'):
    with pytest.raises(types.InputError, match='choose suffix'):
      collisions.resolve(rule, codes, (8, 8, K), book=given['book'])
