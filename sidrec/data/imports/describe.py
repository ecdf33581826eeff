"""Tables and `dataset.json` of an import, and what to say of them."""

from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np
import pyarrow as pa

from sidrec import types
from sidrec.data import columns as columns_lib
from sidrec.data import ids
from sidrec.data import faults as faults_lib
from sidrec.data import splits
from sidrec.data import times
from sidrec.data.imports import broken
from sidrec.data.imports import catalog
from sidrec.data.imports import clock
from sidrec.data.imports import convert
from sidrec.data.imports import files
from sidrec.data.imports import labels
from sidrec.data.imports import recognise

_NEVER = types.Role.NEVER.value
_MOST_CROSS = 2  # Item columns that u2i statistics are kept for.
_TITLE = 'title'
_TITLES = ('name', 'itemname', 'itemtitle', 'productname', 'producttitle',
           'movietitle', 'booktitle', 'headline')


class Log(NamedTuple):
  """Good events, in order, E of them.

  table: their columns. keys: role -> their ids first, then those of files.
  timing: of them. label: column made by a rule or of lists, or None. rule:
  that made it, or None. kinds: column -> RecBole's word for it.
  """
  table: pa.Table
  keys: Mapping[str, Sequence[pa.Array]]
  timing: clock.Timing
  label: str | None
  rule: labels.Rule | None
  kinds: Mapping[str, str]


class Made(NamedTuple):
  """What is written. tables: name -> Arrow. info: `dataset.json`."""
  tables: dict[str, pa.Table]
  info: dict[str, Any]
  embeddings: np.ndarray | None


def make(log: Log, items: catalog.Entities, users: catalog.Entities,
         own: Mapping[str, bool], raws: Sequence[files.Raw], name: str,
         said: list[str]) -> Made:
  """Makes tables and `dataset.json`.

  Args:
    log: the events.
    items, users: all there are.
    own: 'items' and 'users' -> whether there are files of them.
    raws: all files.
    name: of the data set.
    said: gets what was inferred.

  Raises:
    types.InputError: all labels are equal.
  """
  events = log.table.drop_columns(
      [x for x in log.table.column_names if catalog.is_key(x)])
  label, others = _labels(events, log.label, log.rule, said)
  outcomes = {label, *others}
  stays = outcomes | {log.rule.column if log.rule else None} | {
      x for x in events.column_names
      if recognise.normal(x) in recognise.RATINGS + recognise.EVENTS}
  of_items, of_users, notes = catalog.split_off(events, items, users, stays)
  stay = [x for x in events.column_names
          if x not in of_items and x not in of_users]
  _tell(stay, outcomes, of_items, of_users, said)
  said += notes
  if own['items'] and items.num_added:
    said.append(f'{items.num_added:,} items of events only are added to items, '
                'with missing fields')
  out = {'events': pa.table({
      recognise.USER: log.keys[recognise.USER][0],
      recognise.ITEM: log.keys[recognise.ITEM][0],
      recognise.TIME: log.timing.value,
      **{x: _event_column(events[x], log.kinds.get(x), x in outcomes)
         for x in stay}})}
  columns = {'events': {
      x: dict(role=_NEVER, type=_event_type(out['events'][x].type))
      for x in stay}, 'users': {}}
  out['items'], columns['items'], embeddings = _entities(
      recognise.ITEM, items, _titled({**items.columns, **of_items}, said),
      log.kinds, said)
  if own['users'] or of_users:
    out['users'], columns['users'], _ = _entities(
        recognise.USER, users, {**users.columns, **of_users}, log.kinds, said)
  return Made(out, dict(
      name=name, time_unit='ordinal' if log.timing.ordinal else 'ms',
      label=label, other_labels=others,
      split=_split(log.timing, users.code, said), columns=columns,
      cross=[recognise.ITEM, *_cross(columns['items'])],
      source=[raw.name for raw in raws],
      counts=dict(users=len(np.unique(users.code)), items=len(items.keys),
                  items_with_events=len(np.unique(items.code)),
                  events=len(events))), embeddings)


def _titled(columns: Mapping[str, Any], said: list[str]) -> dict[str, Any]:
  """Calls what people call the items `title`: answers show it."""
  name = next((x for x in columns if recognise.normal(x) in _TITLES), None)
  if name is None or any(recognise.normal(x) == _TITLE for x in columns):
    return dict(columns)
  said.append(f'{name}: the title of items')
  return {_TITLE if x == name else x: values for x, values in columns.items()}


def _tell(stay: Sequence[str], outcomes: set[str | None],
          of_items: Mapping[str, Any], of_users: Mapping[str, Any],
          said: list[str]) -> None:
  """Says where the columns of a log went."""
  never = [x for x in stay if x not in outcomes]
  if never:
    said.append(f'stay in events, role never: {", ".join(never)}')
  for found, word in ((of_items, 'items'), (of_users, 'users')):
    if found:
      said.append(f'one value each, so columns of {word}: {", ".join(found)}')


def _cross(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns the columns of items that u2i statistics are kept for."""
  return [x for x, column in columns.items()
          if column['role'] != _NEVER and column['type'] in (
              'category', 'categories')][:_MOST_CROSS]


def _event_type(kind: pa.DataType) -> str:
  """Returns the type of a column of events, which is no feature."""
  if columns_lib.is_list(kind):
    return 'categories'
  if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
    return 'date'
  return ('number' if pa.types.is_integer(kind) or pa.types.is_floating(kind)
          else 'category')


def _labels(events: pa.Table, label: str | None, rule: labels.Rule | None,
            said: list[str]) -> tuple[str | None, list[str]]:
  """Returns the label and the other outcomes of a log."""
  outcomes = [x for x in events.column_names if _is_binary(events[x])]
  if label is None:
    by_name = [x for name in recognise.NAMES[recognise.LABEL]
               for x in events.column_names if recognise.normal(x) == name]
    label = next((x for x in by_name if x in outcomes), None)
    said += [f'{x} holds other values than 0 and 1 and is no label'
             for x in by_name if x not in outcomes]
  others = [x for x in events.column_names if x != label and (
      rule is None or x != rule.column) and (
          recognise.normal(x) in recognise.RATINGS and _is_number(events[x])
          or x in outcomes and recognise.normal(x) in (
              recognise.NAMES[recognise.LABEL])
          or x in outcomes and x.lower().startswith('is_'))]
  if label is None:
    said.append('no label: every event is a positive')
    return None, others
  positive = columns_lib.to_numpy(_typed(events[label]))
  share = float(np.mean(positive))
  if share in (0., 1.):
    what = f"--positive={rule.text!r}" if rule else f'column {label}'
    raise types.InputError(
        f'{what}: {"every" if share else "no"} event is a positive; '
        + ('leave it out' if share and rule else
           'choose a rule that tells them apart by --positive'))
  said.append(f'label: {label}' + (f' ({rule.text})' if rule else '')
              + f', {share:.1%} positive')
  return label, others


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """Returns a column as what its values are."""
  return convert.kept(column)


def _is_binary(column: pa.ChunkedArray) -> bool:
  """Whether a column holds 0 and 1, or true and false, in every row."""
  if columns_lib.is_list(column.type) or column.null_count:
    return False
  distinct = column.unique()
  return len(distinct) <= 2 and {
      str(x).lower() for x in distinct.to_pylist()} <= {
          '0', '1', 'true', 'false', '0.0', '1.0'}


def _is_number(column: pa.ChunkedArray) -> bool:
  kind = _typed(column).type
  return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _event_column(column: pa.ChunkedArray, kind: str | None, is_label: bool
                  ) -> pa.ChunkedArray:
  """Returns a column of events as it is written."""
  if is_label:
    values = _typed(column)
    if pa.types.is_boolean(values.type):
      return values.cast(pa.int8())
    return values
  return convert.kept(column, kind)


def _entities(role: str, entities: catalog.Entities,
              raw: Mapping[str, pa.Array], kinds: Mapping[str, str],
              said: list[str]
              ) -> tuple[pa.Table, dict[str, Any], np.ndarray | None]:
  """Returns the table of items or users, its columns, and vectors if any."""
  out, declared, embeddings = {role: entities.keys}, {}, None
  own = (types.Role.ITEM_STATIC if role == recognise.ITEM
         else types.Role.REQUEST).value
  for name, column in raw.items():
    for feature in convert.features(
        name, pa.chunked_array([column]), kinds.get(name)):
      if feature.note:
        said.append(feature.note)
      if feature.type == 'vector':
        if embeddings is None and role == recognise.ITEM:
          embeddings = _vectors(name, feature.column, said)
        else:
          said.append(f'{name}: vectors are left out')
        continue
      if feature.name in out:
        said.append(f'{feature.name}: is there already and is left out')
        continue
      out[feature.name] = feature.column
      declared[feature.name] = dict(
          role=_NEVER if feature.counted else own, type=feature.type)
      if feature.counted:
        said.append(f'{feature.name}: role never, as what is counted over a '
                    'whole log knows the future')
  return pa.table(out), declared, embeddings


def _vectors(name: str, column: pa.Array, said: list[str]) -> np.ndarray:
  """Returns item vectors; items without one get zeros."""
  present = column.is_valid().to_numpy(zero_copy_only=False)
  faults = faults_lib.Faults()
  found = columns_lib.vectors(
      pa.chunked_array([column.filter(pa.array(present))]), 'items', name,
      faults)
  faults.check()
  out = np.zeros((len(column), found.shape[1]), np.float32)
  out[present] = found
  said.append(f'{name}: item vectors of {found.shape[1]} dimensions' + (
      '' if present.all() else f', zeros for {np.sum(~present):,} items'))
  return out


def _split(timing: clock.Timing, user: np.ndarray, said: list[str]
           ) -> dict[str, Any]:
  """Returns the split: by time where that leaves events in each part."""
  split: dict[str, Any] = dict(kind='time')
  if not timing.ordinal:
    try:
      splits.assign(dict(split=split, time_unit='ms'), 'auto', user,
                    timing.value, '')
      return split
    except types.InputError:
      said.append('too few times for a split by time')
  said.append('split: leave_one_out')
  return dict(kind='leave_one_out')


def lines(made: Made, said: Sequence[str], rejected: broken.Rejected,
          output: str) -> list[str]:
  """Returns the last screen: recognised, written, what to do next."""
  counts = made.info['counts']
  out = ['recognised and inferred:', *(f'  {line}' for line in said),
         f'written to {output}:',
         f'  {counts["events"]:,} events of {counts["users"]:,} users and '
         f'{counts["items"]:,} items']
  if made.info['time_unit'] == 'ms':
    time = made.tables['events'][recognise.TIME].to_numpy()
    out.append(f'  from {times.in_words(int(time[0]))} to '
               f'{times.in_words(int(time[-1]))} (UTC)')
  out += [f'  {name}: {", ".join(x for x in table.column_names)}'
          for name, table in made.tables.items()]
  if len(rejected):
    out.append(f'  {broken.FILE}: {len(rejected):,} rows left out '
               f'({rejected.counts()})')
  return [*out, 'next:', f'  python -m sidrec.data check {output}',
          '  python -m sidrec.main --config=experiments/sasrec.py '
          f'--config.data.dir={output} --workdir=runs/first']
