"""Builds the prefix trie of a catalog's codes as flat arrays, on the host.

Everything here is NumPy: one sort of the catalog, then a handful of passes
over whole columns, and never a Python loop over items. Nodes of a level are in
lexicographic order of their prefix, so the children of a node, and the items
below it at any depth, are contiguous ranges.
"""

from typing import Sequence

import jax
import numpy as np

from sidrec import types

_MAX_INT32 = np.iinfo(np.int32).max


def _checked(codes: np.ndarray) -> np.ndarray:
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


def _check_values(codes: np.ndarray) -> None:
  """Raises InputError where a code does not fit a non-negative int32."""
  for bad, what in ((codes < 0, 'is negative'),
                    (codes > _MAX_INT32, 'is above the int32 range')):
    if bad.any():
      row, level = np.argwhere(bad)[0]
      raise types.InputError(
          f'codes: row {row}, level {level + 1}: code {codes[row, level]} '
          f'{what}; codes must lie in [0, {_MAX_INT32}]')


def _selected(item: np.ndarray, num_items: int) -> np.ndarray:
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


def build(codes: np.ndarray, item: np.ndarray | None = None) -> types.Trie:
  """Builds the trie of a catalog, or of a subset of it.

  Args:
    codes: [V, L] integers >= 0, row i = the semantic ID of item i. Levels may
      have different codebook sizes; several items may share a code.
    item: [R] ids in [0, V) of the only items to put in (in any order,
      duplicates count once), or None for all V.

  Returns:
    A Trie of NumPy int32 arrays. Items of a leaf are ascending.

  Raises:
    InputError: negative codes, not an integer [V, L] array, an unknown id, or
      no items at all.
  """
  codes = _checked(codes)
  if item is None:
    item = np.arange(codes.shape[0])
  else:
    item = _selected(item, codes.shape[0])
    codes = codes[item]
  if not item.size:
    raise types.InputError('codes: no items; a trie needs at least one')
  if item.size > _MAX_INT32:
    raise types.InputError(f'codes: {item.size} items are too many for int32')
  _check_values(codes)

  # lexsort is stable, and ids are ascending before it: so they are ascending
  # within every leaf after it.
  order = np.lexsort(codes.T[::-1])
  codes = codes[order].astype(np.int32)
  items = item[order].astype(np.int32)

  is_new = np.zeros(items.size, bool)  # Does a node begin at this item?
  is_new[0] = True
  start = np.zeros(1, np.int64)  # First item below each node: the root's is 0.
  first_child, code = [], []
  for level in range(codes.shape[1]):
    is_new[1:] |= codes[1:, level] != codes[:-1, level]
    child_start = np.flatnonzero(is_new)
    first = np.searchsorted(child_start, start)
    first_child.append(np.append(first, child_start.size).astype(np.int32))
    code.append(codes[child_start, level])
    start = child_start
  first_item = np.append(start, items.size).astype(np.int32)
  return types.Trie(first_child=tuple(first_child), code=tuple(code),
                    first_item=first_item, items=items)


def _largest_gap(offsets: types.Array) -> int:
  """Returns the longest range that consecutive offsets enclose."""
  if isinstance(offsets, jax.core.Tracer):
    raise types.InputError(
        'trie: its arrays are traced, so sizes that shape the program are not '
        'known; compute trie.branching(t) outside of jit and pass it in')
  return int(np.diff(np.asarray(offsets)).max())


def branching(t: types.Trie) -> tuple[int, ...]:
  """Returns the largest number of children of a node, for each of L levels.

  Args:
    t: a trie with concrete arrays (host or device).

  Returns:
    L Python ints; entry l belongs to the step from level l to level l + 1
    (level 0 is the root). Static, hashable: an argument of `beam_search`.

  Raises:
    InputError: the arrays are traced.
  """
  return tuple(_largest_gap(offsets) for offsets in t.first_child)


def max_items_per_leaf(t: types.Trie) -> int:
  """Returns how many items the fullest leaf holds (1 = no collision).

  Args:
    t: a trie with concrete arrays.

  Raises:
    InputError: the arrays are traced.
  """
  return _largest_gap(t.first_item)


def lookup(t: types.Trie, codes: np.ndarray) -> np.ndarray:
  """Finds the leaf of each code, on the host.

  Args:
    t: a trie with concrete arrays.
    codes: [R, L] integers; codes that no item has are allowed.

  Returns:
    [R] int32 leaf (node of level L), -1 where the trie has no such code. The
    items of leaf i are `t.items[t.first_item[i]:t.first_item[i + 1]]`.

  Raises:
    InputError: not an integer array [R, L] of the trie's L.
  """
  codes = _checked(codes)
  if codes.shape[1] != len(t.code):
    raise types.InputError(
        f'codes: {codes.shape[1]} levels, but the trie has {len(t.code)}')
  node = np.zeros(codes.shape[0], np.int64)
  found = np.ones(codes.shape[0], bool)
  for level, (first, code) in enumerate(zip(t.first_child, t.code)):
    first, code = np.asarray(first), np.asarray(code)
    wanted = codes[:, level]
    low, high = first[node].astype(np.int64), first[node + 1].astype(np.int64)
    end = high
    # All rows bisect their own range of children together: the number of
    # rounds is the logarithm of the widest range.
    while (low < high).any():
      middle = (low + high) // 2
      below = code[np.minimum(middle, code.size - 1)] < wanted
      active = low < high
      low = np.where(active & below, middle + 1, low)
      high = np.where(active & ~below, middle, high)
    inside = np.minimum(low, code.size - 1)
    found &= (low < end) & (code[inside] == wanted)
    node = np.where(found, inside, 0)
  return np.where(found, node, -1).astype(np.int32)


def pad(t: types.Trie, codebook_sizes: Sequence[int]
        ) -> tuple[types.Trie, tuple[int, ...]]:
  """Pads a trie to sizes that depend on the catalog's size alone.

  Codes move while a tokenizer trains; padded, the decoder compiles once.

  Args:
    t: of V items, NumPy leaves.
    codebook_sizes: L sizes.

  Returns:
    (trie, branching): levels of min(V, K_1 ... K_l) nodes, those added have no
    parent and no child; branching rounded up to a multiple of 4, at most K_l.
  """
  num_items = t.items.shape[0]
  wide = lambda x, size, fill: np.concatenate(
      [x, np.full(max(size - x.shape[0], 0), fill, np.int32)])
  first_child, code, nodes, room = [], [], 1, 1
  for first, codes, size in zip(t.first_child, t.code, codebook_sizes):
    first_child.append(wide(first, nodes + 1, first[-1]))
    room = min(room * size, num_items)
    nodes = room
    code.append(wide(codes, nodes, 0))
  padded = types.Trie(
      first_child=tuple(first_child), code=tuple(code),
      first_item=wide(t.first_item, nodes + 1, t.first_item[-1]),
      items=t.items)
  return padded, tuple(
      min(-(-b // 4) * 4, k) for b, k in zip(branching(t), codebook_sizes))
