"""LETTER: codes of content, of collaboration and of even use.

    python -m sidrec.main --config=experiments/letter.py:amazon14-beauty \
        --workdir=runs/letter

Paper: arXiv 2405.07314. Item vectors of a SASRec, trained first, align the
codes; codewords are kept diverse; collisions are repaired, not suffixed.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = {
    **config_lib.RUNLOCAL_GENERATOR, 'collaborative.num_steps': 150}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.label = 'letter'
  config.tokenizer = config_lib.residual_tokenizer(
      'letter', num_levels=4, hidden=(512, 256, 128, 64),
      next_residual='code_family', sinkhorn_epsilon=.003,
      alignment_weight=.02, diversity_weight=1e-4, num_clusters=10,
      collisions='sinkhorn')
  config_lib.add_collaborative(config, config.tokenizer.latent_dim)
  return config_lib.apply(
      config, arg, RUNLOCAL, decoder=config_lib.DECODER)
