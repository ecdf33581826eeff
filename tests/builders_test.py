"""Tests of the TFDS builders, the Parquet writer and the command line."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from sidrec import types
from sidrec.data import builders
from sidrec.data import tables
from sidrec.data.builders import __main__ as main
from sidrec.data.builders import layout
from sidrec.data.builders import sources
from sidrec.data.builders.sources import raw
import raw_files


@pytest.mark.parametrize('name', builders.NAMES)
def test_declared_schema_is_what_parsers_make(tmp_path, name):
  from sidrec.data.builders import records  # Imports TFDS.
  write, category = raw_files.WRITERS[name]
  write(tmp_path)
  source = sources.get(name, category)
  data = tables.check(source.parse(raw.locate(str(tmp_path), source), False),
                      name)
  found = records.schema_of(data)
  assert {table: set(columns) for table, columns in found.items()} == {
      table: set(columns) for table, columns in source.schema.items()}
  for table, columns in source.schema.items():
    for column, kind in columns.items():
      assert found[table][column] == kind, (table, column)


def _plain(value):
  """Returns text, number, list, or None for everything that is missing."""
  if isinstance(value, np.ndarray):
    return value.tolist() or None
  return None if value is None or value != value else value


def _assert_same(first, second):
  for name in ('events', 'items', 'users', 'histories'):
    one, other = getattr(first, name), getattr(second, name)
    assert (one is None) == (other is None), name
    one, other = (layout.plain(table or {}) for table in (one, other))
    for column in one:
      assert len(one[column]) == len(other[column])
      for a, b in zip(one[column], other[column]):
        assert _plain(a) == _plain(b), column
  if first.embeddings is not None:
    assert first.embeddings.dtype == second.embeddings.dtype
    np.testing.assert_array_equal(first.embeddings, second.embeddings)


def _folder():
  """Returns checked tables with every kind of column."""
  lists = np.empty(3, object)
  lists[:] = [np.array(['a', 'b']), None, np.array(['c'])]
  before = np.empty(1, object)
  before[:] = [np.array([2, 1], np.int64)]
  return tables.check(tables.Tables(
      info=dict(name='my log', label='click', columns=dict(
          events=dict(place=dict(role='request', type='category')),
          items=dict(tags=dict(role='item_static', type='categories'),
                     price=dict(role='item_static', type='number'),
                     title=dict(role='item_static', type='text')))),
      events=dict(user_id=np.array([5, 5, 6]), item_id=np.array([1, 2, 3]),
                  timestamp=np.array([10, 20, 30]),
                  click=np.array([0, 1, 1]),
                  place=np.array(['x', None, 'é'], object)),
      items=dict(item_id=np.array([1, 2, 3]), tags=lists,
                 price=np.array([.1, np.nan, 1e-9]),
                 title=np.array(['one', None, ''], object)),
      histories=dict(user_id=np.array([5]), seen=before),
      embeddings=np.arange(6, dtype=np.float32).reshape(3, 2) / 7), 'my log')


def test_write_and_read_parquet(tmp_path):
  data = _folder()
  builders.write(data, str(tmp_path / 'out'))
  again = tables.check(tables.read(str(tmp_path / 'out')), 'my log')
  _assert_same(data, again)
  stored = json.loads((tmp_path / 'out' / 'dataset.json').read_text())
  assert stored.pop('counts') == dict(
      users=2, items=3, items_with_events=3, events=3)
  assert stored['columns']['items']['price'] == dict(
      role='item_static', type='number')
  assert not list((tmp_path / 'out').glob('*.part'))


def test_write_to_a_place_that_cannot_be(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(types.InputError, match='cannot be written'):
    builders.write(_folder(), str(tmp_path / 'file' / 'below'))


def test_tfds_tables_round_trip(tmp_path):
  data = _folder()
  builders.write(data, str(tmp_path / 'folder'))
  builder = builders.builder(
      'tables', directory=str(tmp_path / 'folder'), data_dir=str(tmp_path))
  builder.download_and_prepare()
  assert not [m for m in sys.modules if m.split('.')[0] == 'tensorflow']
  assert list(builder.as_data_source()) == ['events', 'items', 'histories']
  block = builder.as_data_source('events')[0]['events']
  np.testing.assert_array_equal(block['timestamp'], [10, 20, 30])
  again = builders.read(str(builder.data_dir))
  _assert_same(data, again)
  assert again.info == dict(
      data.info, counts=again.info.get('counts'))
  _assert_same(data, builders.read(str(tmp_path / 'tables')))


def test_tfds_blocks_keep_the_order(tmp_path, monkeypatch):
  from sidrec.data.builders import records
  monkeypatch.setattr(records, 'BLOCK', 2)
  data = _folder()
  builders.write(data, str(tmp_path / 'folder'))
  builder = builders.builder(
      'tables', directory=str(tmp_path / 'folder'), data_dir=str(tmp_path))
  builder.download_and_prepare()
  assert len(builder.as_data_source('events')) == 2
  _assert_same(data, builders.read(str(builder.data_dir)))


@pytest.mark.parametrize('name', builders.NAMES)
def test_tfds_public_sets_from_manual_dir(tmp_path, name):
  import tensorflow_datasets as tfds
  write, category = raw_files.WRITERS[name]
  write(tmp_path / 'raw')
  builder = builders.builder(
      name, category=category, data_dir=str(tmp_path / 'tfds'))
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(
      manual_dir=tmp_path / 'raw'))
  _assert_same(
      builders.convert(name, str(tmp_path / 'raw'), category=category),
      builders.read(str(tmp_path / 'tfds')))


def test_read_names_what_is_wrong(tmp_path):
  with pytest.raises(types.InputError, match='no prepared TFDS data set'):
    builders.read(str(tmp_path))
  builders.write(_folder(), str(tmp_path / 'folder'))
  builder = builders.builder(
      'tables', directory=str(tmp_path / 'folder'), data_dir=str(tmp_path))
  builder.download_and_prepare()
  copy = tmp_path / 'copy'
  shutil.copytree(builder.data_dir, copy)
  with pytest.raises(types.InputError, match='2 prepared data sets'):
    builders.read(str(tmp_path))
  for path in copy.glob('*events.array_record*'):
    path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(types.InputError, match='damaged'):
    builders.read(str(copy))


def test_download(tmp_path, monkeypatch):
  """Packed raw files over loopback, and one line where there are none."""
  raw_files.movielens_1m(tmp_path / 'raw')
  (tmp_path / 'www').mkdir()
  shutil.make_archive(str(tmp_path / 'www' / 'ml-1m'), 'zip', tmp_path / 'raw')

  class Handler(http.server.SimpleHTTPRequestHandler):

    def __init__(self, *args):
      super().__init__(*args, directory=str(tmp_path / 'www'))

    def log_message(self, *args):
      del args

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  monkeypatch.setenv('NO_PROXY', '127.0.0.1')
  address = f'http://127.0.0.1:{server.server_port}/'
  source = sources.get('ml-1m')
  try:
    for name, fails in (('ml-1m.zip', False), ('gone.zip', True)):
      object.__setattr__(source, 'urls', {'archive': address + name})
      monkeypatch.setattr(sources, 'get', lambda *_: source)
      if fails:
        with pytest.raises(types.InputError, match='cannot be downloaded'):
          builders.convert('ml-1m', download_dir=str(tmp_path / 'downloads'))
      else:
        data = builders.convert(
            'ml-1m', download_dir=str(tmp_path / 'downloads'))
        assert len(data.events['user_id']) == 3
  finally:
    server.shutdown()
    server.server_close()


def test_command_line(tmp_path, capsys):
  raw_files.movielens_20m(tmp_path / 'raw')
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  command = [sys.executable, '-m', 'sidrec.data.builders', 'ml-20m',
             f'--manual_dir={tmp_path / "raw"}',
             f'--output={tmp_path / "out"}']
  done = subprocess.run(command, cwd=root, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert '2 events of 1 users with 2 of 2 items' in done.stdout
  data = tables.check(tables.read(str(tmp_path / 'out')), 'out')
  assert data.info['name'] == 'ml-20m'
  (tmp_path / 'raw' / 'ratings.csv').unlink()
  assert main.main(command[3:]) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'ratings.csv' in error
