"""What a state gave to single users and exposures: what pairs runs."""

import os
from typing import Mapping, NamedTuple, Sequence

import numpy as np

from sidrec import types
from sidrec.data import outcomes
from sidrec.evaluate import files

FILES = ('users', 'exposures')


class Rows(NamedTuple):
  """Columns of one seed on one split; None where the method has no such path.

  users: a row a retrieval target: `user_id`, `item_id` original ids;
    `place` int32, 1 = first in the list, 0 = not in it; `unified_place` the
    same after re-ranking, None where the method does not rank. Items of one
    score stand in the order of the list, which says nothing: metrics take the
    mean over their orders, places do not.
  exposures: a row a ranked candidate: `row` int64 numbers them in the order of
    the split's events, equal for all methods; `label` float32; `score` float32
    ranking logit.
  """
  users: Mapping[str, np.ndarray | None] | None = None
  exposures: Mapping[str, np.ndarray] | None = None


def write(workdir: str, found: Sequence[tuple[str, int, Rows]]) -> None:
  """Writes users.parquet and exposures.parquet, each where there are rows.

  Args:
    workdir: top-level folder of the run.
    found: (split, seed, rows), all splits and seeds of the run.

  Raises:
    types.InputError: a file cannot be written.
  """
  for name in FILES:
    parts = [(split, seed, getattr(rows, name)) for split, seed, rows in found
             if getattr(rows, name) is not None]
    if not parts:
      continue
    size = lambda part: len(next(iter(part.values())))
    join = lambda column: None if column[0] is None else np.concatenate(column)
    columns = {
        'split': np.concatenate([
            np.full(size(x), split) for split, _, x in parts]),
        'seed': np.concatenate([
            np.full(size(x), seed, np.int32) for _, seed, x in parts]),
        **{key: join([x[key] for _, _, x in parts]) for key in parts[0][2]}}
    files.write(os.path.join(workdir, f'{name}.parquet'),
                outcomes.parquet(columns))
