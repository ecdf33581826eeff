"""Values that configurations are made of: what comparisons hold fixed."""

import math
from typing import Any, Callable, Mapping

import ml_collections

from sidrec import types
from sidrec.config import ranges

PLANTED = 'planted'  # The data set that is generated on the spot.

# Of the word `runlocal`: what evaluation costs at most.
FEW_USERS = {
    'eval.valid_users': 300, 'eval.test_users': 1000, 'eval.validations': 3}


def base_config() -> ml_collections.ConfigDict:
  """Returns what every method has: data, protocol, and how a run is watched.

  A file in `experiments/` adds what its method reads, and nothing else.
  """
  config = ml_collections.ConfigDict()
  config.method = ''
  config.label = ''  # What results call it; '': the method.
  config.seed = 0
  config.num_seeds = 1  # Seeds seed, seed + 1, ... in one run.
  config.data = ml_collections.ConfigDict(dict(
      name=PLANTED,
      seed=0,  # Of item numbers, the planted world and sampled negatives.
      dir='',  # Any folder with the three tables; wins over name.
      root='',  # Where names are looked up; default $SIDREC_DATA.
      history_length=30,
      history='auto',  # 'positive' or 'all' (with what was not clicked).
      # Of titles, where there is no item_embeddings.npy: any name that
      # sentence-transformers opens.
      text_encoder='',
      history_vectors=32,  # Item vectors from histories before the log.
      cross='all',  # u2i statistics: 'all' or 'none'.
      item_stats=True,  # Statistics of items and of users by themselves too.
      seen_length=0,  # Items that retrieval knows to have been seen.
      split='auto',  # 'temporal' or 'leave_one_out'.
      eval_negatives=4,  # A positive, where the log has no negatives.
      planted=dict(
          num_users=3000, num_items=1000, events_per_user=38.,
          num_top_categories=8, leaves_per_category=4, num_brands=60,
          latent_dim=4, days=14, valid_days=2, test_days=2,
          u2i_strength=1., repeat_rate=.2, noise=1., static_noise=.05,
          popularity_exponent=.3, position_effect=.7),
  ))
  config.run = ml_collections.ConfigDict(dict(log_every=20, prefetch=3))
  config.eval = ml_collections.ConfigDict(dict(
      beam_size=100,
      batch_size=512,  # Impressions a call when ranking.
      users_per_batch=64,  # Users a call when retrieving.
      valid_users=1000,  # Retrieval targets of validation; 0: all.
      test_users=0,
      monitor={'ranking/auc': 1., 'retrieval/recall@50': 1.},
      remove_seen=False,  # Whether items of the history leave the list.
      validations=5,  # Of the stage that is selected by them.
      every=0,  # Steps between them; 0: by their number.
      patience=0,  # Validations without a gain before stopping; 0: never.
  ))
  config.checkpoint = ml_collections.ConfigDict(dict(keep=2))
  config.parallel = ml_collections.ConfigDict(dict(wrapper='pmap'))
  return config


# Ranges of `base_config`; those of methods stand with what reads them.
RANGES: ranges.Table = {
    'label': ranges.TEXT,
    'seed': ranges.SEED,
    'num_seeds': ranges.whole(1, 1 << 16).that(
        'the last seed below 4294967296',
        lambda own, _: own['seed'] + own['num_seeds'] <= 1 << 32),
    'data': {
        'name': ranges.NAME, 'dir': ranges.TEXT, 'root': ranges.TEXT,
        'seed': ranges.SEED,
        'history_length': ranges.whole(1, 1 << 14),
        'history': ranges.choice('auto', 'all', 'positive'),
        'text_encoder': ranges.TEXT,
        'history_vectors': ranges.whole(0, 1 << 12),
        'cross': ranges.choice('all', 'none'),
        'item_stats': ranges.FLAG, 'seen_length': ranges.whole(0, 1 << 14),
        'split': ranges.choice('auto', 'temporal', 'leave_one_out'),
        'eval_negatives': ranges.whole(0, 1 << 12),
        'planted': {
            'num_users': ranges.whole(2, 1 << 24),
            'num_items': ranges.whole(10, 1 << 24),
            'events_per_user': ranges.number(10, 1e4).that(
                'of all users at most 2e9 events',
                lambda own, _: own['events_per_user'] * own[
                    'num_users'] <= 2e9),
            'num_top_categories': ranges.whole(2, 1 << 16),
            'leaves_per_category': ranges.whole(1, 1 << 16),
            'num_brands': ranges.whole(1, 1 << 24),
            'latent_dim': ranges.whole(1, 1 << 12),
            'days': ranges.whole(3, 10000).that(
                'more than valid_days and test_days together',
                lambda own, _: own['days'] > own['valid_days'] + own[
                    'test_days']),
            'valid_days': ranges.whole(1, 10000),
            'test_days': ranges.whole(1, 10000),
            'u2i_strength': ranges.WEIGHT, 'repeat_rate': ranges.SHARE,
            'noise': ranges.number(1e-3), 'static_noise': ranges.SHARE,
            'popularity_exponent': ranges.WEIGHT,
            'position_effect': ranges.WEIGHT}},
    'run': {'log_every': ranges.whole(1, ranges.MOST_STEPS),
            'prefetch': ranges.whole(1, 1 << 10)},
    'eval': {
        'beam_size': ranges.whole(1, 1 << 16),
        'batch_size': ranges.ROWS, 'users_per_batch': ranges.ROWS,
        'valid_users': ranges.COUNT, 'test_users': ranges.COUNT,
        'remove_seen': ranges.FLAG,
        'validations': ranges.whole(1, ranges.MOST_STEPS),
        'every': ranges.STEPS, 'patience': ranges.COUNT},
    'checkpoint': {'keep': ranges.whole(1, 1 << 10)},
    'parallel': {'wrapper': ranges.choice('pmap', 'shard_map', 'vmap')}}


def next_item_config() -> ml_collections.ConfigDict:
  """Returns the base of next-item models: histories of 20, NDCG@10."""
  config = base_config()
  config.data.history_length = 20
  config.data.history = 'positive'  # What is trained on is what is served.
  config.data.history_vectors = 0  # Content is content.
  config.data.item_stats = False
  config.data.cross = 'none'
  config.eval.update(dict(beam_size=50, valid_users=2000, validations=10))
  config.eval.monitor = ml_collections.ConfigDict({'retrieval/ndcg@10': 1.})
  return config


def stage(
    length: str, batch_size: int, learning_rate: float,
    weight_decay: float = 0., warmup: int = 0, clip: float = 1., **more: Any
) -> ml_collections.ConfigDict:
  """Returns the settings of a stretch of training.

  Args:
    length: '1000 steps' or '2.5 epochs'; see `steps`.
    batch_size: examples a step, all devices together.
    learning_rate: its peak; a cosine takes it to a hundredth.
    weight_decay: of AdamW.
    warmup: steps of its linear start.
    clip: largest norm of the gradients.
    **more: settings of its own. `num_steps`: wins over the length, -1 = not.
  """
  return ml_collections.ConfigDict(dict(
      length=length, batch_size=batch_size, learning_rate=float(learning_rate),
      weight_decay=float(weight_decay), warmup=warmup, clip=float(clip),
      **more))


# Ranges of a stage, and of the main one.
STAGE: ranges.Table = {
    'length': ranges.LENGTH, 'batch_size': ranges.BATCH,
    'learning_rate': ranges.WEIGHT, 'weight_decay': ranges.WEIGHT,
    'warmup': ranges.STEPS, 'clip': ranges.POSITIVE}
MAIN_STAGE: ranges.Table = {
    **STAGE, 'num_steps': ranges.whole(-1, ranges.MOST_STEPS)}


def steps(
    settings: ml_collections.ConfigDict, rows: int, key: str = 'train') -> int:
  """Returns the steps of a stage, rounded up.

  Args:
    settings: a stage, or just `num_steps`, which wins where it is not -1.
    rows: examples of an epoch.
    key: dotted name of the stage, for messages.

  Raises:
    types.InputError: a length that does not parse, or of too many steps.
  """
  if 'num_steps' in settings and settings.num_steps >= 0:
    return settings.num_steps
  found = ranges.read_length(settings.length)
  if found is not None:
    number, unit = found
    if unit == 'epoch':
      number = number * rows / settings.batch_size
  if found is None or number > ranges.MOST_STEPS:
    raise types.InputError(
        f'config.{key}.length={settings.length!r}: {ranges.LENGTH.says}')
  return math.ceil(number)


def _t5() -> dict[str, ml_collections.ConfigDict]:
  """TIGER's encoder-decoder (arXiv 2305.05065): one example a purchase."""
  return {
      'generator': ml_collections.ConfigDict(dict(
          name='t5', dim=128, num_layers=4, num_heads=6, head_dim=64,
          hidden=1024, dropout=.1, num_user_tokens=2000, dtype='float32')),
      'train': stage(
          '100 epochs', batch_size=256, learning_rate=1e-3, weight_decay=.05,
          warmup=500, num_steps=-1)}


def _decoder() -> dict[str, ml_collections.ConfigDict]:
  """A causal model, all positions of a sequence at once: much the faster."""
  return {
      'generator': ml_collections.ConfigDict(dict(
          name='decoder', dim=128, num_layers=2, num_heads=2, head_dim=64,
          hidden=256, dropout=.2, dtype='float32')),
      'train': stage(
          '30 epochs', batch_size=16, learning_rate=3e-3, weight_decay=.05,
          warmup=100, num_steps=-1,
          row_items=64)}  # Places of a row of packed sequences.


def _small() -> dict[str, ml_collections.ConfigDict]:
  """The decoder at half the width, for a minute or two of a CPU."""
  out = _decoder()
  out['generator'].update(dict(dim=64, head_dim=32, hidden=128))
  out['train'].update(dict(length='1000 steps', warmup=50))
  return out


def _din() -> dict[str, ml_collections.ConfigDict]:
  """The ranking tower, with or without a tokenizer in it."""
  return {
      'model': ml_collections.ConfigDict(dict(
          dim=32, id_dim=16, field_dim=8, init_scale=.01, hidden=64,
          attention=8, cross_layers=2, cross_rank=16, experts=4,
          expert_width=32)),
      'train': stage(
          '3 epochs', batch_size=512, learning_rate=2e-3, weight_decay=.3,
          warmup=50, num_steps=-1,
          embedding_learning_rate=2e-3,
          embedding_weight_decay=-1.,  # Of tables; -1: by the rows of each.
          rank_negatives=4,  # Where the log has no negatives.
          pair_weight=.1,  # Of pairs of one user's exposures.
          pair_rows=8)}  # A user's exposures that stand together.


def _content() -> dict[str, ml_collections.ConfigDict]:
  """What items are: embeddings, or their fields."""
  return {'vectors': ml_collections.ConfigDict(dict(name='content'))}


def _sasrec() -> dict[str, ml_collections.ConfigDict]:
  """Who takes them: the item table of a SASRec that is trained first."""
  return {'vectors': ml_collections.ConfigDict(dict(
      name='sasrec',
      standardize=True,  # Each dimension, as auto-encoders need it.
      model=dict(trunk='sasrec', dim=128, num_layers=2, num_heads=2,
                 dropout=.3, seen_bias=True),
      train=stage(
          '1500 steps', batch_size=16, learning_rate=1e-3, weight_decay=.01,
          warmup=100, row_items=64, negatives=1024)))}


# What a comparison holds fixed is one value: its settings and its training,
# made anew each time.
GENERATORS = {'t5': _t5, 'decoder': _decoder, 'small': _small}
RANKERS = {'din': _din}
VECTORS = {'content': _content, 'sasrec': _sasrec}
# Keys whose values bring whole sub-trees with them.
CHOICES: Mapping[str, Mapping[str, Callable[[], Mapping[str, Any]]]] = {
    'generator.name': {'t5': _t5, 'decoder': _decoder},
    'vectors.name': VECTORS}
