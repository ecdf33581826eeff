"""Control: what do codes of the shop's own categories reach?

    python -m sidrec.main --workdir=runs/category_codes \
        --config=experiments/category_codes.py:amazon14-beauty,decoder

Category columns, coarse to fine; the last level numbers the items of a
category. Generator and training are those of `tiger.py`.

Minutes: 10 to 15 on one CPU core with `decoder`; the T5 wants a GPU.
Expected: with `decoder`, test, Recall@10 .0711, NDCG@10 .0406 (one seed).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('taxonomy', 'described', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method, config.label = 'generative', 'category_codes'
  config.update(config_lib.VECTORS['content']())
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='category', num_levels=3,
      codebook_size=4096,  # Of the last level.
      fields=()))  # Columns; (): the first there are.
  config.codes = ml_collections.ConfigDict(dict(
      collisions='none', suffix_size=256,
      least_entropy=0.))  # A catalog's categories may be as uneven as they are.
  config.update(config_lib.GENERATORS['t5']())
  return config_lib.apply(
      config, arg, decoder=config_lib.GENERATORS['decoder'](),
      runlocal={**config_lib.GENERATORS['small'](), **config_lib.FEW_USERS})
