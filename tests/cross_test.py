"""Checks u2i statistics against a double loop, and that nothing leaks."""

import numpy as np
import pytest

from sidrec.data import cross
from sidrec.data import lookup

NUM_USERS, NUM_ITEMS = 7, 11
DAY = 86_400_000
STRENGTH = cross.PRIOR_STRENGTH


def _world(seed, ordinal):
  """Returns a random log with ties in time, and two item columns."""
  rng = np.random.default_rng(seed)
  num = 160
  user = rng.integers(0, NUM_USERS, num).astype(np.int32)
  item = rng.integers(0, NUM_ITEMS, num).astype(np.int32)
  if ordinal:
    time = np.zeros(num, np.int64)
    for u in range(NUM_USERS):
      time[user == u] = np.arange((user == u).sum())
  else:
    time = rng.integers(0, 60, num) * 7_200_000  # Five days.
  order = np.argsort(time, kind='stable')
  label = rng.integers(0, 2, num)
  tags = [rng.choice(4, rng.integers(0, 4), replace=False)
          for _ in range(NUM_ITEMS)]
  offsets = np.cumsum([0] + [len(t) for t in tags])
  columns = [
      cross.Column('item_id', np.arange(NUM_ITEMS + 1), np.arange(NUM_ITEMS),
                   NUM_ITEMS),
      cross.Column('tag', offsets, np.concatenate(tags).astype(np.int64), 4)]
  return user[order], item[order], time[order], label[order], columns, tags


def _index(user, item, time, label, columns, ordinal, mask=None, before=None,
           **kwargs):
  times = np.unique(np.concatenate([time, [] if before is None else before[2]]))
  times = times.astype(np.int64)
  ones = np.ones(len(user), np.int64)
  if before is not None:
    before = cross.Entries(
        before[0], before[1], np.searchsorted(times, before[2]),
        np.ones(len(before[0]), np.int64), before[3])
  return cross.Index(
      num_users=NUM_USERS, times=times, columns=columns, ordinal=ordinal,
      log=cross.Entries(user, item, np.searchsorted(times, time), ones, label),
      log_positives=True, item_mask=mask, before=before, before_positives=True,
      **kwargs)


def _loop(user, item, time, label, groups, ordinal, mask, query):
  """Counts one query by walking the log."""
  u, v, now = query
  known = now if ordinal else now // DAY * DAY  # What labels say.
  result = {}
  total = np.zeros(2)
  for e in range(len(user)):
    if time[e] < known and mask[e]:
      total += 1, label[e]
  prior = (total[1] + STRENGTH / 2) / (total[0] + STRENGTH)
  prior = .5 if ordinal else prior

  def say(level, shown, then, clicked):
    rate = (clicked + STRENGTH * prior) / (then + STRENGTH) - prior
    result[f'{level}/exposures'], result[f'{level}/positives'] = np.log1p(
        [shown, clicked])
    result[f'{level}/rate'] = rate

  for name, values in groups.items():
    counts, latest = np.zeros(3), -1
    for value in values[v]:
      for e in range(len(user)):
        if time[e] < now and value in values[item[e]] and user[e] == u:
          counts[0] += 1
          latest = max(latest, time[e])
          if time[e] < known:
            counts[1:] += 1, label[e]
    say(f'u2i/{name}', *counts)
    ago = (now - latest) / (1 if ordinal else 3_600_000)
    result[f'u2i/{name}/recency'] = 0. if latest < 0 else np.log1p(ago)
    result[f'u2i/{name}/never'] = float(latest < 0)
  own = [time[e] < np.array([now, known, known]) for e in range(len(user))
         if user[e] == u]
  labels = label[user == u]
  own = np.array(own).reshape(-1, 3) * np.stack(
      [np.ones(len(labels))] * 2 + [labels], 1)
  say('user', *own.sum(0))
  return result


@pytest.mark.parametrize('ordinal', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_matches_double_loop(ordinal, masked):
  user, item, time, label, columns, tags = _world(0, ordinal)
  mask = np.ones(len(user), bool)
  if masked:
    mask = np.random.default_rng(1).random(len(user)) < .7
  index = _index(user, item, time, label, columns, ordinal,
                 mask if masked else None)
  rng = np.random.default_rng(2)
  asked = (rng.integers(0, NUM_USERS + 1, 60).astype(np.int32),
           rng.integers(0, NUM_ITEMS, 60).astype(np.int32),
           np.concatenate([rng.choice(time, 50), rng.integers(
               0, time.max() + 5, 10)]))
  got = index.query(*asked)
  groups = {'item_id': [[v] for v in range(NUM_ITEMS)], 'tag': tags}
  assert got.dtype == np.float32 and got.shape == (60, len(index.names))
  own = index.activity(asked[0], asked[2])
  assert own.shape == (60, len(index.activity_names)) and own.shape[1] == 3
  got = np.concatenate([got, own], 1)
  for row, query in enumerate(zip(*asked)):
    want = _loop(user, item, time, label, groups, ordinal, mask, query)
    for column, name in enumerate(index.names + index.activity_names):
      np.testing.assert_allclose(
          got[row, column], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_labels_since_midnight_are_not_known():
  user, item, time, label, columns, _ = _world(8, False)
  ask = lambda label: np.concatenate([
      index(label).query(user, item, time),
      index(label).activity(user, time)], 1)
  index = lambda label: _index(user, item, time, label, columns, False)
  now = int(np.median(time))
  today = (time >= now // DAY * DAY) & (time <= now)
  assert today.sum() > 10
  rows = np.flatnonzero((time <= now) & today)
  first, second = ask(label), ask(np.where(today, 1 - label, label))
  np.testing.assert_array_equal(first[rows], second[rows])
  assert not np.array_equal(first, second)  # The day after it is.


def test_before_is_counted_from_its_time_on():
  user, item, time, label, columns, _ = _world(3, False)
  before = (np.array([0, 0, 1], np.int32), np.array([4, 4, 4], np.int32),
            np.array([5, 5, 30_000_000]), np.array([1, 0, 1]))
  index = _index(user, item, time, label, columns, False, before=before)
  ask = lambda now: index.query(
      np.zeros(1, np.int32), np.full(1, 4, np.int32), np.array([now]))[0]
  place = {name: i for i, name in enumerate(index.names)}
  u2i = place['u2i/item_id/history_exposures']
  assert ask(5)[u2i] == 0.
  np.testing.assert_allclose(ask(6)[u2i], np.log1p(2), 1e-6)
  np.testing.assert_allclose(
      ask(6)[place['u2i/item_id/history_positives']], np.log1p(1), 1e-6)


@pytest.mark.parametrize('ordinal', [False, True])
def test_later_events_change_nothing_earlier(ordinal):
  user, item, time, label, columns, _ = _world(4, ordinal)
  first = _index(user, item, time, label, columns, ordinal).query(
      user, item, time)
  rng = np.random.default_rng(5)
  cut = int(np.median(time))
  later = time >= cut
  item2, label2, time2 = item.copy(), label.copy(), time.copy()
  item2[later] = rng.integers(0, NUM_ITEMS, later.sum())
  label2[later] = 1 - label2[later]
  time2[later] += rng.integers(0, 1000, later.sum())
  second = _index(user, item2, time2, label2, columns, ordinal).query(
      user, item, time)
  early = time <= cut
  np.testing.assert_array_equal(first[early], second[early])
  assert not np.array_equal(first, second)


def test_switches_leave_columns_out():
  user, item, time, label, columns, _ = _world(6, False)
  index = _index(user, item, time, label, columns, False, activity=False)
  assert index.names and index.activity_names == ()
  none = _index(user, item, time, label, [], False)
  assert none.names == () and none.query(user, item, time).shape == (160, 0)
  assert none.activity(user, time).shape == (160, 3)


def test_table_finds_what_is_there():
  rng = np.random.default_rng(7)
  names = np.unique(rng.integers(0, 2**61, 5000))
  table = lookup.Table(names)
  asked = np.concatenate([names[::3], rng.integers(0, 2**61, 3000)])
  which, place = table.find(asked)
  np.testing.assert_array_equal(which, np.flatnonzero(np.isin(asked, names)))
  np.testing.assert_array_equal(names[place], asked[which])
