"""Does training the tokenizer inside the ranker give both tasks at once?

    python -m sidrec.main --config=experiments/dig.py --workdir=runs/dig

The main job: DIG (arXiv 2605.14853) on the planted world.
"""

import ml_collections

from sidrec import config as config_lib

RUNLOCAL = {
    'train.num_epochs': 1.5, 'data.history_length': 20,
    'eval.valid_users': 300, 'eval.test_users': 1000, 'eval.beam_size': 50,
}

# Chosen on validation; what was tried stands in the README.
PER_DATA = {
    'kuairand-pure-14d': {
        'model.init_scale': .01, 'loss.recall': .5,
        'tokenizer.assignment': 'ema',
        'train.num_epochs': 5., 'train.evals_per_epoch': .4,
        'train.embedding_weight_decay': 30., 'train.pair_weight': .1,
        'eval.beam_size': 64},
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the configuration; `arg` is what follows the colon."""
  config = config_lib.base_config()
  config.method = 'dig'
  config_lib.add_ranker(config)
  config.train.update(dict(
      retrieval_batch_size=256, retrieval_negatives=4,
      retrieval_seen_negatives=1))
  config.tokenizer = ml_collections.ConfigDict(dict(
      name='dig', dim=config.model.get_ref('dim'), num_levels=3,
      codebook_size=0,  # 0: about three codes an item in all.
      assignment='gumbel_st',  # or 'ema', the paper's published form.
      forward_code='mixed',  # 'stored', 'sampled'.
      tau=.5, usage_ratio=1.5, usage_momentum=.99, ema_decay=.99,
      commit_weight=.25, book_weight=1., slack=1.25, margin=.5,
      ste_recall=False, cut_path=False))
  config.loss = ml_collections.ConfigDict(dict(
      rank=1., recall=1., code=1., recon=.1, u2t=.1,
      warmup=.1, freeze=.8, reassign_every=0,
      sigma=.5, sigma_until=.6, p_mix=1., p_mix_ramp=.1, address_scale=.1,
      rank_item='both',  # 'e_v': the ranker reads no code embedding.
      match=True,  # Counts of the history's items below a prefix.
      leaf_scale=4.,  # Learning rate of leaf ids, in units of the others'.
      leaf='item',  # 'tokens': the last level reads token embeddings too.
      u2t_target='own',  # 'bucket': the batch's bucket mean.
      stop_h=False))
  config.eval.update(dict(
      score='level',  # 'sum' adds the levels' scores along the path.
      use_u2t=True))
  return config_lib.apply(config, arg, RUNLOCAL, PER_DATA)
