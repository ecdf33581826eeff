"""Builds a trie: one stable sort a level, then passes over whole columns."""

import itertools
from typing import Iterable

import jax
import numpy as np

from sidrec import types

_MAX_INT32 = np.iinfo(np.int32).max
_CHUNK = 1 << 24  # Rows that are checked at once.


def checked(codes: np.ndarray) -> np.ndarray:
  """Returns `codes` as an integer [R, L] array, or raises InputError."""
  codes = np.asarray(codes)
  if codes.ndim != 2 or codes.shape[1] < 1:
    raise types.InputError(
        f'codes: expected an integer array [V, L], got shape {codes.shape}; '
        'give one row an item and one column a level')
  if not np.issubdtype(codes.dtype, np.integer):
    raise types.InputError(
        f'codes: expected integers, got {codes.dtype}; cast them to int32')
  return codes


def check_values(codes: np.ndarray) -> None:
  """Raises InputError where a code does not fit a non-negative int32."""
  for start in range(0, len(codes), _CHUNK):
    part = codes[start:start + _CHUNK]
    for bad, what in ((part < 0, 'is negative'),
                      (part > _MAX_INT32, 'is above the int32 range')):
      if bad.any():
        row, level = np.argwhere(bad)[0]
        raise types.InputError(
            f'codes: row {start + row}, level {level + 1}: code '
            f'{part[row, level]} {what}; codes must lie in [0, {_MAX_INT32}]')


def code_dtype(codebook_size: int) -> np.dtype:
  """Returns the narrowest dtype of codes in [0, codebook_size)."""
  for dtype in (np.uint8, np.uint16):
    if codebook_size <= np.iinfo(dtype).max + 1:
      return np.dtype(dtype)
  return np.dtype(np.int32)


def order_by_code(codes: np.ndarray) -> np.ndarray:
  """Returns the stable lexicographic order [R] of codes [R, L], int32.

  Args:
    codes: non-negative integers.
  """
  order = np.arange(codes.shape[0], dtype=np.int32)
  # NumPy sorts 16-bit integers stably by radix, in linear time: least
  # significant digit first is then cheaper than comparing rows.
  for level in reversed(range(codes.shape[1])):
    column = np.ascontiguousarray(codes[:, level])
    digits = 1 if not column.size or column.max() < 1 << 16 else 2
    for digit in range(digits):
      key = (column[order] >> (16 * digit)).astype(np.uint16)
      order = order[np.argsort(key, kind='stable')]
  return order


def build(codes: np.ndarray, item: np.ndarray | None = None) -> types.Trie:
  """Builds the trie of a catalog, or of a subset of it.

  Args:
    codes: [V, L] integers >= 0, row i = the semantic ID of item i. Levels may
      have different codebook sizes; several items may share a code.
    item: [R] ids in [0, V) of the only items to put in (in any order,
      duplicates count once), or None for all V.

  Returns:
    A Trie of NumPy arrays. Items that share a code are ascending.

  Raises:
    InputError: negative codes, not an integer [V, L] array, an unknown id, or
      no items at all.
  """
  codes = checked(codes)
  if item is not None:
    item = selected(item, codes.shape[0])
    codes = codes[item]
  if not codes.shape[0]:
    raise types.InputError('codes: no items; a trie needs at least one')
  if codes.shape[0] > _MAX_INT32:
    raise types.InputError(
        f'codes: {codes.shape[0]} items are too many for int32')
  check_values(codes)
  # The order is stable and ids are ascending before it: so they are
  # ascending among items of one code after it.
  order = order_by_code(codes)
  items = order if item is None else item[order].astype(np.int32)
  # One column at a time: all of them at once may not fit.
  return from_columns(
      (narrow(codes[:, level])[order] for level in range(codes.shape[1])),
      items)


def narrow(column: np.ndarray) -> np.ndarray:
  """Returns codes [n] in the narrowest dtype that holds them."""
  return column.astype(code_dtype(int(column.max()) + 1))


def from_columns(columns: Iterable[np.ndarray], items: np.ndarray
                 ) -> types.Trie:
  """Builds the trie of codes that are in order already.

  Args:
    columns: L arrays [n], the codes of each level, lexicographically ascending
      row by row.
    items: [n] int32 their ids, ascending among equal codes.

  Returns:
    The trie; its codes have the columns' dtypes.
  """
  is_new = np.zeros(items.size, bool)  # Does a node begin at this item?
  is_new[0] = True
  start = np.zeros(1, np.int32)  # First item below each node.
  first_child, code = [], []
  columns = iter(columns)
  column = next(columns)
  for following in itertools.chain(columns, [None]):
    if following is None:
      # The nodes of the last level are the items, in order.
      first = start
    else:
      is_new[1:] |= column[1:] != column[:-1]
      child_start = np.flatnonzero(is_new).astype(np.int32)
      first = np.searchsorted(child_start, start).astype(np.int32)
      start, column = child_start, column[child_start]
    first_child.append(np.append(first, np.int32(column.size)))
    code.append(column)
    column = following
  return types.Trie(
      first_child=tuple(first_child), code=tuple(code), items=items,
      allowed=None)


def columns(t: types.Trie) -> list[np.ndarray]:
  """Returns the codes of the trie's items, L arrays [n] in its order.

  Args:
    t: a trie with NumPy arrays, not padded.
  """
  found, edges = [t.code[-1]], t.first_child[-1]
  for first, code in zip(t.first_child[-2::-1], t.code[-2::-1]):
    found.insert(0, np.repeat(code, np.diff(edges)))
    edges = edges[first]
  return found


def selected(item: np.ndarray, num_items: int) -> np.ndarray:
  """Returns the distinct ids of a subset, ascending, or raises InputError."""
  item = np.asarray(item)
  if item.ndim != 1 or not np.issubdtype(item.dtype, np.integer):
    raise types.InputError(
        f'item: expected integer ids [R], got {item.dtype} of shape '
        f'{item.shape}; turn a boolean mask into ids with np.flatnonzero')
  item = np.unique(item)
  if item.size and (item[0] < 0 or item[-1] >= num_items):
    wrong = item[0] if item[0] < 0 else item[-1]
    raise types.InputError(
        f'item: id {wrong} is not in the catalog; ids must lie in '
        f'[0, {num_items})')
  return item


def depth(t: types.Trie) -> int:
  """Returns L, the number of levels of a trie."""
  return len(t.code)


def nbytes(t: types.Trie) -> int:
  """Returns the bytes that a trie's arrays take."""
  return sum(x.nbytes for x in jax.tree.leaves(t))
