"""Files of `--mode=recommend`: requests in, recommendations out."""

import csv
import io
import json
import os
from typing import Any, Mapping, Sequence

from absl import logging
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec import disk
from sidrec import types
from sidrec.data import reading
from sidrec.data import schema

_KEYS = ('user_id', 'history')


def read(path: str) -> tuple[list[Any] | None, list[Any] | None]:
  """Reads a file of requests.

  Args:
    path: Parquet (`.parquet`) or JSON lines, with `user_id` and/or `history`
      (a list of item ids, oldest first) in each row.

  Returns:
    (users, histories), each a list of one entry a row or None.

  Raises:
    types.InputError: naming file and row.
  """
  if not os.path.isfile(path):
    raise types.InputError(f'--input: no file {path}')
  if path.endswith('.parquet'):
    try:
      rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
      raise types.InputError(
          f'{path}: cannot be read as Parquet ({error})') from error
  else:
    rows = _json_lines(path)
  if not rows:
    raise types.InputError(f'{path}: no rows')
  users, histories, others, faults = [], [], {}, []
  for number, row in enumerate(rows):
    fault = _fault(row)
    if fault:
      faults.append(f'row {number}{fault}')
      continue
    users.append(row.get('user_id'))
    histories.append(row.get('history'))
    others |= {name: number for name in row if name not in _KEYS}
  if faults:
    raise types.InputError(f'{path}: {faults[0]}' + (
        f' (and {len(faults) - 1} more rows)' if len(faults) > 1 else ''))
  if others:
    logging.warning('%s: not read: %s', path, schema.listed(others))
  return users, histories


def _fault(row: Any) -> str | None:
  """Returns what is wrong with one request, None if nothing is."""
  if not isinstance(row, dict):
    return ': must be an object with user_id or history'
  for name in row:
    if name not in _KEYS and schema.nearest(name, _KEYS):
      return f': unknown key {name!r}{schema.nearest(name, _KEYS)}'
  if not any(name in row for name in _KEYS):
    return ': needs user_id or history'
  if isinstance(row.get('user_id'), (list, dict, bool)):
    return ', column user_id: must be one id, a number or a text'
  history = row.get('history')
  if history is None:
    return None
  if not isinstance(history, (list, tuple)):
    return ', column history: must be a list of item ids'
  if any(isinstance(item, (list, dict, bool)) for item in history):
    return ', column history: must hold ids, numbers or texts'
  return None


def _json_lines(path: str) -> list[Any]:
  rows, number = [], 0
  try:
    with open(path, encoding='utf-8-sig') as file:
      for number, line in enumerate(file):
        if line.strip():
          rows.append(json.loads(line))
  except UnicodeDecodeError as error:
    reading.check_encoding(path, 'utf-8')
    raise AssertionError from error  # It has raised.
  except (ValueError, RecursionError) as error:
    raise types.InputError(
        f'{path}: row {number}: not JSON ({error})') from error
  except OSError as error:
    raise types.InputError(
        f'{path}: cannot be read ({disk.reason(error)})') from error
  return rows


def write(path: str, answers: Mapping[str, Sequence[Any]]) -> None:
  """Writes one row a request, in the order of the requests.

  Args:
    path: Parquet (`.parquet`), CSV (`.csv`, lists as JSON), else JSON lines.
    answers: column -> R values: `user_id` (as asked for, or None), and lists in
      final order: `item_id`, `title` where items have one,
      `retrieval_score`, `ranking_score` (logits; empty without a ranker).

  Raises:
    types.InputError: if the file cannot be written.
  """
  names = list(answers)
  rows = [dict(zip(names, values)) for values in zip(*answers.values())]
  if path.endswith(('.parquet', '.csv')) and len({
      type(row['user_id']) for row in rows} - {type(None)}) > 1:
    for row in rows:  # A column of a table has one type.
      row['user_id'] = None if row['user_id'] is None else str(row['user_id'])
  try:
    disk.write(path, _encoded(path, names, rows))
  except OSError as error:
    raise types.InputError(
        f'--output: cannot write {path} ({disk.reason(error)})') from error


def _encoded(path: str, names: Sequence[str], rows: Sequence[dict[str, Any]]
             ) -> bytes:
  """Returns the content of a file of answers."""
  if path.endswith('.parquet'):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()
  if path.endswith('.csv'):
    text = io.StringIO(newline='')
    table = csv.writer(text, lineterminator='\n')
    table.writerow(names)
    for row in rows:
      table.writerow([
          json.dumps(value, ensure_ascii=False) if isinstance(value, list)
          else value for value in row.values()])
    return text.getvalue().encode()
  return ''.join(
      json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode()
