"""Files as people have them, `dataset.json` as they write it, what check says."""

import json

from absl import logging
import data_tables
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import data
from sidrec import types
from sidrec.data import __main__ as command
from sidrec.data import leaks
from sidrec.data import tables

_USERS, _ITEMS, _PER = 6, 5, 4


def _shop(directory, *, separator=',', encoding='utf-8', end='\n',
          titles=None, more=None):
  """Writes a small log as text; `more`: a further column of the events."""
  titles = titles or [f'thing {i}' for i in range(_ITEMS)]
  head = ['user_id', 'item_id', 'timestamp', *(more or {})]
  rows = [[f'u{u}', f'i{(u + e) % _ITEMS}', str(1_700_000_000 + 60 * e + u)]
          for u in range(_USERS) for e in range(_PER)]
  for values in (more or {}).values():
    rows = [row + [str(values[n % len(values)])] for n, row in enumerate(rows)]
  items = [['item_id', 'title', 'price']] + [
      [f'i{n}', f'"{title}"', str(n + .5)] for n, title in enumerate(titles)]
  for name, table in (('events', [head, *rows]), ('items', items)):
    text = end.join(separator.join(row) for row in table) + end
    (directory / f'{name}.csv').write_bytes(text.encode(encoding))
  return directory


def _load(directory):
  return tables.check(tables.read(str(directory)), str(directory))


def _refused(directory):
  with pytest.raises(types.InputError) as caught:
    data.load(data_tables.config(directory, split='leave_one_out'), 0)
  assert '\n' not in str(caught.value)
  return str(caught.value)


@pytest.mark.parametrize('form', [
    {}, {'separator': '\t'}, {'separator': ';'}, {'separator': '|'},
    {'encoding': 'utf-8-sig'}, {'end': '\r\n'},
    {'titles': ['a\nb', 'c, d', 'é', '日本', '"" said']}])
def test_text_files(tmp_path, form):
  found = _load(_shop(tmp_path, **form))
  titles = form.get('titles', [f'thing {i}' for i in range(_ITEMS)])
  assert found.items['title'].tolist() == [x.replace('""', '"') for x in titles]
  assert found.items['price'].tolist() == [n + .5 for n in range(_ITEMS)]
  assert found.events['item_id'].values.tolist() == [
      f'i{n}' for n in range(_ITEMS)]
  assert len(found.events['timestamp']) == _USERS * _PER


def test_lines_in_quotes_over_the_borders_of_blocks(tmp_path):
  title = '\n'.join(['many words on a line'] * 40)
  titles = [f'{n} {title}' for n in range(3000)]
  _shop(tmp_path, titles=titles)
  assert _load(tmp_path).items['title'].tolist() == titles


@pytest.mark.parametrize('encoding, message', [
    ('latin-1', 'items.csv: byte '), ('utf-16', 'UTF-16')])
def test_other_encodings_are_named(tmp_path, encoding, message):
  _shop(tmp_path, encoding=encoding, titles=['café'] * 1 + list('abcd'))
  assert message in _refused(tmp_path) and '--encoding' in _refused(tmp_path)


@pytest.mark.parametrize('column, message', [
    (pa.array([{'a': 1}] * 5), 'column odd: struct'),
    (pa.array([[('a', 1)]] * 5, pa.map_(pa.string(), pa.int64())),
     'column odd: map'),
    (pa.array([[[1]]] * 5), 'is nested'),
    (pa.array([b'x'] * 5), 'holds bytes'),
    (pa.array([1] * 5, pa.duration('s')), 'duration'),
    (pa.array([[1., 2.]] * 4 + [[1.]]), 'row 4, column odd: 1 numbers where'),
    (pa.array([[1., 2.]] * 4 + [None]), 'row 4, column odd: nothing'),
])
def test_columns_that_say_nothing(tmp_path, column, message):
  _shop(tmp_path)
  pq.write_table(pa.table({'item_id': [f'i{n}' for n in range(5)],
                           'odd': column}), tmp_path / 'items.parquet')
  assert message in _refused(tmp_path)
  (tmp_path / 'dataset.json').write_text(json.dumps(
      {'columns': {'items': {'odd': {'role': 'never'}}}}))
  _load(tmp_path)


@pytest.mark.parametrize('kind', [
    pa.list_(pa.float32()), pa.list_(pa.float64(), 3),
    pa.large_list(pa.float64())])
def test_a_column_of_vectors(tmp_path, kind):
  _shop(tmp_path)
  rows = np.arange(15.).reshape(5, 3)
  pq.write_table(pa.table({
      'item_id': [f'i{n}' for n in range(5)],
      'vector': pa.array(rows.tolist(), kind)}), tmp_path / 'items.parquet')
  np.testing.assert_array_equal(_load(tmp_path).embeddings, rows)


def test_row_numbers_of_pandas_are_no_column(tmp_path):
  _shop(tmp_path)
  path = tmp_path / 'items.csv'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(f'{"" if n == 0 else n - 1},{line}'
                            for n, line in enumerate(lines)))
  assert set(_load(tmp_path).items) == {'item_id', 'title', 'price'}


def test_all_that_is_wrong_is_told_at_once(tmp_path):
  _shop(tmp_path, more={'label': [0, 1, 2]})
  path = tmp_path / 'events.csv'
  lines = path.read_text().splitlines()
  lines[3] = lines[3].replace(',i', ',other')
  lines[5] = lines[5].replace('u', '', 1).replace('1', '', 1)
  path.write_text('\n'.join(lines))
  message = _refused(tmp_path)
  assert 'row 2, column item_id: unknown item other2' in message
  assert 'row 2, column label: label 2 must be 0 or 1' in message
  assert '(7 more rows like this: 5, 8, 11, ...)' in message


@pytest.mark.parametrize('info, message', [
    ({'lable': 'label'}, "unknown key 'lable'; did you mean 'label'?"),
    ({'time_units': 's'}, "did you mean 'time_unit'?"),
    ({'time_unit': 'seconds'}, 'must be one of ms, s, us, ns, ordinal'),
    ({'label': 3}, 'label must be a column name'),
    ({'label': 'lable'}, "missing column 'lable'"),
    ({'columns': {'item': {}}}, "did you mean 'items'?"),
    ({'columns': {'items': {'prize': {'type': 'number'}}}},
     "did you mean 'price'?"),
    ({'columns': {'items': {'price': {'roll': 'never'}}}},
     "did you mean 'role'?"),
    ({'columns': {'items': {'price': {'type': 'numbr'}}}},
     "did you mean 'number'?"),
    ({'columns': {'items': {'price': 'number'}}}, 'must be an object'),
    ({'columns': []}, 'columns must be an object'),
    ({'split': {'kinds': 'time'}}, "did you mean 'kind'?"),
    ({'split': {'kind': 'random'}}, 'must be one of time, leave_one_out'),
    ({'split': {'kind': 'time', 'valid_from': 1}}, 'needs both'),
    ({'split': {'kind': 'time', 'valid_from': True, 'test_from': 2}},
     'must be a time'),
    ({'cross': ['title']}, 'of type text'),
    ({'cross': ['item_id', 'item_id']}, 'names a column twice'),
    ({'cross': 'item_id'}, 'must be a list'),
    ({'name': ''}, 'name must be a text'),
])
def test_dataset_json_is_a_closed_language(tmp_path, info, message):
  _shop(tmp_path, more={'label': [0, 1]})
  (tmp_path / 'dataset.json').write_text(json.dumps(info))
  assert message in _refused(tmp_path)


def test_keys_that_are_there_twice_are_refused(tmp_path):
  _shop(tmp_path)
  (tmp_path / 'dataset.json').write_text('{"label": null, "label": "x"}')
  assert "key 'label' is there twice" in _refused(tmp_path)


def test_what_is_left_out_is_inferred_and_said(tmp_path):
  _shop(tmp_path, more={'purchased': [0, 1]})
  (tmp_path / 'dataset.json').write_text('{"time_unit": "s"}')
  found = _load(tmp_path)
  assert found.info['label'] is None
  assert any('"label": "purchased"' in x for x in found.inferred)
  assert any('columns of items' in x for x in found.inferred)
  assert found.info['columns']['items']['title']['type'] == 'text'
  (tmp_path / 'dataset.json').write_text('{"label": "purchased"}')
  assert _load(tmp_path).info['label'] == 'purchased'


@pytest.mark.parametrize('value, what', [(1, 'if every event is a positive'),
                                         (0, 'without a positive')])
def test_labels_of_one_class(tmp_path, value, what):
  _shop(tmp_path, more={'label': [value]})
  message = _refused(tmp_path)
  assert f'all labels are {value}' in message and what in message


def test_check_says_the_same_to_people_and_to_programs(tmp_path, capsys):
  _shop(tmp_path, more={'label': [0, 1, 1]})
  target = tmp_path / 'facts.json'
  assert command.main(['check', str(tmp_path), f'--json={target}']) == 0
  shown, facts = capsys.readouterr().out, json.loads(target.read_text())
  assert '2023-11-14 22:13 to 2023-11-14' in shown
  for key in ('splits', 'cold_item_share_test', 'cold_user_share_test',
              'repeat_share_test', 'duplicate_events', 'ties_share',
              'suspected_leaks', 'item_number_rule_recall@10', 'columns'):
    assert key in facts
  assert (facts['users'], facts['items'], facts['events']) == (6, 5, 24)
  assert sum(x['events'] for x in facts['splits'].values()) == 24
  assert facts['columns']['items.price'] == {
      'role': 'item_static', 'type': 'number', 'missing_share': 0.,
      'constant': False}
  assert command.main(['check', '--help']) == 0


def test_counts_over_the_whole_log_are_suspected():
  rng = np.random.default_rng(0)
  taste = rng.gamma(1., size=400)
  item = rng.choice(400, 4000, p=taste / taste.sum())
  late = np.arange(4000) >= 3000
  whole, early = (np.bincount(x, minlength=400).astype(float)
                  for x in (item, item[~late]))
  columns = {'sold': whole, 'sold_log': np.log1p(whole), 'before': early,
             'noise': rng.normal(size=400), 'title': np.full(400, 'x', object)}
  assert set(leaks.suspected(columns, item, late)) == {'sold', 'sold_log'}


def test_unknown_ids_of_requests_are_named(tmp_path, monkeypatch):
  _shop(tmp_path)
  dataset = data.load(data_tables.config(tmp_path, split='leave_one_out'), 0)
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda *a: lines.append(a[0] % a[1:]))
  dataset.requests(['u1', 'nobody', None], [None, ['i1', 'i77'], ['i2']])
  assert any("'nobody' (row 1)" in line for line in lines)
  assert any("'i77' (row 1)" in line for line in lines)
