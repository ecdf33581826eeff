"""TIGER: RQ-VAE codes of content, and a T5 that writes the next item's.

    python -m sidrec.main --config=experiments/tiger.py:amazon14-beauty \
        --workdir=runs/tiger

Paper: arXiv 2305.05065. Sizes are the paper's. `model.name=decoder` trains a
causal model on all positions at once instead: much the faster one.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = {
    'model.name': 'decoder', 'model.dim': 64, 'model.num_layers': 2,
    'model.num_heads': 2, 'model.head_dim': 32, 'model.hidden': 128,
    'model.num_user_tokens': 0, 'train.examples': 'sequences',
    'train.batch_size': 32, 'train.num_epochs': 20.,
    'tokenizer_train.num_steps': 1000, 'train.warmup_steps': 50,
    'eval.valid_users': 300, 'eval.test_users': 1000,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'generative'
  config_lib.add_generator(config)
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='rqvae', num_levels=3, codebook_size=256, latent_dim=32,
      hidden=(512, 256, 128), commitment=.25, next_residual='sg',
      reduction='mean', sinkhorn_epsilon=0., sinkhorn_steps=50, start_rows=0,
      kmeans_steps=20, revive=True, collisions='suffix', suffix_size=256,
      least_entropy=1.))
  return config_lib.apply(config, arg, RUNLOCAL)
