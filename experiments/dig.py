"""Does training the tokenizer inside the ranker give both tasks at once?

    python -m sidrec.main --config=experiments/dig.py --workdir=runs/dig

The main job: DIG (arXiv 2605.14853) on the planted world. On other data, with
the same settings:

    python -m sidrec.main --workdir=runs/kuairand/dig \
        --config=experiments/dig.py:kuairand-pure-14d

Minutes: planted 6, KuaiRand 15, on one CPU core.
Expected, test, one seed: planted AUC .7763, Recall@10 .2998, Recall@50 .4025, by
both paths Recall@10 .3100; KuaiRand AUC .7521, GAUC .6313, Recall@10 .0884,
Recall@50 .2503.
"""

import ml_collections

from sidrec import config as config_lib

READS = ('ids', 'columns', 'requests', 'cross', 'exposures', 'sequences')


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'dig'
  config.update(config_lib.RANKERS['din']())
  config.train.update(dict(
      retrieval_batch_size=256,
      retrieval_negatives=2,  # Of the whole catalog, a positive.
      retrieval_siblings=2,  # Below a prefix of the positive.
      retrieval_seen_negatives=1))
  config.data.seen_length = 200
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='dig', num_levels=3,
      codebook_size=0,  # 0: about three codes an item in all.
      assignment='gumbel_st',  # or 'ema', the paper's published form.
      forward_code='mixed',  # 'stored', 'sampled'.
      tau=.5, usage_ratio=1.5, usage_momentum=.99, ema_decay=.99,
      commit_weight=.25, book_weight=1., slack=1.25, margin=.5,
      ste_recall=False, cut_path=False))
  config.loss = ml_collections.ConfigDict(dict(
      rank=1., recall=1., code=1., recon=.1, u2t=.1,
      warmup=.1, freeze=.8,  # Shares of the run: from, until.
      reassign_every=0,  # Steps; 0: an eighth of the run.
      sigma=.5, sigma_until=.6, p_mix=1., p_mix_ramp=.1, address_scale=.1,
      rank_item='both',  # 'e_v': the ranker reads no code embedding.
      match=True,  # Retrieval reads counts of seen items below a prefix.
      leaf_scale=4.,  # Learning rate of leaf ids, in units of the others'.
      leaf='item',  # 'code': the last level reads token embeddings too.
      u2t_target='own',  # 'bucket': the batch's bucket mean.
      stop_h=False))
  config.eval.update(dict(
      validations=3, beam_size=64,
      score='level',  # 'sum' adds the levels' scores along the path.
      use_u2t=True,
      beam_mass=True))  # A prefix counts for all items below it.
  return config_lib.apply(
      config, arg,
      runlocal={
          **config_lib.FEW_USERS, 'train.length': '250 steps',
          'data.history_length': 20, 'eval.beam_size': 50})
