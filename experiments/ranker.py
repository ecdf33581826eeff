"""What does the same tower reach without a tokenizer (DIG's "Base")?

    python -m sidrec.main --config=experiments/ranker.py --workdir=runs/ranker

Tower, inputs and training are those of `dig.py`, so that the comparison is of
the method alone.

    python -m sidrec.main --workdir=runs/kuairand/ranker \
        --config=experiments/ranker.py:kuairand-pure-14d

Minutes: KuaiRand 2 on one CPU core.
Expected: KuaiRand, test, AUC .7518, GAUC .6323 (3 seeds).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('ids', 'columns', 'requests', 'cross', 'exposures', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'ranker'
  config.update(config_lib.RANKERS['din']())
  config.eval.monitor = ml_collections.ConfigDict({'ranking/auc': 1.})
  config.eval.validations = 3
  return config_lib.apply(
      config, arg,
      runlocal={
          **config_lib.FEW_USERS, 'train.length': '250 steps',
          'data.history_length': 20})
