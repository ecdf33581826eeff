"""Reads and checks `dataset.json`: roles, types, label, time, split, cross."""

import json
import os
from typing import Any, Mapping

import numpy as np

from sidrec import types

FILE = 'dataset.json'
TYPES = ('category', 'categories', 'number', 'date', 'text', 'text_list')
TIME_UNITS = ('ms', 's', 'ordinal')
SPLITS = ('time', 'leave_one_out')
KEYS = {'events': ('user_id', 'item_id', 'timestamp'), 'items': ('item_id',),
        'users': ('user_id',)}
_ROLE = {'items': types.Role.ITEM_STATIC, 'users': types.Role.REQUEST,
         'events': types.Role.REQUEST}


def read(directory: str) -> dict[str, Any] | None:
  """Returns the parsed `dataset.json` of a folder, None where there is none.

  Raises:
    types.InputError: if it is not a JSON object.
  """
  path = os.path.join(directory, FILE)
  if not os.path.exists(path):
    return None
  try:
    with open(path, encoding='utf-8') as file:
      info = json.load(file)
  except (OSError, ValueError) as error:
    raise types.InputError(
        f'{path}: not valid JSON ({error}); correct it, or delete it to have '
        'the columns inferred') from error
  if not isinstance(info, dict):
    raise types.InputError(f'{path}: must be one JSON object {{...}}')
  return info


def complete(info: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Fills `dataset.json` with defaults and checks every value in it.

  Args:
    info: the parsed file.
    where: folder or name, for messages.

  Returns:
    A new dict with name, time_unit, label, other_labels, split, columns (of
    events, items, users), cross.

  Raises:
    types.InputError: unknown role, type, unit or split; a label as feature.
  """
  path = f'{where}/{FILE}'
  info = dict(info)
  info.setdefault('name', os.path.basename(os.path.normpath(where)))
  for key, value in (('time_unit', 'ms'), ('label', None), ('other_labels', []),
                     ('split', {}), ('columns', {}), ('cross', ['item_id'])):
    if info.get(key) is None:
      info[key] = value
  if info['time_unit'] not in TIME_UNITS:
    raise types.InputError(
        f'{path}: time_unit {info["time_unit"]!r} must be one of '
        f'{", ".join(TIME_UNITS)}')
  if info['label'] is not None and not isinstance(info['label'], str):
    raise types.InputError(f'{path}: label must be a column name or null')
  for key in ('other_labels', 'cross'):
    if not isinstance(info[key], list) or not all(
        isinstance(name, str) for name in info[key]):
      raise types.InputError(f'{path}: {key} must be a list of column names')
  info['split'] = _check_split(info['split'], info['time_unit'], path)
  info['columns'] = _check_columns(info, path)
  for name in info['cross']:
    column = info['columns']['items'].get(name)
    if name == 'item_id':
      continue
    if column is None:
      raise types.InputError(
          f'{path}: cross names {name!r}, which is not an item column in '
          'columns.items; declare it there with a role and a type')
    if column['role'] == types.Role.NEVER.value:
      raise types.InputError(
          f'{path}: cross names {name!r}, whose role is never: a column that '
          'must not become a feature cannot have u2i statistics')
    if column['type'] not in ('category', 'categories'):
      raise types.InputError(
          f'{path}: cross names {name!r} of type {column["type"]}; u2i '
          'statistics need a category or categories')
  return info


def _check_split(split: Any, time_unit: str, path: str) -> dict[str, Any]:
  """Returns the split with its kind; cuts are optional for kind 'time'."""
  if not isinstance(split, Mapping):
    raise types.InputError(f'{path}: split must be an object with a kind')
  split = dict(split)
  split.setdefault(
      'kind', 'leave_one_out' if time_unit == 'ordinal' else 'time')
  if split['kind'] not in SPLITS:
    raise types.InputError(
        f'{path}: split kind {split["kind"]!r} must be one of '
        f'{", ".join(SPLITS)}')
  cuts = [split.get(key) for key in ('valid_from', 'test_from')]
  if split['kind'] == 'time' and any(cut is not None for cut in cuts):
    if not all(isinstance(cut, (int, float)) and not isinstance(cut, bool)
               for cut in cuts):
      raise types.InputError(
          f'{path}: a time split needs the numbers valid_from and test_from')
    if cuts[0] >= cuts[1]:
      raise types.InputError(
          f'{path}: split valid_from {cuts[0]} must be before test_from '
          f'{cuts[1]}')
  return split


def _check_columns(info: Mapping[str, Any], path: str) -> dict[str, Any]:
  """Returns columns per table, each with role, type and separator."""
  given = info['columns']
  if not isinstance(given, Mapping):
    raise types.InputError(f'{path}: columns must be an object')
  labels = {*info['other_labels'], info['label']}
  result = {key: given[key] for key in given if key not in _ROLE}
  for table, role in _ROLE.items():
    columns = given.get(table) or {}
    if not isinstance(columns, Mapping):
      raise types.InputError(f'{path}: columns.{table} must be an object')
    result[table] = {}
    for name, column in columns.items():
      key = f'{path}: columns.{table}.{name}'
      if not isinstance(column, Mapping):
        raise types.InputError(f'{key} must be an object with role and type')
      if column.get('role') not in (role.value, types.Role.NEVER.value):
        raise types.InputError(
            f'{key}: role {column.get("role")!r} must be {role.value!r} or '
            f'{types.Role.NEVER.value!r}')
      column = {'type': None, 'separator': None, **column}
      if column['role'] != types.Role.NEVER.value:
        if column['type'] not in TYPES:
          raise types.InputError(
              f'{key}: type {column["type"]!r} must be one of '
              f'{", ".join(TYPES)}')
        if name in KEYS[table] or (table == 'events' and name in labels):
          raise types.InputError(
              f'{key}: an id, the time or a label cannot be a feature; give '
              f'it the role {types.Role.NEVER.value!r}')
      separator = column['separator']
      if separator is not None and (
          not isinstance(separator, str) or not separator):
        raise types.InputError(f'{key}: separator must be a text')
      result[table][name] = column
  return result


def infer(
    events: Mapping[str, np.ndarray], items: Mapping[str, np.ndarray],
    users: Mapping[str, np.ndarray] | None,
) -> dict[str, Any]:
  """Guesses what `dataset.json` would say for a folder that has none.

  Labels are recognized by name; context columns of events are not taken as
  features, because a guess could leak the outcome.

  Args:
    events, items, users: columns as `tables.read` returns them.

  Returns:
    An info dict that `complete` accepts.
  """
  label = next((name for name in ('label', 'is_click', 'click', 'clicked')
                if name in events), None)
  unit = _infer_time_unit(events)
  columns = {'events': {}, 'items': {}, 'users': {}}
  for table, data in (('items', items), ('users', users or {})):
    for name, values in data.items():
      if name not in KEYS[table]:
        columns[table][name] = dict(
            role=_ROLE[table].value, type=_infer_type(name, values))
  categories = [name for name, column in columns['items'].items()
                if column['type'] in ('category', 'categories')]
  return dict(
      time_unit=unit, label=label, columns=columns,
      split=dict(kind='leave_one_out' if unit == 'ordinal' else 'time'),
      cross=['item_id'] + categories[:2])


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
  return 'text' if text else 'category'


def _infer_time_unit(events: Mapping[str, np.ndarray]) -> str:
  """Returns 'ordinal' for positions 0..n-1 of each user, else 's' or 'ms'."""
  if 'timestamp' not in events or events['timestamp'].dtype.kind not in 'iuf':
    return 'ms'
  time = events['timestamp']
  if len(time) and np.nanmax(time) < len(time) and 'user_id' in events:
    _, user = np.unique(events['user_id'].astype(str), return_inverse=True)
    order = np.lexsort((time, user))
    first = np.r_[True, np.diff(user[order]) > 0]
    steps = np.diff(time[order])
    if np.all(time[order][first] <= 1) and np.all(steps[~first[1:]] == 1):
      return 'ordinal'
  if len(time) and 1e8 < np.nanmedian(time) < 1e11:
    return 's'
  return 'ms'
