"""Assigns every event to train, valid or test."""

from typing import Any, Mapping

import numpy as np

from sidrec import types

NAMES = ('train', 'valid', 'test')
TRAIN, VALID, TEST = range(3)
QUANTILES = (.8, .9)  # Of the event times, where no cut is given.


def assign(
    info: Mapping[str, Any], split: str, user: np.ndarray, time: np.ndarray,
    where: str,
) -> tuple[np.ndarray, str]:
  """Splits events.

  'temporal': one global cut in time for validation and one for test. An
  event at a cut belongs to the later part. 'leave_one_out': per user the last
  event is test, the last but one valid; users with fewer than three events
  are training only.

  Args:
    info: complete `dataset.json`.
    split: 'auto' follows it, or 'temporal', or 'leave_one_out'.
    user: [E] int32.
    time: [E] int64, sorted.
    where: folder or name, for messages.

  Returns:
    ([E] int8 in {0 train, 1 valid, 2 test}, a phrase for the protocol).

  Raises:
    types.InputError: unknown split, or one that is empty.
  """
  if split not in ('auto', 'temporal', 'leave_one_out'):
    raise types.InputError(
        f'config.data.split: {split!r} must be auto, temporal or '
        'leave_one_out')
  kind = info['split']['kind'] if split == 'auto' else split
  if kind == 'leave_one_out':
    result = _leave_one_out(user)
    note = 'leave-one-out, leaks the future across users'
  else:
    if info['time_unit'] == 'ordinal':
      raise types.InputError(
          f'{where}/dataset.json: a split by time needs real times, but '
          'time_unit is ordinal; set config.data.split=leave_one_out')
    cuts = [info['split'].get(key) for key in ('valid_from', 'test_from')]
    if cuts[0] is None:
      cuts = [int(time[min(int(np.ceil(q * len(time))), len(time) - 1)])
              for q in QUANTILES]
    result = (time >= cuts[0]).astype(np.int8) + (time >= cuts[1])
    note = f'temporal, valid from {cuts[0]:.0f} and test from {cuts[1]:.0f} ms'
  counts = np.bincount(result, minlength=3)
  for name, count in zip(NAMES, counts):
    if not count:
      raise types.InputError(
          f'{where}: the {name} split is empty ({note}; {counts[0]} train, '
          f'{counts[1]} valid, {counts[2]} test events); move the cuts in '
          'dataset.json or set config.data.split')
  return result.astype(np.int8), note


def _leave_one_out(user: np.ndarray) -> np.ndarray:
  """Returns the split of events sorted by time."""
  order = np.argsort(user, kind='stable')
  count = np.bincount(user)
  stop = np.cumsum(count)
  result = np.full(len(user), TRAIN, np.int8)
  enough = count >= 3
  result[order[stop[enough] - 1]] = TEST
  result[order[stop[enough] - 2]] = VALID
  return result
