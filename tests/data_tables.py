"""A small data set on disk for the tests of sidrec.data."""

import json
import pathlib

import ml_collections
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet


def config(directory: pathlib.Path, **changes) -> ml_collections.ConfigDict:
  """Returns `config.data` that reads a folder."""
  result = ml_collections.ConfigDict(dict(
      name='', dir=str(directory), root='', history_length=4, history='auto',
      cross='all', item_stats=True, seen_length=0, split='auto',
      eval_negatives=3,
      history_vectors=0, text_encoder=''))
  result.update(changes)
  return result


def small() -> dict:
  """Returns the tables: 3 users, 5 items, 12 events."""
  return dict(
      events={
          'user_id': ['a', 'b', 'c'] * 4,
          'item_id': [10, 11, 12, 13, 10, 11, 10, 13, 12, 11, 10, 13],
          'timestamp': [t * 3_600_000 for t in range(12)],
          'click': [1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1],
          'tab': [1, 2, None, 1, 2, 2, 1, 1, 1, 2, 1, 1]},
      items={
          'item_id': [14, 10, 11, 12, 13],
          'brand': ['x', 'y', None, 'x', 'y'],
          'tags': ['s,t', 't', '', 's', None],
          'price': [1., None, 3., 2., 2.],
          'leak': [0, 1, 2, 3, 4]},
      users={'user_id': ['c', 'a', 'd'], 'age': [30, 20, 40]},
      histories={'user_id': ['a', 'c'], 'until': [-5, -5],
                 'exposed': [[12, 99, 11], [10, 11]],
                 'long_viewed': [[11], []]},
      info={
          'name': 'small', 'time_unit': 'ms', 'label': 'click',
          'split': {'kind': 'time', 'valid_from': 6 * 3_600_000,
                    'test_from': 9 * 3_600_000},
          'columns': {
              'events': {'tab': {'role': 'request', 'type': 'category'}},
              'items': {
                  'brand': {'role': 'item_static', 'type': 'category'},
                  'tags': {'role': 'item_static', 'type': 'categories'},
                  'price': {'role': 'item_static', 'type': 'number'},
                  'leak': {'role': 'never'}},
              'users': {'age': {'role': 'request', 'type': 'number'}}},
          'cross': ['item_id', 'brand', 'tags']})


def write(directory: pathlib.Path, data: dict, kind: str = 'parquet') -> None:
  """Writes the tables that are there; `info` None leaves the JSON out."""
  for name, columns in data.items():
    if name == 'info':
      if columns is not None:
        (directory / 'dataset.json').write_text(json.dumps(columns))
    elif columns is not None:
      table = pa.table(columns)
      if kind == 'csv':
        pa_csv.write_csv(table, directory / f'{name}.csv')
      else:
        pa_parquet.write_table(table, directory / f'{name}.parquet')
