"""Point-in-time u2i statistics, answered for any (user, item, time).

Each statistic counts only entries strictly before the time asked for; those
at the same time are left out. Entries are sorted by (group, rank of time)
with prefix sums, so a question is two binary searches.
"""

import dataclasses
from typing import Any, Sequence

import numpy as np

PRIOR_STRENGTH = 5.  # Exposures that the prior rate counts for.
_MS_PER_HOUR = 3_600_000.


@dataclasses.dataclass(frozen=True)
class Entries:
  """What is counted: exposures and positives of users with items.

  user, item: [N] int32.
  rank: [N] int64 rank of the time in `Index.times`.
  exposure, positive: [N] int64 in {0, 1}.
  """
  user: np.ndarray
  item: np.ndarray
  rank: np.ndarray
  exposure: np.ndarray
  positive: np.ndarray

  def where(self, mask: np.ndarray) -> 'Entries':
    """Keeps the entries where `mask` [N] is True."""
    return Entries(*(getattr(self, field.name)[mask]
                     for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Column:
  """The values of one item column, as lists.

  name: for the names of the statistics.
  offsets: [V + 1]; item v has `codes[offsets[v]:offsets[v + 1]]`.
  codes: distinct values of each item, in [0, size).
  size: number of values.
  """
  name: str
  offsets: np.ndarray
  codes: np.ndarray
  size: int

  def expand(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row, code) [M] for items [N]: one a value of each."""
    start, count = self.offsets[items], self.offsets[items + 1]
    count = count - start
    if len(self.codes) == len(self.offsets) - 1 and np.all(count == 1):
      return np.arange(len(items)), self.codes[start]
    row = np.repeat(np.arange(len(items)), count)
    stop = np.cumsum(count)
    place = np.arange(len(row)) - np.repeat(stop - count, count)
    return row, self.codes[start[row] + place]


class _Table:
  """Finds int64 keys: open addressing, all questions at once.

  Most questions (a user with a random item) have no entry; a hash says so
  with one look where a binary search needs twenty.
  """

  def __init__(self, names: np.ndarray):
    """Stores distinct keys [G] >= 0; the answer is their place."""
    bits = max(int(3 * len(names)).bit_length(), 4)
    self._shift = np.uint64(64 - bits)
    tail = 64
    while True:  # A run of taken slots may pass the end: then a longer tail.
      self._key = np.full((1 << bits) + tail, -1, np.int64)
      self._value = np.zeros((1 << bits) + tail, np.int32)
      todo, slot = np.arange(len(names)), self._slot(names)
      while len(todo) and slot.max() < len(self._key) - 1:
        free = self._key[slot] < 0
        self._key[slot[free]] = names[todo[free]]
        won = self._key[slot] == names[todo]
        self._value[slot[won]] = todo[won]
        todo, slot = todo[~won], slot[~won] + 1
      if not len(todo):
        return
      tail *= 4

  def _slot(self, keys: np.ndarray) -> np.ndarray:
    """Returns the first slot of each key (Fibonacci hashing)."""
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> self._shift).astype(np.int64)

  def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (which, place): the questions with an answer, and the answers."""
    place = np.full(len(keys), -1, np.int64)
    todo, slot = np.arange(len(keys)), self._slot(keys)
    while len(todo):
      there = self._key[slot]
      hit = there == keys[todo]
      place[todo[hit]] = self._value[slot[hit]]
      more = ~hit & (there >= 0)
      todo, slot = todo[more], slot[more] + 1
    which = np.flatnonzero(place >= 0)
    return which, place[which]


class _Groups:
  """Entries by group and time, with prefix sums."""

  def __init__(self, group: np.ndarray, entries: Entries, num_ranks: int,
               num_groups: int | None = None):
    """Sorts [N] entries.

    Args:
      group: [N] int64 group of each entry.
      entries: what to count.
      num_ranks: R; ranks are in [0, R].
      num_groups: groups are dense in [0, num_groups); None: they are sparse.
    """
    self._stride = num_ranks + 1
    group = group.astype(np.int64)
    # Entries of one group and time never part: their order is no matter.
    if int(group.max(initial=0)) < 2**62 // self._stride:
      order = np.argsort(group * self._stride + entries.rank)
    else:
      order = np.lexsort((entries.rank, group))
    group, self._rank = group[order], entries.rank[order].astype(np.int64)
    self._table = None
    if num_groups is None:
      first = np.flatnonzero(np.diff(group, prepend=-1))
      self._table = _Table(group[first])
      group = np.repeat(
          np.arange(len(first)), np.diff(first, append=len(group)))
      num_groups = len(first)
    self._start = np.searchsorted(group, np.arange(num_groups + 1))
    self._key = group * self._stride + self._rank
    # With one time a group there is nothing to search within it.
    self._one_time = bool(np.all(
        (np.diff(group) > 0) | (np.diff(self._rank) == 0)))
    zero = np.zeros(1, np.int64)
    self._exposures = None
    if not np.all(entries.exposure == 1):
      self._exposures = np.concatenate(
          [zero, np.cumsum(entries.exposure[order])])
    self._positives = np.concatenate(
        [zero, np.cumsum(entries.positive[order])])

  def query(
      self, group: np.ndarray, rank: np.ndarray, with_last: bool = False
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts entries of groups [M] before ranks [M].

    Args:
      group, rank: [M] int64.
      with_last: whether `last` is wanted, else it is all -1.

    Returns:
      exposures, positives [M] int64; last [M] int64 rank of the last entry,
      -1 where there is none.
    """
    exposures = np.zeros(len(group), np.int64)
    positives = np.zeros(len(group), np.int64)
    last = np.full(len(group), -1, np.int64)
    if not len(self._key):
      return exposures, positives, last
    found = slice(None)
    group = group.astype(np.int64)
    if self._table is not None:
      found, group = self._table.find(group)
      rank = rank[found]
    start = self._start[group]
    if self._one_time:
      stop = self._start[group + 1]
      early = self._rank[np.minimum(start, len(self._rank) - 1)] < rank
      stop = np.where(early, stop, start)
    else:
      stop = search(self._key, group * self._stride + rank)
    if self._exposures is None:
      exposures[found] = stop - start
    else:
      exposures[found] = self._exposures[stop] - self._exposures[start]
    positives[found] = self._positives[stop] - self._positives[start]
    if with_last:
      last[found] = np.where(stop > start, self._rank[stop - 1], -1)
    return exposures, positives, last


def search(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Returns searchsorted(keys, wanted), asked in order: it spares the cache.

  Of 5 million random questions that takes a fifth of the time.

  Args:
    keys: [N] sorted.
    wanted: [M].
  """
  order = np.argsort(wanted)
  result = np.empty(len(wanted), np.int64)
  result[order] = np.searchsorted(keys, wanted[order])
  return result


class _Prior:
  """The positive rate of everything strictly before a time.

  Not the rate of the training split: that would let a later label change an
  earlier feature.
  """

  def __init__(self, entries: Entries, num_ranks: int, constant: bool):
    exposures = np.bincount(
        entries.rank, weights=entries.exposure, minlength=num_ranks + 1)
    positives = np.bincount(
        entries.rank, weights=entries.positive, minlength=num_ranks + 1)
    exposures = np.concatenate([[0.], np.cumsum(exposures)])
    positives = np.concatenate([[0.], np.cumsum(positives)])
    self._rate = (positives + .5 * PRIOR_STRENGTH) / (
        exposures + PRIOR_STRENGTH)
    if constant:
      self._rate[:] = .5

  def smooth(
      self, exposures: np.ndarray, positives: np.ndarray, rank: np.ndarray
  ) -> np.ndarray:
    """Returns the smoothed rate minus the prior: 0 where nothing is known."""
    prior = self._rate[rank]
    return (positives - prior * exposures) / (exposures + PRIOR_STRENGTH)


class _Source:
  """All groupings of one set of entries: the log, or what came before it."""

  def __init__(
      self, prefix: str, entries: Entries, item_entries: Entries,
      columns: Sequence[Column], index: 'Index', *, recency: bool,
      positives: bool, item_stats: bool):
    num_ranks, num_users = len(index.times), index.num_users
    self.prefix, self.recency, self.positives = prefix, recency, positives
    self.pairs, self.values, self.user = [], [], None
    self.columns = columns
    self._index = index
    # Positions of two users cannot be compared: no statistics across users.
    across = item_stats and not index.ordinal
    self.prior = _Prior(item_entries, num_ranks, index.ordinal)
    for column in columns:
      row, code = column.expand(entries.item)
      of_row = entries.where(row)
      pair = entries.user[row].astype(np.int64) * column.size + code
      self.pairs.append(_Groups(pair, of_row, num_ranks))
      if across:
        row, code = column.expand(item_entries.item)
        self.values.append(_Groups(
            code, item_entries.where(row), num_ranks, column.size))
    if item_stats:
      self.user = _Groups(entries.user, entries, num_ranks, num_users + 1)

  def names(self) -> list[str]:
    """Returns the names of the statistics, in the order of `query`."""
    counts = ['exposures'] + ['positives', 'rate'] * self.positives
    pair = counts + ['recency', 'never'] * self.recency
    names = []
    for column in self.columns:
      names += [f'u2i/{column.name}/{self.prefix}{name}' for name in pair]
      if self.values:
        names += [f'item/{column.name}/{self.prefix}{name}' for name in counts]
    if self.user is not None:
      names += [f'user/{self.prefix}{name}' for name in counts]
    return names

  def query(
      self, user: np.ndarray, item: np.ndarray, rank: np.ndarray,
      time: np.ndarray,
  ) -> list[np.ndarray]:
    """Returns one [N] array a name."""
    result = []
    for number, column in enumerate(self.columns):
      row, code = column.expand(item)
      pair = user[row].astype(np.int64) * column.size + code
      parts = self.pairs[number].query(
          pair, rank[row], self.recency)
      result += self._counts(parts, row, rank)
      if self.recency:
        result += self._recency(parts[2], row, time)
      if self.values:
        parts = self.values[number].query(code, rank[row])
        result += self._counts(parts, row, rank)
    if self.user is not None:
      every = np.arange(len(user))
      result += self._counts(self.user.query(user, rank), every, rank)
    return result

  def _counts(self, parts: Any, row: np.ndarray, rank: np.ndarray):
    """Sums the counts of the values of each row; makes logs and the rate."""
    exposures, positives = parts[0], parts[1]
    if not _is_identity(row, len(rank)):
      exposures = np.bincount(row, exposures, len(rank))
      positives = np.bincount(row, positives, len(rank))
    result = [np.log1p(exposures)]
    if self.positives:
      result += [np.log1p(positives),
                 self.prior.smooth(exposures, positives, rank)]
    return result

  def _recency(self, last: np.ndarray, row: np.ndarray, time: np.ndarray):
    """Returns log1p of the time since the latest of all values, and never."""
    latest = last
    if not _is_identity(row, len(time)):
      latest = np.full(len(time), -1, np.int64)
      np.maximum.at(latest, row, last)
    never = latest < 0
    elapsed = time - self._index.times[np.maximum(latest, 0)]
    unit = 1. if self._index.ordinal else _MS_PER_HOUR
    elapsed = np.where(never, 0., np.maximum(elapsed, 0) / unit)
    return [np.log1p(elapsed), never]


def _is_identity(row: np.ndarray, num_rows: int) -> bool:
  """Returns whether every row has exactly one value."""
  return len(row) == num_rows and bool(np.all(row == np.arange(num_rows)))


class Index:
  """Answers u2i, item and user statistics at any time."""

  def __init__(
      self, *, num_users: int, times: np.ndarray, log: Entries,
      log_positives: bool, columns: Sequence[Column], ordinal: bool,
      before: Entries | None = None, before_positives: bool = False,
      item_mask: np.ndarray | None = None, item_stats: bool = True):
    """Builds all indices.

    Args:
      num_users: U; user U is unknown and has no entries.
      times: [R] int64 sorted unique times of all entries.
      log: events.
      log_positives: whether labels differ, so that rates say something.
      columns: item columns to count by.
      ordinal: times are positions within a user; then users cannot be
        compared in time and item statistics are left out.
      before: entries from before the log, at a time they are surely known.
      before_positives: the same for them.
      item_mask: [N] events that item statistics may count; default all.
      item_stats: whether to add item-level and user-level statistics.
    """
    self.num_users, self.times, self.ordinal = num_users, times, ordinal
    item_log = log if item_mask is None else log.where(item_mask)
    self._sources = []
    if columns:
      self._sources.append(_Source(
          '', log, item_log, columns, self, recency=True,
          positives=log_positives, item_stats=item_stats))
      if before is not None:
        self._sources.append(_Source(
            'history_', before, before, columns, self,
            recency=False, positives=before_positives, item_stats=item_stats))
    self.names = tuple(
        name for source in self._sources for name in source.names())

  def rank(self, time: np.ndarray) -> np.ndarray:
    """Returns the number of distinct times strictly before each time."""
    return np.searchsorted(self.times, time)

  def query(
      self, user: np.ndarray, item: np.ndarray, time: np.ndarray,
  ) -> np.ndarray:
    """Returns the statistics strictly before each time.

    Args:
      user: [N] int32 in [0, U].
      item: [N] int32 in [0, V).
      time: [N] int64.

    Returns:
      [N, X] float32, columns as in `names`.
    """
    result = np.empty((len(user), len(self.names)), np.float32)
    if not self.names:
      return result
    rank = self.rank(time)
    column = 0
    for source in self._sources:
      for values in source.query(user, item, rank, time):
        result[:, column] = values
        column += 1
    return result
