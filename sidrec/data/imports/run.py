"""From raw files to a folder of tables."""

import dataclasses
import os
from typing import Mapping, Sequence

import numpy as np
import pyarrow as pa

from sidrec import types
from sidrec.data import faults as faults_lib
from sidrec.data import ids
from sidrec.data import tables as tables_lib
from sidrec.data.builders import layout
from sidrec.data.imports import broken
from sidrec.data.imports import catalog
from sidrec.data.imports import clock
from sidrec.data.imports import describe
from sidrec.data.imports import files
from sidrec.data.imports import labels
from sidrec.data.imports import logs
from sidrec.data.imports import recognise

_TABLES = tuple(f'{name}.{kind}' for name in layout.TABLES
                for kind in ('parquet', 'csv')) + ('dataset.json',
                                                   tables_lib.EMBEDDINGS)


@dataclasses.dataclass(frozen=True)
class Options:
  """What to import, and how.

  paths: raw files. output: the folder. columns: role -> column. positive: rule
  of `labels`, '' for none. drop_bad_rows: go on without broken rows.
  separator, encoding: of text files. name: of the data set, '' for the
  folder's. overwrite: tables that are there.
  """
  paths: Sequence[str]
  output: str
  columns: Mapping[str, str]
  positive: str = ''
  drop_bad_rows: bool = False
  separator: str | None = None
  encoding: str = 'utf-8'
  name: str = ''
  overwrite: bool = False


@dataclasses.dataclass
class _Sorted:
  """Files by what they are: (place in raws, role -> column)."""
  events: list[tuple[int, dict[str, str]]]
  items: list[tuple[int, dict[str, str]]]
  users: list[tuple[int, dict[str, str]]]


def run(options: Options) -> list[str]:
  """Imports files.

  Returns:
    Lines that say what was written and what was recognised.

  Raises:
    types.InputError: in one line; nothing was written but rejected.csv.
  """
  _check_output(options)
  raws = [files.read(path, options.separator, options.encoding)
          for path in options.paths]
  recognise.check_given(options.columns, raws)
  said: list[str] = []
  found = _sort(raws, options, said)
  rejected = broken.Rejected(raws)
  parts = [logs.read(raws[place], roles) for place, roles in found.events]
  log = _log(parts, found, raws, rejected)
  rule = _rule(options, log.table)
  positive = None
  if rule:
    positive, bad = labels.apply(rule, log.table[rule.column])
    rejected.add(bad, log.source, log.row,
                 f'{rule.column} is no number')
    log.good &= ~bad
  tables = {kind: _tables(getattr(found, kind), raws, rejected, role)
            for kind, role in (('items', recognise.ITEM),
                               ('users', recognise.USER))}
  _refuse(rejected, options)
  said += [note for part in parts for note in part.notes]
  if not log.good.any():
    raise types.InputError(
        f'{raws[found.events[0][0]].path}: no row is left; see '
        f'{os.path.join(options.output, broken.FILE)}')
  made = _build(log, positive, rule, tables, raws, options, said)
  _write(made, options, rejected)
  return describe.lines(made, said, rejected, options.output)


def _check_output(options: Options) -> None:
  """Refuses a folder that has tables."""
  there = [name for name in _TABLES
           if os.path.exists(os.path.join(options.output, name))]
  if os.path.exists(options.output) and not os.path.isdir(options.output):
    raise types.InputError(f'--output={options.output}: is a file')
  if there and not options.overwrite:
    raise types.InputError(
        f'--output={options.output}: has {", ".join(there)}; choose another '
        'folder, or say --overwrite')
  inputs = {os.path.realpath(path) for path in options.paths}
  for name in there:
    path = os.path.join(options.output, name)
    if os.path.realpath(path) in inputs:
      raise types.InputError(
          f'--output={options.output}: {name} there is a file to read; choose '
          'another folder')


def _sort(raws: Sequence[files.Raw], options: Options, said: list[str]
          ) -> _Sorted:
  """Finds out which table each file is, and its columns."""
  out = _Sorted([], [], [])
  for place, raw in enumerate(raws):
    roles = recognise.roles(raw, options.columns)
    recognise.require(raw, roles, options.columns)
    kind = recognise.kind_of(raw, roles)
    getattr(out, kind).append((place, roles))
    said.append(f'{raw.name}: {kind}, ' + ', '.join(
        f'{role} = {name}' for role, name in roles.items() if name))
    said += [f'{raw.name}: {name} is left out: {why}'
             for name, why in raw.left_out]
  if not out.events:
    raise types.InputError(
        f'{raws[0].path}: no file has users and items; there are '
        f'{", ".join(raws[0].table.column_names[:12])}; say which columns '
        'they are by --column=user_id=NAME --column=item_id=NAME')
  return out


@dataclasses.dataclass
class _Log:
  """Events of all files. table: [E]; source, row: of each; place: in its list;
  good: [E] bool; label: column made of lists, or None; kinds: RecBole's.
  """
  table: pa.Table
  source: np.ndarray
  row: np.ndarray
  place: np.ndarray
  good: np.ndarray
  label: str | None
  kinds: Mapping[str, str]


def _log(parts: Sequence[logs.Part], found: _Sorted,
         raws: Sequence[files.Raw], rejected: broken.Rejected) -> _Log:
  """Stacks the events of all files and finds the broken ones."""
  timed = [recognise.TIME in part.table.column_names for part in parts]
  if any(timed) and not all(timed):
    raise types.InputError(
        f'{raws[found.events[timed.index(False)][0]].path}: no column of times '
        'recognised, other logs have one; say which by '
        f'--column={recognise.TIME}=NAME')
  tables, good = [], []
  for part, (place, _) in zip(parts, found.events):
    fine = _good(part, place, rejected)
    table = part.table
    if raws[place].is_text:
      table = _exact(table, fine)
    tables.append(table)
    good.append(fine)
  kinds = {name: kind for raw in raws for name, kind in raw.kinds.items()}
  return _Log(
      logs.stack(tables),
      np.concatenate([np.full(len(part.row), place) for part, (place, _) in zip(
          parts, found.events)]),
      np.concatenate([part.row for part in parts]),
      np.concatenate([part.place for part in parts]), np.concatenate(good),
      next((part.label for part in parts if part.label), None), kinds)


def _good(part: logs.Part, source: int, rejected: broken.Rejected
          ) -> np.ndarray:
  """Returns [E] bool: the events of a file that have user, item and time."""
  table, sources = part.table, np.full(len(part.row), source)
  good = np.ones(len(part.row), bool)
  for key, reason in ((recognise.USER, 'missing user'),
                      (recognise.ITEM, 'missing item'),
                      (recognise.TIME, 'missing time')):
    if key in table.column_names:
      bad = files.missing(table[key])
      rejected.add(bad, sources, part.row, reason)
      good &= ~bad
  if recognise.TIME in table.column_names:
    bad = good & ~clock.readable(table[recognise.TIME])
    rejected.add(bad, sources, part.row, 'time that is none')
    good &= ~bad
  rejected.add(np.ones(len(part.empty), bool),
               np.full(len(part.empty), source), part.empty, 'no items')
  return good


def _exact(table: pa.Table, good: np.ndarray) -> pa.Table:
  """Makes ids integers where all good rows have plain ones."""
  for key in (recognise.USER, recognise.ITEM):
    array = ids.as_arrow(table[key])
    if not pa.types.is_large_string(array.type):
      continue
    kept = ids.as_arrow(ids.from_text(array.filter(pa.array(good))))
    if len(kept) and pa.types.is_integer(kept.type):
      place = np.maximum(np.cumsum(good) - 1, 0)
      table = table.set_column(
          table.column_names.index(key), key,
          kept.take(pa.array(place, mask=~good)))
  return table


def _rule(options: Options, table: pa.Table) -> labels.Rule | None:
  if not options.positive:
    return None
  return labels.parse(options.positive, table.column_names)


def _tables(found: Sequence[tuple[int, dict[str, str]]],
            raws: Sequence[files.Raw], rejected: broken.Rejected, role: str
            ) -> list[pa.Table]:
  """Returns the tables of items, or of users, without broken rows."""
  parts, sources, rows = [], [], []
  for place, roles in found:
    table = logs.named(raws[place].table, {role: roles[role]})
    bad = files.missing(table[role])
    rejected.add(bad, np.full(len(bad), place), raws[place].rows,
                 f'missing {role.removesuffix("_id")}')
    table = table.filter(pa.array(~bad))
    if raws[place].is_text:
      table = table.set_column(
          table.column_names.index(role), role, catalog.keys_of(table, role))
    rows.append(raws[place].rows[~bad])
    parts.append(table)
    sources.append(np.full(len(table), place))
  out, place_of = [], {}
  for place, part in enumerate(parts):
    place_of.setdefault(tuple(sorted(part.column_names)), []).append(place)
  for places in place_of.values():
    table = logs.stack([parts[place] for place in places])
    first = catalog.unique(ids.as_arrow(table[role]))
    rejected.add(
        ~first, np.concatenate([sources[place] for place in places]),
        np.concatenate([rows[place] for place in places]),
        f'{role.removesuffix("_id")} that is there before')
    out.append(table.filter(pa.array(first)))
  return out


def _refuse(rejected: broken.Rejected, options: Options) -> None:
  """Writes rejected.csv and stops, where rows are broken."""
  if len(rejected) and not options.drop_bad_rows:
    rejected.write(options.output)
    raise types.InputError(
        f'broken rows: {len(rejected):,} ({rejected.counts()}): see '
        f'{os.path.join(options.output, broken.FILE)}; correct them, or say '
        '--drop_bad_rows')


def _build(log: _Log, positive: np.ndarray | None, rule: labels.Rule | None,
           tables: Mapping[str, list[pa.Table]], raws: Sequence[files.Raw],
           options: Options, said: list[str]) -> describe.Made:
  """Makes the tables of good rows."""
  good = pa.array(log.good)
  events, source = log.table.filter(good), log.source[log.good]
  place = log.place[log.good]
  if positive is not None:
    name = recognise.LABEL
    while name in events.column_names:
      name = f'{name}_'
    events = events.append_column(
        name, pa.array(positive[log.good].astype(np.int8)))
    log.label = name
  keys = _join_keys(events, tables)
  users = catalog.gather(
      [x.drop_columns(recognise.USER) for x in tables['users']],
      keys[recognise.USER][1:], keys[recognise.USER][0], add=True)
  timing = clock.read(events, users.code, source, place, raws, said)
  order = timing.order
  if order is not None:
    events, place = events.take(pa.array(order)), place[order]
    keys = {role: [columns[0].take(pa.array(order)), *columns[1:]]
            for role, columns in keys.items()}
    users = dataclasses.replace(users, code=users.code[order])
  items = catalog.gather(
      [x.drop_columns(recognise.ITEM) for x in tables['items']],
      keys[recognise.ITEM][1:], keys[recognise.ITEM][0], add=True)
  name = options.name or os.path.basename(os.path.abspath(options.output))
  return describe.make(
      describe.Log(events, keys, timing, log.label, rule, log.kinds), items,
      users, {kind: bool(found) for kind, found in tables.items()}, raws, name,
      said)


def _join_keys(events: pa.Table, tables: Mapping[str, list[pa.Table]]
               ) -> dict[str, list[pa.Array]]:
  """Returns the ids of events and of the files beside, of one type a key."""
  faults, out = faults_lib.Faults(), {}
  for role, kind in ((recognise.USER, 'users'), (recognise.ITEM, 'items')):
    columns = [ids.read(table[role], where, role, faults)
               for where, table in (
                   ('events', events), *((kind, x) for x in tables[kind]))]
    faults.check()
    out[role] = ids.join(columns)
  return out


def _write(made: describe.Made, options: Options, rejected: broken.Rejected) -> None:
  """Writes the folder and reads it back."""
  for name in _TABLES:  # Of another import; nothing of it may stay.
    path = os.path.join(options.output, name)
    if os.path.exists(path):
      os.remove(path)
  layout.save(made.tables, made.info, made.embeddings, options.output)
  rejected.write(options.output)
  back = tables_lib.check(tables_lib.read(options.output), options.output)
  if len(back.events['item_id']) != len(made.tables['events']):
    raise types.InputError(f'{options.output}: was not read back as written')
