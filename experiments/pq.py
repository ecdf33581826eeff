"""Product quantization: a level codes a part of the vector, no residuals.

    python -m sidrec.main --config=experiments/pq.py:amazon14-beauty \
        --workdir=runs/pq

Paper: arXiv 2210.12316 (VQ-Rec).
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = config_lib.RUNLOCAL_GENERATOR


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.label = 'pq'
  config.tokenizer = config_lib.fitted_tokenizer('pq', kmeans_steps=20)
  return config_lib.apply(
      config, arg, RUNLOCAL, decoder=config_lib.DECODER)
