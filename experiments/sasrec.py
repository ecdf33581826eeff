"""What does an item-ID based next-item model reach, without any codes?

    python -m sidrec.main --config=experiments/sasrec.py:amazon14-beauty \
        --workdir=runs/sasrec

SASRec (arXiv 1808.09781) with a softmax over items: those of the history and
1,024 drawn ones that stand for the others (`train.negatives`, 0: the catalog).
`model.seen_bias=False` is the paper's score, without what is learned of seen
items.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = {
    'train.num_epochs': 15., 'eval.valid_users': 300, 'eval.test_users': 1000}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'sasrec'
  config_lib.add_sasrec(config)
  return config_lib.apply(config, arg, RUNLOCAL)
