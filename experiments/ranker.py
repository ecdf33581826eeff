"""What does the same tower reach without a tokenizer (DIG's "Base")?

    python -m sidrec.main --config=experiments/ranker.py --workdir=runs/ranker

Tower and training are those of `dig.py`, so that the comparison is of the
method alone. The word `exposures` is for logs of real exposures, as there:

    python -m sidrec.main --workdir=runs/kuairand/ranker \
        --config=experiments/ranker.py:kuairand-pure-14d,exposures

Minutes: KuaiRand 2 on one CPU core.
Expected: KuaiRand with `exposures`, test, AUC .7568, GAUC .6241 (3 seeds).
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
  return config_lib.apply(
      config, arg,
      # Chosen on validation of KuaiRand-Pure: large tables, noisy labels.
      exposures={
          'model.init_scale': .01, 'train.length': '5 epochs',
          'train.embedding_weight_decay': 30., 'train.pair_weight': .1,
          'eval.validations': 2},
      runlocal={
          **config_lib.FEW_USERS, 'train.length': '250 steps',
          'data.history_length': 20})
