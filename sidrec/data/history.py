"""Per-user sequences, gathered strictly before a time."""

import dataclasses
from typing import Mapping, Sequence

import numpy as np

from sidrec import types
from sidrec.data import cross
from sidrec.data import lookup

# What the user did with a history item.
NOT_CLICKED, POSITIVE, EXPOSED, LONG_VIEWED, LIKED = range(5)
_SUBSETS = (('long_viewed', LONG_VIEWED), ('liked', LIKED))


@dataclasses.dataclass(frozen=True)
class Before:
  """What users did before the log starts.

  user, item: [N] int32.
  rank: [N] int64 rank of the time at which all of the user's list is surely
    known (`until`).
  action: [N] int32.
  positive: [N] bool, in the positive subset (long_viewed if there, else
    liked, else all).
  has_positives: whether that subset differs from all.
  """
  user: np.ndarray
  item: np.ndarray
  rank: np.ndarray
  action: np.ndarray
  positive: np.ndarray
  has_positives: bool


def before(
    histories: Mapping[str, np.ndarray], user: np.ndarray,
    rank: np.ndarray, num_items: int,
) -> Before:
  """Flattens the lists of `histories`, oldest first.

  Args:
    histories: after `tables.check`; `exposed` is the sequence where there is
      one, else the first list column; other lists say more of its items, and
      what only they hold is older.
    user: [rows] int32 user of each row.
    rank: [rows] int64 rank of the time of each row (`until`).
    num_items: V.
  """
  names = [name for name in histories if name not in ('user_id', 'until')]
  main = 'exposed' if 'exposed' in names else names[0] if names else None

  def flatten(name: str | None) -> tuple[np.ndarray, np.ndarray]:
    if name is None or not len(user):
      return np.zeros(0, np.int32), np.zeros(0, np.int32)
    return histories[name].rows, histories[name].codes

  row, item = flatten(main)
  # A list without subsets says only that the user chose these items.
  subsets = [name for name, _ in _SUBSETS if name in names and name != main]
  row, item = _with_older(row, item, [flatten(n) for n in subsets],
                          num_items)
  key = row.astype(np.int64) * num_items + item
  action = np.full(
      len(row), EXPOSED if subsets or main == 'exposed' else POSITIVE, np.int32)
  positive = np.ones(len(row), bool)
  for name, code in _SUBSETS:
    if name in subsets:
      sub_row, sub_item = flatten(name)
      member = _is_in(
          key, sub_row.astype(np.int64) * num_items + sub_item)
      action[member] = code
      if name == subsets[0]:
        positive = member
  return Before(
      user=user[row].astype(np.int32), item=item, rank=rank[row],
      action=action, positive=positive, has_positives=bool(subsets))


def _with_older(
    row: np.ndarray, item: np.ndarray,
    subsets: Sequence[tuple[np.ndarray, np.ndarray]], num_items: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Puts what only a subset lists in front of each row's sequence.

  Lists are often capped one by one: an item that was liked but is not among
  the last exposures was exposed before all of them.
  """
  for sub_row, sub_item in subsets:
    key = row.astype(np.int64) * num_items + item
    extra = ~_is_in(sub_row.astype(np.int64) * num_items + sub_item, key)
    row = np.concatenate([sub_row[extra], row])
    item = np.concatenate([sub_item[extra], item])
    order = np.argsort(row, kind='stable')
    row, item = row[order], item[order]
  return row, item


def _is_in(keys: np.ndarray, members: np.ndarray) -> np.ndarray:
  """Returns np.isin(keys, members), quick where both ascend roughly."""
  if not len(members):
    return np.zeros(len(keys), bool)
  members = np.sort(members)
  place = np.minimum(np.searchsorted(members, keys), len(members) - 1)
  return members[place] == keys


def from_before(entries: Before) -> cross.Entries:
  """Returns the entries that u2i statistics count."""
  return cross.Entries(
      user=entries.user, item=entries.item, rank=entries.rank,
      exposure=np.ones(len(entries.rank), np.int64),
      positive=entries.positive.astype(np.int64))


def actions(label: np.ndarray) -> np.ndarray:
  """Returns what was done at events of the log, int32, of labels {0, 1}."""
  return np.where(label > 0, POSITIVE, NOT_CLICKED).astype(np.int32)


def num_actions(entries: Before | None) -> int:
  """Returns how many actions there are, with or without earlier ones."""
  return 2 if entries is None else 5


def seconds(time: np.ndarray, start: int, ordinal: bool) -> np.ndarray:
  """Returns times as `types.Sequence` has them, [N] int32.

  Args:
    time: [N] int64 ms; or positions, which stay.
    start: time of the first event of the log; what is earlier becomes 0.
    ordinal: whether times are positions.
  """
  if not ordinal:
    time = (time - start) // 1000
  return np.clip(time, 0, np.iinfo(np.int32).max).astype(np.int32)


def last(sequence: types.Sequence, length: int) -> types.Sequence:
  """Returns the last places of sequences [B, S]."""
  return types.Sequence(row=sequence.row, **{
      name: values[:, -length:] for name, values in vars(sequence).items()
      if name != 'row'})


def seen(sequence: types.Sequence, length: int) -> types.Seen | None:
  """Returns what the last places of sequences [B, S] hold."""
  if not length:
    return None
  return types.Seen(
      item=sequence.item[:, -length:], action=sequence.action[:, -length:],
      mask=(sequence.segment[:, -length:] > 0).astype(np.float32))


class Sequences:
  """All users' sequences in one array, oldest first."""

  def __init__(
      self, *, num_users: int, num_ranks: int, user: np.ndarray,
      rank: np.ndarray, item: np.ndarray, action: np.ndarray,
      label: np.ndarray, time: np.ndarray):
    """Sorts N entries by (user, time); ties keep their order.

    Args:
      num_users: U; user U has no entries.
      num_ranks: R; ranks are in [0, R].
      user, rank, item, action: [N].
      label: [N] in {0, 1}.
      time: [N] int32 of `seconds`.
    """
    self._unknown = num_users
    self._stride = num_ranks + 1
    key = user.astype(np.int64) * self._stride + rank
    order = np.argsort(key, kind='stable')
    self._key = key[order]
    # One entry more that holds zeros, for places where nothing is: a gather
    # is then one look-up a field.
    self._fields = {
        name: np.append(values[order], [0]).astype(kind)
        for name, values, kind in (
            ('item', item, np.int32), ('action', action, np.int32),
            ('time', time, np.int32), ('label', label, np.float32))}
    self.item, self.action = (
        self._fields[name][:-1] for name in ('item', 'action'))
    self.offsets = np.searchsorted(
        self._key, np.arange(num_users + 2) * self._stride)

  def stop(self, user: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Returns [B] the place after the user's last entry before the rank."""
    return lookup.search(
        self._key, user.astype(np.int64) * self._stride + rank)

  def places(
      self, user: np.ndarray, stop: np.ndarray, length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the last `length` entries before `stop` are.

    Args:
      user, stop: [B].
      length: T.

    Returns:
      place [B, T] int64, newest last, N where nothing is; valid [B, T] bool.
    """
    place = stop[:, None] + np.arange(-length, 0)
    valid = place >= self.offsets[user][:, None]
    return np.where(valid, place, len(self._key)), valid

  def items_at(self, place: np.ndarray) -> np.ndarray:
    """Returns the items [...] int32 of `places`, 0 where nothing is."""
    return self._fields['item'].take(place)

  def gather(
      self, user: np.ndarray, stop: np.ndarray, length: int, row: np.ndarray
  ) -> types.Sequence:
    """Returns the last `length` entries before `stop`.

    Args:
      user, stop: [B].
      length: T.
      row: [B] rows of the global batch.

    Returns:
      [B, T] each, newest last, nothing in front; no place is a target.
    """
    place, valid = self.places(user, stop, length)
    return types.Sequence(
        row=np.asarray(row, np.int32),
        user=np.where(valid, user[:, None], self._unknown).astype(np.int32),
        segment=valid.astype(np.int32),
        target=np.zeros(valid.shape, np.float32),
        **{name: values.take(place)
           for name, values in self._fields.items()})

  def give(
      self, sequence: types.Sequence, rows: Sequence[int], user: np.ndarray,
      lists: Sequence[np.ndarray], ordinal: bool) -> None:
    """Writes given lists into rows of a history, in place, newest last.

    Args:
      sequence: of `gather`.
      rows: M rows to write.
      user: [M] whose they are.
      lists: M arrays of items, oldest first; every item counts as positive,
        the newest are kept.
      ordinal: times are positions; else nothing is known of them: 0.
    """
    length = sequence.item.shape[1]
    for row, who, items in zip(rows, user, lists):
      items = items[max(len(items) - length, 0):]
      valid = np.arange(length) >= length - len(items)
      sequence.segment[row], sequence.label[row] = valid, valid
      sequence.action[row] = valid * POSITIVE
      sequence.user[row] = np.where(valid, who, self._unknown)
      sequence.item[row], sequence.time[row] = 0, 0
      sequence.item[row, valid] = items
      if ordinal:
        sequence.time[row, valid] = np.arange(len(items))
