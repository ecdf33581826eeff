"""Checks that broken tables are refused with file, row and column."""

import copy

from absl import logging
import data_tables
import numpy as np
import pytest

from sidrec import data
from sidrec import types
from sidrec.data import __main__ as check_main
from sidrec.data import tables


def _set(table, column, row, value):
  def change(world):
    world[table][column][row] = value
  return change


def _drop(table, column=None):
  def change(world):
    if column is None:
      world[table] = None
    else:
      del world[table][column]
  return change


def _info(path, value):
  def change(world):
    node = world['info']
    for key in path[:-1]:
      node = node[key]
    node[path[-1]] = value
  return change


_BROKEN = [
    (_drop('events'), 'missing table events'),
    (_drop('events', 'timestamp'), "events: missing column 'timestamp'"),
    (_drop('events', 'click'), "events: missing column 'click'"),
    (_set('events', 'item_id', 3, 77), 'row 3, column item_id: unknown item'),
    (_set('events', 'click', 4, None), 'row 4, column click'),
    (_set('events', 'click', 5, 2), 'row 5, column click'),
    (_set('events', 'timestamp', 0, -1), 'row 0, column timestamp'),
    (_set('events', 'user_id', 2, None), 'row 2, column user_id'),
    (_set('items', 'item_id', 2, 10), 'row 2, column item_id: duplicate'),
    (_set('users', 'user_id', 1, 'c'), 'row 1, column user_id: duplicate'),
    (_info(['split', 'test_from'], 10**12), 'test split is empty'),
    (_info(['cross'], ['leak']), 'role is never'),
    (_info(['cross'], ['tab']), 'not an item column'),
    (_info(['columns', 'items', 'brand', 'role'], 'feature'), 'role'),
    (_info(['columns', 'items', 'brand', 'type'], 'word'), 'type'),
    (_info(['columns', 'items', 'color'],
           {'role': 'item_static', 'type': 'category'}), 'no such column'),
    (_info(['columns', 'events', 'click'],
           {'role': 'request', 'type': 'category'}), 'label'),
    (_info(['time_unit'], 'years'), 'time_unit'),
]


@pytest.mark.parametrize('change,message', _BROKEN)
def test_broken_tables_are_refused(tmp_path, change, message):
  world = copy.deepcopy(data_tables.small())
  change(world)
  data_tables.write(tmp_path, world)
  with pytest.raises(types.InputError) as caught:
    data.load(data_tables.config(tmp_path), 0)
  assert message in str(caught.value) and '\n' not in str(caught.value)


def test_truncated_files_are_refused(tmp_path):
  data_tables.write(tmp_path, data_tables.small())
  path = tmp_path / 'events.parquet'
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(types.InputError, match='truncated or corrupt'):
    tables.read(str(tmp_path))
  data_tables.write(tmp_path, data_tables.small())
  (tmp_path / 'dataset.json').write_text('{"label": ')
  with pytest.raises(types.InputError, match='dataset.json: not valid JSON'):
    tables.read(str(tmp_path))


@pytest.mark.parametrize('shape,message', [((4, 3), 'has 4 rows for 5'),
                                           ((5,), 'float array'),
                                           (None, 'row 2: not finite')])
def test_broken_embeddings_are_refused(tmp_path, shape, message):
  data_tables.write(tmp_path, data_tables.small())
  vectors = np.ones(shape or (5, 3), np.float16)
  if shape is None:
    vectors[2, 1] = np.nan
  np.save(tmp_path / 'item_embeddings.npy', vectors)
  with pytest.raises(types.InputError, match=message):
    data.load(data_tables.config(tmp_path), 0)


def test_unsorted_events_give_the_same_with_one_warning(tmp_path, monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda *a: lines.append(a[0] % a[1:]))
  world = data_tables.small()
  data_tables.write(tmp_path, world)
  want = data.load(data_tables.config(tmp_path), 0)
  assert not any('order of time' in line for line in lines)
  assert sum('missing values' in line and 'price 1' in line
             and 'brand 1' in line for line in lines) == 1
  assert sum('1 unknown items dropped' in line for line in lines) == 1
  order = np.random.default_rng(0).permutation(12)
  world['events'] = {
      name: [values[i] for i in order]
      for name, values in world['events'].items()}
  data_tables.write(tmp_path, world)
  lines.clear()
  got = data.load(data_tables.config(tmp_path), 0)
  assert sum('order of time' in line for line in lines) == 1
  for name in ('event_user', 'event_item', 'event_time', 'event_label'):
    np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_csv_gives_the_same_as_parquet(tmp_path):
  world = data_tables.small()
  world['histories'] = None
  (tmp_path / 'p').mkdir()
  (tmp_path / 'c').mkdir()
  data_tables.write(tmp_path / 'p', world)
  data_tables.write(tmp_path / 'c', world, 'csv')
  a, b = (data.load(data_tables.config(tmp_path / x), 0) for x in 'pc')
  np.testing.assert_array_equal(a.catalog.features.ids, b.catalog.features.ids)
  np.testing.assert_array_equal(a.catalog.vectors, b.catalog.vectors)
  np.testing.assert_array_equal(a.event_item, b.event_item)
  np.testing.assert_array_equal(a.context.ids, b.context.ids)
  assert a.spec == b.spec


def test_json_may_be_absent(tmp_path):
  world = data_tables.small()
  world['info'] = None
  data_tables.write(tmp_path, world)
  dataset = data.load(data_tables.config(tmp_path), 0)
  assert dataset.has_negatives and 'temporal' in dataset.protocol
  assert 'tab' not in [f.name for f in dataset.spec.request.fields]


def test_missing_folder_names_what_to_do(tmp_path):
  config = data_tables.config(tmp_path, dir='', name='no', root=str(tmp_path))
  with pytest.raises(types.InputError, match='config.data.root'):
    data.load(config, 0)


def test_check_prints_a_table_or_exits_2(tmp_path, capsys):
  data_tables.write(tmp_path, data_tables.small())
  assert check_main.main(['check', str(tmp_path)]) == 0
  out = capsys.readouterr().out
  assert 'cold items' in out and 'brand (category' in out
  assert 'item_number_rule_recall@10' in out
  assert check_main.main(['check', str(tmp_path / 'no')]) == 2
  assert capsys.readouterr().err.count('\n') == 1
  assert check_main.main([]) == 2
