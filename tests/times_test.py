"""Times of every form, exact, and what is no time."""

import datetime

from absl import logging
import numpy as np
import pyarrow as pa
import pytest

from sidrec import types
from sidrec.data import faults as faults_lib
from sidrec.data import times

_S = 1_700_000_000  # 2023-11-14 22:13:20 UTC.
_MS = _S * 1000
_UTC = datetime.timezone.utc


def _read(column, unit=None):
  faults = faults_lib.Faults()
  found = times.read(column, unit, 'shop/events', 'timestamp', faults)
  faults.check()
  return found


@pytest.mark.parametrize('column, unit, said', [
    (np.array([_S, _S + 1]), None, 's'),
    (np.array([_MS, _MS + 1000]), None, 'ms'),
    (np.array([_MS, _MS + 1000]) * 1000, None, 'us'),
    (np.array([_MS, _MS + 1000]) * 10**6, None, 'ns'),
    (np.array([_S, _S + 1.]), None, 's'),
    (pa.array([str(_S), str(_S + 1)]), None, 's'),
    (pa.array([f'{_S}.0', f'{_S + 1}.0']), None, 's'),
    (pa.array([str(_MS), str(_MS + 1000)]), 'ms', 'ms'),
    (pa.array([_S, _S + 1], pa.timestamp('s')), None, 'datetime'),
    (pa.array([_S, _S + 1], pa.timestamp('s', 'UTC')), 's', 'datetime'),
    (pa.array([_MS * 10**6, (_MS + 1000) * 10**6], pa.timestamp('ns')), 's',
     'datetime'),
    (pa.array(['2023-11-14 22:13:20', '2023-11-14 22:13:21']), None,
     'datetime'),
    (pa.array(['2023-11-14T22:13:20Z', '2023-11-14T22:13:21Z']), None,
     'datetime'),
    (pa.array(['2023-11-14T23:13:20+01:00', '2023-11-14T22:13:21']), None,
     'datetime'),
    (pa.array(['2023-11-14T22:13:20.000000', '2023-11-14T22:13:21.0']), 's',
     'datetime'),
    (pa.array(['2023/11/14 22:13:20', '2023/11/14 22:13:21']), None,
     'datetime'),
])
def test_forms_of_two_times(column, unit, said):
  found = _read(column, unit)
  assert found.value.tolist() == [_MS, _MS + 1000] and found.unit == said


def test_dates_alone():
  assert _read(pa.array(['2023-11-14', '2023-11-15'])).value.tolist() == [
      1699920000000, 1700006400000]
  assert _read(pa.array([datetime.date(2023, 11, 14)])).value.tolist() == [
      1699920000000]


@pytest.mark.parametrize('column', [
    np.array([_S + .75, _S + .5, _S + .25]),
    pa.array([f'{_S}.75', f'{_S}.5', f'{_S}.25']),
    pa.array([datetime.datetime.fromtimestamp(_S + x, _UTC)
              for x in (.75, .5, .25)]),
    pa.array([f'2023-11-14T22:13:20.{x}Z' for x in ('75', '50', '25')]),
])
def test_fractions_of_a_second_keep_the_order(column):
  found = _read(column)
  assert found.value.tolist() == [_MS + 750, _MS + 500, _MS + 250]
  assert np.argsort(found.order).tolist() == [2, 1, 0]


def test_what_a_millisecond_holds_keeps_the_order():
  found = _read(np.array([3, 1, 2]) + _MS * 10**6)
  assert len(set(found.value)) == 1
  assert np.argsort(found.order).tolist() == [1, 2, 0]


@pytest.mark.parametrize('column, unit, message', [
    (np.array([_S, -1]), None, 'row 1, column timestamp: -1 is negative'),
    (np.array([_S, np.nan]), None, 'row 1, column timestamp: nan is negative'),
    (np.array([_S, np.inf]), None, 'row 1, column timestamp: inf'),
    (pa.array([_S, None]), None, 'row 1, column timestamp: None'),
    (pa.array([None, _S], pa.timestamp('s')), None, 'row 0'),
    (pa.array(['2023-11-14', 'yesterday']), None, "row 1, column timestamp: "
     "'yesterday' is no moment"),
    (pa.array(['11/14/2023', '11/15/2023']), None, 'is no moment'),
    (np.array([_MS, _MS]), 's', 'is time_unit right?'),
    (np.array([_MS, _MS]) * 10**6, 'ms', 'is time_unit right?'),
    (np.array([2**63 - 1]), 's', 'is time_unit right?'),
    (np.array([1e300]), None, 'is time_unit right?'),
    (np.array([.5, 1.]), 'ordinal', '0.5 is no position'),
    (pa.array([[1], [2]]), None, 'is no moment'),
    (pa.array([True]), None, 'is no moment'),
    (pa.array([5], pa.duration('s')), None, 'is no moment'),
    (pa.array([5], pa.time32('s')), None, 'is no moment'),
])
def test_what_is_no_time(column, unit, message):
  with pytest.raises(types.InputError) as caught:
    _read(column, unit)
  assert message in str(caught.value) and '\n' not in str(caught.value)


def test_unlikely_dates_are_told(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda *a: lines.append(a[0] % a[1:]))
  _read(np.array([_MS, 5, _MS, 5 * 10**12]), 'ms')
  assert len(lines) == 1 and 'row 1' in lines[0] and '2 rows' in lines[0]


def test_positions():
  user = np.array([0, 1, 0, 1])
  assert times.are_positions(np.array([0, 0, 1, 1]), user)
  assert times.are_positions(pa.array(['1', '1', '2', '2']), user)
  assert not times.are_positions(np.array([0, 0, 2, 1]), user)
  assert not times.are_positions(pa.array(['2024-01-01'] * 4), user)
  assert _read(np.array([3, 1]), 'ordinal').value.tolist() == [3, 1]


@pytest.mark.parametrize('value, unit, want', [
    (_S, 's', _MS), (_MS, 'ms', _MS), (_MS * 1000, 'us', _MS),
    ('2023-11-14T22:13:20', 's', _MS), ('2023-11-14T23:13:20+01:00', 'ms', _MS),
    (_S, 'datetime', _MS), (_MS, 'datetime', _MS), (7, 'ordinal', 7)])
def test_cuts_of_a_split(value, unit, want):
  assert times.moment(value, unit) == want
