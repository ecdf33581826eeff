"""CoST: codes that tell items apart instead of reconstructing them.

    python -m sidrec.main --config=experiments/cost.py:amazon14-beauty \
        --workdir=runs/cost

Paper: arXiv 2404.14774. TIGER with a contrastive loss in place of the
reconstruction.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = config_lib.RUNLOCAL_GENERATOR


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.label = 'cost'
  config.tokenizer = config_lib.residual_tokenizer(
      'cost', latent_dim=96, contrast_weight=.1, tau=.1,
      reconstruction_weight=0.)
  return config_lib.apply(
      config, arg, RUNLOCAL, decoder=config_lib.DECODER)
