"""Configuration: defaults, the grammar after the colon, and its checks."""

from typing import Any

import ml_collections

from sidrec import types


# What becomes of codes: items that share a tuple, and how few may be in use.
_CODES = dict(
    collisions='suffix', suffix_size=256,
    least_entropy=1.)  # Nats of a level; below, the run stops.

# The word `decoder` of methods that write codes: a causal generator instead of
# the T5, all positions of a sequence at once, much the faster one.
DECODER = {
    'model.name': 'decoder', 'model.num_layers': 2, 'model.num_heads': 2,
    'model.hidden': 256, 'model.num_user_tokens': 0,
    'train.examples': 'sequences', 'train.batch_size': 16,
    'train.learning_rate': 3e-3, 'train.warmup_steps': 100,
    'train.num_epochs': 30., 'tokenizer_train.num_steps': 1000,
    'model.dropout': .2,
}
# The same, within a minute or two on a CPU.
RUNLOCAL_GENERATOR = {
    **DECODER, 'model.dim': 64, 'model.head_dim': 32, 'model.hidden': 128,
    'train.num_epochs': 20., 'train.warmup_steps': 50,
    'tokenizer_train.num_steps': 500, 'eval.valid_users': 300,
    'eval.test_users': 1000,
}


def base_config() -> ml_collections.ConfigDict:
  """Returns the settings every method shares.

  Every leaf is read by the package (a test holds that). A method's file in
  `experiments/` adds `tokenizer`, `model` and `loss` sub-trees of its own.
  """
  config = ml_collections.ConfigDict()
  config.method = ''
  config.label = ''  # What results call it; '': the method.
  config.seed = 0
  config.num_seeds = 1  # Seeds seed, seed + 1, ... in one run.
  config.data = ml_collections.ConfigDict(dict(
      name='planted',
      seed=0,  # Of the planted world and of sampled evaluation negatives.
      dir='',  # Any folder with the three tables; wins over name.
      root='',  # Where names are looked up; default $SIDREC_DATA.
      history_length=30,
      history='auto',  # 'positive' or 'all' (with what was not clicked).
      # Of titles, where no item_embeddings.npy is: a sentence-transformers name.
      text_encoder='',
      history_vectors=32,  # Item vectors from histories before the log.
      cross='all',  # u2i statistics: 'all' or 'none'.
      item_stats=True,  # Item-level and user-level running statistics too.
      split='auto',  # 'temporal' or 'leave_one_out'.
      eval_negatives=4,  # A positive, where the log has no negatives.
      planted=dict(
          num_users=3000, num_items=1000, events_per_user=38.,
          num_top_categories=8, leaves_per_category=4, num_brands=60,
          latent_dim=4, days=14, valid_days=2, test_days=2,
          u2i_strength=1., repeat_rate=.2, noise=1., static_noise=.05,
          popularity_exponent=.3, position_effect=.7),
  ))
  config.train = ml_collections.ConfigDict(dict(
      num_steps=-1,  # -1: num_epochs passes over the examples.
      examples='impressions',  # Or 'positives', 'sequences'.
      num_epochs=2.5,
      batch_size=512,  # Global, all devices together.
      learning_rate=2e-3,
      embedding_learning_rate=2e-3,
      weight_decay=.3,
      embedding_weight_decay=3.,
      clip_norm=1.,
      warmup_steps=50,
      log_every=20,
      eval_every=0,  # Steps between validations; 0: evals_per_epoch.
      evals_per_epoch=2.,
      patience=0,  # Validations without a gain before stopping; 0: never.
      prefetch=3,
  ))
  config.eval = ml_collections.ConfigDict(dict(
      beam_size=100,
      batch_size=512,  # Impressions a call when ranking.
      users_per_batch=64,  # Users a call when retrieving.
      valid_users=1000,  # Retrieval targets of validation; 0: all.
      test_users=0,
      monitor={'ranking/auc': 1., 'retrieval/recall@50': 1.},
  ))
  config.checkpoint = ml_collections.ConfigDict(dict(keep=2))
  config.parallel = ml_collections.ConfigDict(dict(wrapper='pmap'))
  return config


def add_ranker(config: ml_collections.ConfigDict) -> None:
  """Adds the ranking tower's settings, the same for every method with one.

  Args:
    config: to change in place.
  """
  config.model = ml_collections.ConfigDict(dict(
      dim=32, id_dim=16, field_dim=8, init_scale=.1, hidden=64, attention=8,
      cross_layers=2, cross_rank=16, experts=4, expert_width=32))
  config.train.rank_negatives = 4  # Where the log has no negatives.
  config.train.pair_weight = 0.  # Of pairs of one user's exposures.
  config.train.pair_rows = 8  # A user's exposures that stand together then.


def add_generator(config: ml_collections.ConfigDict) -> None:
  """Adds what methods that write codes share, whatever the tokenizer.

  Args:
    config: to change in place.
  """
  config.method = 'generative'
  config.model = ml_collections.ConfigDict(dict(
      name='t5',  # Or 'decoder': causal, all positions at once.
      dim=128, num_layers=4, num_heads=6, head_dim=64, hidden=1024,
      dropout=.1, num_user_tokens=2000, dtype='float32'))
  config.tokenizer_train = ml_collections.ConfigDict(dict(
      num_steps=10_000, batch_size=1024, learning_rate=1e-3,
      weight_decay=1e-4, warmup_steps=50, clip_norm=1.,
      tend_epochs=10))  # Epochs between a tokenizer's host work; 0: never.
  _add_sequences(config)
  config.train.update(dict(
      batch_size=256, learning_rate=1e-3, weight_decay=.05, warmup_steps=500,
      num_epochs=100., examples='positives'))


def residual_tokenizer(name: str, **more: Any) -> ml_collections.ConfigDict:
  """Returns settings of a tokenizer with an encoder and residual codebooks.

  Args:
    name: of the tokenizer.
    **more: settings of its own, or other values.
  """
  return ml_collections.ConfigDict(dict(
      dict(name=name, num_levels=3, codebook_size=256, latent_dim=32,
           hidden=(512, 256, 128), commitment=.25, next_residual='sg',
           reduction='mean', sinkhorn_epsilon=0., sinkhorn_steps=50,
           start_rows=0, kmeans_steps=20, revive=True, **_CODES), **more))


def fitted_tokenizer(name: str, **more: Any) -> ml_collections.ConfigDict:
  """Returns settings of a tokenizer that is not trained by gradient.

  Args:
    name: of the tokenizer.
    **more: settings of its own, or other values.
  """
  return ml_collections.ConfigDict(dict(
      dict(name=name, num_levels=3, codebook_size=256, **_CODES), **more))


def add_sasrec(config: ml_collections.ConfigDict) -> None:
  """Adds SASRec's settings.

  Args:
    config: to change in place.
  """
  config.model = _sasrec_model()
  _add_sequences(config)
  config.train.update(dict(
      negatives=1024,  # Items of a step's softmax; 0: the whole catalog.
      batch_size=16, learning_rate=1e-3, weight_decay=.01, warmup_steps=100,
      num_epochs=30., examples='sequences'))


def add_collaborative(config: ml_collections.ConfigDict, dim: int) -> None:
  """Adds the SASRec whose item table a tokenizer reads.

  Args:
    config: to change in place.
    dim: width of the table.
  """
  config.collaborative = ml_collections.ConfigDict(dict(
      model=_sasrec_model(), num_steps=1500, negatives=1024, row_items=64,
      batch_size=16, learning_rate=1e-3, weight_decay=.01, warmup_steps=100,
      clip_norm=1.))
  config.collaborative.model.dim = dim


def _sasrec_model() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(dict(
      dim=128, num_layers=2, num_heads=2, dropout=.3, seen_bias=True))


def _add_sequences(config: ml_collections.ConfigDict) -> None:
  """What next-item models share: histories of 20, selection by NDCG@10."""
  config.train.row_items = 64  # Places of a row of packed sequences.
  config.data.history_length = 20
  config.data.history = 'positive'  # What is trained on is what is served.
  config.data.history_vectors = 0  # Content is content: see `item_vectors`.
  config.data.item_stats = False
  config.data.cross = 'none'
  config.train.evals_per_epoch = .1
  config.eval.update(dict(beam_size=50, test_users=0, valid_users=2000))
  config.eval.monitor = ml_collections.ConfigDict({'retrieval/ndcg@10': 1.})


def parse_arg(
    arg: str | None, presets: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
  """Reads the words after the colon of `--config=FILE:word,word,key=value`.

  Args:
    arg: the words, or None.
    presets: what words such as `runlocal` stand for, dotted key -> value.

  Returns:
    (overrides, data): dotted keys to set, in order, and the names of data
    sets among the words (none or one).

  Raises:
    types.InputError: if two data sets are named.
  """
  overrides, names = {}, []
  for word in (arg or '').split(','):
    word = word.strip()
    if not word:
      continue
    if word in presets:
      overrides.update(presets[word])
    elif '=' in word:
      key, value = word.split('=', 1)
      overrides[key] = value
    else:
      names.append(word)
  if len(names) > 1:
    raise types.InputError(
        f'--config names {len(names)} data sets ({", ".join(names)}): name one')
  return overrides, names


def apply(
    config: ml_collections.ConfigDict, arg: str | None,
    runlocal: dict[str, Any] | None = None,
    per_data: dict[str, dict[str, Any]] | None = None,
    **presets: dict[str, Any],
) -> ml_collections.ConfigDict:
  """Applies the words after the colon to an experiment's config.

  Args:
    config: to change in place.
    arg: the words after the colon.
    runlocal: dotted overrides of the word `runlocal`.
    per_data: dotted overrides by data set name, applied before the words.
    **presets: dotted overrides of further words.

  Returns:
    The same config.

  Raises:
    types.InputError: on a key that does not exist or a value of another type.
  """
  overrides, names = parse_arg(
      arg, {'runlocal': runlocal or {}, **presets})
  if names:
    config.data.name = names[0]
  for key, value in (per_data or {}).get(config.data.name, {}).items():
    set_key(config, key, value)
  for key, value in overrides.items():
    set_key(config, key, value)
  return config


def identity(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what must agree for a checkpoint to go on under a config.

  How the run is evaluated, shown and spread over devices may change between
  two starts; what is learned from what may not.

  Args:
    config: a whole configuration.

  Returns:
    The rest, as a plain dict.
  """
  out = config.to_dict()
  for key in ('eval', 'parallel', 'checkpoint', 'num_seeds', 'seed'):
    out.pop(key)
  for key in ('log_every', 'prefetch'):
    out['train'].pop(key)
  for key in ('root',):
    out['data'].pop(key)
  return out


def set_key(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  """Sets a dotted key, reading a string as the type that is there.

  Args:
    config: to change in place.
    key: for instance 'train.num_steps'.
    value: of the key's type, or its text; `/` parts the values of a tuple.

  Raises:
    types.InputError: unknown key, or text that does not read as the type.
  """
  node = config
  *path, leaf = key.split('.')
  for part in path:
    if part not in node or not isinstance(
        node[part], ml_collections.ConfigDict):
      raise types.InputError(f'config.{key}: no such key')
    node = node[part]
  if leaf not in node:
    raise types.InputError(f'config.{key}: no such key')
  old = node[leaf]
  try:
    if isinstance(value, str) and not isinstance(old, str):
      if isinstance(old, bool):
        value = {'true': True, 'false': False}[value.lower()]
      elif isinstance(old, tuple):
        kind = type(old[0]) if old else str
        value = tuple(kind(x) for x in value.split('/') if x)
      else:
        value = type(old)(value)
    node[leaf] = value
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise types.InputError(
        f'config.{key}={value}: expected {type(old).__name__}') from error


def _has(config: ml_collections.ConfigDict, key: str) -> bool:
  """Returns whether there is a dotted key."""
  group, leaf = key.split('.')
  return group in config and leaf in config[group]


def check(config: ml_collections.ConfigDict) -> None:
  """Checks ranges before any data is read.

  Args:
    config: a whole configuration.

  Raises:
    types.InputError: naming the first key that is out of range.
  """
  at_least = {
      'num_seeds': 1, 'seed': 0, 'data.history_length': 1,
      'data.eval_negatives': 1, 'train.num_steps': -1, 'train.batch_size': 1,
      'train.learning_rate': 0, 'train.embedding_learning_rate': 0,
      'train.weight_decay': 0, 'train.embedding_weight_decay': 0,
      'train.num_epochs': 0, 'train.log_every': 1, 'train.eval_every': 0,
      'train.patience': 0, 'train.prefetch': 1, 'eval.beam_size': 1,
      'eval.batch_size': 1, 'eval.users_per_batch': 1, 'eval.valid_users': 0,
      'eval.test_users': 0,
      'checkpoint.keep': 1,
  }
  # Of some methods only.
  at_least |= {key: low for key, low in {
      'train.row_items': 2, 'train.negatives': 0, 'model.dim': 1,
      'model.num_layers': 1, 'model.num_heads': 1, 'model.head_dim': 1,
      'model.hidden': 1, 'model.dropout': 0, 'model.num_user_tokens': 0,
      **{f'{phase}.{name}': low for phase in ('tokenizer_train', 'collaborative')
         for name, low in (('num_steps', 1), ('batch_size', 1),
                           ('learning_rate', 0), ('weight_decay', 0))},
      'collaborative.row_items': 2, 'collaborative.negatives': 0,
      'tokenizer_train.tend_epochs': 0}.items() if _has(config, key)}
  for key, low in at_least.items():
    node = config
    for part in key.split('.'):
      node = node[part]
    if not node >= low:
      raise types.InputError(f'config.{key}={node}: must be at least {low}')
  for key, allowed in (
      ('parallel.wrapper', ('pmap', 'shard_map', 'vmap')),
      ('data.cross', ('all', 'none')),
      ('data.history', ('auto', 'all', 'positive')),
      ('data.split', ('auto', 'temporal', 'leave_one_out'))):
    group, leaf = key.split('.')
    if config[group][leaf] not in allowed:
      raise types.InputError(
          f'config.{key}={config[group][leaf]}: one of {", ".join(allowed)}')
