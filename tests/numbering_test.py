"""Checks that item numbers say nothing, and that nothing depends on them."""

import copy
import dataclasses

from absl import logging
import data_tables
import numpy as np
import pytest

from sidrec import data
from sidrec import types
from sidrec.data import __main__ as check_main
from sidrec.data import fingerprint
from sidrec.data import number_rule
from sidrec.data import tables

# Rounding of means over rows in another order.
CLOSE = dict(rtol=1e-4, atol=1e-5)


def _world():
  """Returns a log with every kind of column, histories included."""
  rng = np.random.default_rng(0)
  num_users, num_items, num = 30, 20, 200
  item = rng.integers(0, num_items, num)
  ids = [f'i{v}' for v in range(num_items)]
  lists = lambda: [[ids[v] for v in rng.choice(num_items, 6, replace=False)]
                   for _ in range(num_users)]
  exposed = lists()
  return dict(
      events={
          'user_id': rng.integers(0, num_users, num).tolist(),
          'item_id': [ids[v] for v in item],
          # Ties in time, too.
          'timestamp': sorted(rng.integers(0, 90, num).tolist()),
          'click': rng.integers(0, 2, num).tolist()},
      items={
          'item_id': ids,
          'brand': rng.choice(['x', 'y', None], num_items).tolist(),
          'tags': [','.join(rng.choice(list('stuv'), rng.integers(0, 4)))
                   for _ in ids],
          'title': [' '.join(rng.choice(list('abcdefg'), 3)) for _ in ids],
          'price': rng.lognormal(0, 2, num_items).tolist()},
      histories={'user_id': list(range(num_users)),
                 'until': [-5] * num_users, 'exposed': exposed,
                 'long_viewed': [x[:3] for x in exposed]},
      info={
          'name': 'world', 'time_unit': 'ms', 'label': 'click',
          'split': {'kind': 'time', 'valid_from': 50, 'test_from': 70},
          'columns': {'items': {
              'brand': {'role': 'item_static', 'type': 'category'},
              'tags': {'role': 'item_static', 'type': 'categories'},
              'title': {'role': 'item_static', 'type': 'text'},
              'price': {'role': 'item_static', 'type': 'number'}}},
          'cross': ['item_id', 'brand', 'tags']})


def _load(directory, world, seed=0):
  directory.mkdir(parents=True, exist_ok=True)
  data_tables.write(directory, world)
  return data.load(data_tables.config(directory, history_vectors=3), seed)


def _assert_same(one, two, number):
  """Compares two data sets; item v of `one` is `number[v]` of `two`."""
  assert one.spec == two.spec and one.protocol == two.protocol
  np.testing.assert_array_equal(number[one.event_item], two.event_item)
  for name in ('event_user', 'event_time', 'event_label', 'event_split'):
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
  for ours, theirs in zip(vars(one.catalog.features).values(),
                          vars(two.catalog.features).values()):
    np.testing.assert_allclose(ours, theirs[number], **CLOSE)
  np.testing.assert_allclose(
      one.catalog.vectors, two.catalog.vectors[number], **CLOSE)
  np.testing.assert_array_equal(
      one.catalog.popularity, two.catalog.popularity[number])
  events = np.arange(len(one.event_user))
  every = np.tile(np.arange(one.spec.num_items), (len(events), 1))
  zeros = np.zeros(every.shape)
  ours, theirs = (
      d.assemble(events, v, zeros) for d, v in ((one, every),
                                                (two, number[every])))
  np.testing.assert_allclose(ours.cross, theirs.cross, **CLOSE)
  valid = ours.history.segment > 0
  assert valid.any()
  np.testing.assert_array_equal(
      np.where(valid, number[ours.history.item], 0), theirs.history.item)
  for name in ('segment', 'action', 'time', 'label', 'user'):
    np.testing.assert_array_equal(
        getattr(ours.history, name), getattr(theirs.history, name))
  np.testing.assert_array_equal(
      number[one.seen(events)[0]][one.seen(events)[1] > 0],
      two.seen(events)[0][two.seen(events)[1] > 0])


def test_numbers_are_a_permutation_by_the_seed_of_the_data(tmp_path):
  world = _world()
  one, two = (_load(tmp_path, world, seed) for seed in (0, 1))
  ids = np.array(world['items']['item_id'])
  for dataset in (one, two):
    assert sorted(dataset.file_order) == list(range(20))
    np.testing.assert_array_equal(dataset.item_ids[dataset.file_order], ids)
  assert one.item_ids.tolist() != ids.tolist() != two.item_ids.tolist()
  assert one.fingerprint == two.fingerprint
  number = np.empty(20, int)
  number[one.file_order] = two.file_order
  _assert_same(one, two, number)


def test_items_in_another_order_are_the_same_data(tmp_path):
  world = _world()
  one = _load(tmp_path / 'one', world)
  order = np.random.default_rng(1).permutation(20)
  other = copy.deepcopy(world)
  other['items'] = {name: [values[i] for i in order]
                    for name, values in world['items'].items()}
  two = _load(tmp_path / 'two', other)
  place = {v: i for i, v in enumerate(two.item_ids.tolist())}
  number = np.array([place[v] for v in one.item_ids.tolist()])
  assert number.tolist() != list(range(20))
  _assert_same(one, two, number)


def test_other_ids_are_the_same_data(tmp_path):
  world = _world()
  one = _load(tmp_path / 'one', world)
  names = {f'i{v}': 1000 - 7 * v for v in range(20)}
  other = copy.deepcopy(world)
  for table in ('events', 'items'):
    other[table]['item_id'] = [names[v] for v in other[table]['item_id']]
  for name in ('exposed', 'long_viewed'):
    other['histories'][name] = [
        [names[v] for v in values] for values in other['histories'][name]]
  two = _load(tmp_path / 'two', other)
  assert [names[v] for v in one.item_ids] == two.item_ids.tolist()
  _assert_same(one, two, np.arange(20))


def test_embeddings_follow_their_items_and_rows_keep_their_numbers(tmp_path):
  world = _world()
  vectors = np.arange(60, dtype=np.float32).reshape(20, 3)**2
  np.save(tmp_path / 'item_embeddings.npy', vectors)
  dataset = _load(tmp_path, world)
  want = (vectors - vectors.mean(0)) / vectors.std(0)
  np.testing.assert_allclose(
      dataset.catalog.vectors[dataset.file_order], want, rtol=1e-4)
  # The message names the row of the file.
  world['items']['price'] = ['1'] * 13 + ['much'] + ['1'] * 6
  data_tables.write(tmp_path, world)
  with pytest.raises(types.InputError, match='row 13, column price'):
    data.load(data_tables.config(tmp_path), 0)


def test_fingerprint_sees_every_table(tmp_path):
  def of(world, vectors=None):
    data_tables.write(tmp_path, world)
    found = tables.check(tables.read(str(tmp_path)), 'world')
    return fingerprint.of_tables(
        found if vectors is None else
        dataclasses.replace(found, embeddings=vectors))
  world = _world()
  prints = [of(world)]
  assert of(world) == prints[0] and len(prints[0]) == 12
  prints.append(of(world, np.ones((20, 2), np.float32)))
  for table, column, row, value in (
      ('events', 'click', 0, 1 - world['events']['click'][0]),
      ('items', 'title', 3, 'other'), ('items', 'brand', 2, 'zz'),
      ('histories', 'exposed', 4, ['i1'])):
    changed = copy.deepcopy(world)
    changed[table][column][row] = value
    prints.append(of(changed))
  changed = copy.deepcopy(world)
  changed['info']['cross'] = ['item_id']
  prints.append(of(changed))
  assert len(set(prints)) == len(prints)


def _ordered(num_users=40, length=6):
  """Returns a log whose items are numbered by first appearance."""
  rng = np.random.default_rng(3)
  user = np.repeat(np.arange(num_users), length)
  item = rng.integers(0, 200, user.size)
  _, first, place = np.unique(item, return_index=True, return_inverse=True)
  item = np.argsort(np.argsort(first))[place]
  return dict(
      events={'user_id': user.tolist(), 'item_id': item.tolist(),
              'timestamp': np.tile(np.arange(length), num_users).tolist()},
      items={'item_id': list(range(item.max() + 1))},
      info={'name': 'ordered', 'time_unit': 'ordinal', 'cross': []})


def test_the_rule_is_a_loop_and_warns_of_a_leak(tmp_path, monkeypatch, capsys):
  world = _ordered()
  data_tables.write(tmp_path, world)
  dataset = data.load(data_tables.config(tmp_path), 0)
  found = number_rule.measure(dataset)
  for number, got in (
      (dataset.item_ids.tolist(), (found.recall, found.ndcg)),
      (list(range(len(dataset.item_ids))),
       (found.random_recall, found.random_ndcg))):
    index = dict(zip(dataset.item_ids.tolist(), number))
    recall = ndcg = 0.
    for user in range(40):
      *before, target = (index[v] for v in world['events']['item_id'][
          6 * user:6 * user + 6])
      for place, guess in enumerate(range(max(before) + 1, max(before) + 11)):
        if guess == target:
          recall += 1 / 40
          ndcg += 1 / np.log2(place + 2) / 40
    np.testing.assert_allclose(got, (recall, ndcg), rtol=1e-6)
  assert found.leaks and found.recall > .2
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda *a: lines.append(a[0] % a[1:]))
  assert check_main.main(['check', str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert f'{found.recall:.4f} as ordered, {found.random_recall:.4f}' in out
  assert sum('gives the future away' in line for line in lines) == 1


def test_no_warning_of_an_order_that_says_nothing(tmp_path, monkeypatch):
  world = _ordered()
  order = np.random.default_rng(4).permutation(
      len(world['items']['item_id'])).tolist()
  world['items']['item_id'] = order
  data_tables.write(tmp_path, world)
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda *a: lines.append(a[0] % a[1:]))
  found = number_rule.measure(data.load(data_tables.config(tmp_path), 0))
  assert not found.leaks
  assert not number_rule.Found(.009, 0., 0., 0.).leaks
  assert not number_rule.Found(.02, 0., .01, 0.).leaks
  assert number_rule.Found(.02, 0., .005, 0.).leaks


def test_check_knows_names(tmp_path, monkeypatch, capsys):
  (tmp_path / 'log').mkdir()
  data_tables.write(tmp_path / 'log', _ordered())
  monkeypatch.setenv('SIDREC_DATA', str(tmp_path))
  assert check_main.main(['check', 'log']) == 0
  assert 'ordered' in capsys.readouterr().out
  assert check_main.main(['check', 'nowhere']) == 2
  assert '$SIDREC_DATA' in capsys.readouterr().err
