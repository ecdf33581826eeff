"""What a state gave to single users and exposures: what pairs runs."""

import os
from typing import Mapping, NamedTuple

import numpy as np

from sidrec.data import dataset as dataset_lib
from sidrec.data import outcomes
from sidrec.evaluate import files

FILES = ('users', 'exposures')


class Rows(NamedTuple):
  """Columns of one state on one split; None where it has no such path.

  users: a row a retrieval target: `event` of the log; `place` int32, 1 = first
    in the list, 0 = not in it; `unified_place` the same after re-ranking, None
    where the method does not rank. Items of one score stand in the order of
    the list, which says nothing: metrics take the mean over their orders,
    places do not.
  exposures: a row a ranked candidate: `row` int64 numbers them in the order of
    the split's events, equal for all methods; `label` float32; `score` float32
    ranking logit.
  """
  users: Mapping[str, np.ndarray | None] | None = None
  exposures: Mapping[str, np.ndarray] | None = None


def write(workdir: str, dataset: dataset_lib.Dataset,
          found: Mapping[int, Mapping[str, Rows]]) -> None:
  """Writes users.parquet and exposures.parquet, each where there are rows.

  Users and items have their original ids.

  Args:
    workdir: top-level folder of the run.
    dataset: that the rows are of.
    found: seed -> split -> rows, all of the run.

  Raises:
    types.InputError: a file cannot be written.
  """
  for name in FILES:
    parts = [(split, seed, getattr(rows, name)) for seed, own in found.items()
             for split, rows in own.items() if getattr(rows, name) is not None]
    if not parts:
      continue
    size = [len(next(iter(x.values()))) for _, _, x in parts]
    join = lambda column: None if column[0] is None else np.concatenate(column)
    columns = {
        'split': np.repeat([split for split, _, _ in parts], size),
        'seed': np.repeat(
            np.array([seed for _, seed, _ in parts], np.int32), size)}
    own = {key: join([x[key] for _, _, x in parts]) for key in parts[0][2]}
    event = own.pop('event', None)
    if event is not None:
      columns['user_id'] = dataset.user_ids[dataset.event_user[event]]
      columns['item_id'] = dataset.item_ids[dataset.event_item[event]]
    files.write(os.path.join(workdir, f'{name}.parquet'),
                outcomes.parquet({**columns, **own}))
