"""Adds items to a trie and takes items out, without sorting it again."""

import numpy as np

from sidrec import types
from sidrec.trie import construct
from sidrec.trie import read


def _plain(t: types.Trie) -> None:
  """Raises InputError for tries whose arrays are not all of the catalog's."""
  if t.allowed is not None:
    raise types.InputError(
        'trie: it is restricted to a part of its items; edit the whole one '
        'and restrict that')
  if any(int(first[-1]) != code.shape[0]
         for first, code in zip(t.first_child, t.code)):
    raise types.InputError('trie: it is padded; edit the one before padding')


def add(t: types.Trie, codes: np.ndarray, item: np.ndarray) -> types.Trie:
  """Adds items; equals building the trie of all of them.

  What is there is copied, not sorted again.

  Args:
    t: a trie with NumPy arrays, neither padded nor restricted.
    codes: [R, L] integers >= 0.
    item: [R] their ids, none of them in the trie and none twice.

  Returns:
    The new trie.

  Raises:
    InputError: bad codes, ids that are there already, or a trie that is
      padded or restricted.
  """
  _plain(t)
  codes, item = construct.checked(codes), np.asarray(item)
  construct.check_values(codes)
  if item.shape != codes.shape[:1] or np.unique(item).size != item.size:
    raise types.InputError(
        f'item: expected {codes.shape[0]} distinct ids, one a row of codes, '
        f'got shape {item.shape}')
  if codes.shape[1] != len(t.code):
    raise types.InputError(
        f'codes: {codes.shape[1]} levels, but the trie has {len(t.code)}')
  known = item[np.isin(item, t.items)]
  if known.size:
    raise types.InputError(f'item: id {known[0]} is in the trie already')
  if not item.size:
    return t
  by_id = np.argsort(item)
  order = by_id[construct.order_by_code(codes[by_id])]
  codes, item = codes[order].astype(np.int64), item[order].astype(np.int32)
  columns = construct.columns(t)
  # The items that begin like each row, level by level: an empty range stands
  # where such items would.
  low = np.zeros(item.size, np.int64)
  high = np.full(item.size, t.items.size)
  for level, column in enumerate(columns):
    wanted = codes[:, level]
    low, high = (read.bisect(column, low, high, wanted),
                 read.bisect(column, low, high, wanted, right=True))
  place = read.bisect(t.items, low, high, item.astype(np.int64))
  for level, column in enumerate(columns):
    dtype = np.promote_types(
        column.dtype, construct.code_dtype(int(codes[:, level].max()) + 1))
    columns[level] = np.insert(column.astype(dtype), place, codes[:, level])
  return construct.from_columns(columns, np.insert(t.items, place, item))


def remove(t: types.Trie, item: np.ndarray) -> types.Trie:
  """Takes items out; equals building the trie of the rest.

  Args:
    t: a trie with NumPy arrays, neither padded nor restricted.
    item: [R] ids, all of them in the trie.

  Returns:
    The new trie.

  Raises:
    InputError: ids that are not there, nothing left, or a trie that is padded
      or restricted.
  """
  _plain(t)
  item = np.asarray(item)
  keep = ~np.isin(t.items, item)
  gone = np.unique(item)
  if t.items.size - np.count_nonzero(keep) != gone.size:
    missing = gone[~np.isin(gone, t.items)]
    raise types.InputError(f'item: id {missing[0]} is not in the trie')
  if not keep.any():
    raise types.InputError('item: nothing would be left in the trie')
  kept = (construct.narrow(column[keep]) for column in construct.columns(t))
  return construct.from_columns(kept, t.items[keep])
