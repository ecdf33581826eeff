"""Control: what does a generator reach on codes that mean nothing?

    python -m sidrec.main --workdir=runs/random_codes \
        --config=experiments/random_codes.py:amazon14-beauty,decoder

Distinct random tuples. Generator and training are those of `tiger.py`.

Minutes: 10 to 15 on one CPU core with `decoder`; the T5 wants a GPU.
Expected: with `decoder`, test, Recall@10 .0461, NDCG@10 .0280 (one seed).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('described', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method, config.label = 'generative', 'random_codes'
  config.update(config_lib.VECTORS['content']())
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='random', num_levels=3, codebook_size=256))
  config.codes = ml_collections.ConfigDict(dict(
      collisions='none', suffix_size=256,  # They are distinct.
      least_entropy=1.))
  config.update(config_lib.GENERATORS['t5']())
  return config_lib.apply(
      config, arg, decoder=config_lib.GENERATORS['decoder'](),
      runlocal={**config_lib.GENERATORS['small'](), **config_lib.FEW_USERS})
