"""Checks histories, splits, candidates and requests of a small log."""

import time

import chex
import data_tables
import jax
import numpy as np
import pytest

from sidrec import config as config_lib
from sidrec import data
from sidrec.data import history

HOUR = 3_600_000


@pytest.fixture(name='dataset')
def _dataset(tmp_path):
  data_tables.write(tmp_path, data_tables.small())
  return data.load(data_tables.config(tmp_path), 0)


def _all(dataset, **kwargs):
  events = np.arange(len(dataset.event_user))
  return dataset.assemble(
      events, dataset.event_item[:, None], dataset.event_label[:, None],
      **kwargs)


def test_history_is_strictly_before_and_carries_actions(dataset):
  batch = _all(dataset)
  index = {v: i for i, v in enumerate(dataset.item_ids.tolist())}
  before = {'a': [(12, history.EXPOSED), (11, history.LONG_VIEWED)], 'b': [],
            'c': [(10, history.EXPOSED), (11, history.EXPOSED)]}
  world = data_tables.small()['events']
  for row in range(12):
    user = world['user_id'][row]
    want = [(index[v], a) for v, a in before[user]][-4:]
    valid = batch.history.segment[row] > 0
    got = list(zip(batch.history.item[row][valid].tolist(),
                   batch.history.action[row][valid].tolist()))
    assert got == want and np.all(np.diff(valid.astype(int)) >= 0)
    before[user].append((world['item_id'][row], world['click'][row]))


def test_same_time_is_not_in_the_history(tmp_path):
  world = data_tables.small()
  world['histories'] = None
  world['events']['timestamp'][3] = 0  # User a's second event: now a tie.
  data_tables.write(tmp_path, world)
  dataset = data.load(data_tables.config(tmp_path), 0)
  batch = _all(dataset)
  rows = np.flatnonzero(dataset.event_user == 0)
  np.testing.assert_array_equal(
      batch.history.segment[rows].sum(1), [0, 0, 2, 3])
  never = dataset.spec.cross_names.index('u2i/item_id/never')
  assert batch.cross[rows[1], 0, never] == 1.


def test_positive_history_leaves_the_rest_out(tmp_path):
  data_tables.write(tmp_path, data_tables.small())
  dataset = data.load(data_tables.config(tmp_path, history='positive'), 0)
  batch = _all(dataset)
  assert 'of positives' in dataset.protocol
  assert not (batch.history.action[batch.history.segment > 0] == 0).any()
  np.testing.assert_array_equal(
      batch.history.segment[[0, 3, 6, 9]].sum(1), [1, 2, 3, 3])


def test_splits_and_examples(dataset):
  np.testing.assert_array_equal(
      dataset.event_split, [0] * 6 + [1] * 3 + [2] * 3)
  np.testing.assert_array_equal(
      dataset.examples('train', 'positives'), [0, 2, 3, 4])
  np.testing.assert_array_equal(dataset.examples('train', 'targets'), [2, 3, 4])
  np.testing.assert_array_equal(
      dataset.catalog.popularity[dataset.file_order], [0, 2, 0, 1, 1])
  items, label = dataset.ranking_candidates('test', np.array([9, 10]))
  assert items.shape == label.shape == (2, 1)


def test_leave_one_out_and_eval_negatives(tmp_path):
  world = data_tables.small()
  world['info']['label'] = None
  world['info']['split'] = {'kind': 'leave_one_out'}
  world['histories'] = None
  data_tables.write(tmp_path, world)
  dataset = data.load(data_tables.config(tmp_path), 0)
  np.testing.assert_array_equal(
      dataset.event_split, [0] * 6 + [1] * 3 + [2] * 3)
  assert not dataset.has_negatives and 'leaks the future' in dataset.protocol
  events = np.repeat(dataset.examples('test', 'impressions'), 400)
  items, label = dataset.ranking_candidates('test', events)
  assert items.shape == (1200, 4) and not (items[:, 1:] == items[:, :1]).any()
  np.testing.assert_array_equal(label[0], [1, 0, 0, 0])
  again, _ = dataset.ranking_candidates('test', events[::-1])
  np.testing.assert_array_equal(items, again[::-1])


def test_requests_of_known_cold_and_given(dataset):
  batch = dataset.requests(['a', 'nobody', None, 'a'],
                           [None, None, [13, 10, 999], [11]])
  assert batch.item.shape == (4, 0) and batch.cross.shape[:2] == (4, 0)
  np.testing.assert_array_equal(batch.user, [0, 4, 4, 0])
  sequence = batch.history
  np.testing.assert_array_equal(sequence.segment.sum(1), [4, 0, 2, 1])
  np.testing.assert_array_equal(
      sequence.item[2], [0, 0, *dataset.file_order[[4, 1]]])
  np.testing.assert_array_equal(sequence.label[2], [0, 0, 1, 1])
  np.testing.assert_array_equal(sequence.action[2], [0, 0, 1, 1])
  np.testing.assert_array_equal(sequence.time[2:], 0)
  np.testing.assert_array_equal(sequence.user[3], [4, 4, 4, 0])
  assert not sequence.target.any()
  full = dataset.with_candidates(
      batch, None, np.full((4, 2), dataset.file_order[1]))
  names = dataset.spec.cross_names
  seen = names.index('u2i/item_id/exposures')
  np.testing.assert_allclose(
      full.cross[:, 0, seen], np.log1p([2, 0, 0, 2]), 1e-6)
  age = dataset.spec.request.fields[0]
  np.testing.assert_array_equal(
      batch.request.values[:, age.stop - 1], [0, 1, 1, 0])


def test_changing_the_last_event_changes_nothing_earlier(tmp_path):
  world = data_tables.small()
  data_tables.write(tmp_path, world)
  first = _all(data.load(data_tables.config(tmp_path), 0))
  world['events']['item_id'][11], world['events']['click'][11] = 10, 0
  world['events']['tab'][11] = 2
  data_tables.write(tmp_path, world)
  second = _all(data.load(data_tables.config(tmp_path), 0))
  cut = lambda batch: jax.tree.map(
      lambda x: x[:11], (batch.history, batch.cross, batch.request.values))
  chex.assert_trees_all_equal(cut(first), cut(second))
  np.testing.assert_array_equal(first.request.ids[:11], second.request.ids[:11])


def test_fields_of_histories_and_what_was_seen(dataset):
  batch, world = _all(dataset), data_tables.small()
  index = {v: i for i, v in enumerate(dataset.item_ids.tolist())}
  users = {v: i for i, v in enumerate(dataset.user_ids.tolist())}
  events = list(zip(*(world['events'][name] for name in (
      'user_id', 'item_id', 'timestamp', 'click'))))
  seen, mask = dataset.seen(np.arange(12))
  short, short_mask = dataset.seen(np.arange(12), 2)
  assert short.shape == short_mask.shape == (12, 2)
  for row, (user, _, now, _) in enumerate(events):
    want = {'a': [(12, 0, 0), (11, 0, 1)], 'c': [(10, 0, 0), (11, 0, 0)]}.get(
        user, []) + [(v, t // 1000, y) for u, v, t, y in events
                     if u == user and t < now]
    items = [index[v] for v, _, _ in want]
    assert seen[row][mask[row] > 0].tolist() == items
    assert short[row][short_mask[row] > 0].tolist() == items[-2:]
    want, pad = want[-4:], [0] * (4 - len(want[-4:]))
    history_ = jax.tree.map(lambda x: x[row], batch.history)
    assert history_.time.tolist() == pad + [t for _, t, _ in want]
    # Of what was before the log, only long views count as positive.
    assert history_.label.tolist() == pad + [y for _, _, y in want]
    assert history_.user.tolist() == [4] * len(pad) + [users[user]] * len(want)
    assert history_.segment.tolist() == pad + [1] * len(want)
  assert not batch.history.target.any()
  for name, values in vars(batch.history).items():
    assert values.dtype == (
        np.float32 if name in ('label', 'target') else np.int32), name


def test_positions_stay_positions(tmp_path):
  world = data_tables.small()
  world['histories'], world['info']['time_unit'] = None, 'ordinal'
  world['info']['split'] = {'kind': 'leave_one_out'}
  world['events']['timestamp'] = [t // 3 for t in range(12)]
  data_tables.write(tmp_path, world)
  dataset = data.load(data_tables.config(tmp_path), 0)
  times = _all(dataset).history.time
  np.testing.assert_array_equal(times[9:], [[0, 0, 1, 2]] * 3)
  given = dataset.requests(None, [[13, 10, 11]]).history
  np.testing.assert_array_equal(given.time, [[0, 0, 1, 2]])


def test_sequences_of_events(dataset):
  events = np.array([[-1, 0, 3], [-1, -1, 1]])
  segment = (events >= 0).astype(np.int32)
  out = dataset.sequence(
      events, segment, segment.astype(np.float32), np.array([5, 6]))
  np.testing.assert_array_equal(out.row, [5, 6])
  np.testing.assert_array_equal(out.user, [[4, 0, 0], [4, 4, 1]])
  item = dataset.event_item[[0, 3, 1]]
  np.testing.assert_array_equal(out.item, [[0, *item[:2]], [0, 0, item[2]]])
  np.testing.assert_array_equal(out.time, [[0, 0, 10_800], [0, 0, 3600]])
  np.testing.assert_array_equal(out.label, [[0, 1, 1], [0, 0, 0]])
  np.testing.assert_array_equal(out.action, [[0, 1, 1], [0, 0, 0]])


def test_without_statistics_nothing_has_no_width(tmp_path):
  world = data_tables.small()
  world['info']['columns'] = {'items': world['info']['columns']['items']}
  world['info']['cross'], world['users'] = [], None
  data_tables.write(tmp_path, world)
  dataset = data.load(
      data_tables.config(tmp_path, cross='none', item_stats=False), 0)
  batch = _all(dataset)
  assert batch.cross is None and not jax.tree.leaves(batch.request)
  assert dataset.catalog.features.vectors is None
  assert all(x.size for x in jax.tree.leaves((batch, dataset.catalog)))
  assert dataset.requests(['a']).cross is None


@pytest.mark.parametrize('name', ['kuairand-pure-14d', 'amazon23-mini'])
def test_real_data(data_root, name):
  if not (data_root / name).is_dir():
    pytest.skip(f'no real data: {data_root / name} is not a folder')
  config = config_lib.base_config().data
  config.root, config.name = str(data_root), name
  start = time.process_time()
  dataset = data.load(config, 0)
  assert time.process_time() - start < 15
  events = dataset.examples('test', 'targets')[:256]
  batch = dataset.assemble(
      events, *dataset.ranking_candidates('test', events))
  assert all(np.isfinite(x).all() and x.size for x in jax.tree.leaves(batch))
  sizes = np.bincount(dataset.event_split)
  if name == 'kuairand-pure-14d':
    np.testing.assert_array_equal(sizes, [167_055, 26_640, 28_749])
