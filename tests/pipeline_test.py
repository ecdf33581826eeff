"""Checks that batches depend on (seed, step) only and split by process."""

import threading

import chex
import data_tables
import jax
import numpy as np
import pytest

from sidrec import data
from sidrec import types
from tests import tiny_run

STREAMS = {'rank': types.StreamSpec('impressions', 4, 0),
           'retrieve': types.StreamSpec('positives', 8, 3)}


@pytest.fixture(name='dataset')
def _dataset(tmp_path):
  data_tables.write(tmp_path, data_tables.small())
  return data.load(data_tables.config(tmp_path), 0)


def test_batches_have_the_right_candidates(dataset):
  batch = data.Pipeline(dataset, STREAMS, seed=0).batch(5)
  assert batch['rank'].item.shape == (4, 1)
  assert batch['retrieve'].item.shape == (8, 4)  # Wraps: only 4 positives.
  item, label = batch['retrieve'].item, batch['retrieve'].label
  np.testing.assert_array_equal(label, [[1, 0, 0, 0]] * 8)
  assert not (item[:, 1:] == item[:, :1]).any()
  assert batch['retrieve'].cross.shape == (
      8, 4, len(dataset.spec.cross_names))


def test_random_access_and_seed(dataset):
  a, b = (data.Pipeline(dataset, STREAMS, seed=3) for _ in range(2))
  forward = [a.batch(step) for step in range(6)]
  for step in (5, 0, 3):
    chex.assert_trees_all_equal(forward[step], b.batch(step))
  other = data.Pipeline(dataset, STREAMS, seed=4).batch(0)['retrieve']
  assert not np.array_equal(other.item, forward[0]['retrieve'].item)


def test_an_epoch_sees_every_example_once(dataset):
  streams = {'rank': types.StreamSpec('impressions', 2, 0)}
  pipeline = data.Pipeline(dataset, streams, seed=0)
  assert pipeline.num_examples('rank') == 6
  for epoch in range(2):
    rows = [pipeline.batch(3 * epoch + step)['rank'] for step in range(3)]
    got = sorted((u, i) for r in rows for u, i in zip(r.user, r.item[:, 0]))
    assert got == sorted(zip(dataset.event_user[:6], dataset.event_item[:6]))


def test_processes_share_the_global_batch(dataset):
  whole = data.Pipeline(dataset, STREAMS, seed=0).batch(2)
  parts = [data.Pipeline(dataset, STREAMS, seed=0, process_index=p,
                         process_count=2).batch(2) for p in range(2)]
  for name in STREAMS:
    np.testing.assert_array_equal(
        whole[name].row, np.arange(STREAMS[name].batch_size))
    chex.assert_trees_all_equal(whole[name], jax.tree.map(
        lambda *x: np.concatenate(x), *(part[name] for part in parts)))


def test_iterate_is_batch_and_ends_its_thread(dataset):
  pipeline = data.Pipeline(dataset, STREAMS, seed=0, prefetch=2)
  starts = {'rank': 2, 'retrieve': 7}
  got = list(pipeline.iterate(starts, 4))
  assert len(got) == 4
  for step, batch in enumerate(got):
    chex.assert_trees_all_equal(batch, pipeline.batch(
        {name: start + step for name, start in starts.items()}))
    chex.assert_trees_all_equal(batch['rank'], pipeline.batch(2 + step)['rank'])
  # Iterated again, of one stream alone, from where it stopped.
  again, = pipeline.iterate({'rank': 6}, 1)
  assert set(again) == {'rank'}
  chex.assert_trees_all_equal(again['rank'], pipeline.batch(6)['rank'])
  iterator = pipeline.iterate(dict.fromkeys(STREAMS, 0), 1000)
  next(iterator)
  iterator.close()
  assert not [t for t in threading.enumerate() if t.name == 'sidrec-batches']


def test_exceptions_come_through(dataset, monkeypatch):
  pipeline = data.Pipeline(dataset, STREAMS, seed=0)
  real = pipeline.batch

  def batch(numbers):
    if numbers['rank'] == 2:
      raise RuntimeError('step 2')
    return real(numbers)
  monkeypatch.setattr(pipeline, 'batch', batch)
  got = 0
  with pytest.raises(RuntimeError, match='step 2'):
    for _ in pipeline.iterate(dict.fromkeys(STREAMS, 0), 5):
      got += 1
  assert got == 2


def test_bad_streams_are_refused(dataset):
  with pytest.raises(types.InputError, match='divide'):
    data.Pipeline(dataset, STREAMS, seed=0, process_count=3)
  for bad in (types.StreamSpec('clicks', 4),
              types.StreamSpec('sequences', 4, events='clicks', length=9),
              types.StreamSpec('sequences', 4, layout='first')):
    with pytest.raises(ValueError, match='none of'):
      data.Pipeline(dataset, {'a': bad}, seed=0)
  object.__setattr__(dataset, 'has_negatives', False)
  with pytest.raises(types.InputError, match='negatives'):
    data.Pipeline(dataset, STREAMS, seed=0)


def test_groups_of_one_user_stand_together(dataset):
  streams = {'rank': types.StreamSpec('impressions', 6, 0, user_rows=2)}
  pipeline = data.Pipeline(dataset, streams, seed=0)
  users, orders = dataset.event_user[:6], set()
  counts = np.bincount(users)
  for epoch in range(20):
    rows = pipeline.batch(epoch)['rank']
    got = sorted(zip(rows.user, rows.item[:, 0]))
    assert got == sorted(zip(users, dataset.event_item[:6]))
    # A user of n events has n // 2 pairs that stand together, at least.
    for user in np.unique(users):
      together = np.sum((rows.user[1:] == user) & (rows.user[:-1] == user))
      assert together >= counts[user] // 2
    orders.add(tuple(rows.user.tolist()))
  assert len(orders) > 1


def test_seen_negatives_come_from_the_history(dataset):
  streams = {'retrieve': types.StreamSpec('positives', 8, 1, 3)}
  pipeline = data.Pipeline(dataset, streams, seed=0)
  known = 0
  for step in range(8):
    batch = pipeline.batch(step)['retrieve']
    assert batch.item.shape == batch.label.shape == (8, 5)
    np.testing.assert_array_equal(batch.label[:, 1:], 0)
    for row in range(8):
      history = batch.history.item[row][batch.history.segment[row] > 0]
      for item, mask in zip(batch.item[row, 2:], batch.mask[row, 2:]):
        assert mask == float(item in history and item != batch.item[row, 0])
        known += mask
  assert known
  half = data.Pipeline(dataset, streams, seed=0, process_index=1,
                       process_count=2).batch(3)['retrieve']
  np.testing.assert_array_equal(
      half.item, pipeline.batch(3)['retrieve'].item[4:])


@pytest.mark.parametrize('kind', ['positives', 'all'])
def test_packed_sequences_are_the_log_user_by_user(kind):
  dataset = data.load(tiny_run.config(data__history_length=6).data, 0)
  stream = types.StreamSpec('sequences', 4, events=kind, length=16)
  pipeline = data.Pipeline(dataset, {'s': stream}, seed=0)
  steps = -(-pipeline.num_examples('s') // 4)
  events = dataset.examples(
      'train', 'impressions' if kind == 'all' else 'positives')
  start = dataset.event_time[0]
  log = {u: [] for u in range(dataset.spec.num_users)}
  for e in events:
    log[int(dataset.event_user[e])].append((
        int(dataset.event_item[e]), int(dataset.event_time[e] - start) // 1000,
        float(dataset.event_label[e])))
  targets = []
  for step in range(steps):
    batch = pipeline.batch(step)['s']
    for row in range(4):
      if 4 * step + row >= pipeline.num_examples('s'):
        break  # The next epoch.
      one = jax.tree.map(lambda x: x[row], batch)
      for number in range(1, one.segment.max() + 1):
        place = np.flatnonzero(one.segment == number)
        user, = set(one.user[place].tolist())
        found = list(zip(one.item[place].tolist(), one.time[place].tolist(),
                         one.label[place].tolist()))
        first = log[user].index(found[0])
        assert log[user][first:first + len(found)] == found
        np.testing.assert_array_equal(one.action[place], one.label[place] > 0)
        assert not one.target[place[0]]
        targets += [(user, *found[i]) for i in range(len(found))
                    if one.target[place[i]]]
      nothing = one.segment == 0
      assert set(one.user[nothing]) <= {dataset.spec.num_users}
      assert not (one.item[nothing].any() or one.target[nothing].any())
  want = [(user, *entry) for user, many in log.items() for entry in many[1:]]
  assert sorted(targets) == sorted(want)
  assert {t[-1] for t in targets} == ({0., 1.} if kind == 'all' else {1.})


def _last(dataset, **more):
  stream = types.StreamSpec('sequences', 16, layout='last', **more)
  return data.Pipeline(dataset, {'a': stream}, seed=0)


def test_the_last_layout_is_a_history_and_its_target():
  dataset = data.load(tiny_run.config(data__history_length=8).data, 0)
  pipeline = _last(dataset)
  events = dataset.examples('train', 'positives')
  events = events[dataset.history_size(events) > 0]
  assert pipeline.num_examples('a') == len(events)
  whole = dataset.assemble(
      events, dataset.event_item[events][:, None], np.ones((len(events), 1)))
  rows = {(int(u), int(t), int(i)): row for row, (u, t, i) in enumerate(zip(
      whole.user, (dataset.event_time[events] - dataset.event_time[0]) // 1000,
      whole.item[:, 0]))}
  found = set()
  for step in range(len(events) // 16):
    batch = pipeline.batch(step)['a']
    chex.assert_shape([batch.item, batch.target, batch.time], (16, 9))
    np.testing.assert_array_equal(batch.target, [[0] * 8 + [1]] * 16)
    assert (batch.segment[:, -2:] == 1).all() and (batch.label[:, -1] == 1).all()
    for row in range(16):
      place = rows[int(batch.user[row, -1]), int(batch.time[row, -1]),
                   int(batch.item[row, -1])]
      found.add(place)
      read = jax.tree.map(lambda x: x[place], whole.history)
      for name in ('item', 'action', 'time', 'segment', 'label', 'user'):
        np.testing.assert_array_equal(
            getattr(batch, name)[row, :-1], getattr(read, name))
  assert len(found) == len(events) // 16 * 16
  every = _last(dataset, events='all')
  assert every.num_examples('a') > pipeline.num_examples('a')
  assert set(every.batch(0)['a'].label[:, -1]) == {0., 1.}


def test_histories_of_like_length_share_batches():
  dataset = data.load(tiny_run.config(data__history_length=8).data, 0)
  pipeline, whole = _last(dataset, widths=(2, 4, 8)), _last(dataset)
  num = pipeline.num_examples('a')
  steps = 3 * num // 16
  batches = [pipeline.batch(step)['a'] for step in range(steps)]
  for batch in batches:
    width = batch.item.shape[1] - 1
    most = int(batch.segment[:, :-1].sum(1).max())
    assert width == next(w for w in (2, 4, 8) if w >= most)
  widths = [batch.item.shape[1] - 1 for batch in batches]
  # Shuffled, in every epoch; only where epochs meet are lengths mixed.
  assert {2, 4, 8} == set(widths[:steps // 3]) == set(widths[-steps // 3:])
  assert widths != sorted(widths)
  padding = lambda many: np.mean(
      np.concatenate([b.segment.reshape(-1) for b in many]) == 0)
  assert padding(batches) < .6 * padding(
      [whole.batch(step)['a'] for step in range(steps)])
  # Each example is there once an epoch.
  rows = np.concatenate([
      np.stack([b.user, b.item, b.time], 2)[:, -1] for b in batches])[:num]
  assert len(np.unique(rows, axis=0)) == num
  parts = [data.Pipeline(
      dataset, {'a': types.StreamSpec(
          'sequences', 16, layout='last', widths=(2, 4, 8))}, seed=0,
      process_index=p, process_count=2).batch(3)['a'] for p in range(2)]
  chex.assert_trees_all_equal(batches[3], jax.tree.map(
      lambda *x: np.concatenate(x), *parts))
