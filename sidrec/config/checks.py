"""Ranges of settings, and which of them a checkpoint must agree with."""

import math
from typing import Any, Mapping

import ml_collections

from sidrec import types
from sidrec.config import values

# Dotted key -> smallest value, of the methods that have it.
_AT_LEAST: Mapping[str, float] = {
    'num_seeds': 1, 'seed': 0, 'data.seed': 0, 'data.history_length': 1,
    'data.history_vectors': 0, 'data.eval_negatives': 1, 'train.num_steps': 0,
    'run.log_every': 1, 'run.prefetch': 1, 'eval.beam_size': 1,
    'eval.batch_size': 1, 'eval.users_per_batch': 1, 'eval.valid_users': 0,
    'eval.test_users': 0, 'eval.validations': 1, 'eval.every': 0,
    'eval.patience': 0, 'checkpoint.keep': 1, 'codes.suffix_size': 1,
    'codes.least_entropy': 0}
# The same of any stage of training, and of any model.
_STAGE: Mapping[str, float] = {
    'num_steps': -1, 'batch_size': 1, 'learning_rate': 0, 'weight_decay': 0,
    'warmup': 0, 'row_items': 2, 'negatives': 0, 'embedding_learning_rate': 0,
    'embedding_weight_decay': 0, 'rank_negatives': 1, 'pair_weight': 0,
    'pair_rows': 1, 'between_epochs': 0}
_MODEL: Mapping[str, float] = {
    'dim': 1, 'num_layers': 1, 'num_heads': 1, 'head_dim': 1, 'hidden': 1,
    'dropout': 0, 'num_user_tokens': 0}
_ONE_OF: Mapping[str, tuple[str, ...]] = {
    'parallel.wrapper': ('pmap', 'shard_map', 'vmap'),
    'data.cross': ('all', 'none'),
    'data.history': ('auto', 'all', 'positive'),
    'data.split': ('auto', 'temporal', 'leave_one_out'),
    **{key: tuple(choices) for key, choices in values.CHOICES.items()}}


def check(config: ml_collections.ConfigDict) -> None:
  """Checks ranges before any data is read.

  Args:
    config: a whole configuration.

  Raises:
    types.InputError: naming the first key that is out of range.
  """
  _check_tree(config, '')
  if config.seed + config.num_seeds > 1 << 32:
    raise types.InputError(
        f'config.seed={config.seed}: must be below {1 << 32} for all seeds')
  _check_choices(config)


def _check_tree(node: ml_collections.ConfigDict, name: str) -> None:
  """Checks the leaves of a sub-tree by its dotted name."""
  rules = {}
  if 'length' in node:
    rules = _STAGE
    values.read_length(node.length, name)
    if not node.clip > 0:
      raise types.InputError(
          f'config.{name}.clip={node.clip}: must be above 0')
  elif name.split('.')[-1] in ('model', 'generator'):
    rules = _MODEL
  for leaf, value in node.items():
    key = f'{name}.{leaf}' if name else leaf
    if isinstance(value, ml_collections.ConfigDict):
      _check_tree(value, key)
      continue
    low = rules.get(leaf, _AT_LEAST.get(key))
    if low is not None and not low <= value < math.inf:
      raise types.InputError(
          f'config.{key}={value}: must be at least {low}')
    if key in _ONE_OF and value not in _ONE_OF[key]:
      raise types.InputError(
          f'config.{key}={value}: one of {", ".join(_ONE_OF[key])}')


def _check_choices(config: ml_collections.ConfigDict) -> None:
  """Refuses a name that was set without what it brings with it."""
  for key, choices in values.CHOICES.items():
    group, leaf = key.split('.')
    for tree, own in (
        choices[config[group][leaf]]() if group in config else {}).items():
      missing = set(own) - set(config[tree])
      if missing:
        raise types.InputError(
            f'config.{key}={config[group][leaf]}: comes with '
            f'config.{tree}.{min(missing)}, which is not there; put {key}='
            f'{config[group][leaf]} behind the colon of --config')


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
  # When a run is validated decides which state it goes on with.
  when = {key: out['eval'][key] for key in ('every', 'validations', 'patience')}
  for key in ('run', 'eval', 'parallel', 'checkpoint', 'num_seeds', 'seed'):
    out.pop(key)
  out['eval'] = when
  out['data'].pop('root')
  return out
