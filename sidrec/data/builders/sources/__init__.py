"""Official raw files of public data sets, turned into the three tables."""

from sidrec import types
from sidrec.data.builders.sources import amazon
from sidrec.data.builders.sources import kuairand
from sidrec.data.builders.sources import movielens
from sidrec.data.builders.sources import raw

NAMES = ('kuairand-pure', 'amazon14', 'amazon18', 'amazon23', 'ml-1m',
         'ml-20m')


def get(name: str, category: str = '', time: str = 'ordinal') -> raw.Source:
  """Returns the description and parser of a public data set.

  Args:
    name: one of `NAMES`.
    category: file name part of an Amazon category, such as 'Beauty'.
    time: 'ordinal' (position within the user's events, what leave-one-out
      papers use) or 's' (the times of the raw files, which are often equal);
      only where raw times are too coarse to order events by.

  Raises:
    types.InputError: unknown name, category or time.
  """
  if time not in ('ordinal', 's'):
    raise types.InputError(f"time {time!r} must be 'ordinal' or 's'")
  if name == 'kuairand-pure':
    return kuairand.source()
  if name in ('ml-1m', 'ml-20m'):
    return movielens.source(name, time)
  if name in ('amazon14', 'amazon18', 'amazon23'):
    return amazon.source(2000 + int(name[-2:]), category, time)
  raise types.InputError(
      f'unknown data set {name!r}; there are {", ".join(NAMES)}')
