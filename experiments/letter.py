"""Do codes gain by what is bought together, and by even use?

    python -m sidrec.main --workdir=runs/letter \
        --config=experiments/letter.py:amazon14-beauty,decoder

LETTER (arXiv 2405.07314): item vectors of a SASRec, trained first, align the
codes; codewords are kept diverse; collisions are repaired, not suffixed.
Generator and training are those of `tiger.py`.

Minutes: 10 to 15 on one CPU core with `decoder`; the T5 wants a GPU.
Expected: with `decoder`, test, Recall@10 .0616, NDCG@10 .0357 (3 seeds).
"""

import ml_collections

from sidrec import config as config_lib

READS = ('content', 'collaborative', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.next_item_config()
  config.method, config.label = 'generative', 'letter'
  config.update(config_lib.VECTORS['content']())
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='letter', num_levels=4, codebook_size=256,
      hidden=(512, 256, 128, 64), latent_dim=32,
      alignment_weight=.02, diversity_weight=1e-4, num_clusters=10,
      commitment=.25, next_residual='code_family', reduction='mean',
      sinkhorn_epsilon=.003, sinkhorn_steps=50,
      start_rows=0, kmeans_steps=20, revive=True))
  config.tokenizer_train = config_lib.stage(
      '10000 steps', batch_size=1024, learning_rate=1e-3, weight_decay=1e-4,
      warmup=50, between_epochs=10)
  config.codes = ml_collections.ConfigDict(dict(
      collisions='sinkhorn', suffix_size=256, least_entropy=1.))
  config.collaborative = ml_collections.ConfigDict(dict(
      model=dict(
          trunk='sasrec', dim=config.tokenizer.get_ref('latent_dim'),
          num_layers=2, num_heads=2, dropout=.3, seen_bias=True),
      train=config_lib.stage(
          '1500 steps', batch_size=16, learning_rate=1e-3, weight_decay=.01,
          warmup=100, row_items=64,
          negatives=1024)))  # Items of a step's softmax; 0: the whole catalog.
  config.update(config_lib.GENERATORS['t5']())
  return config_lib.apply(
      config, arg,
      decoder={**config_lib.GENERATORS['decoder'](),
               'tokenizer_train.length': '1000 steps'},
      runlocal={**config_lib.GENERATORS['small'](), **config_lib.FEW_USERS,
                'tokenizer_train.length': '500 steps',
                'collaborative.train.length': '150 steps'})
