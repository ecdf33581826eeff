"""Which columns know the future? Those that go with what comes later.

A column that was counted over the whole log (number of ratings, sales) says
how often an item appears in the test split, beyond what its training counts
say. So a number is suspect where its rank correlation with later counts, given
the earlier ones, is large.
"""

from typing import Mapping

import numpy as np
from scipy import stats

LEAST_CORRELATION = .25
_LEAST_ROWS = 30
_LEAST_VALUES = 3


def suspected(
    columns: Mapping[str, np.ndarray], row: np.ndarray, is_late: np.ndarray
) -> dict[str, float]:
  """Returns the suspect columns of a table and their partial correlations.

  Args:
    columns: of items (or users), [R] each; others than numbers are passed.
    row: [E] the item (or user) of each event.
    is_late: [E] bool, events of the validation and test splits.
  """
  found = {}
  for name, values in columns.items():
    if getattr(values, 'dtype', np.dtype(object)).kind not in 'iuf':
      continue
    value = partial(
        np.asarray(values, np.float64),
        np.bincount(row[~is_late], minlength=len(values)),
        np.bincount(row[is_late], minlength=len(values)))
    if value >= LEAST_CORRELATION:
      found[name] = value
  return found


def partial(values: np.ndarray, early: np.ndarray, late: np.ndarray) -> float:
  """Returns Spearman's correlation of values and late counts, given early.

  Args:
    values: [R], NaN where missing.
    early, late: [R] counts; rows without any event say nothing and are left
      out.

  Returns:
    The partial correlation; 0 where there is too little to say.
  """
  kept = np.isfinite(values) & (early + late > 0)
  if kept.sum() < _LEAST_ROWS or (
      len(np.unique(values[kept])) < _LEAST_VALUES):
    return 0.
  ranks = [stats.rankdata(x[kept]) for x in (values, late, early)]
  if any(np.ptp(x) == 0 for x in ranks[1:2]):
    return 0.
  with np.errstate(invalid='ignore'):
    c = np.nan_to_num(np.corrcoef(ranks))
  spread = np.sqrt((1 - c[0, 2]**2) * (1 - c[1, 2]**2))
  # What the earlier counts tell altogether leaves nothing to correlate.
  return float((c[0, 1] - c[0, 2] * c[1, 2]) / spread) if spread > 1e-6 else 0.
