"""Holds configurations against tables; what a checkpoint must agree with."""

from typing import Any, Iterator, Mapping

import ml_collections

from sidrec import types
from sidrec.config import ranges
from sidrec.config import values

_SHOWN = 60  # Characters of a value.
_LISTED = 4  # Keys that are not there.
_NONE = object()


def check(config: ml_collections.ConfigDict, table: ranges.Table,
          num_devices: int = 1) -> None:
  """Refuses a configuration that no run can be made of.

  Args:
    config: a whole configuration.
    table: of everything that it may have.
    num_devices: of all processes, which share the rows of each batch.

  Raises:
    types.InputError: all at once in one line: what is out of range, what is
      not there, and what is there but nothing reads.
  """
  whole = config.to_dict()
  rows, brought_by = _rows(whole, table)
  found = _problems(whole, rows, brought_by)
  names = {key: row.brings for key, row in rows.items() if row.brings}
  # What an unknown name would have read is not known.
  if all(_get(whole, key) in tuple(own) for key, own in names.items()):
    found += [f'config.{key}={_shown(value)}: nothing reads it; take it away, '
              'or declare its range where it is read'
              for key, value in _leaves(whole, rows)]
  _refuse(found or _disagreements(whole, rows, num_devices))


def check_part(config: Any, table: ranges.Table, prefix: str) -> None:
  """Refuses settings of a sub-tree that its table does not allow.

  Args:
    config: the sub-tree; what the table has not is left alone.
    table: of it.
    prefix: what the configuration calls it, such as 'collaborative.model'.

  Raises:
    types.InputError: all at once in one line: what is out of range, and what
      is not there.
  """
  whole = config.to_dict()
  for name in reversed(prefix.split('.')):
    whole, table = {name: whole}, {name: table}
  rows, brought_by = _rows(whole, table)
  _refuse(_problems(whole, rows, brought_by)
          or _disagreements(whole, rows, num_devices=1))


def _refuse(found: list[str]) -> None:
  if found:
    raise types.InputError('; '.join(found))


def _rows(whole: Mapping[str, Any], table: ranges.Table
          ) -> tuple[dict[str, ranges.Range], dict[str, str]]:
  """Returns dotted key -> range, and -> the choice that brought it, if any."""
  rows, brought_by, todo = {}, {}, [('', '', table)]
  while todo:
    by, prefix, part = todo.pop(0)
    for name, row in part.items():
      key = f'{prefix}{name}'
      if not isinstance(row, ranges.Range):
        todo.append((by, f'{key}.', row))
        continue
      rows[key] = row
      if by:
        brought_by[key] = by
      value = _get(whole, key)
      if isinstance(value, str) and value in row.brings:
        todo.append((key, '', row.brings[value]))
  return rows, brought_by


def _problems(whole: Mapping[str, Any], rows: Mapping[str, ranges.Range],
              brought_by: Mapping[str, str]) -> list[str]:
  """Lists values out of their ranges, and what is not there."""
  found, missing = [], {}
  for key, row in rows.items():
    value = _get(whole, key)
    if value is _NONE:
      # The whole of a sub-tree, where there is none of it.
      parts = key.split('.')
      first = next(i for i in range(1, len(parts) + 1) if _get(
          whole, '.'.join(parts[:i])) is _NONE)
      by = brought_by.get(key, '.'.join([*parts[:-1], 'name']))
      missing.setdefault(by if isinstance(_get(whole, by), str) else '', {})[
          f'config.{".".join(parts[:first])}'] = None
    elif not row.holds(value):
      found.append(f'config.{key}={_shown(value)}: {row.says}')
  for by, keys in missing.items():
    listed = ', '.join([*list(keys)[:_LISTED],
                        *['...'] * (len(keys) > _LISTED)])
    if not by:
      found.append(f'{listed}: not there; begin with base_config()')
      continue
    name = _get(whole, by)
    advice = (f'put {by}={name} behind the colon of --config'
              if by in values.CHOICES else
              'begin with the experiment that has it')
    found.append(f'config.{by}={name}: comes with {listed}, which is not '
                 f'there; {advice}')
  return found


def _disagreements(whole: Mapping[str, Any], rows: Mapping[str, ranges.Range],
                   num_devices: int) -> list[str]:
  """Lists values that do not go with others, all of them being in range."""
  found = []
  for key, row in rows.items():
    value, own = _get(whole, key), _get(whole, key.rpartition('.')[0])
    if row.fits is not None and not row.fits(own, whole):
      found.append(f'config.{key}={_shown(value)}: {row.says}')
    # Without steps no batch is made.
    if (row.is_batch and value % num_devices
        and _get(whole, 'train.num_steps') != 0):
      found.append(f'config.{key}={value}: {row.says}, and a multiple of '
                   f'{num_devices}, the number of devices')
  return found


def _get(whole: Mapping[str, Any], key: str) -> Any:
  """Returns what a dotted key has, '' being the whole, or `_NONE`."""
  for name in key.split('.') if key else ():
    if not isinstance(whole, Mapping) or name not in whole:
      return _NONE
    whole = whole[name]
  return whole


def _leaves(tree: Mapping[str, Any], rows: Mapping[str, ranges.Range],
            prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields dotted keys and values of the leaves that have no range."""
  for name, value in tree.items():
    key = f'{prefix}{name}'
    if key in rows:
      continue
    if isinstance(value, Mapping):
      yield from _leaves(value, rows, f'{key}.')
    else:
      yield key, value


def _shown(value: Any) -> str:
  """Returns a value as messages show it."""
  is_huge = isinstance(value, int) and value.bit_length() > 999
  text = f'2**{value.bit_length()}' if is_huge else repr(value)
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def identity(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what must agree for a checkpoint to go on under a config.

  How the run is evaluated, shown and spread over devices may change between
  two starts; what is learned from what may not.

  Args:
    config: a whole configuration.

  Returns:
    The rest, as a plain dict.
  """
  out = config.to_dict()
  # When a run is validated decides which state it goes on with.
  when = {key: out['eval'][key] for key in ('every', 'validations', 'patience')}
  for key in ('run', 'eval', 'parallel', 'checkpoint', 'num_seeds', 'seed'):
    out.pop(key)
  out['eval'] = when
  out['data'].pop('root')
  return out
