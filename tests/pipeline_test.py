"""Checks that batches depend on (seed, step) only and split by process."""

import threading

import chex
import data_tables
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
    for leaf in ('row', 'user', 'item', 'label', 'history', 'cross'):
      np.testing.assert_array_equal(
          getattr(whole[name], leaf),
          np.concatenate([getattr(part[name], leaf) for part in parts]))


def test_iterate_is_batch_and_ends_its_thread(dataset):
  pipeline = data.Pipeline(dataset, STREAMS, seed=0, prefetch=2)
  for step, batch in enumerate(pipeline.iterate(2, 6), 2):
    chex.assert_trees_all_equal(batch, pipeline.batch(step))
  iterator = pipeline.iterate(0, 1000)
  next(iterator)
  iterator.close()
  assert not [t for t in threading.enumerate() if t.name == 'sidrec-batches']


def test_exceptions_come_through(dataset, monkeypatch):
  pipeline = data.Pipeline(dataset, STREAMS, seed=0)
  real = pipeline.batch

  def batch(step):
    if step == 2:
      raise RuntimeError('step 2')
    return real(step)
  monkeypatch.setattr(pipeline, 'batch', batch)
  got = 0
  with pytest.raises(RuntimeError, match='step 2'):
    for _ in pipeline.iterate(0, 5):
      got += 1
  assert got == 2


def test_bad_streams_are_refused(dataset):
  with pytest.raises(types.InputError, match='divide'):
    data.Pipeline(dataset, STREAMS, seed=0, process_count=3)
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
      history = batch.history[row][batch.history_mask[row] > 0]
      for item, mask in zip(batch.item[row, 2:], batch.mask[row, 2:]):
        assert mask == float(item in history and item != batch.item[row, 0])
        known += mask
  assert known
  half = data.Pipeline(dataset, streams, seed=0, process_index=1,
                       process_count=2).batch(3)['retrieve']
  np.testing.assert_array_equal(
      half.item, pipeline.batch(3)['retrieve'].item[4:])


def test_histories_of_like_length_share_batches():
  dataset = data.load(tiny_run.config(data__history_length=8).data, 0)
  plain = types.StreamSpec('positives', 16)
  narrow = types.StreamSpec('positives', 16, widths=(2, 4, 8))
  pipeline = data.Pipeline(dataset, {'a': narrow}, seed=0)
  whole = data.Pipeline(dataset, {'a': plain}, seed=0)
  num = pipeline.num_examples('a')
  steps = 3 * num // 16
  batches = [pipeline.batch(step)['a'] for step in range(steps)]
  for batch in batches:
    assert batch.history.shape == batch.history_mask.shape
    width = batch.history.shape[1]
    most = int(batch.history_mask.sum(1).max())
    assert width == next(w for w in (2, 4, 8) if w >= most)
  widths = [batch.history.shape[1] for batch in batches]
  # Shuffled, in every epoch; only where epochs meet are lengths mixed.
  assert {2, 4, 8} == set(widths[:steps // 3]) == set(widths[-steps // 3:])
  assert widths != sorted(widths)
  padding = lambda many: np.mean(
      np.concatenate([b.history_mask.reshape(-1) for b in many]) == 0)
  assert padding(batches) < .5 * padding(
      [whole.batch(step)['a'] for step in range(steps)])
  # Each example is there once an epoch, with its newest items.
  rows = np.concatenate([
      np.stack([b.user, b.item[:, 0]], 1) for b in batches])[:num]
  events = dataset.examples('train', 'positives')
  want = np.stack([dataset.event_user[events], dataset.event_item[events]], 1)
  np.testing.assert_array_equal(
      rows[np.lexsort(rows.T)], want[np.lexsort(want.T)])
  parts = [data.Pipeline(dataset, {'a': narrow}, seed=0, process_index=p,
                         process_count=2).batch(3)['a'] for p in range(2)]
  np.testing.assert_array_equal(
      batches[3].history, np.concatenate([p.history for p in parts]))
