"""Times of a log: moments as milliseconds, or positions."""

from typing import NamedTuple, Sequence

import numpy as np
import pyarrow as pa

from sidrec.data import faults as faults_lib
from sidrec.data import ids
from sidrec.data import times
from sidrec.data.builders.sources import raw as raw_lib
from sidrec.data.imports import files
from sidrec.data.imports import recognise

readable = times.readable


class Timing(NamedTuple):
  """Times of E events, in order.

  value: [E] int64, ms since 1970 or positions. ordinal: whether positions.
  order: [E] rows of the log in order of time; None: they are in order.
  """
  value: np.ndarray
  ordinal: bool
  order: np.ndarray | None


def read(events: pa.Table, user: np.ndarray, source: np.ndarray,
         place: np.ndarray, raws: Sequence[files.Raw], said: list[str]
         ) -> Timing:
  """Reads the times of a log whose rows all have one.

  Args:
    events: with or without a column of times.
    user: [E] int32.
    source: [E] file of each.
    place: [E] in a list of items that is in order.
    raws: the files.
    said: gets what was inferred.

  Raises:
    types.InputError: times that are none.
  """
  if recognise.TIME not in events.column_names:
    said.append('no times: the order of the rows; time_unit ordinal')
    return _ordinal(user, np.arange(len(user)))
  column = events[recognise.TIME]
  numbers = times.as_numbers(column)
  if numbers is not None and times.are_positions(column, user):
    said.append('times are positions; time_unit ordinal')
    return _ordinal(user, numbers)
  if numbers is not None and times.guess(numbers) is None:
    said.append(
        f'times such as {numbers[0]:g} are no dates: taken as an order; '
        'time_unit ordinal')
    return _ordinal(user, numbers, place)
  value = np.zeros(len(user), np.int64)
  exact = None
  faults, units = faults_lib.Faults(), []
  array = ids.as_arrow(column)
  for part in np.unique(source):
    rows = np.flatnonzero(source == part)
    found = times.read(array.take(pa.array(rows)), None, raws[part].path,
                       recognise.TIME, faults)
    faults.check()
    value[rows] = found.value
    units.append(found.unit)
    exact = found.order if len(rows) == len(user) else None
  said.append('times: ' + ' and '.join(sorted({
      'dates' if unit == 'datetime' else f'{unit} since 1970'
      for unit in units})))
  if place.any():
    value = value + place
    exact = None
    said.append('items of one list are a millisecond apart, in order')
  exact = value if exact is None else exact
  if np.all(exact[1:] >= exact[:-1]):
    return Timing(value, False, None)
  order = np.argsort(exact, kind='stable')
  return Timing(value[order], False, order)


def _ordinal(user: np.ndarray, time: np.ndarray,
             place: np.ndarray | None = None) -> Timing:
  """Returns positions 0, 1, ... among each user's events."""
  if place is not None:
    order = np.lexsort((place, time))
    time = np.empty(len(order), np.int64)
    time[order] = np.arange(len(order))
  value = raw_lib.ordinal(user, time)
  order = np.lexsort((value, user))
  return Timing(value[order], True, order)
