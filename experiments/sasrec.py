"""What does an item-ID based next-item model reach, without any codes?

    python -m sidrec.main --workdir=runs/sasrec \
        --config=experiments/sasrec.py:amazon14-beauty

SASRec (arXiv 1808.09781) with a softmax over items: those of the history and
1,024 drawn ones that stand for the others.

Minutes: about 12 on one CPU core.
Expected: test, Recall@10 .0881, NDCG@10 .0539 (one seed).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('ids', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method = 'sasrec'
  config.model = ml_collections.ConfigDict(dict(
      trunk='sasrec', dim=128, num_layers=2, num_heads=2, dropout=.3,
      seen_bias=True))  # False: the paper's, which knows of no seen items.
  config.train = config_lib.stage(
      '30 epochs', batch_size=16, learning_rate=1e-3, weight_decay=.01,
      warmup=100, num_steps=-1,
      row_items=64,  # Places of a row of packed sequences.
      negatives=1024)  # Items of a step's softmax; 0: the whole catalog.
  return config_lib.apply(
      config, arg,
      runlocal={**config_lib.FEW_USERS, 'train.length': '600 steps'})
