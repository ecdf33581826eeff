"""RQ-KMeans: residual k-means on the item vectors, no training at all.

    python -m sidrec.main --config=experiments/rqkmeans.py:amazon14-beauty \
        --workdir=runs/rqkmeans

Papers: arXiv 2502.18965 (balanced), 2506.13695.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = config_lib.RUNLOCAL_GENERATOR


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.label = 'rqkmeans'
  config.tokenizer = config_lib.fitted_tokenizer(
      'rqkmeans', balance='none',  # 'greedy', 'prices': even cluster sizes.
      kmeans_steps=20, start_rows=0)
  return config_lib.apply(
      config, arg, RUNLOCAL, decoder=config_lib.DECODER)
