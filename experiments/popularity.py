"""What does the popularity of the training split reach, for everyone?

    python -m sidrec.main --config=experiments/popularity.py --workdir=runs/pop

Counts of the training split's positives; there is nothing to train.

Minutes: under one.
Expected: on amazon14-beauty, test, Recall@10 .0114, NDCG@10 .0053.
"""

import ml_collections

from sidrec import config as config_lib

READS = ('popularity',)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'popularity'
  config.train = ml_collections.ConfigDict(dict(num_steps=0))
  return config_lib.apply(config, arg, runlocal=config_lib.FEW_USERS)
