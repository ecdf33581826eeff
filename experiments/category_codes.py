"""Control: codes from the catalog's own categories, coarse to fine.

    python -m sidrec.main --config=experiments/category_codes.py:amazon14-beauty \
        --workdir=runs/category_codes

The last level numbers the items of a category.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = config_lib.RUNLOCAL_GENERATOR


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.label = 'category_codes'
  config.tokenizer = config_lib.fitted_tokenizer(
      'category', fields=(), collisions='none', codebook_size=4096,
      least_entropy=0.)
  return config_lib.apply(
      config, arg, RUNLOCAL, decoder=config_lib.DECODER)
