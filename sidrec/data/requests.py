"""Files of `--mode=recommend`: requests in, recommendations out."""

import json
import os
from typing import Any, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidrec import types


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
  users, histories = [], []
  for number, row in enumerate(rows):
    if not isinstance(row, dict) or not {'user_id', 'history'} & set(row):
      raise types.InputError(
          f'{path}: row {number}: needs user_id or history')
    history = row.get('history')
    if history is not None and not isinstance(history, (list, tuple)):
      raise types.InputError(
          f'{path}: row {number}, column history: must be a list of item ids')
    users.append(row.get('user_id'))
    histories.append(history)
  return users, histories


def _json_lines(path: str) -> list[Any]:
  rows = []
  with open(path) as f:
    for number, line in enumerate(f):
      if line.strip():
        try:
          rows.append(json.loads(line))
        except ValueError as error:
          raise types.InputError(
              f'{path}: row {number}: not JSON ({error})') from error
  return rows


def write(
    path: str, users: Sequence[Any], items: Sequence[np.ndarray],
    retrieval: Sequence[np.ndarray], ranking: Sequence[np.ndarray]) -> None:
  """Writes one row a request, in the order of the requests.

  Args:
    path: Parquet (`.parquet`), else JSON lines.
    users: R user ids or None.
    items: R arrays of original item ids, in final order.
    retrieval: R arrays of retrieval scores (logits).
    ranking: R arrays of ranking scores (logits), empty without a ranker.

  Raises:
    types.InputError: if the file cannot be written.
  """
  rows = [
      {'user_id': user, 'item_id': item.tolist(),
       'retrieval_score': [float(x) for x in found],
       'ranking_score': [float(x) for x in ranked]}
      for user, item, found, ranked in zip(users, items, retrieval, ranking)]
  if len({type(row['user_id']) for row in rows} - {type(None)}) > 1:
    for row in rows:  # A column of a table has one type.
      row['user_id'] = None if row['user_id'] is None else str(row['user_id'])
  try:
    if path.endswith('.parquet'):
      pq.write_table(pa.Table.from_pylist(rows), path)
    else:
      with open(path, 'w') as f:
        for row in rows:
          f.write(json.dumps(row) + '\n')
  except OSError as error:
    raise types.InputError(f'--output: cannot write {path} ({error})'
                           ) from error
