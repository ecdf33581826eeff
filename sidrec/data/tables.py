"""Reads the three tables from Parquet or CSV and checks every row of them."""

import dataclasses
import os
from typing import Any, Mapping

from absl import logging
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from sidrec import types
from sidrec.data import columns
from sidrec.data import schema

EMBEDDINGS = 'item_embeddings.npy'
Columns = Mapping[str, np.ndarray]
to_numpy = columns.to_numpy
numbers = columns.numbers


@dataclasses.dataclass(frozen=True)
class Tables:
  """Raw tables on the host.

  info: `dataset.json`, filled with defaults by `check`.
  events: columns user_id, item_id, timestamp, labels and context, E rows.
  items: item_id and static columns, V rows; text as objects (missing: None),
    numbers with NaN where missing, lists as arrays in an object array.
  users: user_id and profile columns, or None.
  histories: user_id, optionally `until` (time of the last one), and columns
    of lists of item ids from before the log; or None.
  embeddings: [V, E] float, in the order of items; or None.
  truth: what a planted world knows of itself; None for real data.
  """
  info: dict[str, Any]
  events: Columns
  items: Columns
  users: Columns | None = None
  histories: Columns | None = None
  embeddings: np.ndarray | None = None
  truth: Any = None


def read(directory: str) -> Tables:
  """Reads a folder of tables, Parquet first, else CSV.

  Args:
    directory: with events and items, optionally users, histories,
      dataset.json and item_embeddings.npy.

  Returns:
    Unchecked tables: call `check`.

  Raises:
    types.InputError: missing or unreadable file; broken dataset.json.
  """
  if not os.path.isdir(directory):
    raise types.InputError(
        f'{directory}: no such folder; put events and items there as Parquet '
        'or CSV, or set config.data.dir')
  info = schema.read(directory)
  events = _read_table(directory, 'events')
  items = _read_table(directory, 'items')
  users = _read_table(directory, 'users', optional=True)
  histories = _read_table(directory, 'histories', optional=True)
  if info is None:
    info = schema.infer(events, items, users)
    logging.info(
        '%s: no %s; inferred time_unit %s, label %s, cross %s', directory,
        schema.FILE, info['time_unit'], info['label'], info['cross'])
  return Tables(
      info=info, events=events, items=items, users=users, histories=histories,
      embeddings=_read_embeddings(directory))


def _read_table(
    directory: str, name: str, optional: bool = False
) -> dict[str, np.ndarray] | None:
  """Reads NAME.parquet or NAME.csv as NumPy columns."""
  parquet = os.path.join(directory, f'{name}.parquet')
  csv = os.path.join(directory, f'{name}.csv')
  try:
    if os.path.exists(parquet):
      path, table = parquet, None
      table = pa_parquet.read_table(parquet)
    elif os.path.exists(csv):
      path, table = csv, None
      table = pa_csv.read_csv(csv, convert_options=pa_csv.ConvertOptions(
          strings_can_be_null=True))
    elif optional:
      return None
    else:
      raise types.InputError(
          f'{directory}: missing table {name}: there is no {name}.parquet and '
          f'no {name}.csv')
  except (pa.ArrowException, OSError) as error:
    reason = ' '.join(str(error).split())
    raise types.InputError(
        f'{path}: cannot be read, truncated or corrupt ({reason}); write it '
        'again') from error
  duplicates = [column for column in set(table.column_names)
                if table.column_names.count(column) > 1]
  if duplicates:
    raise types.InputError(f'{path}: column {duplicates[0]!r} is there twice')
  return {name: to_numpy(table[name]) for name in table.column_names}


def _read_embeddings(directory: str) -> np.ndarray | None:
  """Reads item_embeddings.npy, None where there is none."""
  path = os.path.join(directory, EMBEDDINGS)
  if not os.path.exists(path):
    return None
  try:
    return np.load(path, allow_pickle=False)
  except (ValueError, OSError, EOFError) as error:
    raise types.InputError(
        f'{path}: not a readable .npy array ({error}); write it again'
    ) from error


def check(tables: Tables, where: str) -> Tables:
  """Checks all tables against each other and brings them into one form.

  Ids become int64 or text; events are sorted by time (one warning if they
  were not); lists given as text are split; missing values are counted in one
  warning.

  Args:
    tables: as read, or as generated.
    where: folder or name, for messages.

  Returns:
    New tables with a complete `info`.

  Raises:
    types.InputError: one line naming file, row and column.
  """
  info = schema.complete(tables.info, where)
  _check_declared(tables, info, where)
  items = dict(tables.items)
  events = dict(tables.events)
  users = dict(tables.users) if tables.users is not None else None
  histories = (
      dict(tables.histories) if tables.histories is not None else None)
  _unify_ids('item_id', (('events', events), ('items', items)), where)
  _unify_ids('user_id', (
      ('events', events), ('users', users), ('histories', histories)), where)
  for name, table, key in (('items', items, 'item_id'),
                           ('users', users, 'user_id'),
                           ('histories', histories, 'user_id')):
    if table is not None:
      _check_unique(table[key], f'{where}/{name}', key)
  if not len(items['item_id']):
    raise types.InputError(f'{where}/items: has no rows')
  _check_events(events, items, info, where)
  if info['time_unit'] == 's':
    events['timestamp'] = events['timestamp'] * 1000
    for cut in ('valid_from', 'test_from'):
      if info['split'].get(cut) is not None:
        info['split'][cut] = info['split'][cut] * 1000
    if histories is not None and 'until' in histories:
      histories['until'] = histories['until'] * 1000
    info['time_unit'] = 'ms'
  events = _sort_events(events, info, where)
  for name, table in (('events', events), ('items', items), ('users', users)):
    if table is not None:
      columns.split_lists(table, info['columns'][name])
      columns.warn_missing(table, info['columns'][name], f'{where}/{name}')
  if histories is not None:
    _check_histories(histories, items, where)
  _check_embeddings(tables.embeddings, len(items['item_id']), where)
  return dataclasses.replace(
      tables, info=info, events=events, items=items, users=users,
      histories=histories)


def _check_declared(tables: Tables, info: Mapping[str, Any], where: str):
  """Raises if a column that is needed or declared does not exist."""
  for name in ('events', 'items', 'users', 'histories'):
    table = getattr(tables, name)
    if table is None:
      if name == 'users' and info['columns']['users']:
        raise types.InputError(
            f'{where}: {schema.FILE} declares columns.users, but the table '
            'users is missing')
      continue
    needed = list(schema.KEYS.get(name, ('user_id',)))
    if name == 'events' and info['label']:
      needed.append(info['label'])
    for column in needed:
      if column not in table:
        raise types.InputError(
            f'{where}/{name}: missing column {column!r}; it has '
            f'{", ".join(table)}')
    for column in info['columns'].get(name, {}) if name in schema.KEYS else ():
      if column not in table:
        raise types.InputError(
            f'{where}/{schema.FILE}: columns.{name}.{column} is declared, but '
            f'the table {name} has no such column')
    rows = {len(values) for values in table.values()}
    if len(rows) != 1:
      raise types.InputError(f'{where}/{name}: columns of different lengths')


def _unify_ids(key: str, tables: Any, where: str) -> None:
  """Turns an id column of all tables into int64, or into text, in place."""
  present = [(name, table) for name, table in tables if table is not None]
  for name, table in present:
    values = table[key]
    if values.dtype.kind == 'f':
      bad = ~(np.isfinite(values) & (values == np.floor(values)))
    elif values.dtype == object:
      bad = np.array([value is None or value != value for value in values])
    else:
      bad = np.zeros(len(values), bool)
    if bad.any():
      raise types.InputError(
          f'{where}/{name}: row {np.flatnonzero(bad)[0]}, column {key}: '
          'missing or broken id; give every row an integer or a text')
  is_number = all(table[key].dtype.kind in 'iufb' for _, table in present)
  for _, table in present:
    values = table[key]
    if values.dtype.kind in 'iufb':
      values = values.astype(np.int64)
    table[key] = values if is_number else values.astype(str)


def _check_unique(ids: np.ndarray, where: str, key: str) -> None:
  """Raises at the second row with the same id."""
  _, first = np.unique(ids, return_index=True)
  if len(first) < len(ids):
    is_first = np.zeros(len(ids), bool)
    is_first[first] = True
    row = np.flatnonzero(~is_first)[0]
    raise types.InputError(
        f'{where}: row {row}, column {key}: duplicate id {ids[row]}; keep one '
        'row for each')


def _check_events(
    events: dict[str, np.ndarray], items: Columns, info: Mapping[str, Any],
    where: str,
) -> None:
  """Checks ids, times and labels of events; makes them int64 / float32."""
  where = f'{where}/events'
  if not len(events['item_id']):
    raise types.InputError(f'{where}: has no rows')
  found = np.isin(events['item_id'], items['item_id'])
  if not found.all():
    row = np.flatnonzero(~found)[0]
    raise types.InputError(
        f'{where}: row {row}, column item_id: unknown item '
        f'{events["item_id"][row]}; add it to items')
  time = numbers(events['timestamp'], where, 'timestamp')
  bad = ~(time >= 0) | np.isinf(time)
  if bad.any():
    row = np.flatnonzero(bad)[0]
    raise types.InputError(
        f'{where}: row {row}, column timestamp: {events["timestamp"][row]} is '
        'negative, missing or infinite; times count up from 0')
  events['timestamp'] = (
      events['timestamp'].astype(np.int64)
      if events['timestamp'].dtype.kind in 'iu' else time.astype(np.int64))
  if info['label'] is not None:
    label = numbers(events[info['label']], where, info['label'])
    bad = ~((label == 0) | (label == 1))
    if bad.any():
      row = np.flatnonzero(bad)[0]
      raise types.InputError(
          f'{where}: row {row}, column {info["label"]}: label {label[row]:g} '
          'must be 0 or 1; turn it into one or drop the row')
    events[info['label']] = label.astype(np.float32)


def _sort_events(
    events: Columns, info: Mapping[str, Any], where: str
) -> dict[str, np.ndarray]:
  """Sorts events stably by time, with one warning if no order was there."""
  time = events['timestamp']
  if np.all(time[1:] >= time[:-1]):
    return dict(events)
  _, user = np.unique(events['user_id'], return_inverse=True)
  by_user = np.argsort(user, kind='stable')
  same = user[by_user][1:] == user[by_user][:-1]
  ordered = np.all(time[by_user][1:][same] >= time[by_user][:-1][same])
  # A file grouped by user, or positions only, is in order user by user.
  grouped = np.count_nonzero(np.diff(user)) == user.max()
  if not ordered or not (grouped or info['time_unit'] == 'ordinal'):
    logging.warning(
        '%s/events: rows are not in order of time; sorted by timestamp', where)
  order = np.argsort(time, kind='stable')
  return {name: values[order] for name, values in events.items()}


def _check_histories(
    histories: dict[str, np.ndarray], items: Columns, where: str
) -> None:
  """Makes every list column arrays of known item ids; warns of others."""
  dropped = 0
  is_text = items['item_id'].dtype.kind == 'U'
  if 'until' in histories:
    until = numbers(histories['until'], f'{where}/histories', 'until')
    bad = np.isnan(until)
    if bad.any():
      raise types.InputError(
          f'{where}/histories: row {np.flatnonzero(bad)[0]}, column until: '
          'missing time; give the time of the last item of the list')
    histories['until'] = until.astype(np.int64)
  for name in [n for n in histories if n not in ('user_id', 'until')]:
    kind = 'U' if is_text else 'i'
    lists = [
        value if isinstance(value, np.ndarray) and value.dtype.kind == kind
        else columns.history_list(value, is_text) for value in histories[name]]
    flat = np.concatenate(lists) if lists else np.zeros(0)
    known = np.isin(flat, items['item_id'])
    dropped += int((~known).sum())
    stop = np.cumsum([len(values) for values in lists])
    result = np.empty(len(lists), object)
    for row, values in enumerate(lists):
      mask = known[stop[row] - len(values):stop[row]]
      result[row] = values if mask.all() else values[mask]
    histories[name] = result
  if dropped:
    logging.warning(
        '%s/histories: %d unknown items dropped', where, dropped)


def _check_embeddings(
    embeddings: np.ndarray | None, num_items: int, where: str
) -> None:
  """Raises unless embeddings are [V, E] finite floats."""
  if embeddings is None:
    return
  path = f'{where}/{EMBEDDINGS}'
  if embeddings.ndim != 2 or embeddings.dtype.kind != 'f':
    raise types.InputError(
        f'{path}: must be a float array [V, E], is {embeddings.dtype} '
        f'{list(embeddings.shape)}')
  if embeddings.shape[0] != num_items:
    raise types.InputError(
        f'{path}: has {embeddings.shape[0]} rows for {num_items} items; one '
        'row an item, in the order of items')
  bad = ~np.isfinite(embeddings).all(axis=1)
  if bad.any():
    raise types.InputError(
        f'{path}: row {np.flatnonzero(bad)[0]}: not finite; make it again')
