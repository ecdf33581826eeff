"""The events of one raw file: a row each, or lists that are taken apart."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.data import columns as columns_lib
from sidrec.data import faults as faults_lib
from sidrec.data import ids
from sidrec.data.imports import files
from sidrec.data.imports import recognise

_KEYS = (recognise.USER, recognise.ITEM, recognise.TIME)
_MIND = r'-[01]$'  # N1-1 N2-0: shown items, clicked or not.


@dataclasses.dataclass(frozen=True)
class Part:
  """Events of one file, E of them.

  table: `user_id`, `item_id`, `timestamp` where there is one, and the other
    columns under their names. row: [E] in the file. place: [E] in a list of
    items that is in order, else 0. empty: rows of the file without any item.
    label: column that was made of lists, None: none was. notes: what was done.
  """
  table: pa.Table
  row: np.ndarray
  place: np.ndarray
  empty: np.ndarray
  label: str | None
  notes: tuple[str, ...]


def read(raw: files.Raw, found: dict[str, str]) -> Part:
  """Returns the events of a file.

  Args:
    raw: the file.
    found: role -> column.

  Raises:
    types.InputError: a list that cannot be read.
  """
  if recognise.ITEM in found:
    table = named(raw.table, found)
    return Part(table, raw.rows, np.zeros(len(table), np.int64),
                np.zeros(0, np.int64), None, ())
  return _explode(raw, found)


def named(table: pa.Table, found: dict[str, str]) -> pa.Table:
  """Returns a table whose keys have sidrec's names."""
  key = {found[role]: role for role in _KEYS if found.get(role)}
  return table.rename_columns([
      key.get(name, f'raw_{name}' if name in key.values() else name)
      for name in table.column_names])


def _explode(raw: files.Raw, found: dict[str, str]) -> Part:
  """Makes an event of each entry of a list."""
  table, faults = raw.table, faults_lib.Faults()
  flat = {}
  for role in (recognise.SHOWN, recognise.CLICKED, recognise.ITEMS):
    if role in found:
      flat[role] = ids.flatten(table[found[role]], raw.path, found[role],
                               faults)
  faults.check()
  base = next(iter(flat))
  if recognise.SHOWN not in flat and len(flat) > 1:
    base = recognise.ITEMS if recognise.CLICKED not in flat else (
        recognise.CLICKED)
  offsets, items = flat[base]
  row = np.repeat(np.arange(len(table)), np.diff(offsets))
  label, notes, name = None, [], _free(table, 'label')
  if base == recognise.SHOWN:
    marked = ids.as_arrow(items)
    if recognise.CLICKED in flat:
      label, lost = _clicked(row, items, *flat[recognise.CLICKED])
      if lost:
        notes.append(f'{raw.name}: {lost:,} clicked items are not among those '
                     'shown and are left out')
    elif pa.types.is_large_string(marked.type) and len(marked) and pc.all(
        pc.match_substring_regex(marked, _MIND)).as_py():
      label = pc.ends_with(marked, '-1').to_numpy(zero_copy_only=False)
      items = ids.from_text(pc.replace_substring_regex(marked, _MIND, ''))
  used = [found[role] for role in flat]
  out, left = _beside(table.drop_columns(used), offsets, row)
  if left:
    notes.append(f'{raw.name}: lists of other lengths are left out: '
                 f'{", ".join(left)}')
  notes.append(f'{raw.name}: an event for each of {found[base]}' + (
      ', label 1 where clicked' if label is not None else ', in order'
      if base == recognise.ITEMS else ''))
  out[recognise.ITEM] = items
  if label is not None:
    out[name] = pa.array(label.astype(np.int8))
  start = np.repeat(offsets[:-1], np.diff(offsets))
  place = np.arange(len(row)) - start
  if base == recognise.SHOWN:
    place = np.zeros_like(place)  # Shown together, at one time.
  keys = {**found, recognise.ITEM: recognise.ITEM}
  return Part(named(pa.table(out), keys), raw.rows[row], place,
              raw.rows[np.diff(offsets) == 0],
              name if label is not None else None, tuple(notes))


def _clicked(row: np.ndarray, items: pa.Array, offsets: np.ndarray,
             clicked: pa.Array) -> tuple[np.ndarray, int]:
  """Returns which shown items were clicked, and how many clicks fit none."""
  both = ids.join([ids.as_arrow(items), ids.as_arrow(clicked)])
  codes, distinct = ids.encode(pa.concat_arrays(both))
  rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
  key = np.concatenate([row, rows]) * (len(distinct) + 1) + codes
  shown, of_clicks = key[:len(row)], key[len(row):]
  lost = len(of_clicks) - np.count_nonzero(np.isin(of_clicks, shown))
  return np.isin(shown, of_clicks), lost


def _beside(table: pa.Table, offsets: np.ndarray, row: np.ndarray
            ) -> tuple[dict[str, pa.Array], list[str]]:
  """Repeats the other columns; lists as long as the items go along."""
  out, left = {}, []
  for name in table.column_names:
    column = table[name]
    if not columns_lib.is_list(column.type):
      out[name] = column.take(pa.array(row))
      continue
    length = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    if np.array_equal(length, np.diff(offsets)):
      out[name] = pc.list_flatten(column)
    else:
      left.append(name)
  return out, left


def _free(table: pa.Table, name: str) -> str:
  """Returns a name that no column has."""
  while name in table.column_names:
    name = f'{name}_'
  return name


def stack(tables: list[pa.Table]) -> pa.Table:
  """Puts tables under each other; what one of them lacks is missing there.

  A column that is text in one of them becomes text.
  """
  if len(tables) == 1:
    return tables[0]
  names = list(dict.fromkeys(
      name for table in tables for name in table.column_names))
  out = {}
  for name in names:
    parts = [ids.as_arrow(table[name]) if name in table.column_names
             else pa.nulls(len(table)) for table in tables]
    kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None and kinds and all(
        pa.types.is_integer(x) or pa.types.is_floating(x) for x in kinds) and (
            name not in _KEYS):
      kind = pa.float64()
    kind = kind or pa.large_string()
    out[name] = pa.chunked_array([part.cast(kind) for part in parts], kind)
  return pa.table(out)
