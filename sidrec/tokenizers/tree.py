"""A tree of codes with capacities: each vector gets a tuple of its own (host).

Within each node of the tree the vectors are assigned to the codewords of the
level with capacity min(ceil(slack * n / K), room below), and 1 on the last
level, so that tuples are distinct by construction.
"""

import math
from typing import Callable, NamedTuple, Sequence

import numpy as np

from sidrec.tokenizers import kmeans
from sidrec.tokenizers import transport
from sidrec.tokenizers import walk


class Tree(NamedTuple):
  """A tree of codes.

  codes: [V, L] int32, all tuples distinct.
  books: L of [K_l, D] float32, the codewords of each level.
  gaps: [L] float32, mean difference of the two smallest squared distances.
  """
  codes: np.ndarray
  books: tuple[np.ndarray, ...]
  gaps: np.ndarray


def _top_two_gap(cost: np.ndarray) -> np.ndarray:
  """Returns second smallest minus smallest of each row: [n, K] -> [n]."""
  two = np.partition(cost, 1, axis=1)
  return two[:, 1] - two[:, 0]


def grow(
    vectors: np.ndarray, sizes: Sequence[int],
    book_fn: Callable[[int, np.ndarray], np.ndarray], *, slack: float = 1.,
    old: np.ndarray | None = None, bonus: np.ndarray | None = None,
    exact: bool | None = None
) -> Tree:
  """Gives each vector a code tuple of its own, level by level.

  Args:
    vectors: [V, D].
    sizes: (K_1, ..., K_L), whose product must be at least V.
    book_fn: (level from 0, residuals [V, D]) -> codewords [K_l, D].
    slack: how much fuller than even a code may be.
    old: [V, L] earlier codes to stay near to, or None.
    bonus: [L] squared distance that an unchanged code is given for free.
    exact: see `transport.assign`.
  """
  num_items = len(vectors)
  node = np.zeros(num_items, np.int64)  # Of the tree so far, from 0.
  same = np.ones(num_items, bool)  # Whose codes so far are the old ones.
  gaps = []

  def level_fn(level: int, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    nonlocal node, same
    book = np.asarray(book_fn(level, rest), np.float32)
    cost = kmeans.squared(rest, book)
    gaps.append(_top_two_gap(cost).mean())
    if old is not None:
      rows = np.flatnonzero(same)
      cost[rows, old[rows, level]] -= bonus[level]
    room = math.prod(sizes[level + 1:])
    codes = np.empty(num_items, np.int32)
    order = np.argsort(node, kind='stable')
    bounds = np.searchsorted(node[order], np.arange(node.max() + 2))
    for first, last in zip(bounds[:-1], bounds[1:]):
      rows = order[first:last]
      even = math.ceil(slack * len(rows) / sizes[level] - 1e-9)
      codes[rows] = transport.assign(
          cost[rows], min(even, room), exact=exact)
    if old is not None:
      same = same & (codes == old[:, level])
    _, node = np.unique(node * sizes[level] + codes, return_inverse=True)
    return codes, book

  codes, books, _ = walk.descend(level_fn, vectors, len(sizes))
  assert node.max() + 1 == num_items, 'Code tuples are not distinct.'
  return Tree(codes, books, np.asarray(gaps, np.float32))
