"""What does the popularity of the training split reach, for everyone?

    python -m sidrec.main --config=experiments/popularity.py --workdir=runs/pop
"""

import ml_collections

from sidrec import config as config_lib


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'popularity'
  config.train.num_steps = 0
  return config_lib.apply(config, arg)
