"""What of a data set decides the outcome: measured, for people and programs."""

import resource
import sys
from typing import Any, Mapping

import numpy as np

from sidrec import types
from sidrec.data import columns as columns_lib
from sidrec.data import dataset as dataset_lib
from sidrec.data import ids
from sidrec.data import leaks
from sidrec.data import number_rule
from sidrec.data import schema
from sidrec.data import splits
from sidrec.data import tables as tables_lib
from sidrec.data import times

_CHUNK = 4096  # Targets whose histories are looked up at a time.
_FEW_TARGETS = 500  # Test users below which differences are noise.


def measure(tables: tables_lib.Tables, dataset: dataset_lib.Dataset,
            rule: number_rule.Found) -> dict[str, Any]:
  """Returns the facts as `check --json` writes them.

  Args:
    tables: after `tables.check`.
    dataset: encoded of them.
    rule: what item numbers alone predict.
  """
  split, item = dataset.event_split, dataset.event_item
  counts = np.bincount(item, minlength=dataset.spec.num_items)
  out = {
      'name': dataset.name, 'fingerprint': dataset.fingerprint,
      'protocol': dataset.protocol, 'inferred': list(tables.inferred),
      'users': dataset.spec.num_users, 'items': dataset.spec.num_items,
      'items_without_events': int(np.sum(counts == 0)),
      'events': len(item),
      'positive_share': float(dataset.event_label.mean()),
      'first': _moment(dataset, 0), 'last': _moment(dataset, -1),
      'splits': {name: _split(dataset, place)
                 for place, name in enumerate(splits.NAMES)},
      **_test(dataset), **_rows(dataset),
      'suspected_leaks': _leaks(tables, split > splits.TRAIN),
      'columns': _columns(tables), 'cross': list(tables.info['cross']),
      'content_dimensions': dataset.spec.vector_dim,
      'item_number_rule_recall@10': rule.recall,
      'item_number_rule_ndcg@10': rule.ndcg,
      'random_number_rule_recall@10': rule.random_recall,
      'random_number_rule_ndcg@10': rule.random_ndcg,
      'memory_gib': _memory()}
  return out


def _moment(dataset: dataset_lib.Dataset, place: int) -> str | None:
  """Returns the time of an event in words; None where times are positions."""
  if dataset.ordinal:
    return None
  return times.in_words(int(dataset.event_time[place]))


def _split(dataset: dataset_lib.Dataset, place: int) -> dict[str, Any]:
  """Returns the sizes of one split, and the dates it spans."""
  events = np.flatnonzero(dataset.event_split == place)
  out = {
      'events': len(events),
      'users': int(np.sum(np.bincount(dataset.event_user[events]) > 0)),
      'targets': len(dataset.examples(splits.NAMES[place], 'targets')),
      'positive_share': float(dataset.event_label[events].mean())}
  if not dataset.ordinal:
    out |= {'first': _moment(dataset, events[0]),
            'last': _moment(dataset, events[-1])}
  return out


def _test(dataset: dataset_lib.Dataset) -> dict[str, float | None]:
  """Returns what the test targets are: new items, new users, repeats."""
  target = dataset.examples('test', 'targets')
  if not len(target):
    return dict.fromkeys((
        'cold_item_share_test', 'cold_user_share_test', 'repeat_share_test',
        'best_recall_without_cold_items'))
  item = dataset.event_item[target]
  learned = (dataset.event_split == splits.TRAIN) & (dataset.event_label > 0)
  known = np.bincount(
      dataset.event_item[learned], minlength=dataset.spec.num_items) > 0
  repeats = 0
  for start in range(0, len(target), _CHUNK):
    part = slice(start, start + _CHUNK)
    seen, mask = dataset.seen(target[part])
    repeats += int(((seen == item[part, None]) & (mask > 0)).any(1).sum())
  cold = float(np.mean(~known[item]))
  return {
      'cold_item_share_test': cold,
      'cold_user_share_test': float(np.mean(dataset.history_size(target) == 0)),
      'repeat_share_test': repeats / len(target),
      'best_recall_without_cold_items': 1. - cold}


def _rows(dataset: dataset_lib.Dataset) -> dict[str, float]:
  """Counts events that are there twice, and those at one time."""
  # Events are in order of time: of each user too, after a stable sort.
  order = np.argsort(dataset.event_user, kind='stable')
  equal = lambda values: values[order][1:] == values[order][:-1]
  same = equal(dataset.event_user) & equal(dataset.event_time)
  tied = np.r_[False, same] | np.r_[same, False]
  order = order[tied]  # Few: these alone are put in order of their items.
  rows = np.stack([dataset.event_user[order], dataset.event_time[order],
                   dataset.event_item[order]])
  rows = rows[:, np.lexsort(rows[::-1])]
  twice = (rows[:, 1:] == rows[:, :-1]).all(0)
  return {'duplicate_events': int(twice.sum()),
          'ties_share': float(tied.mean())}


def _leaks(tables: tables_lib.Tables, is_late: np.ndarray) -> list[str]:
  """Returns the columns that seem to know the future."""
  found = list(leaks.suspected(
      tables.items, tables.events['item_id'].codes, is_late))
  if tables.users is not None:
    row = np.full(len(tables.users['user_id'].values), -1)
    row[tables.users['user_id'].codes] = np.arange(
        len(tables.users['user_id']))
    row = row[tables.events['user_id'].codes]
    found += leaks.suspected(tables.users, row[row >= 0], is_late[row >= 0])
  return found


def _columns(tables: tables_lib.Tables) -> dict[str, dict[str, Any]]:
  """Returns 'table.column' -> role, type, missing share and a note."""
  out, info = {}, tables.info
  labels = {info['label'], *info['other_labels']}
  for table in ('events', 'items', 'users'):
    for name, values in (getattr(tables, table) or {}).items():
      if name in schema.KEYS[table]:
        continue
      declared = info['columns'][table].get(name)
      role = ('label' if table == 'events' and name in labels else 'ignored'
              if declared is None else declared['role'])
      own = {'role': role}
      if role not in ('ignored', 'label', types.Role.NEVER.value):
        own['type'] = declared['type']
        missing = columns_lib.is_missing(values)
        own['missing_share'] = float(missing.mean()) if len(values) else 0.
        own['constant'] = _is_constant(values[~missing])
      out[f'{table}.{name}'] = own
  return out


def _is_constant(values: np.ndarray) -> bool:
  """Whether there is one value, or none."""
  if isinstance(values, ids.Column) or not len(values):
    return True
  first = values[0]
  if isinstance(first, np.ndarray):
    return all(np.array_equal(first, value) for value in values)
  return bool(np.all(values == first))


def _memory() -> float:
  """Returns the most memory that the process has held, GiB."""
  size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return size / (2**30 if sys.platform == 'darwin' else 2**20)


def lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the facts as (name, what to know of it), one screen."""
  share = lambda key: ('none' if facts[key] is None else f'{facts[key]:.1%}')
  out = [('name', f'{facts["name"]}  ({facts["fingerprint"]})'),
         ('protocol', facts['protocol'])]
  if facts['first']:
    out.append(('dates', f'{facts["first"]} to {facts["last"]} (UTC)'))
  else:
    out.append(('dates', 'none: times are positions'))
  if facts['inferred']:
    out.append(('inferred', '; '.join(facts['inferred'])))
  out += [
      ('users', f'{facts["users"]:,}'),
      ('items', f'{facts["items"]:,}'),
      ('cold items', f'{facts["items_without_events"]:,} without events'),
      ('events', f'{facts["events"]:,}, {facts["positive_share"]:.1%} positive'
       f', {facts["duplicate_events"]:,} duplicates, {share("ties_share")} at '
       'the same time as another of the user')]
  for name, split in facts['splits'].items():
    span = f', {split["first"]} to {split["last"]}' if facts['first'] else ''
    out.append((name, f'{split["events"]:,} events of {split["users"]:,} users'
                f', {split["targets"]:,} targets{span}'))
  out += [
      ('test targets', f'{share("cold_item_share_test")} are items without a '
       f'training positive, {share("cold_user_share_test")} have no history, '
       f'{share("repeat_share_test")} repeat')]
  if facts['cold_item_share_test']:
    out.append((
        'best recall', f'{facts["best_recall_without_cold_items"]:.3f} for '
        'what learns items by id (content can reach the rest)'))
  out += _column_lines(facts)
  out.append((types.Role.CROSS.value, ', '.join(facts['cross']) or 'none'))
  out.append(('content vectors', f'{facts["content_dimensions"]} dimensions'
              if facts['content_dimensions'] else 'none'))
  for name in ('recall', 'ndcg'):
    out.append((f'item_number_rule_{name}@10',
                f'{facts[f"item_number_rule_{name}@10"]:.4f} as ordered, '
                f'{facts[f"random_number_rule_{name}@10"]:.4f} permuted'))
  out.append(('memory', f'{facts["memory_gib"]:.2f} GiB, without statistics of '
              'users with items'))
  return out


def _column_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns the columns by role, and what to know of them."""
  by_role: dict[str, list[str]] = {}
  for name, column in facts['columns'].items():
    table, _, column_name = name.partition('.')
    text = name if table == 'events' else column_name
    if 'type' in column:
      text += f' ({column["type"]}'
      if column['missing_share']:
        text += f', {column["missing_share"]:.0%} missing'
      text += ', constant)' if column['constant'] else ')'
    by_role.setdefault(column['role'], []).append(text)
  return [(role, ', '.join(names)) for role, names in by_role.items()]


def warnings(facts: Mapping[str, Any]) -> list[str]:
  """Returns what should be looked at before training, a line each."""
  out = []
  for column in facts['suspected_leaks']:
    role = next((own['role'] for name, own in facts['columns'].items()
                 if name.partition('.')[2] == column), 'ignored')
    used = role not in (types.Role.NEVER.value, 'ignored')
    out.append(
        f'{column} goes with what comes later, as a count over the whole log '
        'does' + (f'; declare it {{"role": "never"}} in {schema.FILE}' if used
                  else f' (role {role}: not used)'))
  for name, column in facts['columns'].items():
    if column.get('constant'):
      out.append(f'{name} has one value and says nothing')
  ignored = [name for name, column in facts['columns'].items()
             if column['role'] == 'ignored']
  if ignored:
    out.append(f'not used: {schema.listed(ignored)}; declare them in '
               f'{schema.FILE} to use them')
  for name, split in facts['splits'].items():
    if split['positive_share'] == 0.:
      out.append(f'the {name} split has no positive: nothing to retrieve there')
  targets = facts['splits']['test']['targets']
  if targets < _FEW_TARGETS:
    out.append(f'{targets:,} test users: a Recall@10 of .1 has a standard '
               f'error of {np.sqrt(.09 / max(targets, 1)):.3f}')
  if facts['duplicate_events']:
    out.append(f'{facts["duplicate_events"]:,} events are there twice (user, '
               'item and time)')
  return out
