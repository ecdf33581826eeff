"""Tests of the parsers of the public data sets' raw files."""

import dataclasses

import numpy as np
import pytest

from sidrec import types
from sidrec.data import builders
from sidrec.data.builders import layout
from sidrec.data.builders.sources import raw
import raw_files


def _convert(name, folder, **kwargs):
  write, category = raw_files.WRITERS[name]
  write(folder)
  data = builders.convert(name, str(folder), category=category, **kwargs)
  return dataclasses.replace(data, **{
      table: layout.plain(getattr(data, table))
      for table in ('events', 'items', 'users')
      if getattr(data, table) is not None})


def test_kuairand(tmp_path):
  data = _convert('kuairand-pure', tmp_path / 'raw' / 'KuaiRand-Pure' / 'data')
  # The exact repeat is gone, the same video later is not; order of time.
  np.testing.assert_array_equal(data.events['user_id'], [7, 7, 9, 7])
  np.testing.assert_array_equal(data.events['item_id'], [1, 2, 2, 2])
  np.testing.assert_array_equal(data.events['is_click'], [0, 1, 0, 1])
  assert data.events['timestamp'].tolist() == [
      1650485800000, 1650485801301, 1651680000001, 1651852800001]
  assert data.items['tag'][0].tolist() == ['12', '65']
  assert data.items['tag'][1] is None
  assert np.isnan(data.items['video_duration'][1])
  assert data.users['follow_user_num_range'][0] == '(0,10]'
  assert np.isnan(data.users['onehot_feat4'][0])
  assert data.info['columns']['items']['visible_status']['role'] == 'never'


def test_amazon_2014(tmp_path):
  data = _convert('amazon14', tmp_path)
  assert data.items['item_id'].tolist() == ['A1', 'A2', 'A3']
  assert data.items['title'].tolist() == ["It's a brush", None, None]
  assert data.items['categories'][0].tolist() == ['Beauty', 'Makeup', 'Nails']
  np.testing.assert_array_equal(data.items['price'], [12.99, np.nan, np.nan])
  mine = data.events['user_id'] == 'U1'
  order = np.argsort(data.events['timestamp'][mine])
  # Equal days keep the order of the file.
  assert data.events['item_id'][mine][order].tolist() == ['A2', 'A1', 'A3']
  assert sorted(data.events['timestamp'][mine].tolist()) == [0, 1, 2]
  assert data.events['unix_time'][mine][order].tolist() == [100, 300, 300]


def test_amazon_2014_in_seconds(tmp_path):
  data = _convert('amazon14', tmp_path, time='s')
  assert data.events['timestamp'].tolist() == [
      100_000, 100_000, 300_000, 300_000]


def test_amazon_2018(tmp_path):
  data = _convert('amazon18', tmp_path)
  pairs = set(zip(data.events['user_id'], data.events['item_id'],
                  data.events['unix_time']))
  assert pairs == {('U1', 'A1', 10), ('U1', 'A2', 15), ('U2', 'A1', 5)}
  assert data.items['title'].tolist() == ['Pong', None]
  assert data.items['brand'].tolist() == ['Atari', None]
  np.testing.assert_array_equal(data.items['price'], [1012.5, np.nan])


@pytest.mark.parametrize('as_json', [False, True])
def test_amazon_2023(tmp_path, as_json):
  raw_files.amazon23(tmp_path, as_json)
  data = builders.convert('amazon23', str(tmp_path), category='All_Beauty')
  assert len(data.events['user_id']) == 25
  assert data.info['time_unit'] == 'ms'
  assert data.events['timestamp'][-1] == 4004
  assert data.items['item_id'].ids.tolist() == [f'P{p}' for p in range(5)]
  assert data.items['brand'].tolist() == ['S'] + [None] * 4
  np.testing.assert_array_equal(data.items['has_image'], [0, 1, 1, 1, 1])
  assert data.info['columns']['items']['n_ratings']['role'] == 'never'


def test_movielens_1m(tmp_path):
  data = _convert('ml-1m', tmp_path)
  order = np.argsort(data.events['timestamp'])
  assert data.events['item_id'][order].tolist() == [914, 1193, 661]
  assert data.items['title'][2] == 'Misérables, Les (1995)'
  assert data.items['genres'][0].tolist() == ['Animation', "Children's"]
  assert len(data.items['item_id']) == 4  # The one nobody rated too.
  assert data.users['zip'].tolist() == ['02138']


def test_movielens_20m(tmp_path):
  data = _convert('ml-20m', tmp_path)
  assert data.items['title'].tolist() == ['City, The (1995)', 'Odd (1996)']
  assert len(data.items['genres'][1]) == 0
  assert data.users is None
  np.testing.assert_array_equal(data.events['rating'], [3.5, 3.5])


def test_core_against_a_loop():
  rng = np.random.default_rng(0)
  user, item = rng.integers(0, 40, 400), rng.integers(0, 30, 400)
  keep = set(range(400))
  while True:
    left = {e for e in keep
            if sum(user[o] == user[e] for o in keep) >= 8
            and sum(item[o] == item[e] for o in keep) >= 8}
    if left == keep:
      break
    keep = left
  assert 0 < len(keep) < 400
  assert set(np.flatnonzero(raw.core(user, item, 8))) == keep


def test_ordinal_and_first_of_each_against_loops():
  rng = np.random.default_rng(1)
  user, time = rng.integers(0, 9, 200), rng.integers(0, 20, 200)
  position = [
      sum(user[o] == user[e] and (time[o], o) < (time[e], e)
          for o in range(200)) for e in range(200)]
  np.testing.assert_array_equal(raw.ordinal(user, time), position)
  seen, rows = set(), []
  for row, pair in enumerate(zip(user, time)):
    if pair not in seen:
      rows.append(row)
    seen.add(pair)
  np.testing.assert_array_equal(raw.first_of_each(user, time), rows)


@pytest.mark.parametrize('break_it, message', [
    (lambda d: (d / 'meta_Beauty.json.gz').unlink(),
     'missing raw file meta_Beauty.json.gz'),
    (lambda d: raw_files.put(d / 'reviews_Beauty_5.json.gz',
        '{"asin": "A1"}\n'),
     "row 0: missing field 'reviewerID'"),
    (lambda d: raw_files.put(d / 'meta_Beauty.json.gz',
        "{'asin': 'A1'}\nimport os\n"),
     'meta_Beauty.json.gz: row 1: not a JSON object'),
    (lambda d: (d / 'reviews_Beauty_5.json.gz').write_bytes(
        (d / 'reviews_Beauty_5.json.gz').read_bytes()[:-20]),
     'download it again')])
def test_broken_raw_files(tmp_path, break_it, message):
  raw_files.amazon14(tmp_path)
  break_it(tmp_path)
  with pytest.raises(types.InputError) as error:
    builders.convert('amazon14', str(tmp_path), category='Beauty')
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_broken_csv_and_dat(tmp_path):
  raw_files.kuairand(tmp_path)
  path = tmp_path / 'video_features_basic_pure.csv'
  path.write_text(path.read_text().replace('441', 'x41'))
  with pytest.raises(types.InputError, match='x41') as error:
    builders.convert('kuairand-pure', str(tmp_path))
  assert path.name in str(error.value) and '\n' not in str(error.value)
  raw_files.movielens_1m(tmp_path)
  path = tmp_path / 'ml-1m' / 'movies.dat'
  path.write_text('661::half a line\n')
  with pytest.raises(types.InputError, match="row 0: has 2 fields"):
    builders.convert('ml-1m', str(tmp_path))


def test_unknown_names():
  with pytest.raises(types.InputError, match='kuairand-pure'):
    builders.convert('kuairand', 'x')
  with pytest.raises(types.InputError, match='Luxury_Beauty'):
    builders.convert('amazon18', 'x', category='Beauty')
