"""Do codes that tell items apart do better than codes that rebuild them?

    python -m sidrec.main --workdir=runs/cost \
        --config=experiments/cost.py:amazon14-beauty,decoder

CoST (arXiv 2404.14774): TIGER with a contrastive loss in place of the
reconstruction. Generator and training are those of `tiger.py`.

Minutes: 10 to 15 on one CPU core with `decoder`; the T5 wants a GPU.
Expected: with `decoder`, test, Recall@10 .0624, NDCG@10 .0358 (one seed).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('content', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method, config.label = 'generative', 'cost'
  config.update(config_lib.VECTORS['content']())
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='cost', num_levels=3, codebook_size=256,
      hidden=(512, 256, 128), latent_dim=96,
      contrast_weight=.1, tau=.1, reconstruction_weight=0.,
      commitment=.25, next_residual='sg', reduction='mean',
      sinkhorn_epsilon=0., sinkhorn_steps=50,
      start_rows=0, kmeans_steps=20, revive=True))
  config.tokenizer_train = config_lib.stage(
      '10000 steps', batch_size=1024, learning_rate=1e-3, weight_decay=1e-4,
      warmup=50, between_epochs=10)
  config.codes = ml_collections.ConfigDict(dict(
      collisions='suffix', suffix_size=256, least_entropy=1.))
  config.update(config_lib.GENERATORS['t5']())
  return config_lib.apply(
      config, arg,
      decoder={**config_lib.GENERATORS['decoder'](),
               'tokenizer_train.length': '1000 steps'},
      runlocal={**config_lib.GENERATORS['small'](), **config_lib.FEW_USERS,
                'tokenizer_train.length': '500 steps'})
