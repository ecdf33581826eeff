"""Turns checked tables into a `Dataset`."""

from typing import Any, Mapping

import ml_collections
import numpy as np

from sidrec import types
from sidrec.data import collaborative
from sidrec.data import content
from sidrec.data import dataset
from sidrec.data import features
from sidrec.data import fingerprint
from sidrec.data import history
from sidrec.data import numbering
from sidrec.data import splits
from sidrec.data import statistics
from sidrec.data import tables as tables_lib

def build(
    tables: tables_lib.Tables, config: ml_collections.ConfigDict, seed: int,
    where: str,
) -> dataset.Dataset:
  """Encodes checked tables.

  Args:
    tables: after `tables.check`.
    config: `config.data`.
    seed: of item numbers and evaluation negatives.
    where: folder or name, for messages.

  Raises:
    types.InputError: on a split that is empty or a setting that does not fit.
  """
  made_of = fingerprint.of_tables(tables)
  order = numbering.draw(len(tables.items['item_id']), seed)
  # Features come first: what they say of broken rows is in the files' order.
  encoded = _make_features(tables, where)
  tables = numbering.reorder(tables, order)
  info, item_ids = tables.info, tables.items['item_id'].values
  events, has_negatives = tables.events, info['label'] is not None
  time, user_ids = events['timestamp'], events['user_id'].values
  user, item = events['user_id'].codes, events['item_id'].codes
  label = _label(tables, config, where)
  split, split_note = splits.assign(info, config.split, user, time, where)
  times, before = _before(tables)
  rank = _ranks(times, time)
  num_users, ordinal = len(user_ids), info['time_unit'] == 'ordinal'
  counted = statistics.build(tables, config, times, rank, label, split, before)
  sequences, kind = _make_sequences(
      config, times, rank, user, item, label, time, before, has_negatives,
      num_users, ordinal)
  request_spec, users, context = _make_request(
      tables, user_ids, split == splits.TRAIN, where)
  popularity = np.bincount(
      item, weights=(split == splits.TRAIN) * label, minlength=len(item_ids))
  item_spec, catalog = _make_catalog(
      encoded, order, popularity, before, config.history_vectors, rank[0],
      counted)
  return dataset.Dataset(
      name=info['name'], fingerprint=made_of,
      protocol=_protocol(config, split_note, kind, has_negatives),
      spec=types.DataSpec(
          num_items=len(item_ids), num_users=num_users, items=item_spec,
          request=counted.with_activity(request_spec),
          cross_names=counted.index.names, known_names=counted.known_names,
          num_actions=history.num_actions(before),
          history_length=config.history_length, has_negatives=has_negatives,
          vector_dim=content.dim(catalog.vectors),
          seen_length=config.seen_length),
      catalog=catalog, item_ids=item_ids, titles=_titles(tables),
      user_ids=user_ids, file_order=numbering.inverse(order),
      has_negatives=has_negatives,
      event_user=user, event_item=item, event_time=time, event_label=label,
      event_split=split, ordinal=ordinal, seed=seed,
      eval_negatives=config.eval_negatives, truth=tables.truth, users=users,
      context=context, counted=counted, sequences=sequences,
      event_stop=sequences.stop(user, rank))


def _protocol(config: ml_collections.ConfigDict, split: str, kind: str,
              has_negatives: bool) -> str:
  """Returns what results say of how the data were used."""
  notes = [split, f'history {kind}, at most {config.history_length}']
  if not has_negatives:
    notes.append(f'no negatives in the log: ranking against '
                 f'{config.eval_negatives} uniform negatives a positive')
  return '; '.join(notes)


def _titles(tables: tables_lib.Tables) -> np.ndarray | None:
  """Returns what people call the items, [V] in the order of the tables."""
  titles = tables.items.get('title')
  if titles is None or not all(
      title is None or isinstance(title, str) for title in titles):
    return None
  return titles


def _label(tables: tables_lib.Tables, config: ml_collections.ConfigDict,
           where: str) -> np.ndarray:
  """Returns the labels [E] of events: 1 where the log has none."""
  if tables.info['label'] is not None:
    return tables.events[tables.info['label']]
  if config.eval_negatives and len(tables.items['item_id']) < 2:
    raise types.InputError(f'{where}/items: one item leaves no negatives')
  return np.ones(len(tables.events['timestamp']), np.float32)


def _before(
    tables: tables_lib.Tables) -> tuple[np.ndarray, history.Before | None]:
  """Returns all times there are, sorted, and what came before the log."""
  times = _distinct(tables.events['timestamp'])
  if tables.histories is None:
    return times, None
  user = tables.histories['user_id'].codes
  until = tables.histories.get('until', np.full(len(user), -1, np.int64))
  times = _distinct(np.sort(np.concatenate([times, until])))
  return times, history.before(
      tables.histories, user, np.searchsorted(times, until),
      len(tables.items['item_id']))


def _distinct(ordered: np.ndarray) -> np.ndarray:
  """Returns what np.unique does of a sorted array, many times as fast."""
  return ordered[np.append(True, ordered[1:] != ordered[:-1])]


def _ranks(times: np.ndarray, time: np.ndarray) -> np.ndarray:
  """Returns the place in `times` [R] of each of `time` [E], sorted both."""
  new = np.append(True, time[1:] != time[:-1])
  place = np.cumsum(new) - 1
  if place[-1] + 1 == len(times):  # There are no other times.
    return place
  return np.searchsorted(times, time[new])[place]


def _make_sequences(
    config: ml_collections.ConfigDict, times: np.ndarray, rank: np.ndarray,
    user: np.ndarray, item: np.ndarray, label: np.ndarray, time: np.ndarray,
    before: history.Before | None, has_negatives: bool, num_users: int,
    ordinal: bool,
) -> tuple[history.Sequences, str]:
  """Builds the histories: pre-log items first, then the log."""
  kind = config.history
  if kind == 'auto':
    kind = 'all' if has_negatives else 'positive'
  parts = [(user, rank, item, history.actions(label), label > 0,
            history.seconds(time, time[0], ordinal))]
  if before is not None:
    parts.insert(0, (before.user, before.rank, before.item, before.action,
                     before.positive,
                     history.seconds(times[before.rank], time[0], ordinal)))
  columns = [np.concatenate(column) for column in zip(*parts)]
  if kind == 'positive':
    columns = [column[columns[4]] for column in columns]
  names = ('user', 'rank', 'item', 'action', 'label', 'time')
  sequences = history.Sequences(
      num_users=num_users, num_ranks=len(times), **dict(zip(names, columns)))
  return sequences, 'of positives' if kind == 'positive' else 'of exposures'


def _make_features(
    tables: tables_lib.Tables, where: str
) -> tuple[types.FeatureSpec, types.FeatureTable, np.ndarray | None]:
  """Encodes items: their features and content vectors, in the files' order."""
  declared = tables.info['columns']['items']
  spec, table = features.encode(
      tables.items, declared, len(tables.items['item_id']),
      types.Role.ITEM_STATIC, f'{where}/items', embeddings=tables.embeddings)
  if tables.embeddings is None:
    content.warn_of_hashed_words(declared, f'{where}/items')
  return spec, table, content.vectors(spec, table)


def _make_catalog(
    encoded: tuple[types.FeatureSpec, types.FeatureTable, np.ndarray | None],
    order: np.ndarray, popularity: np.ndarray, before: history.Before | None,
    dim: int, first_rank: int, counted: statistics.Statistics
) -> tuple[types.FeatureSpec, types.Catalog]:
  """Puts what `_make_features` made into internal order; adds `histories`.

  Args:
    encoded: in the files' order.
    order: [V] row of the items table of each internal number.
    popularity: [V], in internal order.
    before: what users did before the log, or None.
    dim: of item vectors made of it; 0: none are.
    first_rank: rank of the log's first time.
    counted: what is known of the items.
  """
  spec, table, vectors = encoded
  table = features.take(table, order)
  if before is not None and dim:
    spec, table = collaborative.append(spec, table, collaborative.item_vectors(
        before, len(order), dim, first_rank))
  return spec, types.Catalog(
      features=table, popularity=popularity.astype(np.float32),
      vectors=None if vectors is None else vectors[order],
      known=None if counted.known is None else counted.known.table)


def _make_request(
    tables: tables_lib.Tables, user_ids: np.ndarray, train: np.ndarray,
    where: str,
) -> tuple[types.FeatureSpec, types.FeatureTable, types.FeatureTable]:
  """Encodes users and the context of events."""
  columns: Mapping[str, Any] = tables.info['columns']
  raw = tables.users or {}
  num_raw = len(raw['user_id']) if raw else 0
  user_spec, users = features.encode(
      raw, columns['users'], num_raw, types.Role.REQUEST, f'{where}/users')
  # Users without a profile share the missing row with the unknown user.
  place = np.full(len(user_ids) + 1, num_raw)
  if raw:
    place[raw['user_id'].codes] = np.arange(num_raw)
  users = features.take(features.with_missing_row(users, user_spec), place)
  context_spec, context = features.encode(
      tables.events, columns['events'], len(train), types.Role.REQUEST,
      f'{where}/events', fit_rows=train)
  context = features.with_missing_row(context, context_spec)
  return (features.merge(user_spec, context_spec), users,
          features.shift_ids(context, user_spec.vocabulary - 1))
