"""Imports raw files of many forms and compares the exact tables."""

import csv
import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest

from sidrec.data import __main__ as main
from sidrec.data import tables
from sidrec.data.imports import values

_LOG = '''visitor,sku,created_at,event,price,category,genres,title,zip
u1,007,2024-01-01T00:00:00,view,"$1,299.00",A > B > C,x|y,"An ""odd"" one",01234
u1,008,2024-01-02,buy,$2.50,A > B,x,Second,01234
u2,007,2024-01-03T00:00:00Z,view,"$1,299.00",A > B > C,x|y,"An ""odd"" one",98101
u2,009,2024-01-04 00:00:00,buy,$9,D,y,Third,98101
u2,008,2024-01-05T00:00:00,buy,$2.50,A > B,x,Second,98101
u1,009,2024-01-06T00:00:00,view,$9,D,y,Third,01234
'''
_DAY = 86_400_000
_START = 1_704_067_200_000  # 2024-01-01.


def _run(folder, *files, **flags):
  """Returns (exit status, columns by table, dataset.json)."""
  flags = {'output': str(folder / 'out'), **flags}
  arguments = [str(folder / name) for name in files]
  for name, value in flags.items():
    for one in value if isinstance(value, list) else [value]:
      arguments.append(f'--{name}' if one is True else f'--{name}={one}')
  status = main.main(['import', *arguments])
  out = folder / 'out'
  if not (out / 'dataset.json').exists():
    return status, None, None
  return status, {
      path.stem: pa_parquet.read_table(path).to_pydict()
      for path in out.glob('*.parquet')}, json.loads(
          (out / 'dataset.json').read_text())


def _write(folder, name, text):
  (folder / name).write_text(text, encoding='utf-8')


def test_a_flat_log(tmp_path):
  _write(tmp_path, 'log.csv', _LOG)
  status, found, info = _run(tmp_path, 'log.csv', positive='event == buy')
  assert status == 0
  assert found['events'] == {
      'user_id': ['u1', 'u1', 'u2', 'u2', 'u2', 'u1'],
      'item_id': ['007', '008', '007', '009', '008', '009'],
      'timestamp': [_START + day * _DAY for day in range(6)],
      'event': ['view', 'buy', 'view', 'buy', 'buy', 'view'],
      'label': [0, 1, 0, 1, 1, 0]}
  assert found['items'] == {
      'item_id': ['007', '008', '009'], 'price': [1299., 2.5, 9.],
      'category_1': ['A', 'A', 'D'], 'category_2': ['B', 'B', None],
      'category_3': ['C', None, None],
      'genres': [['x', 'y'], ['x'], ['y']],
      'title': ['An "odd" one', 'Second', 'Third']}
  assert found['users'] == {'user_id': ['u1', 'u2'], 'zip': ['01234', '98101']}
  assert info['columns'] == {
      'events': {'event': {'role': 'never', 'type': 'category'},
                 'label': {'role': 'never', 'type': 'number'}},
      'items': {
          'price': {'role': 'item_static', 'type': 'number'},
          **{f'category_{level}': {'role': 'item_static', 'type': 'category'}
             for level in (1, 2, 3)},
          'genres': {'role': 'item_static', 'type': 'categories'},
          'title': {'role': 'item_static', 'type': 'text'}},
      'users': {'zip': {'role': 'request', 'type': 'category'}}}
  assert (info['name'], info['time_unit'], info['label']) == (
      'out', 'ms', 'label')
  assert info['cross'] == ['item_id', 'category_1', 'category_2']
  assert info['source'] == ['log.csv']
  assert info['counts'] == dict(
      users=2, items=3, items_with_events=3, events=6)


def test_zipped_text_with_other_separators_is_the_same(tmp_path):
  _write(tmp_path, 'log.csv', _LOG)
  _, wanted, _ = _run(tmp_path, 'log.csv')
  rows = list(csv.reader(_LOG.splitlines()))
  for name, separator in (('a.tsv.gz', '\t'), ('b.txt', ';')):
    with gzip.open(tmp_path / name, 'wt') if name.endswith('gz') else open(
        tmp_path / name, 'w', encoding='utf-8') as file:
      csv.writer(file, delimiter=separator).writerows(rows)
    assert _run(tmp_path, name, overwrite=True)[1] == wanted


def test_parquet_and_json_lines_keep_types(tmp_path):
  columns = {'uid': [2**60 + 1, 2**60 + 3, 2**60 + 1],
             'asin': ['1e5', '0x1f', 'NA'],
             'ts': [_START // 1000 + i for i in range(3)],
             'clicked': [True, False, True]}
  pa_parquet.write_table(pa.table(columns), tmp_path / 'log.parquet')
  _write(tmp_path, 'log.jsonl', ''.join(
      json.dumps(dict(zip(columns, row))) + '\n'
      for row in zip(*columns.values())))
  _, first, info = _run(tmp_path, 'log.parquet')
  assert first['events'] == {
      'user_id': columns['uid'], 'item_id': columns['asin'],
      'timestamp': [_START + 1000 * i for i in range(3)],
      'clicked': [1, 0, 1]}
  assert info['label'] == 'clicked'
  assert _run(tmp_path, 'log.jsonl', overwrite=True)[1] == first


def test_recbole_files(tmp_path):
  _write(tmp_path, 'm.inter', (
      'user_id:token\titem_id:token\trating:float\ttimestamp:float\n'
      '1\t10\t4\t881250949\n2\t11\t3.5\t881250950\n1\t12\t5\t881250951\n'))
  _write(tmp_path, 'm.item', (
      'item_id:token\tmovie_title:token_seq\trelease_year:token\t'
      'class:token_seq\n10\t"Toy" Story\t1995\tAnimation Comedy\n'
      '11\tHeat\t1996\tCrime\n13\tNixon\t1995\t\n'))
  _write(tmp_path, 'm.user', (
      'user_id:token\tage:token\tzip_code:token\n1\t24\t01234\n2\t53\t94043\n'))
  status, found, info = _run(
      tmp_path, 'm.inter', 'm.item', 'm.user', positive='rating >= 4')
  assert status == 0
  assert found['events']['rating'] == [4., 3.5, 5.]
  assert found['events']['label'] == [1, 0, 1]
  assert found['events']['timestamp'][0] == 881250949000
  assert found['items'] == {
      'item_id': [10, 11, 13, 12],
      'title': ['"Toy" Story', 'Heat', 'Nixon', None],
      'release_year': [1995, 1996, 1995, None],
      'class': [['Animation', 'Comedy'], ['Crime'], None, None]}
  assert found['users']['zip_code'] == ['01234', '94043']
  assert info['columns']['events']['rating']['role'] == 'never'
  assert info['columns']['items']['release_year']['type'] == 'category'


def test_lists_of_each_user_have_order_only(tmp_path):
  _write(tmp_path, 'x.inter.json', '{"0": [5, 3, 5, 9], "1": [3, 9]}')
  _, found, info = _run(tmp_path, 'x.inter.json')
  assert found['events'] == {
      'user_id': [0, 0, 0, 0, 1, 1], 'item_id': [5, 3, 5, 9, 3, 9],
      'timestamp': [0, 1, 2, 3, 0, 1]}
  assert info['time_unit'] == 'ordinal' and info['label'] is None
  assert info['split'] == {'kind': 'leave_one_out'}


@pytest.mark.parametrize('shown, clicked', [
    ('[1, 2, 3]', '[2]'), ('1 2 3', '2'), ('1-0 2-1 3-0', None)])
def test_shown_and_clicked_lists(tmp_path, shown, clicked):
  names = ['session_id', 'time', 'impressions'] + ['clicks'] * bool(clicked)
  rows = [['s', '2024-01-01', shown, clicked], ['t', '2024-01-02', '4', '']]
  rows[1][2] = '4-0' if clicked is None else '4'
  with open(tmp_path / 'log.csv', 'w', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerows([names, *(row[:len(names)] for row in rows)])
  _, found, info = _run(tmp_path, 'log.csv')
  assert found['events'] == {
      'user_id': ['s'] * 3 + ['t'], 'item_id': [1, 2, 3, 4],
      'timestamp': [_START] * 3 + [_START + _DAY], 'label': [0, 1, 0, 0]}
  assert info['label'] == 'label'


def test_parquet_lists_of_one_kind_keep_their_order(tmp_path):
  pa_parquet.write_table(pa.table({
      'user': ['a', 'b'], 'sequence': [[3, 1, 2], [1]],
      'prices': [[1., 2., 3.], [4.]],
      'at': pa.array([_START, _START + 5], pa.timestamp('ms'))}),
                         tmp_path / 'log.parquet')
  _, found, _ = _run(tmp_path, 'log.parquet')
  assert found['events']['item_id'] == [3, 1, 2, 1]
  assert found['events']['timestamp'] == [
      _START, _START + 1, _START + 2, _START + 5]


def test_parts_of_a_log_and_a_catalog(tmp_path):
  _write(tmp_path, 'a.csv', 'user,item,ts\n1,01,1704067200\n2,02,1704067201\n')
  _write(tmp_path, 'b.csv', 'user,item,ts\n3,01,1704067199000\n')
  _write(tmp_path, 'c.csv', 'product_id,ean,num_sold\n03,001,5\n01,002,9\n')
  _, found, info = _run(tmp_path, 'a.csv', 'b.csv', 'c.csv')
  assert found['events']['user_id'] == [3, 1, 2]
  assert found['items'] == {'item_id': ['03', '01', '02'],
                            'ean': ['001', '002', None],
                            'num_sold': [5, 9, None]}
  assert info['columns']['items']['num_sold']['role'] == 'never'


def test_columns_by_hand_and_without_heading(tmp_path):
  _write(tmp_path, 'x.dat', '1::10::5::978300760\n2::11::3::978300761\n'
         '1::11::3::978300762\n')
  _, found, info = _run(tmp_path, 'x.dat', column=[
      'user_id=column_1', 'item_id=column_2'], name='short')
  assert found['events']['user_id'] == [1, 2, 1]
  assert found['events']['item_id'] == [10, 11, 11]
  assert found['events']['timestamp'] == [
      978300760000, 978300761000, 978300762000]
  assert found['items'] == {'item_id': [10, 11], 'column_3': [5, 3]}
  assert info['name'] == 'short'


_BAD = '''user_id,item_id,timestamp,rating
1,1,1704067200,5
1,2,1704067201,4
,3,1704067202,4
1,,1704067203,4
1,3,,4
1,3,yesterday,4
1,3,1704067204,good
1,3
2,1,1704067205,1
'''


def test_a_broken_row_does_not_hide_what_a_column_is(tmp_path):
  rows = [f'u{n % 5},i{n % 7},2024-01-{1 + n % 28:02}T10:00:00Z'
          for n in range(60)]
  rows[7] = 'u1,i2,soon'
  _write(tmp_path, 'log.csv', 'visitor,sku,bought at\n' + '\n'.join(rows))
  status, found, _ = _run(tmp_path, 'log.csv', drop_bad_rows=True)
  assert status == 0 and len(found['events']['timestamp']) == 59


def test_broken_rows(tmp_path, capsys):
  _write(tmp_path, 'log.csv', _BAD)
  _write(tmp_path, 'items.csv', 'item_id,brand\n1,x\n1,y\n2,z\n')
  status, found, _ = _run(
      tmp_path, 'log.csv', 'items.csv', positive='rating >= 4')
  assert status == 2 and found is None
  assert [path.name for path in (tmp_path / 'out').iterdir()] == [
      'rejected.csv']
  message = capsys.readouterr().err
  assert message.count('\n') == 1 and 'broken rows: 7' in message
  with open(tmp_path / 'out' / 'rejected.csv', encoding='utf-8') as file:
    rows = list(csv.reader(file))
  assert rows == [
      ['file', 'row', 'reason', 'raw'],
      ['log.csv', '2', 'missing user', ',3,1704067202,4'],
      ['log.csv', '3', 'missing item', '1,,1704067203,4'],
      ['log.csv', '4', 'missing time', '1,3,,4'],
      ['log.csv', '5', 'time that is none', '1,3,yesterday,4'],
      ['log.csv', '6', 'rating is no number', '1,3,1704067204,good'],
      ['log.csv', '7', 'another number of fields', '1,3'],
      ['items.csv', '1', 'item that is there before', '1,y']]
  status, found, _ = _run(
      tmp_path, 'log.csv', 'items.csv', positive='rating >= 4',
      drop_bad_rows=True)
  assert status == 0 and found['events']['label'] == [1, 1, 0]
  assert found['events']['rating'] == [5, 4, 1]
  assert found['items']['brand'] == ['x', 'z']
  assert (tmp_path / 'out' / 'rejected.csv').exists()


@pytest.mark.parametrize('flags, message', [
    (dict(positive='evnt == buy'), "did you mean 'event'"),
    (dict(positive='event = buy'), "did you mean '=='"),
    (dict(positive='event ~ buy'), 'unknown operator'),
    (dict(positive='event >= buy'), 'no number to compare'),
    (dict(positive='event == cart'), 'no event is a positive'),
    (dict(column='user_id=visitr'), "did you mean 'visitor'"),
    (dict(column='usr_id=visitor'), "did you mean 'user_id'"),
    (dict(column='visitor'), 'must be ROLE=NAME'),
    (dict(separator=';'), 'say which by --column'),
    (dict(encoding='utf-99'), 'no such encoding')])
def test_wrong_flags(tmp_path, capsys, flags, message):
  _write(tmp_path, 'log.csv', _LOG)
  status, found, _ = _run(tmp_path, 'log.csv', **flags)
  error = capsys.readouterr().err
  assert status == 2 and found is None
  assert message in error and error.count('\n') == 1


def test_unknown_columns_and_folders_in_use(tmp_path, capsys):
  _write(tmp_path, 'log.csv', 'who,what,date\na,b,2024-01-01\n')
  assert _run(tmp_path, 'log.csv')[0] == 2
  error = capsys.readouterr().err
  assert 'who, what, date' in error and '--column=user_id=NAME' in error
  columns = ['user_id=who', 'item_id=what']
  assert _run(tmp_path, 'log.csv', column=columns)[0] == 0
  assert _run(tmp_path, 'log.csv', column=columns)[0] == 2
  assert '--overwrite' in capsys.readouterr().err
  assert _run(tmp_path, 'log.csv', column=columns, overwrite=True)[0] == 0


@pytest.mark.parametrize('rule, wanted', [
    ('event == buy', [0, 1, 0, 1, 1, 0]), ("event != 'buy'", [1, 0, 1, 0, 0, 1]),
    ('event in ("buy", cart)', [0, 1, 0, 1, 1, 0]),
    ('zip < 5000', [1, 1, 0, 0, 0, 1])])
def test_positives(tmp_path, rule, wanted):
  _write(tmp_path, 'log.csv', _LOG)
  assert _run(tmp_path, 'log.csv', positive=rule)[1]['events'][
      'label'] == wanted


_NASTY = ['007', '7', str(2**63 - 1), '9007199254740993', 'a"b', 'a,b', 'a\nb',
          'é☃', '1e5', '0x1f', 'NA', 'null', 'nan', "it's", ' x', '-0', '[1]']


@pytest.mark.parametrize('seed', range(50))
def test_ids_come_out_as_they_went_in(tmp_path, seed):
  draw = random.Random(seed)
  plain = seed % 3 == 0
  ids = [str(draw.randrange(1, 2**63)) for _ in range(20)]
  if not plain:
    ids += draw.sample(_NASTY, draw.randrange(1, 9))
  rows = [(draw.choice(ids[:10]), draw.choice(ids[:20]), 1_704_067_200 + i)
          for i in range(30)]
  rows += [(x, draw.choice(ids), 1_704_067_300) for x in ids]
  with open(tmp_path / 'log.csv', 'w', encoding='utf-8', newline='') as file:
    writer = csv.writer(file)
    writer.writerows([('user', 'item', 'ts'), *rows])
  status, found, _ = _run(tmp_path, 'log.csv')
  assert status == 0
  for key, place in (('user_id', 0), ('item_id', 1)):
    out = found['events'][key]
    assert [str(x) for x in out] == [row[place] for row in rows]
    exact = all(row[place].isdigit() and row[place][0] != '0' for row in rows)
    assert all(isinstance(x, int if exact else str) for x in out)
  back = tables.check(tables.read(str(tmp_path / 'out')), 'out')
  assert [str(x) for x in back.events['user_id'].ids] == [x[0] for x in rows]


@pytest.mark.parametrize('texts, wanted', [
    (['$1,299.00', '$2'], [1299., 2.]), (['12,50 EUR', '1.299 EUR'],
                                         [12.5, 1299.]),
    (['£1,299', '-'], None), (['3', '4'], None), (['AB 12', 'CD 13'], None)])
def test_money(texts, wanted):
  assert values.money(texts, named=False) == wanted


@pytest.mark.parametrize('texts, name, levels, entries', [
    (['A/B', 'A/C', 'D/E'], 'kind', 2, None), (['A|B', 'A|C', 'D|E'], 'kind', 2,
                                               None),
    (['AC/DC', 'x'], 'artist', None, None),
    (['x|y', 'y|x', 'x|z'], 'genres', None, ['x', 'y']),
    (["['x', 'y']", '[]'], 'tags', None, ['x', 'y']),
    (['x, y', 'x, z', 'y'], 'genres', None, ['x', 'y']),
    (['Hello, dear', 'Well, no', 'So, what'], 'phrase', None, None)])
def test_paths_and_lists(texts, name, levels, entries):
  found = values.levels(texts, name)
  assert (found and max(map(len, found))) == levels
  if found is None:
    split = values.split(texts, name)
    assert (split and split[0]) == entries


def test_what_items_are_called_is_their_title(tmp_path):
  rows = [f'u{u},i{i},{1_700_000_000 + 60 * u + i},thing {i}'
          for u in range(6) for i in range(5)]
  (tmp_path / 'log.csv').write_text(
      '\n'.join(['user,item,ts,Product Name', *rows]) + '\n')
  assert main.main(['import', str(tmp_path / 'log.csv'),
                    f'--output={tmp_path / "out"}']) == 0
  items = tables.read(str(tmp_path / 'out')).items
  assert items['title'].tolist() == [f'thing {i}' for i in range(5)]
