"""How good are codes of content alone, the ones everybody compares with?

    python -m sidrec.main --workdir=runs/tiger \
        --config=experiments/tiger.py:amazon14-beauty,decoder

TIGER (arXiv 2305.05065): RQ-VAE codes, and a T5 of the paper's sizes that
writes the next item's. The word `decoder` trains a causal model on all
positions at once instead: much the faster one.

Minutes: 10 to 15 on one CPU core with `decoder`; the T5 wants a GPU.
Expected: with `decoder`, test, Recall@10 .0599, NDCG@10 .0344 (one seed).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('content', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method, config.label = 'generative', 'tiger'
  config.update(config_lib.VECTORS['content']())
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='rqvae', num_levels=3, codebook_size=256,
      hidden=(512, 256, 128), latent_dim=32,
      commitment=.25,  # Weight of the pull of latents towards codewords.
      next_residual='sg',  # No gradient from a level to those before it.
      reduction='mean',  # Of squared errors over dimensions.
      sinkhorn_epsilon=0., sinkhorn_steps=50,  # 0: nearest codes.
      start_rows=0, kmeans_steps=20,  # Codebooks start by k-means of all items.
      revive=True))  # Codewords without an item move between epochs.
  config.tokenizer_train = config_lib.stage(
      '10000 steps', batch_size=1024, learning_rate=1e-3, weight_decay=1e-4,
      warmup=50,
      between_epochs=10)  # Epochs between its host work; 0: never.
  config.codes = ml_collections.ConfigDict(dict(
      collisions='suffix', suffix_size=256,  # One more code counts them.
      least_entropy=1.))  # Nats of a level; below, the run stops.
  config.update(config_lib.GENERATORS['t5']())
  return config_lib.apply(
      config, arg,
      decoder={**config_lib.GENERATORS['decoder'](),
               'tokenizer_train.length': '1000 steps'},
      runlocal={**config_lib.GENERATORS['small'](), **config_lib.FEW_USERS,
                'tokenizer_train.length': '500 steps'})
