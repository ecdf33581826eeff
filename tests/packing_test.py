"""Tests packed sequences against a walk over every user's items."""

import types as python_types

import numpy as np
import pytest

from sidrec import types
from sidrec.data import packing


def _pack(lengths, context=4, length=12, seed=0):
  user = np.repeat(np.arange(len(lengths)), lengths)
  item = np.arange(user.size, dtype=np.int32) + 1
  # Users' events come mixed, as in a log.
  order = np.argsort(np.random.default_rng(seed).random(user.size))
  by_user = np.argsort(user[order], kind='stable')
  order[by_user] = np.arange(user.size)
  packed = packing.pack(
      user[order], context, length, np.random.default_rng(seed))
  assert ((packed.place < 0) == (packed.segment == 0)).all()
  return user, item, python_types.SimpleNamespace(
      item=np.where(packed.place < 0, 0, item[order][packed.place]),
      segment=packed.segment, target=packed.target)


@pytest.mark.parametrize('seed', range(20))
def test_each_item_but_the_oldest_is_a_target_once(seed):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, 30, 25)
  context = int(rng.integers(1, 8))
  user, item, packed = _pack(lengths, context, context + 1 + seed, seed)
  assert ((packed.segment > 0) == (packed.item > 0)).all()
  targets = []
  for row in range(len(packed.item)):
    for number in range(1, packed.segment[row].max() + 1):
      place = np.flatnonzero(packed.segment[row] == number)
      assert (np.diff(place) == 1).all() and 2 <= place.size <= context + 1
      items = packed.item[row, place]
      # Neighbours in one user's sequence, none left out.
      assert (np.diff(items) == 1).all()
      owner = user[np.searchsorted(item, items)]
      assert (owner == owner[0]).all()
      for i in np.flatnonzero(packed.target[row, place]):
        # All that was before, or at least half of the context.
        before = int(items[i] - item[user == owner[0]][0])
        assert i >= min(before, max(context // 2, 1))
        targets.append(int(items[i]))
  oldest = {int(item[user == u][0]) for u in range(len(lengths))}
  assert sorted(targets) == sorted(set(item.tolist()) - oldest)


def test_rows_are_full_and_the_same_for_one_seed():
  _, _, packed = _pack(np.full(400, 3), 4, 12)
  assert packed.item.shape == (100, 12) and (packed.segment > 0).all()
  _, _, again = _pack(np.full(400, 3), 4, 12)
  np.testing.assert_array_equal(packed.item, again.item)


def test_what_cannot_be_packed():
  with pytest.raises(types.InputError, match='row_items: 4 places'):
    _pack([3], 4, 4)
  with pytest.raises(types.InputError, match='no user has two'):
    _pack([1, 1])
