"""What does the same tower reach without a tokenizer (DIG's "Base")?

    python -m sidrec.main --config=experiments/ranker.py --workdir=runs/ranker
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = {
    'train.num_epochs': 1.5, 'data.history_length': 20,
}


# As in dig.py, so that the comparison is of the method alone.
PER_DATA = {
    'kuairand-pure-14d': {
        'model.init_scale': .01,
        'train.num_epochs': 5., 'train.evals_per_epoch': .4,
        'train.embedding_weight_decay': 30., 'train.pair_weight': .1},
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'ranker'
  config_lib.add_ranker(config)
  config.eval.monitor = {'ranking/auc': 1.}
  return config_lib.apply(config, arg, RUNLOCAL, PER_DATA)
