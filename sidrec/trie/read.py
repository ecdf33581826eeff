"""Reads a trie: finding codes, and allowing a part of its items only."""

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.trie import construct


def bisect(
    code: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray,
    *, right: bool = False) -> np.ndarray:
  """Finds where codes stand among ascending codes of ranges, on the host.

  Args:
    code: [n] ascending within every range.
    low, high: [R] int64 the ranges.
    wanted: [R] codes.
    right: behind equal codes instead of before them.

  Returns:
    [R] int64 places in [low, high].
  """
  low, high = low.copy(), high.copy()
  # All rows bisect their own range together: the number of rounds is the
  # logarithm of the widest range.
  while (low < high).any():
    middle = (low + high) // 2
    here = code[np.minimum(middle, code.size - 1)].astype(np.int64)
    below = here <= wanted if right else here < wanted
    active = low < high
    low = np.where(active & below, middle + 1, low)
    high = np.where(active & ~below, middle, high)
  return low


def lookup(t: types.Trie, codes: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
  """Finds the items of each code, on the host.

  Args:
    t: a trie with concrete arrays.
    codes: [R, L] integers; codes that no item has are allowed.

  Returns:
    (first, count), [R] int64 each: the items of row i are
    `t.items[first[i]:first[i] + count[i]]`; count 0 where there is none.

  Raises:
    InputError: not an integer array [R, L] of the trie's L.
  """
  codes = construct.checked(codes)
  num_levels = len(t.code)
  if codes.shape[1] != num_levels:
    raise types.InputError(
        f'codes: {codes.shape[1]} levels, but the trie has {num_levels}')
  node = np.zeros(codes.shape[0], np.int64)
  found = np.ones(codes.shape[0], bool)
  for level, (first, code) in enumerate(zip(t.first_child, t.code)):
    first, code = np.asarray(first), np.asarray(code)
    wanted = codes[:, level].astype(np.int64)
    low, high = first[node].astype(np.int64), first[node + 1].astype(np.int64)
    place = bisect(code, low, high, wanted)
    inside = np.minimum(place, code.size - 1)
    found &= (place < high) & (code[inside] == wanted)
    if level + 1 == num_levels:
      stop = bisect(code, place, high, wanted, right=True)
      return place, np.where(found, stop - place, 0)
    node = np.where(found, inside, 0)


def restrict(t: types.Trie, item: types.Array) -> types.Trie:
  """Allows a part of a trie's items only (in stock, fresh, this market).

  The nodes stay as they are: the cost is one pass over them, on the device
  if the arrays lie there, and nothing is compiled anew for another part.

  Args:
    t: a trie.
    item: [V] bool by item id, True = may be returned; V above every id of the
      trie. Or [R] integer ids of the items that may, with a concrete trie.

  Returns:
    The same trie with `allowed`: a node is allowed where an item below it is.

  Raises:
    InputError: neither form, or too short a mask.
  """
  use = np if isinstance(t.items, np.ndarray) and isinstance(
      item, (np.ndarray, list, tuple)) else jnp
  item = use.asarray(item)
  if item.ndim != 1 or item.dtype != bool and not np.issubdtype(
      item.dtype, np.integer):
    raise types.InputError(
        f'item: expected a bool mask [V] or integer ids [R], got {item.dtype} '
        f'of shape {item.shape}')
  if item.dtype == bool:
    traced = any(isinstance(x, jax.core.Tracer) for x in (t.items, item))
    if not traced and int(t.items.max(initial=0)) >= item.shape[0]:
      raise types.InputError(
          f'item: a mask of {item.shape[0]} rows, but the trie holds item '
          f'{int(t.items.max())}; give one row for each item id')
    below = item[t.items]
  else:
    below = use.isin(t.items, item)
  allowed = [below]
  for first in reversed(t.first_child[1:]):
    zero = use.zeros(1, use.int32)
    seen = use.concatenate([zero, use.cumsum(allowed[0], dtype=use.int32)])
    below = seen[first[1:]] > seen[first[:-1]]
    allowed.insert(0, below)
  return t.replace(allowed=tuple(allowed))
