"""What becomes of items that share a code tuple: one step after a quantizer.

Rules:
  none: nothing; downstream must expand a tuple to its items.
  suffix: one more level numbers the items of a tuple, 0 where there is but one
    (TIGER, arXiv 2305.05065, section 3.1).
  sinkhorn: LETTER's repair (arXiv 2405.07314): each group chooses its last
    codes again by Sinkhorn within the group, up to `num_rounds` times. Groups
    may be left.
  capacity: on the last level, the most popular item of a group keeps its code
    and the others take the nearest code that is free below their prefix. Where
    a prefix has more items than codes, the least popular ones leave it for the
    prefix that shares the longest beginning and, below it, branches with the
    fewest items (with vectors of the last level alone no distance between
    prefixes is known).

All are deterministic: order is by popularity, then by item number.
"""

from typing import Any, Sequence

import jax
import numpy as np

from sidrec import config as config_lib
from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import transport

RULES = ('none', 'suffix', 'sinkhorn', 'capacity')
RANGES: ranges.Table = {
    'collisions': ranges.choice(*RULES), 'suffix_size': ranges.CODES}
_BY_CODEWORDS = ('sinkhorn', 'capacity')
_EPSILON = .003  # LETTER's, on distances scaled to [-1, 1].
_BLOCK = 1 << 13  # Entries [G, n, K] that one Sinkhorn call holds.

Resolved = tuple[np.ndarray, tuple[int, ...], dict[str, float]]


def groups(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Finds the items that share a tuple.

  Args:
    codes: [V, L] integers >= 0.

  Returns:
    (group [V] int64, numbered in lexicographic order of the tuples; count [G]
    items of each).
  """
  if not codes.shape[1]:
    return np.zeros(len(codes), np.int64), np.array([len(codes)])
  order = np.lexsort(codes.T[::-1])
  ordered = codes[order]
  new = np.r_[False, (ordered[1:] != ordered[:-1]).any(1)]
  group = np.empty(len(codes), np.int64)
  group[order] = np.cumsum(new)
  return group, np.bincount(group)


def _ranks(group: np.ndarray, priority: np.ndarray) -> np.ndarray:
  """Returns each item's place [V] in its group by priority [V], then id."""
  order = np.lexsort((priority, group))
  ordered = group[order]
  rank = np.empty(len(group), np.int64)
  rank[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
  return rank


def check(settings: Any, tokenizer: base.Tokenizer | base.Table) -> None:
  """Refuses what `resolve` would refuse, before anything is trained.

  Args:
    settings: the `codes` sub-tree: `collisions`, the rule, and `suffix_size`.
    tokenizer: whose codes they are.

  Raises:
    types.InputError: unknown rule, one that needs codewords of a tokenizer
      without, or a suffix of no codes.
  """
  config_lib.check_part(settings, RANGES, 'codes')
  if (settings.collisions in _BY_CODEWORDS
      and isinstance(tokenizer, base.Table)):
    raise types.InputError(
        f'codes.collisions: {settings.collisions} needs codewords, which '
        'this tokenizer has not; choose suffix.')


def resolve(
    rule: str, codes: types.Array, sizes: Sequence[int], *,
    residual: types.Array | None = None, book: types.Array | None = None,
    popularity: types.Array | None = None, suffix_size: int = 256,
    num_rounds: int = 20
) -> Resolved:
  """Applies a collision rule to the codes of the whole catalog.

  Args:
    rule: one of `RULES`.
    codes: [V, L] int32.
    sizes: codes of each level.
    residual: [V, d] what is left before the last level; for 'sinkhorn' and
      'capacity'.
    book: [K_L, d] codewords of the last level; likewise.
    popularity: [V] events of each item; None = all alike.
    suffix_size: codes of the level that 'suffix' adds.
    num_rounds: of 'sinkhorn' at most.

  Returns:
    (codes [V, T] int32, sizes (T), metrics): T = L + 1 for 'suffix', L for the
    others; 'suffix' and 'capacity' give distinct tuples. Metrics:
    'collisions/before' and '/after' shares of items that share their tuple,
    '/largest_group' (before), '/moved' share of items with another code than
    before, '/displacement' mean growth of the moved items' squared distance
    to their last codeword, in units of the mean before (items that changed
    prefix count as moved, not in the growth), '/left_prefix' share of items
    that changed prefix, '/rounds' of 'sinkhorn'.

  Raises:
    types.InputError: unknown rule; a group larger than suffix_size; a rule
      that needs vectors the tokenizer has not; more items than tuples.
  """
  if rule not in RULES:
    raise types.InputError(
        f'codes.collisions: {rule!r} is not one of {", ".join(RULES)}.')
  codes = np.array(codes, np.int32)
  sizes = tuple(int(size) for size in sizes)
  popularity = (np.zeros(len(codes)) if popularity is None
                else np.asarray(popularity, np.float64))
  if rule in _BY_CODEWORDS:
    if residual is None or book is None:
      raise types.InputError(
          f'codes.collisions: {rule} needs codewords, which this '
          'tokenizer has not; choose suffix.')
    residual, book = (np.asarray(v, np.float32) for v in (residual, book))
  group, count = groups(codes)
  found = {'collisions/before': _share(group, count),
           'collisions/largest_group': float(count.max())}
  new, rounds = codes, 0
  if rule == 'suffix':
    new, sizes = _suffix(codes, sizes, group, count, popularity, suffix_size)
  elif rule == 'sinkhorn':
    new, rounds = _sinkhorn(codes, residual, book, num_rounds)
  elif rule == 'capacity':
    new = _capacity(codes, sizes, residual, book, popularity)
  found |= _displacement(codes, new, residual, book)
  found['collisions/after'] = _share(*groups(new))
  found['collisions/rounds'] = float(rounds)
  return new, sizes, found


def _share(group: np.ndarray, count: np.ndarray) -> float:
  """Returns the share of items that share their tuple."""
  return float(np.mean(count[group] > 1))


def _displacement(
    old: np.ndarray, new: np.ndarray, residual: np.ndarray | None,
    book: np.ndarray | None
) -> dict[str, float]:
  """Says how far a rule moved the items, see `resolve`."""
  changed = new[:, :old.shape[1]] != old
  left = changed[:, :-1].any(1)
  found = {'collisions/moved': float(np.mean(changed.any(1))),
           'collisions/left_prefix': float(np.mean(left)),
           'collisions/displacement': 0.}
  rows = np.flatnonzero(changed[:, -1] & ~left)
  if rows.size and residual is not None and book is not None:
    dist = lambda item, code: np.sum(
        np.square(residual[item] - book[code], dtype=np.float64), 1)
    scale = dist(np.arange(len(old)), old[:, -1]).mean()
    growth = dist(rows, new[rows, -1]) - dist(rows, old[rows, -1])
    found['collisions/displacement'] = float(
        growth.mean() / max(scale, 1e-12))
  return found


def _suffix(
    codes: np.ndarray, sizes: tuple[int, ...], group: np.ndarray,
    count: np.ndarray, popularity: np.ndarray, suffix_size: int
) -> tuple[np.ndarray, tuple[int, ...]]:
  """Appends each item's place in its group, the most popular first."""
  if count.max() > suffix_size:
    raise types.InputError(
        f'codes.suffix_size: {suffix_size}, but {count.max()} items share '
        'one code tuple; raise it, or give the quantizer more codes.')
  rank = _ranks(group, -popularity)[:, None].astype(np.int32)
  return np.concatenate([codes, rank], 1), (*sizes, int(suffix_size))


@jax.jit
@jax.vmap
def _spread(dist: jax.Array, mask: jax.Array) -> jax.Array:
  """Chooses codes by Sinkhorn in G groups: [G, n, K], [G, n] -> [G, n]."""
  return transport.spread(dist, mask, epsilon=_EPSILON)


def _sinkhorn(
    codes: np.ndarray, residual: np.ndarray, book: np.ndarray, num_rounds: int
) -> tuple[np.ndarray, int]:
  """Repairs groups; returns (codes, rounds done)."""
  codes = codes.copy()
  for done in range(num_rounds):
    group, count = groups(codes)
    if count.max() == 1:
      return codes, done
    order = np.argsort(group, kind='stable')
    start = np.cumsum(count) - count
    # Sizes are filled up to powers of two, and blocks to always as many
    # groups: a handful of programs serve all.
    room = 1 << np.ceil(np.log2(count)).astype(int)
    for size in np.unique(room[count > 1]):
      chosen = np.flatnonzero((room == size) & (count > 1))
      step = max(_BLOCK // int(size * len(book)), 1)
      for i in range(0, len(chosen), step):
        block = np.resize(chosen[i:i + step], step)
        place = np.arange(size)[None]
        mask = place < count[block][:, None]
        rows = order[start[block][:, None] + np.where(mask, place, 0)]
        dist = kmeans.squared(residual[rows.reshape(-1)], book)
        found = np.asarray(_spread(dist.reshape(*rows.shape, -1), mask))
        codes[rows[mask], -1] = found[mask]
  return codes, num_rounds


class _Counts:
  """Items below each prefix, to find the emptiest place near a prefix."""

  def __init__(self, prefixes: np.ndarray, sizes: tuple[int, ...]):
    self._sizes = sizes
    # Items that a prefix of each length has room for.
    self._room = np.cumprod([1, *sizes[::-1]], dtype=object)[::-1]
    self._count = {}
    for length in range(len(sizes)):
      names, count = np.unique(
          prefixes[:, :length], axis=0, return_counts=True)
      self._count.update(zip(map(tuple, names.tolist()), count.tolist()))

  def add(self, prefix: tuple[int, ...], by: int) -> None:
    """Counts `by` items more below a prefix of length L - 1."""
    for length in range(len(prefix) + 1):
      name = prefix[:length]
      self._count[name] = self._count.get(name, 0) + by

  def place(self, prefix: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a prefix of length L - 1 with room, see the module."""
    length = len(prefix)
    while self._count.get(prefix[:length], 0) >= self._room[length]:
      length -= 1
    name = prefix[:length]
    while len(name) < len(prefix):
      below = [self._count.get((*name, k), 0)
               for k in range(self._sizes[len(name)])]
      name = (*name, int(np.argmin(below)))
    return name


def _capacity(
    codes: np.ndarray, sizes: tuple[int, ...], residual: np.ndarray,
    book: np.ndarray, popularity: np.ndarray
) -> np.ndarray:
  """Gives each item a tuple of its own, see the module."""
  codes = codes.copy()
  room = int(np.prod(sizes, dtype=object))
  if len(codes) > room:
    raise types.InputError(
        f'tokenizer.codebook_size: the levels name {room} items, the catalog '
        f'has {len(codes)}; raise it, or tokenizer.num_levels.')
  cell, count = groups(codes[:, :-1])
  guest = np.zeros(len(codes), bool)
  if count.max() > sizes[-1]:
    counts = _Counts(codes[:, :-1], sizes)
    surplus = np.flatnonzero(_ranks(cell, -popularity) >= sizes[-1])
    for row in surplus[np.argsort(-popularity[surplus], kind='stable')]:
      old = tuple(codes[row, :-1].tolist())
      counts.add(old, -1)  # Those who stay still fill it: it is no place.
      codes[row, :-1] = new = counts.place(old)
      counts.add(new, 1)
    guest[surplus] = True
    cell, count = groups(codes[:, :-1])
  _settle_cells(codes, cell, guest, popularity, residual, book)
  return codes


def _settle_cells(
    codes: np.ndarray, cell: np.ndarray, guest: np.ndarray,
    popularity: np.ndarray, residual: np.ndarray, book: np.ndarray
) -> None:
  """Moves items to the nearest free last code of their cell, in place."""
  group, count = groups(codes)
  # Items of a cell come in this order: its own ones, the popular, low ids.
  rank = _ranks(group, np.lexsort(
      (np.arange(len(codes)), -popularity, guest)).argsort())
  moving = np.flatnonzero(rank > 0)
  order = np.argsort(cell, kind='stable')
  ordered = cell[order]
  moving = moving[np.lexsort(
      (moving, -popularity[moving], guest[moving], cell[moving]))]
  bounds = np.flatnonzero(np.r_[True, np.diff(cell[moving]) > 0, True])
  for first, last in zip(bounds[:-1], bounds[1:]):
    rows = moving[first:last]
    if not rows.size:
      continue
    span = np.searchsorted(ordered, [cell[rows[0]], cell[rows[0]] + 1])
    inside = order[span[0]:span[1]]
    taken = np.zeros(len(book), bool)
    taken[codes[inside[rank[inside] == 0], -1]] = True
    dist = kmeans.squared(residual[rows], book)
    for row, own in zip(rows, dist):
      codes[row, -1] = np.argmin(np.where(taken, np.inf, own))
      taken[codes[row, -1]] = True
