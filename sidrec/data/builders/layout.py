"""Writes tables as a folder that `sidrec.data.tables.read` reads back."""

import json
import os
from typing import Any, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from sidrec import types
from sidrec.data import ids
from sidrec.data import schema
from sidrec.data import tables

TABLES = ('events', 'items', 'users', 'histories')


def kind_of(values: np.ndarray, where: str) -> str:
  """Names what a column holds.

  Args:
    values: [R] column of a `Tables`.
    where: table and column, for the message.

  Returns:
    A NumPy number type ('int64', 'float32', ...), 'text', or for lists 'ints'
    or 'texts'; a column with nothing in it is 'text'.

  Raises:
    types.InputError: objects that are neither text nor lists of text or ints.
  """
  if values.dtype.kind in 'iuf':
    return values.dtype.name
  if values.dtype.kind == 'b':
    return 'int8'
  if values.dtype.kind == 'U':
    return 'text'
  for value in values:
    if isinstance(value, str):
      return 'text'
    if isinstance(value, (np.ndarray, list, tuple)) and len(value):
      if all(isinstance(entry, (int, np.integer)) for entry in value):
        return 'ints'
      if all(isinstance(entry, str) for entry in value):
        return 'texts'
      raise types.InputError(f'{where}: lists must hold integers or text')
  if any(isinstance(value, (np.ndarray, list, tuple)) for value in values):
    return 'texts'
  return 'text'


def plain(table: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the columns of a checked table, ids as they stood."""
  out = {}
  for name, values in table.items():
    if isinstance(values, ids.Lists):
      out[name] = np.empty(len(values), object)
      out[name][:] = values.lists()
    else:
      out[name] = values.ids if isinstance(values, ids.Column) else values
  return out


def counts(data: tables.Tables) -> dict[str, int]:
  """Returns the sizes that `dataset.json` states."""
  return dict(
      users=len(np.unique(data.events['user_id'].codes)),
      items=len(data.items['item_id']),
      items_with_events=len(np.unique(data.events['item_id'].codes)),
      events=len(data.events['item_id']))


def write(data: tables.Tables, directory: str) -> None:
  """Writes zstd Parquet tables, embeddings and `dataset.json`.

  Args:
    data: checked tables; what a planted world knows of itself is not kept.
    directory: made if it is not there; files of the same names are replaced.

  Raises:
    types.InputError: the folder cannot be written.
  """
  save({name: pa.table({column: _to_arrow(values, f'{name}.{column}')
                        for column, values in plain(table).items()})
        for name in TABLES if (table := getattr(data, name)) is not None},
       _info(data), data.embeddings, directory)


def save(arrow: Mapping[str, pa.Table], info: Mapping[str, Any],
         embeddings: np.ndarray | None, directory: str) -> None:
  """Writes tables as they are.

  `dataset.json` goes last, so a folder that has it is complete.

  Args:
    arrow: name -> table.
    info: `dataset.json`.
    embeddings: [V, E], or None.
    directory: made if it is not there; files of the same names are replaced.

  Raises:
    types.InputError: the folder cannot be written.
  """
  try:
    os.makedirs(directory, exist_ok=True)
    for name, table in arrow.items():
      path = os.path.join(directory, f'{name}.parquet')
      pa_parquet.write_table(table, f'{path}.part', compression='zstd')
      os.replace(f'{path}.part', path)
    if embeddings is not None:
      path = os.path.join(directory, tables.EMBEDDINGS)
      with open(f'{path}.part', 'wb') as file:
        np.save(file, embeddings, allow_pickle=False)
      os.replace(f'{path}.part', path)
    path = os.path.join(directory, schema.FILE)
    with open(f'{path}.part', 'w', encoding='utf-8') as file:
      json.dump(info, file, indent=1, ensure_ascii=False)
      file.write('\n')
    os.replace(f'{path}.part', path)
  except OSError as error:
    raise types.InputError(
        f'{directory}: cannot be written ({error}); choose another folder'
    ) from error


def _info(data: tables.Tables) -> Mapping[str, Any]:
  """Returns `dataset.json` with counts and without empty settings."""
  info = dict(data.info, counts=counts(data))
  info['columns'] = {
      table: {name: {key: value for key, value in column.items()
                     if value is not None}
              if isinstance(column, Mapping) else column
              for name, column in columns.items()}
      for table, columns in info.get('columns', {}).items()}
  return info


def _to_arrow(values: np.ndarray, where: str) -> pa.Array:
  """Converts a column: NaN and None become null."""
  kind = kind_of(values, where)
  if kind in ('text', 'ints', 'texts'):
    arrow = {'text': pa.string(), 'ints': pa.list_(pa.int64()),
             'texts': pa.list_(pa.string())}[kind]
    return pa.array([_plain(value) for value in values], arrow)
  return pa.array(values, from_pandas=True)


def _plain(value: Any) -> Any:
  """Returns an entry as text, list or None."""
  if value is None or (isinstance(value, float) and value != value):
    return None
  if isinstance(value, np.ndarray):
    return value.tolist()
  return list(value) if isinstance(value, tuple) else value
