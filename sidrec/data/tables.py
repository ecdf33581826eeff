"""Reads the tables of a folder and checks every row of them."""

import dataclasses
import os
from typing import Any, Mapping

from absl import logging
import numpy as np
import pyarrow as pa

from sidrec import types
from sidrec.data import columns
from sidrec.data import faults as faults_lib
from sidrec.data import ids as ids_lib
from sidrec.data import reading
from sidrec.data import schema
from sidrec.data import times

EMBEDDINGS = 'item_embeddings.npy'
# NumPy; ids are `ids.Column` and `ids.Lists` after `check`, Arrow before.
Columns = Mapping[str, Any]
to_numpy = columns.to_numpy
numbers = columns.numbers


@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables on the host.

  info: `dataset.json`; after `check` complete, times in ms or positions.
  events: columns user_id, item_id, timestamp, labels and context, E rows.
  items: item_id and static columns, V rows; text as objects (missing: None),
    numbers with NaN where missing, lists as arrays in an object array.
  users: user_id and profile columns, or None.
  histories: user_id, optionally `until` (time of the last one), and columns
    of lists of item ids from before the log; or None.
  embeddings: [V, E] float, in the order of items; or None.
  truth: what a planted world knows of itself; None for real data.
  inferred: what was guessed where `dataset.json` says nothing, in words.

  After `check` ids are `ids.Column`: items by their row in `items`, users by
  their place among all users in order. Lists of them are `ids.Lists`.
  """
  info: dict[str, Any]
  events: Columns
  items: Columns
  users: Columns | None = None
  histories: Columns | None = None
  embeddings: np.ndarray | None = None
  truth: Any = None
  inferred: tuple[str, ...] = ()


def read(directory: str) -> Tables:
  """Reads a folder of tables, Parquet first, else CSV.

  Args:
    directory: with events and items, optionally users, histories,
      dataset.json and item_embeddings.npy.

  Returns:
    Unchecked tables: call `check`.

  Raises:
    types.InputError: missing or unreadable file; broken dataset.json; columns
      that cannot be used, all of them.
  """
  if not os.path.isdir(directory):
    raise types.InputError(
        f'{directory}: no such folder; put events and items there as Parquet '
        'or CSV, or set config.data.dir')
  info = schema.read(directory)
  faults = faults_lib.Faults()
  events, items, users, histories = (
      _read_table(directory, name, info, faults) for name in schema.TABLES)
  embeddings = _read_embeddings(directory)
  if embeddings is None and items is not None:
    embeddings = _vector_column(items, f'{directory}/items', info, faults)
  faults.check()
  return Tables(info=info, events=events, items=items, users=users,
                histories=histories, embeddings=embeddings)


def _read_table(
    directory: str, name: str, info: Mapping[str, Any],
    faults: faults_lib.Faults) -> dict[str, Any] | None:
  """Reads NAME.parquet or NAME.csv: ids and times as Arrow, else NumPy."""
  paths = [os.path.join(directory, f'{name}.{kind}')
           for kind in ('parquet', 'csv')]
  path = next((path for path in paths if os.path.exists(path)), None)
  if path is None:
    if name in ('events', 'items'):
      raise types.InputError(
          f'{directory}: missing table {name}: there is no {name}.parquet and '
          f'no {name}.csv')
    return None
  is_text = path.endswith('.csv')
  table = reading.text(path) if is_text else reading.parquet(path)
  declared = schema.declared(info, name)
  where, out = f'{directory}/{name}', {}
  for column in table.column_names:
    values = table[column]
    if column in schema.KEYS[name] or name == 'histories':
      out[column] = values
      if is_text and column in ('user_id', 'item_id'):
        out[column] = ids_lib.from_text(values)
      elif is_text:
        out[column] = reading.emptied(values)
      continue
    if is_text:
      values = reading.typed(values)
    if columns.is_vector(values.type) and name == 'items':
      out[column] = values
      continue
    reason = columns.unusable(values.type)
    if reason is None:
      out[column] = to_numpy(values)
    elif declared.get(column, {}).get('role') != types.Role.NEVER.value:
      faults.add(f'{where}: column {column}: {reason}; drop it, or declare its '
                 f'role {types.Role.NEVER.value!r} in {schema.FILE}')
  return out


def _vector_column(
    items: dict[str, Any], where: str, info: Mapping[str, Any],
    faults: faults_lib.Faults) -> np.ndarray | None:
  """Takes list columns of floats out of items; returns the one there is."""
  declared = schema.declared(info, 'items')
  names = [name for name, values in items.items()
           if isinstance(values, pa.ChunkedArray) and name != 'item_id']
  found = {}
  for name in names:
    column = items.pop(name)
    if declared.get(name, {}).get('role') != types.Role.NEVER.value:
      found[name] = columns.vectors(column, where, name, faults)
  if len(found) > 1:
    faults.add(f'{where}: columns {", ".join(found)} all hold vectors; keep '
               f'one, or join them in {EMBEDDINGS}')
  for name, vectors in found.items():
    if vectors is not None:
      logging.info('%s: column %s holds the item vectors', where, name)
    return vectors
  return None


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

  What `dataset.json` leaves out is inferred; ids become `ids.Column`, times
  ms or positions; events are sorted by time (one warning if they were not);
  lists given as text are split; missing values are counted in one warning.

  Args:
    tables: as read, or as generated: ids of any integers or text.
    where: folder or name, for messages.

  Returns:
    New tables with a complete `info`.

  Raises:
    types.InputError: one line naming file, row and column of all faults.
  """
  faults = faults_lib.Faults()
  info, inferred = schema.infer(
      tables.info, tables.events, tables.items, tables.users)
  info = schema.complete(info, where)
  _check_declared(tables, info, where, faults)
  faults.check()
  events, items = dict(tables.events), dict(tables.items)
  users = dict(tables.users) if tables.users is not None else None
  histories = (
      dict(tables.histories) if tables.histories is not None else None)
  _number_items(events, items, histories, where, faults)
  _number_users(events, users, histories, where, faults)
  order = _check_times(events, histories, info, inferred, where, faults)
  _check_label(events, info, where, faults)
  _check_embeddings(tables.embeddings, len(tables.items['item_id']), where,
                    faults)
  faults.check()
  events = _sort_events(events, order, info, where)
  for name, table in (('events', events), ('items', items), ('users', users)):
    if table is not None:
      columns.split_lists(table, info['columns'][name])
      columns.warn_missing(table, info['columns'][name], f'{where}/{name}')
  return dataclasses.replace(
      tables, info=info, events=events, items=items, users=users,
      histories=histories, inferred=tuple(inferred))


def _check_declared(tables: Tables, info: Mapping[str, Any], where: str,
                    faults: faults_lib.Faults) -> None:
  """Finds columns that are needed or declared and not there."""
  for name in schema.TABLES:
    table = getattr(tables, name)
    if table is None:
      if name == 'users' and info['columns']['users']:
        faults.add(f'{where}: {schema.FILE} declares columns.users, but the '
                   'table users is missing')
      continue
    needed = list(schema.NEEDED[name])
    if name == 'events' and info['label']:
      needed.append(info['label'])
    for column in needed:
      if column not in table:
        faults.add(f'{where}/{name}: missing column {column!r}; it has '
                   f'{schema.listed(table)}{schema.nearest(column, table)}')
    for column, declared in info['columns'].get(name, {}).items():
      if column not in table and (
          declared['role'] != types.Role.NEVER.value):
        faults.add(
            f'{where}/{schema.FILE}: columns.{name}.{column} is declared, but '
            f'the table {name} has no such column'
            f'{schema.nearest(column, table)}')
    if len({len(values) for values in table.values()}) > 1:
      faults.add(f'{where}/{name}: columns of different lengths')
  if not len(next(iter(tables.items.values()), ())):
    faults.add(f'{where}/items: has no rows')
  if not len(next(iter(tables.events.values()), ())):
    faults.add(f'{where}/events: has no rows')


def _number_items(
    events: dict[str, Any], items: dict[str, Any],
    histories: dict[str, Any] | None, where: str, faults: faults_lib.Faults
) -> None:
  """Turns item ids into rows of `items`, in place."""
  read_ = [ids_lib.read(table['item_id'], f'{where}/{name}', 'item_id', faults)
           for name, table in (('events', events), ('items', items))]
  if any(column is None for column in read_):
    return
  of_events, catalog = ids_lib.join(read_)
  values = ids_lib.values_of(catalog)
  if not _check_unique(catalog, f'{where}/items', 'item_id', faults):
    return
  codes, distinct = ids_lib.encode(of_events)
  codes = ids_lib.look_up(distinct, catalog)[codes]
  faults.rows(codes < 0, f'{where}/events', 'item_id', lambda row: (
      f'unknown item {of_events[row].as_py()}; add it to items'))
  events['item_id'] = ids_lib.Column(codes, values)
  items['item_id'] = ids_lib.Column(
      np.arange(len(values), dtype=np.int32), values)
  for name in schema.lists_of(histories):
    found = ids_lib.flatten(
        histories[name], f'{where}/histories', name, faults)
    if found is None:
      continue
    offsets, flat = found
    codes = ids_lib.look_up(flat, catalog)
    known = codes >= 0
    if not known.all():
      logging.warning('%s/histories: column %s: %d unknown items dropped',
                      where, name, np.count_nonzero(~known))
      offsets = np.concatenate([[0], np.cumsum(known)])[offsets]
    histories[name] = ids_lib.Lists(offsets, codes[known], values)


def _number_users(
    events: dict[str, Any], users: dict[str, Any] | None,
    histories: dict[str, Any] | None, where: str, faults: faults_lib.Faults
) -> None:
  """Turns user ids into places among all users in order, in place."""
  present = [(name, table) for name, table in (
      ('events', events), ('users', users), ('histories', histories))
             if table is not None]
  read_ = [ids_lib.read(table['user_id'], f'{where}/{name}', 'user_id', faults)
           for name, table in present]
  if any(column is None for column in read_):
    return
  encoded = [ids_lib.encode(column) for column in ids_lib.join(read_)]
  vocabulary = ids_lib.union([distinct for _, distinct in encoded])
  values = ids_lib.values_of(vocabulary)
  for (name, table), (codes, distinct) in zip(present, encoded):
    if name == 'events' or _check_unique(
        distinct.take(pa.array(codes)), f'{where}/{name}', 'user_id', faults):
      table['user_id'] = ids_lib.Column(
          ids_lib.look_up(distinct, vocabulary)[codes], values)


def _check_unique(ids: pa.Array, where: str, key: str,
                  faults: faults_lib.Faults) -> bool:
  """Finds rows whose id another row before them has."""
  codes, distinct = ids_lib.encode(ids)
  again = np.ones(len(codes), bool)
  again[np.unique(codes, return_index=True)[1]] = False
  return len(distinct) == len(codes) or not faults.rows(
      again, where, key, lambda row: (
          f'duplicate id {ids[row].as_py()}; keep one row for each'))


def _check_times(
    events: dict[str, Any], histories: dict[str, Any] | None,
    info: dict[str, Any], inferred: list[str], where: str,
    faults: faults_lib.Faults) -> np.ndarray | None:
  """Reads times, in place; completes unit and split of `info`.

  Returns:
    [E] numbers in the order of the exact times.
  """
  column, unit = events['timestamp'], info['time_unit']
  if unit is None and isinstance(events['user_id'], ids_lib.Column) and (
      times.are_positions(column, events['user_id'].codes)):
    unit = 'ordinal'
  found = times.read(column, unit, f'{where}/events', 'timestamp', faults)
  if found is None:
    return None
  events['timestamp'] = found.value
  if info['time_unit'] is None:
    inferred.append(f'time_unit {found.unit}')
  info['time_unit'] = 'ordinal' if found.unit == 'ordinal' else 'ms'
  schema.complete_split(info, found.unit, where)
  if histories is not None and 'until' in histories:
    until = times.read_until(
        histories['until'], found.unit, f'{where}/histories', faults)
    if until is not None:
      histories['until'] = until
  return found.order


def _check_label(events: dict[str, Any], info: Mapping[str, Any], where: str,
                 faults: faults_lib.Faults) -> None:
  """Makes the label float32, in place."""
  name, where = info['label'], f'{where}/events'
  if name is None:
    return
  label = numbers(events[name], where, name)
  if faults.rows(~((label == 0) | (label == 1)), where, name, lambda row: (
      f'label {label[row]:g} must be 0 or 1; turn it into one or drop the '
      'row')):
    return
  events[name] = label.astype(np.float32)
  if (label == label[0]).all():
    faults.add(
        f'{where}: column {name}: all labels are {label[0]:g}; '
        + (f'say "label": null in {schema.FILE} if every event is a positive'
           if label[0] else 'nothing can be learned without a positive'))


def _sort_events(
    events: Columns, order: np.ndarray, info: Mapping[str, Any], where: str
) -> dict[str, Any]:
  """Sorts events stably by time, with one warning if no order was there."""
  if np.all(order[1:] >= order[:-1]):
    return dict(events)
  user = events['user_id'].codes
  by_user = np.argsort(user, kind='stable')
  same = user[by_user][1:] == user[by_user][:-1]
  ordered = np.all(order[by_user][1:][same] >= order[by_user][:-1][same])
  # A file grouped by user, or positions only, is in order user by user.
  grouped = np.count_nonzero(np.diff(user)) == len(np.unique(user)) - 1
  if not ordered or not (grouped or info['time_unit'] == 'ordinal'):
    logging.warning(
        '%s/events: rows are not in order of time; sorted by timestamp', where)
  place = np.argsort(order, kind='stable')
  return {name: values[place] for name, values in events.items()}


def _check_embeddings(
    embeddings: np.ndarray | None, num_items: int, where: str,
    faults: faults_lib.Faults) -> None:
  """Finds out whether embeddings are [V, E] finite floats."""
  if embeddings is None:
    return
  path = f'{where}/{EMBEDDINGS}'
  if embeddings.ndim != 2 or embeddings.dtype.kind != 'f':
    faults.add(f'{path}: must be a float array [V, E], is {embeddings.dtype} '
               f'{list(embeddings.shape)}')
    return
  if embeddings.shape[0] != num_items:
    faults.add(f'{path}: has {embeddings.shape[0]} rows for {num_items} items; '
               'one row an item, in the order of items')
    return
  with np.errstate(over='ignore'):
    bad = ~np.isfinite(embeddings.astype(np.float32)).all(axis=1)
  if bad.any():
    row = np.flatnonzero(bad)[0]
    faults.add(
        f'{path}: row {row}: not finite'
        + (' as float32' if np.isfinite(embeddings[row]).all() else '')
        + f', as {bad.sum():,} rows are; make it again')
