"""Adds items to a trie and takes items out, without sorting it again."""

import numpy as np

from sidrec import types
from sidrec.trie import construct
from sidrec.trie import read


def _counts(t: types.Trie) -> list[np.ndarray]:
  return [np.diff(first) for first in t.first_child]


def _offsets(counts: np.ndarray) -> np.ndarray:
  out = np.zeros(counts.size + 1, np.int32)
  np.cumsum(counts, out=out[1:])
  return out


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

  One copy of each array, no sort of what is there.

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

  counts, new_code = _counts(t), []
  # Where each row's prefix stands, or would, among the nodes of the level.
  place = np.zeros(item.size, np.int64)
  found = np.ones(item.size, bool)
  fresh = np.zeros(item.size, bool)  # The row begins a new prefix.
  fresh[0] = True
  into = np.zeros(item.size, np.int64)  # The parent, in the new numbers.
  for level, (first, code) in enumerate(zip(t.first_child, t.code)):
    fresh[1:] |= codes[1:, level] != codes[:-1, level]
    low = first[place].astype(np.int64)
    high = first[np.minimum(place + found, first.size - 1)].astype(np.int64)
    wanted = codes[:, level]
    place = read.bisect(code, low, high, wanted)
    inside = np.minimum(place, code.size - 1)
    found = (place < high) & (code[inside] == wanted)
    if level + 1 == len(t.code):
      place = _among_equals(t, place, high, wanted, item)
      adds = np.ones(item.size, bool)
    else:
      adds = fresh & ~found
    where = place[adds]
    np.add.at(counts[level], into[adds], 1)
    dtype = np.promote_types(code.dtype, construct.code_dtype(
        int(wanted.max()) + 1))
    new_code.append(np.insert(code.astype(dtype), where, wanted[adds]))
    if level + 1 < len(t.code):
      counts[level + 1] = np.insert(counts[level + 1], where, 0)
      # Rows come in code order: new nodes up to a row stand before it.
      into = place + np.cumsum(adds) - adds
      into = np.where(found, place + np.searchsorted(where, place, 'right'),
                      into)
      if not found.all():
        # All rows of one new prefix share the node its first row made.
        head = np.maximum.accumulate(
            np.where(fresh, np.arange(item.size), 0))
        into = np.where(found, into, into[head])
  return types.Trie(
      first_child=tuple(_offsets(c) for c in counts), code=tuple(new_code),
      items=np.insert(t.items, place, item), allowed=None)


def _among_equals(t: types.Trie, place: np.ndarray, high: np.ndarray,
                  wanted: np.ndarray, item: np.ndarray) -> np.ndarray:
  """Moves places behind items of the same code with a smaller id."""
  stop = read.bisect(t.code[-1], place, high, wanted, right=True)
  return read.bisect(t.items, place, stop, item.astype(np.int64))


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
  items, first_child, code = t.items[keep], [], []
  for first, codes in zip(reversed(t.first_child), reversed(t.code)):
    code.insert(0, codes[keep])
    seen = _offsets(keep)
    counts = seen[first[1:]] - seen[first[:-1]]
    keep = counts > 0
    first_child.insert(0, _offsets(counts[keep]))
  code = [c.astype(construct.code_dtype(int(c.max()) + 1)) for c in code]
  return types.Trie(first_child=tuple(first_child), code=tuple(code),
                    items=items, allowed=None)
