"""Is the residual of residual codes worth anything?

    python -m sidrec.main --workdir=runs/pq \
        --config=experiments/pq.py:amazon14-beauty,decoder

Product quantization (arXiv 2210.12316, VQ-Rec): a level codes a part of the
vector. Generator and training are those of `tiger.py`.

Minutes: 10 to 15 on one CPU core with `decoder`; the T5 wants a GPU.
Expected: not measured yet.
"""

import ml_collections

from sidrec import config as config_lib

READS = ('content', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method, config.label = 'generative', 'pq'
  config.update(config_lib.VECTORS['content']())
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='pq', num_levels=3, codebook_size=256, kmeans_steps=20))
  config.codes = ml_collections.ConfigDict(dict(
      collisions='suffix', suffix_size=256, least_entropy=1.))
  config.update(config_lib.GENERATORS['t5']())
  return config_lib.apply(
      config, arg, decoder=config_lib.GENERATORS['decoder'](),
      runlocal={**config_lib.GENERATORS['small'](), **config_lib.FEW_USERS})
