"""The encoded data set: everything a batch is gathered from."""

import dataclasses
import functools
from typing import Any, Sequence
import zlib

from absl import logging
import numpy as np

from sidrec import types
from sidrec.data import draws
from sidrec.data import features
from sidrec.data import history
from sidrec.data import ids
from sidrec.data import splits
from sidrec.data import statistics

_SHOWN = 3  # Unknown ids that a warning names.


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A log with point-in-time features; all leaves are NumPy arrays.

  name, protocol: what results.json says of the data and of its use.
  fingerprint: short hash of the tables as read.
  spec: static facts for methods.
  catalog: item-static features, content vectors and training popularity, V
    rows. Items are numbered at random (`numbering`).
  item_ids: [V] original ids: int64, uint64, or text as objects. user_ids: [U]
    the same. titles: [V] text or None of items, None where data have none.
  file_order: [V] int32 number of the item of each row of the items table.
  has_negatives: False when every event is a positive.
  event_user, event_item: [E] int32, in order of time.
  event_time: [E] int64, ms or positions.
  event_label: [E] float32 in {0, 1}.
  event_split: [E] int8, 0 train, 1 valid, 2 test.
  ordinal: times are positions within a user.
  seed: of evaluation negatives.
  eval_negatives: drawn a positive where the log has no negatives.
  truth: what a planted world knows of itself, in internal numbers, else None.
  users: [U + 1] request features of users, the last row is unknown.
  context: [E + 1] request features of events, the last row is missing.
  counted: statistics. sequences: histories. event_stop: [E] where the history
    of each event ends.
  """
  name: str
  protocol: str
  fingerprint: str
  spec: types.DataSpec
  catalog: types.Catalog
  item_ids: np.ndarray
  titles: np.ndarray | None
  user_ids: np.ndarray
  file_order: np.ndarray
  has_negatives: bool
  event_user: np.ndarray
  event_item: np.ndarray
  event_time: np.ndarray
  event_label: np.ndarray
  event_split: np.ndarray
  ordinal: bool
  seed: int
  eval_negatives: int
  truth: Any
  users: types.FeatureTable = dataclasses.field(repr=False)
  context: types.FeatureTable = dataclasses.field(repr=False)
  counted: statistics.Statistics = dataclasses.field(repr=False)
  sequences: history.Sequences = dataclasses.field(repr=False)
  event_stop: np.ndarray = dataclasses.field(repr=False)

  def examples(self, split: str, kind: str) -> np.ndarray:
    """Returns the events of a split that serve as examples, ascending.

    Args:
      split: 'train', 'valid' or 'test'.
      kind: 'impressions' (all), 'positives' (label 1), or 'targets' (the last
        positive of each user in the split: one retrieval target a user).

    Returns:
      [N] int64 indices of events.

    Raises:
      ValueError: unknown split or kind.
    """
    mask = self.event_split == splits.NAMES.index(split)
    if kind not in ('impressions', 'positives', 'targets'):
      raise ValueError(f'unknown kind of examples: {kind!r}')
    if kind != 'impressions':
      mask &= self.event_label > 0
    events = np.flatnonzero(mask)
    if kind == 'targets':
      last = np.full(len(self.user_ids), -1)
      np.maximum.at(last, self.event_user[events], events)
      events = np.sort(last[last >= 0])
    return events

  def assemble(
      self, events: np.ndarray, items: np.ndarray, label: np.ndarray,
      row: np.ndarray | None = None, mask: np.ndarray | None = None,
  ) -> types.Batch:
    """Builds the batch of B events with C candidates each.

    Args:
      events: [B] indices of events: who asks, when, in what context.
      items: [B, C] int32 candidates.
      label: [B, C] float32.
      row: [B] int32 rows of the global batch; default 0..B-1.
      mask: [B, C] float32, 1 = valid candidate; default all.

    Returns:
      The batch. The history is what the user did strictly before the event,
      the u2i statistics too; without any of these `cross` is None.
    """
    if row is None:
      row = np.arange(len(events))
    return self.with_candidates(
        self.requests_of(events, row), events, items, label, mask)

  def requests_of(self, events: np.ndarray, row: np.ndarray) -> types.Batch:
    """Returns the requests of events [B], their candidates still empty."""
    return self._batch(
        self.event_user[events],
        self.history_of(events, self._longest, row), events,
        self.event_time[events])

  def history_of(
      self, events: np.ndarray, length: int, row: np.ndarray
  ) -> types.Sequence:
    """Returns the histories of events [B], the last `length`: [B, length]."""
    return self.sequences.gather(
        self.event_user[events], self.event_stop[events], length, row)

  def history_size(self, events: np.ndarray) -> np.ndarray:
    """Returns [B] how many entries the whole histories of events have."""
    return self.event_stop[events] - self.sequences.offsets[
        self.event_user[events]]

  def sequence(
      self, events: np.ndarray, segment: np.ndarray, target: np.ndarray,
      row: np.ndarray) -> types.Sequence:
    """Returns events as sequences.

    Args:
      events: [B, S] indices of events, -1 where nothing is.
      segment: [B, S] int32, 0 where nothing is. target: [B, S] float32.
      row: [B] rows of the global batch.
    """
    return types.Sequence(
        row=np.asarray(row, np.int32), segment=segment, target=target,
        **{name: values.take(events)
           for name, values in self._event_fields.items()})

  def to_predict(
      self, events: np.ndarray, length: int, row: np.ndarray
  ) -> types.Sequence:
    """Returns histories of events [B], and each event as the last place.

    Args:
      events: [B] with a history; else there is nothing to predict them from.
      length: most items of a history.
      row: [B] rows of the global batch.

    Returns:
      [B, length + 1] each; the last place alone is a target.
    """
    ones = np.ones((len(events), 1), np.float32)
    own = self.sequence(events[:, None], ones.astype(np.int32), ones, row)
    read = self.history_of(events, length, row)
    return types.Sequence(row=own.row, **{
        name: np.concatenate([values, getattr(own, name)], 1)
        for name, values in vars(read).items() if name != 'row'})

  def seen(
      self, events: np.ndarray, most: int = 0
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the user's sequence holds strictly before each event.

    Args:
      events: [B].
      most: N, the newest are kept; 0: as long as the longest of these needs.

    Returns:
      item [B, N] int32 (one may be there twice), mask [B, N] float32; newest
      last, nothing in front.
    """
    most = most or int(self.history_size(events).max(initial=1))
    place, valid = self.sequences.places(
        self.event_user[events], self.event_stop[events], most)
    return self.sequences.items_at(place), valid.astype(np.float32)

  def requests(
      self, users: Sequence[Any] | None = None,
      histories: Sequence[Sequence[Any] | None] | None = None,
  ) -> types.Batch:
    """Builds requests at the time after the last event, with C = 0.

    A user without a history given has that of the log; a given history
    replaces it, and its unknown items are dropped with one warning. u2i
    statistics are always those of the log; an unknown user has none.

    Args:
      users: B original ids; None, or an id not in the log, is a cold user.
      histories: B lists of original item ids, oldest first; None or an empty
        list: not given.

    Returns:
      A batch for `with_candidates(batch, None, items)`.

    Raises:
      types.InputError: if neither is given or their lengths differ.
    """
    if users is None and histories is None:
      raise types.InputError('requests: give user_id or history in each row')
    num = len(users if users is not None else histories)
    users = [None] * num if users is None else users
    histories = [None] * num if histories is None else histories
    if len(users) != len(histories):
      raise types.InputError(
          f'requests: {len(users)} users with {len(histories)} histories')
    unknown = len(self.user_ids)
    user = self._user_index.find(users).reshape(num)
    user = np.where(user < 0, unknown, user).astype(np.int32)
    cold = [row for row in range(num)
            if users[row] is not None and user[row] == unknown]
    if cold:
      logging.warning(
          '%d unknown users are answered as cold users: %s', len(cold),
          _named([(row, users[row]) for row in cold]))
    sequence = self.sequences.gather(
        user, self.sequences.offsets[user + 1], self._longest, np.arange(num))
    given = [row for row in range(num)
             if histories[row] is not None and len(histories[row])]
    self.sequences.give(
        sequence, given, user[given],
        self._known_items(given, [histories[row] for row in given]),
        self.ordinal)
    batch = self._batch(
        user, sequence, np.full(num, len(self.event_user)),
        self._request_time[user])
    return self.with_candidates(batch, None, np.zeros((num, 0), np.int32))

  def _known_items(
      self, rows: Sequence[int], lists: Sequence[Sequence[Any]]
  ) -> list[np.ndarray]:
    """Returns items of lists of original ids; warns once of unknown ones."""
    out, unknown = [], []
    for row, values in zip(rows, lists):
      found = self._item_index.find(values)
      out.append(found[found >= 0])
      unknown += [(row, value) for value, place in zip(values, found)
                  if place < 0]
    if unknown:
      logging.warning('%d unknown items in histories dropped: %s',
                      len(unknown), _named(unknown))
    return out

  def with_candidates(
      self, batch: types.Batch, events: np.ndarray | None, items: np.ndarray,
      label: np.ndarray | None = None, mask: np.ndarray | None = None,
  ) -> types.Batch:
    """Replaces the candidates of a batch, u2i statistics included.

    Args:
      batch: of `assemble` or `requests`.
      events: [B] those given to `assemble`; None for `requests`.
      items: [B, C] int32.
      label: [B, C] float32; default 0.
      mask: [B, C] float32, 1 = valid; default all.
    """
    items = np.asarray(items, np.int32)
    user = np.asarray(batch.user)
    cross, num = None, items.shape[1]
    if self.spec.cross_names:
      time = (self.event_time[events] if events is not None
              else self._request_time[user])
      cross = self.counted.index.query(
          np.repeat(user, num), items.reshape(-1), np.repeat(time, num)
      ).reshape(*items.shape, len(self.spec.cross_names))
    if label is None:
      label = np.zeros(items.shape, np.float32)
    if mask is None:
      mask = np.ones(items.shape, np.float32)
    return batch.replace(
        item=items, label=np.asarray(label, np.float32),
        mask=np.asarray(mask, np.float32), cross=cross)

  def ranking_candidates(
      self, split: str, events: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns what evaluation ranks for each event.

    Real exposures stand alone; where every event is a positive,
    `eval_negatives` items are drawn for each, from the event's index only, so
    that every method sees the same.

    Args:
      split: name of the split; a part of the draw's seed.
      events: [B].

    Returns:
      items [B, C] int32 (the event's own first), label [B, C] float32.
    """
    items = self.event_item[events][:, None]
    label = self.event_label[events][:, None]
    if self.has_negatives or not self.eval_negatives:
      return items, label
    root = np.uint64(zlib.crc32(f'{self.seed}/{split}'.encode()))
    place = np.asarray(events)[:, None] * self.eval_negatives + np.arange(
        self.eval_negatives)
    drawn = draws.hashed(place.astype(np.uint64) + (root << np.uint64(32)))
    drawn = draws.skip_own(
        (drawn % np.uint64(self.spec.num_items - 1)).astype(np.int32), items)
    return (np.concatenate([items, drawn], axis=1),
            np.concatenate([label, np.zeros(drawn.shape, np.float32)], axis=1))

  @property
  def _longest(self) -> int:
    """Places of the sequence that a batch reads."""
    return max(self.spec.history_length, self.spec.seen_length)

  def _batch(
      self, user: np.ndarray, sequence: types.Sequence, context: np.ndarray,
      time: np.ndarray) -> types.Batch:
    """Returns a batch of requests, its candidates still empty.

    Args:
      user: [B].
      sequence: [B, `_longest`] what they did before.
      context: [B] rows of `context`.
      time: [B] of the requests.
    """
    none = np.zeros((len(user), 0), np.float32)
    request = features.join_rows(
        features.take(self.users, user), features.take(self.context, context))
    request = features.join_rows(request, self.counted.requests(user, time))
    return types.Batch(
        row=sequence.row, user=user.astype(np.int32),
        item=none.astype(np.int32), label=none, mask=none,
        history=history.last(sequence, self.spec.history_length),
        request=request,
        cross=None, time=self._seconds(time),
        midnight=self._seconds(self.counted.index.midnight(time)),
        moment=self.counted.moment(time),
        seen=history.seen(sequence, self.spec.seen_length))

  def _seconds(self, time: np.ndarray) -> np.ndarray:
    """Returns times as `types.Sequence` has them."""
    return history.seconds(time, self.event_time[0], self.ordinal)

  @functools.cached_property
  def _event_fields(self) -> dict[str, np.ndarray]:
    """Fields of `types.Sequence` of events [E + 1]; the last is of no event."""
    fields = dict(
        user=self.event_user, item=self.event_item,
        action=history.actions(self.event_label), label=self.event_label,
        time=history.seconds(
            self.event_time, self.event_time[0], self.ordinal))
    last = {'user': len(self.user_ids)}
    return {name: np.append(values, values.dtype.type(last.get(name, 0)))
            for name, values in fields.items()}

  @functools.cached_property
  def _request_time(self) -> np.ndarray:
    """[U + 1] the time right after the last event."""
    if not self.ordinal:
      return np.full(len(self.user_ids) + 1, self.event_time[-1] + 1)
    time = np.zeros(len(self.user_ids) + 1, np.int64)
    np.maximum.at(time, self.event_user, self.event_time + 1)
    return time

  @functools.cached_property
  def _user_index(self) -> ids.Index:
    return ids.Index(self.user_ids)

  @functools.cached_property
  def _item_index(self) -> ids.Index:
    return ids.Index(self.item_ids)


def _named(values: Sequence[tuple[int, Any]]) -> str:
  """Returns ids and their rows for a message, not too many."""
  shown = ', '.join(f'{value!r} (row {row})' for row, value in values[:_SHOWN])
  return shown + (', ...' if len(values) > _SHOWN else '')
