"""Requests of every kind: answered, or refused in one line that names the row."""

import csv
import json

from absl import logging
import data_tables
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidrec import evaluate
from sidrec import train
from sidrec import types
from sidrec.data import requests
from tests import tiny_run

_TEXT = [f'{n:03d}' for n in range(12)]  # Ids of the second world.


@pytest.fixture(name='runs', scope='module')
def _runs(tmp_path_factory):
  """Two popularity runs: of integer ids, and of text with zeros in front."""
  out = []
  for name, ids in (('numbers', list(range(12))), ('text', _TEXT)):
    folder = tmp_path_factory.mktemp(name)
    rows = [(u, (u * 5 + e * e) % 12, 10**12 + 60_000 * e + u)
            for u in range(12) for e in range(5)]
    data_tables.write(folder, dict(
        events={'user_id': [ids[u] for u, _, _ in rows],
                'item_id': [ids[i] for _, i, _ in rows],
                'timestamp': [t for _, _, t in rows]},
        items={'item_id': ids, 'title': [f'thing {x}' for x in ids]}))
    train.train_and_evaluate(tiny_run.config(
        'popularity', data__dir=str(folder), data__split='leave_one_out'),
                             str(folder / 'run'))
    out.append(evaluate.load(str(folder / 'run')))
  return out


_GOOD = [
    {'user_id': 3}, {'user_id': '3'}, {'user_id': 3.}, {'user_id': -3},
    {'user_id': 99}, {'user_id': 'nobody'}, {'user_id': None}, {'user_id': ''},
    {'user_id': 2**70}, {'user_id': 1e300}, {'user_id': .5},
    {'user_id': '03'}, {'user_id': '0x3'}, {'user_id': '3e0'},
    {'user_id': ' 3'}, {'user_id': '日本'}, {'user_id': 'a\nb'},
    {'history': []}, {'history': None}, {'history': [1]}, {'history': ['1']},
    {'history': [1.]}, {'history': [1, 2, 3]}, {'history': [1] * 100},
    {'history': [None]}, {'history': [1, None, 2]}, {'history': [99]},
    {'history': ['x', 1]}, {'history': [-1]}, {'history': [2**70]},
    {'history': [float('nan')]}, {'history': ['']}, {'history': ['001']},
    {'user_id': 3, 'history': [1]}, {'user_id': 99, 'history': [99]},
    {'user_id': None, 'history': [1]}, {'user_id': 3, 'history': None},
    {'user_id': '007'}, {'user_id': '007', 'history': ['010', '011']},
    {'user_id': 3, 'when': '2024-01-01'},
]


@pytest.mark.parametrize('which', [0, 1])
def test_requests_that_are_answered(runs, which, tmp_path):
  run, source, target = runs[which], tmp_path / 'in.jsonl', tmp_path / 'out'
  source.write_text('\n'.join(map(json.dumps, _GOOD)) + '\n\n')
  assert run.recommend(str(source), str(target)) == len(_GOOD)
  answers = [json.loads(line) for line in target.read_text().splitlines()]
  known = set(run.dataset.item_ids.tolist())
  for request, answer in zip(_GOOD, answers, strict=True):
    assert answer['user_id'] == request.get('user_id')
    assert answer['item_id'] and set(answer['item_id']) <= known
    assert answer['title'] == [f'thing {x}' for x in answer['item_id']]


@pytest.mark.parametrize('request_, message', [
    ('{"user_id": 1', 'row 1: not JSON'), ('user_id,history', 'not JSON'),
    ('{"user": 1}', "row 1: unknown key 'user'; did you mean 'user_id'?"),
    ('{"userid": 1}', "did you mean 'user_id'?"),
    ('{"histroy": [1]}', "did you mean 'history'?"),
    ('{"user_id": 1, "histories": [1]}', "did you mean 'history'?"),
    ('{"item": 1}', 'row 1: needs user_id or history'),
    ('{}', 'row 1: needs user_id or history'),
    ('[]', 'row 1: must be an object'), ('3', 'row 1: must be an object'),
    ('null', 'row 1: must be an object'), ('"a"', 'row 1: must be an object'),
    ('[{"user_id": 1}]', 'row 1: must be an object'),
    ('{"user_id": [1]}', 'column user_id: must be one id'),
    ('{"user_id": {"a": 1}}', 'column user_id: must be one id'),
    ('{"user_id": true}', 'column user_id: must be one id'),
    ('{"history": 1}', 'column history: must be a list'),
    ('{"history": "1, 2"}', 'column history: must be a list'),
    ('{"history": {"1": 2}}', 'column history: must be a list'),
    ('{"history": [[1]]}', 'column history: must hold ids'),
    ('{"history": [{"id": 1}]}', 'column history: must hold ids'),
    ('{"history": [true]}', 'column history: must hold ids'),
    ('[' * 100_000, 'not JSON'),
])
def test_requests_that_are_refused(tmp_path, request_, message):
  path = tmp_path / 'in.jsonl'
  path.write_text(f'{{"user_id": 1}}\n{request_}\n')
  with pytest.raises(types.InputError) as caught:
    requests.read(str(path))
  assert message in str(caught.value) and '\n' not in str(caught.value)


def test_files_that_are_refused(tmp_path):
  for name, content, message in (
      ('none', None, 'no file'), ('empty.jsonl', b'', 'no rows'),
      ('blank.jsonl', b'\n\n', 'no rows'),
      ('latin.jsonl', '{"user_id": "é"}'.encode('latin-1'), 'byte 13 is not'),
      ('wide.jsonl', '{"user_id": 1}'.encode('utf-16'), 'byte 0 is not'),
      ('not.parquet', b'PAR1', 'cannot be read as Parquet'),
      ('empty.parquet', b'', 'cannot be read as Parquet')):
    path = tmp_path / name
    if content is not None:
      path.write_bytes(content)
    with pytest.raises(types.InputError, match=message):
      requests.read(str(path))


def test_a_column_that_is_not_read_is_named(tmp_path, monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda *a: lines.append(a[0] % a[1:]))
  (tmp_path / 'in.jsonl').write_text('\ufeff{"user_id": 1, "when": 2}\n')
  assert requests.read(str(tmp_path / 'in.jsonl')) == ([1], [None])
  assert len(lines) == 1 and 'not read: when' in lines[0]


@pytest.mark.parametrize('ending', ['.jsonl', '.parquet', '.csv'])
def test_answers_have_the_form_that_the_file_name_says(runs, tmp_path, ending):
  source, target = tmp_path / 'in.parquet', tmp_path / f'out{ending}'
  pq.write_table(pa.table({'user_id': _TEXT[:3] + [None], 'history': [
      None, ['001'], [], ['002', '003']]}), source)
  assert runs[1].recommend(str(source), str(target)) == 4
  if ending == '.parquet':
    rows = pq.read_table(target).to_pylist()
  elif ending == '.csv':
    with open(target, newline='', encoding='utf-8') as file:
      rows = [{**row, 'user_id': row['user_id'] or None,
               'item_id': json.loads(row['item_id'])}
              for row in csv.DictReader(file)]
  else:
    rows = [json.loads(line) for line in target.read_text().splitlines()]
  assert [row['user_id'] for row in rows] == _TEXT[:3] + [None]
  assert all(set(row['item_id']) <= set(_TEXT) for row in rows)
