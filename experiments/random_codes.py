"""Control: what does a generator reach on codes that mean nothing?

    python -m sidrec.main --config=experiments/random_codes.py:amazon14-beauty \
        --workdir=runs/random_codes

Distinct random tuples.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = config_lib.RUNLOCAL_GENERATOR


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.label = 'random_codes'
  config.tokenizer = config_lib.fitted_tokenizer('random', collisions='none')
  return config_lib.apply(
      config, arg, RUNLOCAL, decoder=config_lib.DECODER)
