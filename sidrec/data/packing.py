"""Packs users' sequences into rows of one length."""

import dataclasses

import numpy as np

from sidrec import types


@dataclasses.dataclass(frozen=True)
class Packed:
  """R rows of several sequences each.

  place: [R, S] int64 which of the entries that were packed, -1 where none is.
  segment: [R, S] int32 which sequence of the row, from 1; 0 = nothing.
  target: [R, S] float32, 1 = to be predicted.
  """
  place: np.ndarray
  segment: np.ndarray
  target: np.ndarray


def pack(user: np.ndarray, context: int, length: int,
         generator: np.random.Generator) -> Packed:
  """Packs sequences into rows, none of them torn.

  A sequence longer than `context` + 1 is cut into windows that overlap by half
  of the context, so that each entry but the oldest is a target once, with at
  least half of the context before it.

  Args:
    user: [N] whose each entry is, in order of time for each user.
    context: most items that are read before a target (T of the data).
    length: S, places of a row.
    generator: shuffles the windows before they are packed.

  Returns:
    The rows; windows of one entry are left out, they have no target.

  Raises:
    types.InputError: rows too short for a window, or nothing to predict.
  """
  if length < context + 1:
    raise types.InputError(
        f'config.train.row_items: {length} places do not hold a history of '
        f'{context} items and its target; give at least {context + 1}')
  order = np.argsort(user, kind='stable')
  user = user[order]
  first = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
  stop = np.append(first[1:], user.size)
  start, end, read = _windows(first, stop, context)
  many = end - start > 1
  start, end, read = start[many], end[many], read[many]
  if not start.size:
    raise types.InputError(
        'data: no user has two events in the training split of the kind that '
        'sequences are made of; there is no next item to learn')
  shuffled = generator.permutation(start.size)
  start, end, read = start[shuffled], end[shuffled], read[shuffled]
  row, place, number = _fill(end - start, length)
  out = Packed(*(np.full((row[-1] + 1, length), fill, kind) for fill, kind in (
      (-1, np.int64), (0, np.int32), (0, np.float32))))
  size = end - start
  offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
  rows, places = np.repeat(row, size), np.repeat(place, size) + offset
  out.place[rows, places] = order[np.repeat(start, size) + offset]
  out.segment[rows, places] = np.repeat(number, size)
  out.target[rows, places] = offset >= np.repeat(read, size)
  return out


def _windows(first: np.ndarray, stop: np.ndarray, context: int
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts sequences; returns (start, end, items that are only read)."""
  size, step = stop - first, context + 1 - max(context // 2, 1)
  more = np.maximum(size - (context + 1), 0)
  count = 1 + -(-more // step)
  which = np.repeat(np.arange(size.size), count)
  nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
  # The targets end at `end`; each window but the first begins them where the
  # one before it ended.
  end = np.minimum(first[which] + context + 1 + nth * step, stop[which])
  start = np.maximum(end - (context + 1), first[which])
  before = first[which] + context + 1 + (nth - 1) * step
  read = np.where(nth == 0, 1, before - start)
  return start, end, read


def _fill(size: np.ndarray, length: int
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Puts windows into rows in order, a new row where one does not fit.

  Returns:
    (row, place of the first item, number within the row from 1), [N] each.
  """
  row, place, number = (np.zeros(size.size, np.int64) for _ in range(3))
  here, used, count = 0, 0, 0
  for i, n in enumerate(size.tolist()):
    if used + n > length:
      here, used, count = here + 1, 0, 0
    count += 1
    row[i], place[i], number[i] = here, used, count
    used += n
  return row, place, number
