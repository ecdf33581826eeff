"""What is known of items when a request comes, whoever asks.

Clicks, click rates, freshness: no guess is needed for them, so that ranking
and retrieval both read them as they are. They are kept for a number of moments
of the log, as events strictly before each; a request reads those of the last
moment that is not after it.
"""

import dataclasses
from typing import Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from sidrec import types
from sidrec.data import cross

MOST = 1 << 25  # Numbers kept: moments x items x statistics.
MOMENTS = (8, 512)  # Fewest and most.
# Half-lives of popularity, as shares of what the training split spans.
HALF_LIVES = (1 / 64, 1 / 16, 1 / 4)
_MS_PER_HOUR = 3_600_000.


@dataclasses.dataclass(frozen=True)
class Known:
  """The statistics and when they are of.

  table: for the device.
  moments: [G] int64 ms, ascending: moment g knows what is strictly before it.
  names: F names.
  """
  table: types.Known
  moments: np.ndarray
  names: tuple[str, ...]

  def at(self, time: np.ndarray) -> np.ndarray:
    """Returns the moment [N] int32 that requests at times [N] read."""
    place = np.searchsorted(self.moments, time, side='right') - 1
    return np.maximum(place, 0).astype(np.int32)


def build(
    item: np.ndarray, time: np.ndarray, label: np.ndarray, until: int,
    columns: Sequence[cross.Column], *, num_items: int, labelled: bool,
    others: Mapping[str, np.ndarray] | None = None,
    before: tuple[np.ndarray, np.ndarray] | None = None, most: int = MOST
) -> Known:
  """Counts.

  Args:
    item, time, label: [E] events that may be counted, in order of time (ms).
    until: last time of the log, ms.
    columns: item columns; what is said of an item is said of its values too.
    num_items: V.
    labelled: whether labels differ, so that rates say something.
    others: name -> [E] other labels of the events; their rates are told.
    before: [V] exposures and positives from before the log, or None.
    most: numbers to keep; moments are as many as that allows.
  """
  columns = [column for column in columns
             if not _is_one_each(column, num_items)]
  others = others or {}
  names = _names(columns, labelled, others, before is not None)
  fewest, limit = MOMENTS
  count = int(np.clip(most // max(num_items * len(names), 1), fewest, limit))
  # As many events between two of them; the last is after the log.
  moments = np.unique(np.append(
      np.quantile(time, np.linspace(0, 1, count - 1), method='lower'),
      until + 1)).astype(np.int64)
  counts = _Counts(item, time, label, moments, num_items)
  values = np.concatenate([
      counts.of_items(labelled),
      *(counts.rate_of(values)[..., None] for values in others.values()),
      *(counts.of_values(column, labelled) for column in columns),
      *([] if before is None else [np.broadcast_to(
          np.log1p(np.stack(before, -1)),
          (len(moments), num_items, len(before)))])], -1)
  return Known(
      types.Known(values=values.astype(np.float32),
                  weight=(1. + counts.exposures).astype(np.float32)),
      moments, names)


def _is_one_each(column: cross.Column, num_items: int) -> bool:
  """Whether a column tells the items apart, as their ids do."""
  return column.size == num_items == len(column.codes) == len(
      np.unique(column.codes))


def _names(columns: Sequence[cross.Column], labelled: bool,
           others: Iterable[str], before: bool) -> tuple[str, ...]:
  """Returns the names of the statistics, in their order."""
  counts = ('exposures', *('positives', 'rate') * labelled)
  item = (*counts, *(f'recent@{x:g}' for x in HALF_LIVES), 'age', 'new')
  value = ('exposures', *('rate',) * labelled, f'recent@{HALF_LIVES[1]:g}')
  return (*(f'item/{x}' for x in item), *(f'item/{x}/rate' for x in others),
          *(f'{c.name}/{x}' for c in columns for x in value),
          *(f'item/history_{x}' for x in ('exposures', 'positives') if before))


class _Counts:
  """Counts [G, V] of each moment."""

  def __init__(self, item: np.ndarray, time: np.ndarray, label: np.ndarray,
               moments: np.ndarray, num_items: int):
    shape = len(moments), num_items
    first = np.searchsorted(moments, time, side='right')
    # What no moment knows of; there is none, as the last is after the log.
    cell = first * num_items + item

    def sums(weight: np.ndarray) -> np.ndarray:
      return np.bincount(cell, weight, shape[0] * shape[1]).reshape(shape)

    self._sums = sums
    self.exposures = np.cumsum(sums(np.ones(len(item))), 0)
    self.positives = np.cumsum(sums(label), 0)
    span = max(float(time[-1] - time[0]), 1.) if len(time) else 1.
    self.recent = []
    for share in HALF_LIVES:
      rate = np.log(2.) / (share * span)
      own = sums(label * np.exp(-rate * (moments[first] - time)))
      for g in range(1, len(own)):
        own[g] += own[g - 1] * np.exp(-rate * (moments[g] - moments[g - 1]))
      self.recent.append(own)
    birth = np.full(num_items, np.iinfo(np.int64).max)
    np.minimum.at(birth, item, time)
    # An item that no moment knows of is new, and of no age.
    self._age = np.maximum(moments[:, None] - np.minimum(
        birth, moments[-1])[None], 0) / _MS_PER_HOUR
    self._new = self.exposures == 0

  def _rate(self, exposures: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Smoothed rate [G, N] minus that of all items; 0 = nothing is known."""
    return self._smooth(exposures, positives, self.positives)

  def _smooth(self, exposures: np.ndarray, positives: np.ndarray,
              every: np.ndarray) -> np.ndarray:
    """As `_rate`, with the positives [G, V] of all items."""
    strength = cross.PRIOR_STRENGTH
    total = [x.sum(1, keepdims=True) for x in (self.exposures, every)]
    prior = (total[1] + .5 * strength) / (total[0] + strength)
    return (positives - prior * exposures) / (exposures + strength)

  def rate_of(self, label: np.ndarray) -> np.ndarray:
    """Returns the rates [G, V] of another label [E]."""
    positives = np.cumsum(self._sums(label), 0)
    return self._smooth(self.exposures, positives, positives)

  def of_items(self, labelled: bool) -> np.ndarray:
    """Returns the statistics of items by themselves, [G, V, .]."""
    parts = [np.log1p(self.exposures)]
    if labelled:
      parts += [np.log1p(self.positives),
                self._rate(self.exposures, self.positives)]
    parts += [np.log1p(own) for own in self.recent]
    return np.stack([
        *parts, np.log1p(np.where(self._new, 0., self._age)), self._new], -1)

  def of_values(self, column: cross.Column, labelled: bool) -> np.ndarray:
    """Returns those of the items' values of a column, summed, [G, V, .]."""
    has = sparse.csr_matrix(
        (np.ones(len(column.codes)), column.codes, column.offsets),
        shape=(len(column.offsets) - 1, column.size))
    total = lambda x: (has @ (has.T @ x.T)).T
    exposures = total(self.exposures)
    parts = [np.log1p(exposures)]
    if labelled:
      parts.append(self._rate(exposures, total(self.positives)))
    return np.stack([*parts, np.log1p(total(self.recent[1]))], -1)
