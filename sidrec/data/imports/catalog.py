"""Tables of items and users: from files of their own, and out of a log."""

import dataclasses
import re
from typing import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.data import columns as columns_lib
from sidrec.data import ids
from sidrec.data.imports import recognise

LEAST_SHARE = .98  # Of the items, that have one value in a column.
_USER_WORDS = re.compile(
    r'^(user|customer|visitor|client|member|reviewer)|^(age|gender|sex|'
    r'occupation|zip)')


@dataclasses.dataclass(frozen=True)
class Entities:
  """Items or users, V of them.

  keys: [V] distinct ids. code: [E] of each event, -1: not among them.
  columns: name -> [V]. num_added: seen in events only.
  """
  keys: pa.Array
  code: np.ndarray
  columns: Mapping[str, pa.Array]
  num_added: int


def gather(tables: Sequence[pa.Table], keys: Sequence[pa.Array],
           of_events: pa.Array, add: bool) -> Entities:
  """Joins files of items (or users) and those that are seen in events.

  Args:
    tables: of files, without ids twice; the first that has a column wins.
    keys: their ids, of the type of `of_events`.
    of_events: [E] ids.
    add: whether those in events only are added.
  """
  codes, distinct = ids.encode(of_events)
  known = pc.unique(pa.concat_arrays([*keys, distinct.slice(0, 0)]))
  place = ids.look_up(distinct, known)
  added = distinct.filter(pa.array(place < 0)) if add else distinct.slice(0, 0)
  # By id: the order of appearance would say what comes when.
  added = added.take(pc.sort_indices(added))
  vocabulary = pa.concat_arrays([known, added])
  columns = {}
  for table, key in zip(tables, keys):
    row = ids.look_up(vocabulary, key)
    row = pa.array(row, mask=row < 0)
    for name in table.column_names:
      if name not in columns:
        columns[name] = ids.as_arrow(table[name]).take(row)
  return Entities(vocabulary, ids.look_up(distinct, vocabulary)[codes],
                  columns, len(added))


def constant(code: np.ndarray, column: pa.ChunkedArray, num: int
             ) -> tuple[float, int, np.ndarray]:
  """Returns whether a column of events says something of its item (or user).

  Args:
    code: [E] of the item, events in order.
    column: [E].
    num: of items.

  Returns:
    (share of the items of several events that have one value, how many of
    them have more; [V] the last row with a value, -1: none).
  """
  value = _codes(column)
  rows = np.flatnonzero(value >= 0)
  own, value = code[rows], value[rows]
  count = np.bincount(own, minlength=num)
  least = np.full(num, np.iinfo(np.int64).max)
  most = np.full(num, -1, np.int64)
  np.minimum.at(least, own, value)
  np.maximum.at(most, own, value)
  last = np.full(num, -1, np.int64)
  last[own] = rows  # The last assignment stays.
  several = count > 1
  num_several = np.count_nonzero(several)
  varied = np.count_nonzero(least[several] < most[several])
  if not num_several or not len(value) or value.max() == value.min():
    return 0., varied, last
  return 1. - varied / num_several, varied, last


def _codes(column: pa.ChunkedArray) -> np.ndarray:
  """Numbers the values of a column, int64, -1 where missing."""
  array = ids.as_arrow(column)
  if columns_lib.is_list(array.type):
    array = pc.binary_join(array.cast(pa.list_(pa.string())), '\x1f')
  elif pa.types.is_large_string(array.type):
    array = pc.if_else(pc.equal(array, ''), pa.scalar(None, array.type), array)
  codes = array.dictionary_encode().indices
  return pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def split_off(events: pa.Table, items: Entities, users: Entities,
              skipped: set[str]) -> tuple[
                  dict[str, pa.Array], dict[str, pa.Array], list[str]]:
  """Finds the columns of a flat log that are of items or of users.

  Args:
    events: in the order of time.
    items, users: all of them.
    skipped: columns that stay: labels and what they were made of.

  Returns:
    (columns of items, of users, what was done).
  """
  of_items, of_users, notes = {}, {}, []
  for name in events.column_names:
    if name in skipped:
      continue
    found = []
    for entities, out, word in ((items, of_items, 'item'),
                                (users, of_users, 'user')):
      share, varied, last = constant(
          entities.code, events[name], len(entities.keys))
      if share >= LEAST_SHARE and name not in entities.columns:
        found.append((out, word, varied, last))
    if not found:
      continue
    about_users = _USER_WORDS.match(name.lower())
    out, word, varied, last = found[-1 if about_users else 0]
    column = ids.as_arrow(events[name])
    out[name] = column.take(pa.array(last, mask=last < 0))
    if varied:
      notes.append(f'{name}: {varied:,} {word}s have several values, the last '
                   'is kept')
  return of_items, of_users, notes


def unique(key: pa.Array) -> np.ndarray:
  """Returns [R] bool: no row before has this id."""
  codes, distinct = ids.encode(key)
  first = np.zeros(len(codes), bool)
  first[np.unique(codes, return_index=True)[1]] = True
  return first


def keys_of(table: pa.Table, role: str) -> pa.ChunkedArray:
  """Returns the ids of a table as they are in its file."""
  column = table[role]
  if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
    return ids.from_text(column)
  return column


def is_key(name: str) -> bool:
  """Whether a column is an id or the time."""
  return name in (recognise.USER, recognise.ITEM, recognise.TIME)
