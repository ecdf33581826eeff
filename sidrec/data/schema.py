"""Reads, completes and checks `dataset.json`: roles, types, label, time, split.

A closed language: a key that is not known is refused with the nearest known
one. What is not said is inferred from the tables, and told.
"""

import difflib
import json
import os
from typing import Any, Iterable, Mapping

import numpy as np

from sidrec import types
from sidrec.data import faults as faults_lib
from sidrec.data import times

FILE = 'dataset.json'
TYPES = ('category', 'categories', 'number', 'date', 'text', 'text_list')
TIME_UNITS = times.UNITS
SPLITS = ('time', 'leave_one_out')
TABLES = ('events', 'items', 'users', 'histories')
NEEDED = {'events': ('user_id', 'item_id', 'timestamp'),
          'items': ('item_id',), 'users': ('user_id',),
          'histories': ('user_id',)}
KEYS = {**NEEDED, 'histories': ('user_id', 'until')}  # No columns to declare.
LABELS = ('label', 'is_click', 'click', 'clicked')
_ROLE = {'items': types.Role.ITEM_STATIC, 'users': types.Role.REQUEST,
         'events': types.Role.REQUEST}
# What is read, then what only people read.
_KNOWN = ('name', 'time_unit', 'label', 'other_labels', 'split', 'columns',
          'cross', 'version', 'licence', 'license', 'citation', 'source',
          'description', 'embeddings', 'note', 'counts')
_KNOWN_SPLIT = ('kind', 'valid_from', 'test_from')
_KNOWN_COLUMN = ('role', 'type', 'separator', 'note')
_MOST_LISTED = 12


def read(directory: str) -> dict[str, Any]:
  """Returns the parsed `dataset.json` of a folder, {} where there is none.

  Raises:
    types.InputError: if it is not a JSON object.
  """
  path = os.path.join(directory, FILE)
  if not os.path.exists(path):
    return {}
  try:
    with open(path, encoding='utf-8-sig') as file:
      info = json.load(file, object_pairs_hook=_once)
  except (OSError, ValueError) as error:
    raise types.InputError(
        f'{path}: not valid JSON ({error}); correct it, or delete it to have '
        'the columns inferred') from error
  if not isinstance(info, dict):
    raise types.InputError(f'{path}: must be one JSON object {{...}}')
  return info


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns a JSON object; raises on a key that is there twice."""
  out = dict(pairs)
  if len(out) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'key {twice!r} is there twice')
  return out


def listed(names: Iterable[str]) -> str:
  """Returns names for a message, not too many."""
  names = list(names)
  more = len(names) - _MOST_LISTED
  return ', '.join(names[:_MOST_LISTED]) + (
      f' and {more} more' if more > 0 else '')


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns '; did you mean ...?' where a known name is like this one."""
  found = difflib.get_close_matches(str(name), [str(x) for x in known], 1)
  return f'; did you mean {found[0]!r}?' if found else ''


def declared(info: Mapping[str, Any], table: str) -> Mapping[str, Any]:
  """Returns what an unchecked `dataset.json` says of a table's columns."""
  columns = info.get('columns')
  columns = columns.get(table) if isinstance(columns, Mapping) else None
  if not isinstance(columns, Mapping):
    return {}
  return {name: column for name, column in columns.items()
          if isinstance(column, Mapping)}


def lists_of(histories: Mapping[str, Any] | None) -> list[str]:
  """Returns the columns of `histories` that hold lists of items."""
  return [name for name in histories or () if name not in KEYS['histories']]


def complete(info: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Fills `dataset.json` with defaults and checks every value in it.

  Args:
    info: the parsed file, after `infer`.
    where: folder or name, for messages.

  Returns:
    A new dict with name, time_unit (None: to be guessed), label,
    other_labels, split (see `complete_split`), columns (of events, items,
    users), cross.

  Raises:
    types.InputError: unknown key, role, type, unit or split; a label as
      feature; all of them in one line.
  """
  path = f'{where}/{FILE}'
  faults = faults_lib.Faults()
  info = dict(info)
  _known(info, _KNOWN, path, 'key', faults)
  info.setdefault('name', os.path.basename(os.path.normpath(where)))
  for key, value in (('time_unit', None), ('label', None), ('other_labels', []),
                     ('split', {}), ('columns', {}), ('cross', ['item_id'])):
    if info.get(key) is None:
      info[key] = value
  if info['time_unit'] not in (None, *TIME_UNITS):
    faults.add(
        f'{path}: time_unit {info["time_unit"]!r} must be one of '
        f'{", ".join(TIME_UNITS)}')
  if info['label'] is not None and not isinstance(info['label'], str):
    faults.add(f'{path}: label must be a column name or null')
    info['label'] = None
  if not isinstance(info['name'], str) or not info['name']:
    faults.add(f'{path}: name must be a text')
  for key in ('other_labels', 'cross'):
    if not isinstance(info[key], list) or not all(
        isinstance(name, str) for name in info[key]):
      faults.add(f'{path}: {key} must be a list of column names')
      info[key] = []
    elif len(set(info[key])) < len(info[key]):
      faults.add(f'{path}: {key} names a column twice')
  info['split'] = _check_split(info['split'], path, faults)
  info['columns'] = _check_columns(info, path, faults)
  _check_cross(info, path, faults)
  faults.check()
  return info


def _known(given: Mapping[str, Any], known: Iterable[str], where: str,
           what: str, faults: faults_lib.Faults) -> None:
  """Finds keys that are not known."""
  for key in given:
    if key not in known:
      faults.add(f'{where}: unknown {what} {key!r}{nearest(key, known)} (there '
                 f'are {", ".join(known)})')


def _check_cross(info: Mapping[str, Any], path: str, faults: faults_lib.Faults
                 ) -> None:
  """Finds crosses of what is no category of items."""
  for name in info['cross']:
    column = info['columns']['items'].get(name)
    if name == 'item_id':
      continue
    if column is None:
      faults.add(
          f'{path}: cross names {name!r}, which is not an item column in '
          'columns.items; declare it there with a role and a type'
          f'{nearest(name, info["columns"]["items"])}')
    elif column['role'] == types.Role.NEVER.value:
      faults.add(
          f'{path}: cross names {name!r}, whose role is never: a column that '
          'must not become a feature cannot have u2i statistics')
    elif column['type'] not in ('category', 'categories'):
      faults.add(
          f'{path}: cross names {name!r} of type {column["type"]}; u2i '
          'statistics need a category or categories')


def _check_split(split: Any, path: str, faults: faults_lib.Faults
                 ) -> dict[str, Any]:
  """Returns the split; its kind may be left open."""
  if not isinstance(split, Mapping):
    faults.add(f'{path}: split must be an object with a kind')
    return {}
  split = dict(split)
  _known(split, _KNOWN_SPLIT, path, 'key of split', faults)
  if split.get('kind') not in (None, *SPLITS):
    faults.add(
        f'{path}: split kind {split["kind"]!r} must be one of '
        f'{", ".join(SPLITS)}')
    return {}
  for cut in ('valid_from', 'test_from'):
    value = split.get(cut)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float, str))
        or isinstance(value, float) and not np.isfinite(value)):
      faults.add(f'{path}: split {cut} must be a time: a number in time_unit, '
                 'or ISO 8601')
      return {}
  if (split.get('valid_from') is None) != (split.get('test_from') is None):
    faults.add(
        f'{path}: a time split needs both, valid_from and test_from')
  return split


def complete_split(info: dict[str, Any], unit: str, where: str) -> None:
  """Gives the split its kind, and its cuts in ms, in place.

  Args:
    info: of `complete`.
    unit: of `times.Times`.
    where: folder or name, for messages.

  Raises:
    types.InputError: cuts that are no times, or not in order.
  """
  split = info['split'] = dict(info['split'])
  if split.get('kind') is None:
    split['kind'] = 'leave_one_out' if unit == 'ordinal' else 'time'
  if split['kind'] != 'time' or split.get('valid_from') is None:
    return
  for cut in ('valid_from', 'test_from'):
    try:
      split[cut] = times.moment(split[cut], unit)
    except ValueError as error:
      raise types.InputError(
          f'{where}/{FILE}: split {cut} {split[cut]!r} is no time; write a '
          'number in time_unit, or ISO 8601') from error
  if split['valid_from'] >= split['test_from']:
    raise types.InputError(
        f'{where}/{FILE}: split valid_from {split["valid_from"]} must be '
        f'before test_from {split["test_from"]}')


def _check_columns(info: Mapping[str, Any], path: str,
                   faults: faults_lib.Faults) -> dict[str, Any]:
  """Returns columns per table, each with role, type and separator."""
  given = info['columns']
  if not isinstance(given, Mapping):
    faults.add(f'{path}: columns must be an object')
    given = {}
  _known(given, TABLES, path, 'table in columns', faults)
  result = {key: given[key] for key in given if key not in _ROLE}
  for table in _ROLE:
    columns = given.get(table) or {}
    if not isinstance(columns, Mapping):
      faults.add(f'{path}: columns.{table} must be an object')
      columns = {}
    result[table] = {}
    for name, column in columns.items():
      key = f'{path}: columns.{table}.{name}'
      if not isinstance(column, Mapping):
        faults.add(f'{key} must be an object with role and type')
      else:
        result[table][name] = _check_column(
            info, table, name, column, key, faults)
  return result


def _check_column(info: Mapping[str, Any], table: str, name: str,
                  column: Mapping[str, Any], key: str,
                  faults: faults_lib.Faults) -> dict[str, Any]:
  """Returns the declaration of one column, complete."""
  role, never = _ROLE[table].value, types.Role.NEVER.value
  _known(column, _KNOWN_COLUMN, key, 'key', faults)
  column = {'role': role, 'type': None, 'separator': None, **column}
  if column['role'] not in (role, never):
    faults.add(f'{key}: role {column["role"]!r} must be {role!r} or {never!r}')
  elif column['role'] != never:
    if column['type'] not in TYPES:
      faults.add(f'{key}: type {column["type"]!r} must be one of '
                 f'{", ".join(TYPES)}{nearest(column["type"], TYPES)}')
    if name in KEYS[table] or (
        table == 'events' and name in {*info['other_labels'], info['label']}):
      faults.add(f'{key}: an id, the time or a label cannot be a feature; give '
                 f'it the role {never!r}')
  separator = column['separator']
  if separator is not None and (
      not isinstance(separator, str) or not separator):
    faults.add(f'{key}: separator must be a text')
  return column


def infer(
    info: Mapping[str, Any], events: Mapping[str, Any],
    items: Mapping[str, Any], users: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], list[str]]:
  """Completes `dataset.json` by what the tables look like.

  A key that is there stays, null included. Labels are recognized by name;
  context columns of events are not taken as features, because a guess could
  leak the outcome.

  Args:
    info: the parsed file, or {}.
    events, items, users: columns as `tables.read` returns them.

  Returns:
    (info that `complete` accepts, what was inferred, in words).
  """
  info, said = dict(info), []
  if 'label' not in info:
    info['label'] = next((name for name in LABELS if name in events), None)
    said.append(f'label {info["label"]}' if info['label'] else no_label(events))
  columns = info.get('columns')
  if columns is None or isinstance(columns, Mapping):
    columns = dict(columns or {})
    columns.setdefault('events', {})
    for table, data in (('items', items), ('users', users or {})):
      if table in columns:
        continue
      columns[table] = {
          name: dict(role=_ROLE[table].value, type=_infer_type(name, values))
          for name, values in data.items() if name not in KEYS[table]}
      if columns[table]:
        said.append(f'columns of {table}')
    info['columns'] = columns
  if 'cross' not in info:
    categories = [
        name for name, column in declared(info, 'items').items()
        if column.get('type') in ('category', 'categories')
        and column.get('role') != types.Role.NEVER.value]
    info['cross'] = ['item_id'] + categories[:2]
    said.append(f'cross {", ".join(info["cross"])}')
  return info, said


def no_label(events: Mapping[str, Any]) -> str:
  """Says that every event is a positive, and what might say otherwise."""
  maybe = [
      name for name, values in events.items()
      if name not in KEYS['events'] and isinstance(values, np.ndarray)
      and values.dtype.kind in 'iufb'
      and np.isin(values, (0, 1)).all() and len(np.unique(values)) == 2]
  text = 'no label: every event is a positive'
  if maybe:
    text += (f' ({listed(maybe)} of 0 and 1: if one says what was a positive, '
             f'say "label": "{maybe[0]}" in {FILE})')
  return text


def _infer_type(name: str, values: np.ndarray) -> str:
  """Returns the feature type of a column by its name and values."""
  if values.dtype != object:
    return 'number' if values.dtype.kind == 'f' else 'category'
  present = [value for value in values[:1000] if value is not None]
  if any(isinstance(value, np.ndarray) for value in present):
    return 'categories'
  text = name in ('title', 'description', 'text') or (
      len(set(present)) > .9 * len(present)
      and sum(' ' in str(value) for value in present) > .5 * len(present))
  if not text and present and all(
      str(value)[:1] == '[' and str(value)[-1:] == ']' for value in present):
    return 'categories'  # Lists as Python or JSON writes them.
  return 'text' if text else 'category'
