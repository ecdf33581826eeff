"""Point-in-time u2i statistics, answered for any (user, item, time).

Each statistic counts only entries strictly before the time asked for; those
at the same time are left out. What labels say (positives, rates) is as of the
midnight before it, UTC: running counts would tell the exposures of one session
apart by their order, as a negative follows its own user's positives. Entries
are sorted by (group, rank of time) with prefix sums, so a question is two
binary searches.
"""

import dataclasses
from typing import Any, Sequence

import numpy as np

from sidrec.data import lookup

PRIOR_STRENGTH = 5.  # Exposures that the prior rate counts for.
_MS_PER_HOUR = 3_600_000.
_MS_PER_DAY = 86_400_000


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
      self._table = lookup.Table(group[first])
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
      stop = lookup.search(self._key, group * self._stride + rank)
    if self._exposures is None:
      exposures[found] = stop - start
    else:
      exposures[found] = self._exposures[stop] - self._exposures[start]
    positives[found] = self._positives[stop] - self._positives[start]
    if with_last:
      last[found] = np.where(stop > start, self._rank[stop - 1], -1)
    return exposures, positives, last


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
      self, prefix: str, entries: Entries, columns: Sequence[Column],
      index: 'Index', *, recency: bool, positives: bool, lagged: bool,
      prior: _Prior):
    num_ranks, num_users = len(index.times), index.num_users
    self.prefix, self.recency, self.positives = prefix, recency, positives
    self.lagged, self.prior, self.columns = lagged, prior, columns
    self._index, self.pairs = index, []
    for column in columns:
      row, code = column.expand(entries.item)
      pair = entries.user[row].astype(np.int64) * column.size + code
      self.pairs.append(_Groups(pair, entries.where(row), num_ranks))
    self.user = _Groups(entries.user, entries, num_ranks, num_users + 1)

  @property
  def counts(self) -> list[str]:
    """Names of what `_counts` returns."""
    names = ['exposures'] + ['positives', 'rate'] * self.positives
    return [f'{self.prefix}{name}' for name in names]

  def names(self) -> list[str]:
    """Returns the names of the u2i statistics, in the order of `query`."""
    of_pair = self.counts + [f'{self.prefix}{name}' for name in (
        'recency', 'never')] * self.recency
    return [f'u2i/{column.name}/{name}' for column in self.columns
            for name in of_pair]

  def query(self, user: np.ndarray, item: np.ndarray, time: np.ndarray
            ) -> list[np.ndarray]:
    """Returns one [N] array a name."""
    result = []
    ranks = self._ranks(time)
    for number, column in enumerate(self.columns):
      row, code = column.expand(item)
      pair = user[row].astype(np.int64) * column.size + code
      counts, last = self._counts(
          self.pairs[number], pair, row, ranks, self.recency)
      result += counts
      if self.recency:
        result += self._recency(last, row, time)
    return result

  def activity(self, user: np.ndarray, time: np.ndarray) -> list[np.ndarray]:
    """Returns one [N] array each of `counts`, of the users themselves."""
    return self._counts(
        self.user, user, np.arange(len(user)), self._ranks(time), False)[0]

  def _ranks(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ranks [N] up to which exposures and labels are known."""
    now = self._index.rank(time)
    if not self.lagged:
      return now, now
    return now, self._index.rank(self._index.midnight(time))

  def _counts(
      self, groups: _Groups, group: np.ndarray, row: np.ndarray,
      ranks: tuple[np.ndarray, np.ndarray], with_last: bool
  ) -> tuple[list[np.ndarray], np.ndarray]:
    """Sums the counts of the values of each row; makes logs and the rate."""
    now, known = ranks
    whole = _is_identity(row, len(now))
    total = lambda x: x if whole else np.bincount(row, x, len(now))
    exposures, positives, last = groups.query(group, now[row], with_last)
    result = [np.log1p(total(exposures))]
    if self.positives:
      if known is not now:
        exposures, positives, _ = groups.query(group, known[row])
      exposures, positives = total(exposures), total(positives)
      result += [np.log1p(positives),
                 self.prior.smooth(exposures, positives, known)]
    return result, last

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
  """Answers u2i statistics, and the users' own, at any time."""

  def __init__(
      self, *, num_users: int, times: np.ndarray, log: Entries,
      log_positives: bool, columns: Sequence[Column], ordinal: bool,
      before: Entries | None = None, before_positives: bool = False,
      item_mask: np.ndarray | None = None, activity: bool = True):
    """Builds all indices.

    Args:
      num_users: U; user U is unknown and has no entries.
      times: [R] int64 sorted unique times of all entries.
      log: events.
      log_positives: whether labels differ, so that rates say something.
      columns: item columns to count by.
      ordinal: times are positions within a user: they cannot be compared
        between users, and have no midnight.
      before: entries from before the log, at a time they are surely known.
      before_positives: the same for them.
      item_mask: [N] events that rates over all users may count; default all.
      activity: whether users' own counts are wanted.
    """
    self.num_users, self.times, self.ordinal = num_users, times, ordinal
    num_ranks = len(times)
    item_log = log if item_mask is None else log.where(item_mask)
    self._sources = []
    if columns or activity:
      self._sources.append(_Source(
          '', log, columns, self, recency=True, positives=log_positives,
          lagged=not ordinal, prior=_Prior(item_log, num_ranks, ordinal)))
      if before is not None:
        # Old enough to be known whole.
        self._sources.append(_Source(
            'history_', before, columns, self, recency=False,
            positives=before_positives, lagged=False,
            prior=_Prior(before, num_ranks, ordinal)))
    self.names = tuple(
        name for source in self._sources for name in source.names())
    self.activity_names = tuple(
        f'user/{name}' for source in self._sources for name in source.counts
    ) if activity else ()

  def midnight(self, time: np.ndarray) -> np.ndarray:
    """Returns up to when labels are known at times [N]; positions stay."""
    return time if self.ordinal else time - time % _MS_PER_DAY

  def rank(self, time: np.ndarray) -> np.ndarray:
    """Returns the number of distinct times strictly before each time."""
    return np.searchsorted(self.times, time)

  def query(
      self, user: np.ndarray, item: np.ndarray, time: np.ndarray,
  ) -> np.ndarray:
    """Returns the u2i statistics strictly before each time.

    Args:
      user: [N] int32 in [0, U].
      item: [N] int32 in [0, V).
      time: [N] int64.

    Returns:
      [N, X] float32, columns as in `names`.
    """
    return _columns([values for source in self._sources if self.names
                     for values in source.query(user, item, time)], len(user))

  def activity(self, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Returns what users [N] did before each time [N], as `activity_names`."""
    return _columns(
        [values for source in self._sources if self.activity_names
         for values in source.activity(user, time)], len(user))


def _columns(values: Sequence[np.ndarray], num_rows: int) -> np.ndarray:
  """Returns [N] arrays side by side: [N, X] float32."""
  result = np.empty((num_rows, len(values)), np.float32)
  for column, own in enumerate(values):
    result[:, column] = own
  return result
