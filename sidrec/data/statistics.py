"""What is counted over the log: of users with items, of each of them alone."""

import dataclasses

import ml_collections
import numpy as np

from sidrec import types
from sidrec.data import cross
from sidrec.data import features
from sidrec.data import history
from sidrec.data import known as known_lib
from sidrec.data import splits
from sidrec.data import tables as tables_lib

_RARE = .01  # Of labels beside the main one: below, rates are noise.


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Statistics at any time of a request.

  index: of users with items, and of users.
  known: of items; None where nobody asked, or times cannot be compared.
  scale: mean and standard deviation [2, A] of the users' own.
  """
  index: cross.Index
  known: known_lib.Known | None
  scale: np.ndarray

  @property
  def known_names(self) -> tuple[str, ...]:
    """Names of what is known of items."""
    return () if self.known is None else self.known.names

  def with_activity(self, spec: types.FeatureSpec) -> types.FeatureSpec:
    """Returns request features with the users' own counts as numbers."""
    names, start = self.index.activity_names, spec.num_values
    fields = tuple(types.Field(
        name, types.Role.REQUEST, 'number', start + i, start + i + 1, 1)
                   for i, name in enumerate(names))
    return dataclasses.replace(
        spec, fields=spec.fields + fields, num_values=start + len(names))

  def requests(self, user: np.ndarray, time: np.ndarray
               ) -> types.FeatureTable:
    """Returns the users' own counts [B, A] at times [B], standardized."""
    if not self.index.activity_names:
      return types.FeatureTable()
    mean, spread = self.scale
    return types.FeatureTable(
        values=(self.index.activity(user, time) - mean) / spread)

  def moment(self, time: np.ndarray) -> np.ndarray | None:
    """Returns which moment [B] requests at times [B] read."""
    return None if self.known is None else self.known.at(time)


def build(
    tables: tables_lib.Tables, config: ml_collections.ConfigDict,
    times: np.ndarray, rank: np.ndarray, label: np.ndarray, split: np.ndarray,
    before: history.Before | None) -> Statistics:
  """Counts.

  Args:
    tables: in internal order.
    config: `config.data`.
    times: [R] all times there are, sorted. rank: [E] of the events.
    label, split: [E] of the events.
    before: what users did before the log, or None.
  """
  columns = _columns(tables, config)
  # A test event of one user must not inform another's test event.
  shared = split == splits.TRAIN if _one_out(tables, config) else None
  index = _make_index(
      tables, config, times, rank, label, columns, shared, before)
  train = split == splits.TRAIN
  found = index.activity(
      tables.events['user_id'].codes[train], tables.events['timestamp'][train])
  return Statistics(
      index, _make_known(tables, config, columns, label, shared, before),
      np.stack([found.mean(0), np.maximum(found.std(0), 1e-3)]))


def _columns(tables: tables_lib.Tables, config: ml_collections.ConfigDict
             ) -> list[cross.Column]:
  """Returns the item columns that u2i statistics count by."""
  info, columns = tables.info, []
  num_items = len(tables.items['item_id'])
  for name in info['cross'] if config.cross == 'all' else ():
    if name == 'item_id':
      offsets, codes, size = np.arange(num_items + 1), np.arange(
          num_items), num_items
    else:
      offsets, codes, size = features.factorize(tables.items[name])
    columns.append(cross.Column(name, offsets, codes, max(size, 1)))
  return columns


def _one_out(tables: tables_lib.Tables, config: ml_collections.ConfigDict
             ) -> bool:
  """Whether each user's last event is the test, whenever it was."""
  return config.split == 'leave_one_out' or (
      config.split == 'auto'
      and tables.info['split']['kind'] == 'leave_one_out')


def _make_index(
    tables: tables_lib.Tables, config: ml_collections.ConfigDict,
    times: np.ndarray, rank: np.ndarray, label: np.ndarray,
    columns: list[cross.Column], shared: np.ndarray | None,
    before: history.Before | None) -> cross.Index:
  """Builds the u2i index over the declared columns."""
  info, events = tables.info, tables.events
  return cross.Index(
      num_users=len(events['user_id'].values), times=times,
      log=cross.Entries(
          user=events['user_id'].codes, item=events['item_id'].codes,
          rank=rank, exposure=np.ones(len(rank), np.int64),
          positive=label.astype(np.int64)),
      log_positives=info['label'] is not None, columns=columns,
      ordinal=info['time_unit'] == 'ordinal',
      before=None if before is None else history.from_before(before),
      before_positives=before is not None and before.has_positives,
      item_mask=shared, activity=config.item_stats)


def _make_known(
    tables: tables_lib.Tables, config: ml_collections.ConfigDict,
    columns: list[cross.Column], label: np.ndarray, shared: np.ndarray | None,
    before: history.Before | None) -> known_lib.Known | None:
  """Counts what is known of items, where times can be compared."""
  if tables.info['time_unit'] == 'ordinal' or not config.item_stats:
    return None
  events, num_items = tables.events, len(tables.items['item_id'])
  count = slice(None) if shared is None else shared
  others = {name: events[name][count] for name in tables.info['other_labels']}
  earlier = None
  if before is not None:
    earlier = tuple(
        np.bincount(before.item, weight, num_items) for weight in (
            np.ones(len(before.item)), before.positive.astype(np.float64)))
  return known_lib.build(
      events['item_id'].codes[count], events['timestamp'][count],
      label[count], int(events['timestamp'][-1]), columns,
      num_items=num_items, labelled=tables.info['label'] is not None,
      others={name: own for name, own in others.items()
              if _RARE < own.mean() < 1 - _RARE}, before=earlier)
