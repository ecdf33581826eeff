"""What do codes reach that are fitted, not trained?

    python -m sidrec.main --workdir=runs/rqkmeans \
        --config=experiments/rqkmeans.py:amazon14-beauty,decoder

RQ-KMeans: residual k-means on the item vectors. Papers: arXiv 2502.18965
(balanced), 2506.13695. Generator and training are those of `tiger.py`.

Minutes: 10 to 15 on one CPU core with `decoder`; the T5 wants a GPU.
Expected: with `decoder`, test, Recall@10 .0677, NDCG@10 .0376 (one seed).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('content', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method, config.label = 'generative', 'rqkmeans'
  config.update(config_lib.VECTORS['content']())
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='rqkmeans', num_levels=3, codebook_size=256,
      balance='none',  # 'greedy', 'prices': even cluster sizes.
      kmeans_steps=20, start_rows=0))
  config.codes = ml_collections.ConfigDict(dict(
      collisions='suffix', suffix_size=256, least_entropy=1.))
  config.update(config_lib.GENERATORS['t5']())
  return config_lib.apply(
      config, arg, decoder=config_lib.GENERATORS['decoder'](),
      runlocal={**config_lib.GENERATORS['small'](), **config_lib.FEW_USERS})
