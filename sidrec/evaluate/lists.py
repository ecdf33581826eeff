"""Works on retrieved lists on the host: ties made whole, seen items removed."""

from typing import NamedTuple

import numpy as np

from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.evaluate import feed
from sidrec.tokenizers import collisions

_CHUNK = 4096  # Users whose seen items are looked up at a time.


class Groups(NamedTuple):
  """Which items share a code.

  group: [V] number of each item's code.
  items: [V] items by group. start: [G + 1] where each group begins in it.
  """
  group: np.ndarray
  items: np.ndarray
  start: np.ndarray


def groups(codes: np.ndarray) -> Groups | None:
  """Returns which items share a row of codes [V, L]; None if no two do."""
  group, count = collisions.groups(codes)
  if count.size == len(codes):
    return None
  return Groups(group, np.argsort(group, kind='stable'),
                np.append(0, np.cumsum(count)))


def permute(beams: types.Beams, order: np.ndarray) -> types.Beams:
  """Returns the entries [B, W'] of beams, by their places in the list."""
  take = lambda x: np.take_along_axis(x, order, 1)
  return types.Beams(
      item=take(beams.item), score=take(beams.score), mask=take(beams.mask),
      code=np.take_along_axis(beams.code, order[..., None], 1))


def cut(beams: types.Beams, size: int) -> types.Beams:
  """Returns the first `size` valid entries of each list, in their order."""
  if beams.mask.shape[1] <= size and beams.mask.all():
    return beams
  return permute(beams, np.argsort(~beams.mask, 1, kind='stable')[:, :size])


def complete(beams: types.Beams, found: Groups) -> types.Beams:
  """Appends the items that a full list has left out of its last code.

  A search scores codes: items of one code tie, and which of them end a full
  list is the order of their numbers. Where the items of that code differ in
  score, the search has scored items and nothing is appended.

  Args:
    beams: [B, W], best first.
    found: of the codes that were searched.

  Returns:
    [B, W + n] for the largest number n of items left out.
  """
  last = found.group[beams.item[:, -1]]
  same = beams.mask & (found.group[beams.item] == last[:, None])
  tied = ((beams.score == beams.score[:, -1:]) | ~same).all(1)
  short = (found.start[last + 1] - found.start[last] > same.sum(1)) & (
      beams.mask.all(1) & tied)
  rest = {row: np.setdiff1d(
      found.items[found.start[last[row]]:found.start[last[row] + 1]],
      beams.item[row]) for row in np.flatnonzero(short)}
  if not rest:
    return beams
  width = max(map(len, rest.values()))
  wide = lambda x: np.concatenate([x, np.repeat(x[:, -1:], width, 1)], 1)
  item, mask = wide(beams.item), wide(beams.mask)
  mask[:, -width:] = False
  for row, items in rest.items():
    item[row, -width:][:len(items)] = items
    mask[row, -width:][:len(items)] = True
  return types.Beams(
      item=item, code=wide(beams.code), score=wide(beams.score), mask=mask)


def remove(beams: types.Beams, item: np.ndarray, mask: np.ndarray
           ) -> types.Beams:
  """Returns beams in which some items of each user are not valid.

  Args:
    beams: [B, W].
    item: [B, N] items of each user.
    mask: [B, N], 1 = valid.
  """
  # One number for a pair, as [B, W, N] is large.
  most = int(max(beams.item.max(initial=0), item.max(initial=0))) + 1
  pair = lambda x: np.arange(len(x), dtype=np.int64)[:, None] * most + x
  gone = np.isin(pair(beams.item), pair(item)[np.asarray(mask) > 0])
  return beams.replace(mask=beams.mask & ~gone)


def most_seen(dataset: dataset_lib.Dataset, events: np.ndarray) -> int:
  """Returns the largest number of items that one of the users has seen."""
  return max((int(dataset.seen(part)[1].sum(1).max())
              for part in feed.parts(events, _CHUNK)), default=0)
