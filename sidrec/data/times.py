"""Times of events: whatever a file holds, exact, as milliseconds or positions.

Datetimes carry their unit. Numbers have the unit that `dataset.json` declares,
else the one that puts them between 1990 and 2100. Text is ISO 8601, with or
without a zone (without: UTC), or numbers.
"""

import datetime
from typing import Any, NamedTuple

from absl import logging
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.data import faults as faults_lib
from sidrec.data import ids as ids_lib

UNITS = ('ms', 's', 'us', 'ns', 'ordinal')
_PER_SECOND = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}
_TEXT = pa.large_string()
_BLOCK = 4096  # Rows that are cast at a time.
_ZONE = r'(Z|z|[+-]\d\d:?\d\d)$'
_NUMBER = r'^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$'
# Seconds since 1970 at the start of 1990 and at the end of 2100.
_FIRST, _LAST = (
    datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc).timestamp()
    for year in (1990, 2101))


class Times(NamedTuple):
  """Times of R rows.

  value: [R] int64, ms since 1970, or positions. order: [R] numbers in the
    order of the exact times, which `value` may round. unit: that the numbers
    had, 'datetime' where they carry their own.
  """
  value: np.ndarray
  order: np.ndarray
  unit: str


def read(column: Any, unit: str | None, where: str, name: str,
         faults: faults_lib.Faults) -> Times | None:
  """Reads a column of times.

  Args:
    column: Arrow or NumPy, [R].
    unit: one of `UNITS`; None: guessed.
    where, name: for messages.
    faults: gets what is wrong.

  Returns:
    The times; None where there are faults. Dates outside 1990 to 2100 are
    warned of, or where they are most of the rows and after 2100, refused.
  """
  array = ids_lib.as_arrow(column)
  kind = array.type
  if pa.types.is_temporal(kind) and not (
      pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
    faults.add(f'{where}: column {name}: {kind} is no moment; write numbers '
               'or ISO 8601')
    return None
  if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
    return _check(_of_datetimes(array), array, where, name, faults)
  if pa.types.is_large_string(kind) or pa.types.is_string(kind):
    numeric = pc.match_substring_regex(array, _NUMBER)
    if not pc.all(numeric).as_py():
      moments = _of_text(array, where, name, faults)
      return None if moments is None else _check(
          moments, array, where, name, faults)
    array = _numbers(array)
  elif pa.types.is_decimal(kind):
    array = _numbers(array.cast(pa.string()))
  elif pa.types.is_null(kind):
    array = array.cast(pa.float64())
  elif not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
    faults.add(f'{where}: column {name}: {kind} is no moment; write numbers '
               'or ISO 8601')
    return None
  return _of_numbers(array, unit, where, name, faults)


def as_numbers(column: Any) -> np.ndarray | None:
  """Returns times that are numbers, [R]; None where one is a date or missing.

  Args:
    column: Arrow or NumPy, [R]; numbers may be text.
  """
  array = ids_lib.as_arrow(column)
  if pa.types.is_large_string(array.type):
    if not pc.all(pc.match_substring_regex(array, _NUMBER)).as_py():
      return None
    array = _numbers(array)
  if array.null_count or not (
      pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
    return None
  return array.to_numpy(zero_copy_only=False)


def readable(column: Any) -> np.ndarray:
  """Returns [R] bool: `read` takes the row for a moment.

  Of a text column that holds numbers and dates, those of which there are
  more can be read.

  Args:
    column: Arrow or NumPy, [R].
  """
  array = ids_lib.as_arrow(column)
  kind = array.type
  if pa.types.is_large_string(kind):
    numeric = pc.fill_null(
        pc.match_substring_regex(array, _NUMBER), False).to_numpy(
            zero_copy_only=False)
    present = pc.fill_null(pc.not_equal(array, ''), False).to_numpy(
        zero_copy_only=False)
    if 2 * numeric.sum() < present.sum():
      exact, bad = _moments(array)
      return present & ~bad & (exact >= 0)
    numbers = np.full(len(array), np.nan)
    numbers[numeric] = _numbers(array.filter(pa.array(numeric))).to_numpy(
        zero_copy_only=False)
    return np.isfinite(numbers) & (numbers >= 0)
  if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
    return _of_datetimes(array).value >= 0
  if pa.types.is_integer(kind) or pa.types.is_floating(kind):
    numbers = array.cast(pa.float64(), safe=False).to_numpy(
        zero_copy_only=False)
    return np.isfinite(numbers) & (numbers >= 0)
  return array.is_valid().to_numpy(zero_copy_only=False)


def are_positions(column: Any, user: np.ndarray) -> bool:
  """Whether a column counts each user's events: 0, 1, 2, ... or from 1.

  Args:
    column: Arrow or NumPy, [R].
    user: [R] int32.
  """
  array = ids_lib.as_arrow(column)
  if pa.types.is_large_string(array.type):
    if not pc.all(pc.match_substring_regex(array, r'^\d{1,9}$')).as_py():
      return False
    array = array.cast(pa.int64())
  if array.null_count or not len(array) or not (
      pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
    return False
  time = array.to_numpy(zero_copy_only=False)
  if time.max() >= len(time):
    return False
  order = np.lexsort((time, user))
  first = np.r_[True, np.diff(user[order]) > 0]
  steps = np.diff(time[order])
  return bool(np.all(time[order][first] <= 1)
              and np.all(steps[~first[1:]] == 1))


def read_until(column: Any, unit: str, where: str, faults: faults_lib.Faults
               ) -> np.ndarray | None:
  """Reads the times of `histories`, which may lie before 1970.

  Args:
    column: Arrow or NumPy, [R].
    unit: of the events.
    where: for messages.
    faults: gets what is wrong.

  Returns:
    [R] int64, ms or positions; None where there are faults.
  """
  array = ids_lib.as_arrow(column)
  if pa.types.is_large_string(array.type) and pc.all(
      pc.match_substring_regex(array, _NUMBER)).as_py():
    array = _numbers(array)
  if faults.rows(array.is_null().to_numpy(zero_copy_only=False), where,
                 'until', lambda _: (
                     'missing time; give the time of the last item of the '
                     'list')):
    return None
  if pa.types.is_integer(array.type) or pa.types.is_floating(array.type):
    numbers = array.to_numpy(zero_copy_only=False)
    if unit == 'datetime':
      unit = guess(numbers) or 'ms'
    if unit == 'ordinal':
      return numbers.astype(np.int64)
    return np.floor(numbers * (1000 / _PER_SECOND[unit])).astype(np.int64)
  found = read(array, None, where, 'until', faults)
  return None if found is None else found.value


def moment(value: Any, unit: str) -> int:
  """Returns one time of `dataset.json` in ms, or as a position.

  Args:
    value: a number in `unit`, or ISO 8601.
    unit: of `Times`; numbers beside datetimes have the unit they look like.

  Raises:
    ValueError: neither.
  """
  if isinstance(value, str):
    time = datetime.datetime.fromisoformat(value)
    if time.tzinfo is None:
      time = time.replace(tzinfo=datetime.timezone.utc)
    return round(time.timestamp() * 1000)
  if unit == 'ordinal':
    return int(value)
  if unit == 'datetime':
    unit = guess(np.array([value])) or 'ms'
  return int(value * 1000 // _PER_SECOND[unit])


def guess(numbers: np.ndarray) -> str | None:
  """Returns the unit that makes dates of 1990 to 2100 of numbers, or None."""
  middle = float(np.median(numbers)) if len(numbers) else 0.
  for unit, scale in _PER_SECOND.items():
    if _FIRST * scale <= middle < _LAST * scale:
      return unit
  return None


def in_words(milliseconds: int) -> str:
  """Returns a time as a date to the minute."""
  try:
    return datetime.datetime.fromtimestamp(
        milliseconds / 1000, datetime.timezone.utc).strftime('%Y-%m-%d %H:%M')
  except (ValueError, OverflowError, OSError):
    return f'{milliseconds} ms'


def _numbers(text: pa.Array) -> pa.Array:
  """Returns numbers of text: integers where all are, else floats."""
  text = pc.utf8_trim_whitespace(text)
  for kind in (pa.int64(), pa.float64()):
    try:
      return text.cast(kind)
    except pa.ArrowInvalid:
      continue
  raise AssertionError('not a number')


def _of_numbers(array: pa.Array, unit: str | None, where: str, name: str,
                faults: faults_lib.Faults) -> Times | None:
  """Reads integers or floats."""
  if pa.types.is_floating(array.type):
    numbers = array.to_numpy(zero_copy_only=False).astype(np.float64)
    missing = ~np.isfinite(numbers)
  else:
    missing = array.is_null().to_numpy(zero_copy_only=False)
    filled = pc.fill_null(array, 0)
    numbers = filled.to_numpy(zero_copy_only=False)
  if faults.rows(missing | (numbers < 0), where, name, lambda row: (
      f'{array[row].as_py()} is negative, missing or infinite; times count up '
      'from 0')):
    return None
  unit = unit or guess(numbers) or 'ms'
  if unit == 'ordinal':
    if faults.rows(numbers != np.floor(numbers), where, name, lambda row: (
        f'{numbers[row]} is no position; count 0, 1, 2, ...')) or faults.rows(
            numbers >= 2**62, where, name, lambda row: (
                f'{numbers[row]} does not fit; count 0, 1, 2, ...')):
      return None
    value = numbers.astype(np.int64)
    return Times(value, value, unit)
  scale = _PER_SECOND[unit]
  if faults.rows(numbers.astype(np.float64) > 2.**62 / 1000 * scale, where,
                 name, lambda row: (
                     f'{numbers[row]} {unit} since 1970 does not fit; is '
                     'time_unit right?')):
    return None
  if numbers.dtype.kind == 'f':
    # A microsecond's rounding first: .29 s are 290 ms, not 289.
    value = np.floor(np.round(numbers * (1e6 / scale)) / 1e3).astype(np.int64)
  elif scale <= 1000:
    value = numbers.astype(np.int64) * (1000 // scale)
  else:
    value = (numbers // (scale // 1000)).astype(np.int64)
  return _check(Times(value, numbers, unit), array, where, name, faults)


def _of_datetimes(array: pa.Array) -> Times:
  """Reads datetimes; missing ones become the least integer."""
  if pa.types.is_date(array.type):
    array = array.cast(pa.date64()).cast(pa.timestamp('ms'))
  scale = _PER_SECOND[array.type.unit]
  exact = pc.fill_null(
      array.cast(pa.timestamp(array.type.unit)).cast(pa.int64()),
      np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
  fits = scale >= 1000 or np.abs(exact.astype(np.float64)).max(
      initial=0., where=exact > np.iinfo(np.int64).min) < 2**52
  if not fits:  # Seconds of a far future: `_check` refuses the largest number.
    return Times(np.where(exact < 0, exact, 2**62), exact, 'datetime')
  value = np.where(
      exact == np.iinfo(np.int64).min, exact,
      exact * (1000 // scale) if scale < 1000 else exact // (scale // 1000))
  return Times(value, exact, 'datetime')


def _of_text(array: pa.Array, where: str, name: str,
             faults: faults_lib.Faults) -> Times | None:
  """Reads ISO 8601, row by row with or without a zone."""
  exact, bad = _moments(array)
  if faults.rows(bad, where, name, lambda row: (
      f'{array[row].as_py()!r} is no moment; write ISO 8601, such as '
      '2024-01-31T18:00:00Z, or seconds or milliseconds since 1970')):
    return None
  least = exact == np.iinfo(np.int64).min
  return Times(np.where(least, exact, exact // 1000), exact, 'datetime')


def _moments(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns text as us since 1970 (missing: the least), and what is none."""
  text = pc.utf8_trim_whitespace(array.cast(_TEXT))
  # 2024/01/05 is as clear as 2024-01-05; 01/05/2024 is not.
  text = pc.replace_substring_regex(
      text, r'^(\d{4})/(\d\d?)/(\d\d?)', r'\1-\2-\3')
  text = pc.replace_substring_regex(text, r',(\d+)', r'.\1')
  has_zone = pc.fill_null(pc.and_(
      pc.match_substring_regex(text, r'\d:\d\d'),
      pc.match_substring_regex(text, _ZONE)), False)
  exact = np.full(len(array), np.iinfo(np.int64).min, np.int64)
  bad = np.zeros(len(array), bool)
  for zoned in (True, False):
    rows = np.flatnonzero(
        has_zone.to_numpy(zero_copy_only=False) == zoned)
    part = text.take(pa.array(rows))
    kind = pa.timestamp('us', 'UTC' if zoned else None)
    # In blocks, so that few rows of another form cost little.
    times = pa.chunked_array([
        _cast(part.slice(start, _BLOCK), kind)
        for start in range(0, len(part), _BLOCK)], kind)
    exact[rows] = pc.fill_null(
        times.cast(pa.int64()), np.iinfo(np.int64).min).to_numpy()
    bad[rows] = pc.and_(times.is_null(), part.is_valid()).to_numpy()
  return exact, bad


def _cast(text: pa.Array, kind: pa.DataType) -> pa.Array:
  """Returns text as times, null where it is none."""
  try:
    return text.cast(kind)
  except pa.ArrowInvalid:
    return pa.array([_iso(value, kind) for value in text.to_pylist()], kind)


def _iso(text: str | None, kind: pa.DataType) -> datetime.datetime | None:
  """Returns one time; None where it is none. Finer than us is cut."""
  try:
    time = pa.scalar(text, pa.string()).cast(
        pa.timestamp('ns', kind.tz)).cast(kind, safe=False).as_py()
    return time
  except (pa.ArrowInvalid, ValueError, OverflowError):
    pass
  try:
    time = datetime.datetime.fromisoformat(text or '')
  except ValueError:
    return None
  if kind.tz:
    return time.astimezone(datetime.timezone.utc)
  return time.replace(tzinfo=None)


def _check(times: Times, array: pa.Array, where: str, name: str,
           faults: faults_lib.Faults) -> Times | None:
  """Refuses missing times and impossible ones, warns of unlikely ones."""
  value = times.value
  if faults.rows(value < 0, where, name, lambda row: (
      f'{array[row].as_py()} is negative, missing or infinite; times count up '
      'from 0')):
    return None
  early, late = value < _FIRST * 1000, value >= _LAST * 1000
  say = lambda row: (
      f'{array[row].as_py()} is {in_words(int(value[row]))} as '
      f'{times.unit}')
  if 2 * np.count_nonzero(late) > len(value):
    faults.rows(late, where, name, lambda row: (
        f'{say(row)}, after 2100; is time_unit right?'))
    return None
  odd = np.flatnonzero(early | late)
  if len(odd):
    logging.warning(
        '%s: row %d, column %s: %s: outside 1990 to 2100, as %d rows are; is '
        'time_unit right?', where, odd[0], name, say(odd[0]), len(odd))
  return times
