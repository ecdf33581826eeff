"""TIGER: RQ-VAE codes of content, and a T5 that writes the next item's.

    python -m sidrec.main --config=experiments/tiger.py:amazon14-beauty \
        --workdir=runs/tiger

Paper: arXiv 2305.05065; sizes are the paper's. The word `decoder` behind the
data set trains a causal model on all positions at once instead: much the
faster one.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = config_lib.RUNLOCAL_GENERATOR


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.label = 'tiger'
  config.tokenizer = config_lib.residual_tokenizer('rqvae')
  return config_lib.apply(
      config, arg, RUNLOCAL, decoder=config_lib.DECODER)
