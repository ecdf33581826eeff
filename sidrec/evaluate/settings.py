"""Settings of a run, checked as a whole before any data are read."""

import ml_collections

from sidrec import config as config_lib
from sidrec import methods
from sidrec.config import ranges
from sidrec.evaluate import selection


def table() -> ranges.Table:
  """Returns the ranges of everything that a configuration may have."""
  shared = config_lib.RANGES
  return {'method': ranges.choice_of(methods.tables()), **shared,
          'eval': {**shared['eval'], 'monitor': selection.MONITOR}}


def check(config: ml_collections.ConfigDict, num_devices: int = 1) -> None:
  """Refuses a configuration that no run can be made of.

  Args:
    config: a whole configuration.
    num_devices: of all processes, where it is to be trained.

  Raises:
    types.InputError: see `config.check`.
  """
  config_lib.check(config, table(), num_devices)
