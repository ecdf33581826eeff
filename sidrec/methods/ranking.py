"""What rankers share: losses over exposures, their batches, their optimizer."""

from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sidrec import config as config_lib
from sidrec import losses
from sidrec import types
from sidrec.config import ranges
from sidrec.methods import base
from sidrec.models import ranker

RANGES: ranges.Table = {
    'model': ranker.RANGES,
    'train': {
        **config_lib.MAIN_STAGE,
        'embedding_learning_rate': ranges.WEIGHT,
        'embedding_weight_decay': ranges.either(
            ranges.WEIGHT, ranges.number(-1, -1)),
        'rank_negatives': ranges.whole(1, 1 << 12),
        'pair_weight': ranges.WEIGHT, 'pair_rows': ranges.ROWS}}


_DECAY = 400.  # Of a row an example; chosen on validation of two logs.
_MOST_DECAY = 100.


def _decay_tables(given: float, num_examples: int
                  ) -> optax.GradientTransformation:
  """Adds weight decay to updates of tables, before the learning rate.

  Args:
    given: for all tables alike; -1: by the rows of each. Rows that few examples
      teach are noise, so that a table decays the more, the more rows an example
      it has: ids of items do, and the few actions of a history do not.
    num_examples: of an epoch.
  """
  def decay(table: jax.Array) -> float:
    if given >= 0:
      return given
    return min(_DECAY * table.shape[0] / num_examples, _MOST_DECAY)

  return optax.stateless(lambda updates, params: jax.tree.map(
      lambda update, table: update + decay(table) * table, updates, params))


def exposures(config: ml_collections.ConfigDict, data: types.DataSpec
              ) -> types.StreamSpec:
  """Returns the batches that the ranking loss reads.

  Args:
    config: the whole configuration.
    data: says whether the log has negatives of its own.
  """
  train = config.train
  return types.StreamSpec(
      'impressions', train.batch_size,
      0 if data.has_negatives else train.rank_negatives,
      user_rows=train.pair_rows if train.pair_weight else 1)


def loss(
    config: ml_collections.ConfigDict, logits: jax.Array, batch: types.Batch,
    axis_name: str | None) -> jax.Array:
  """Cross-entropy over exposures, and over pairs of one user's exposures.

  Args:
    config: the whole configuration; `train.pair_weight` mixes the pairs in.
    logits: [B, C] of the ranking path.
    batch: the exposures.
    axis_name: data-parallel axis or None.

  Returns:
    This device's share of the global mean.
  """
  out = losses.reduce(
      losses.sigmoid_bce(logits, batch.label), batch.mask, axis_name)
  weight = config.train.pair_weight
  if weight:
    user = jnp.broadcast_to(batch.user[:, None], logits.shape)
    out += weight * losses.reduce(*losses.pairwise_within_user(
        logits.reshape(-1), batch.label.reshape(-1), user.reshape(-1),
        axis_name), axis_name)
  return out


def optimizer(
    config: ml_collections.ConfigDict, num_steps: int, num_examples: int,
    scale: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
  """AdamW in groups: embedding tables, dense layers, and named subtrees.

  Args:
    config: the whole configuration.
    num_steps: length of the schedule.
    num_examples: of an epoch.
    scale: learning-rate factors by parameter name, of Adam without decay.
  """
  train, scale = config.train, scale or {}
  rate = lambda peak: base.cosine(train, num_steps, peak)
  groups = {
      'dense': optax.adamw(
          rate(train.learning_rate), weight_decay=train.weight_decay),
      'table': optax.chain(
          optax.scale_by_adam(),
          _decay_tables(train.embedding_weight_decay, num_examples),
          optax.scale_by_learning_rate(rate(train.embedding_learning_rate))),
      **{name: optax.adam(rate(train.learning_rate * factor))
         for name, factor in scale.items()}}

  def label(path: tuple[Any, ...], _: jax.Array) -> str:
    keys = [k.key for k in path if hasattr(k, 'key')]
    for name in scale:
      if name in keys:
        return name
    return 'table' if any(k in ranker.TABLES for k in keys) else 'dense'

  return optax.chain(
      optax.clip_by_global_norm(train.clip),
      optax.multi_transform(
          groups, lambda p: jax.tree_util.tree_map_with_path(label, p)))


def serve(
    config: ml_collections.ConfigDict, data: types.DataSpec,
    state: types.TrainState, fn: Callable[[ranker.Ranker], Any]) -> Any:
  """Applies fn(module) with the state's tower and running statistics."""
  return ranker.make(config.model, data).apply(
      {'params': state.params['tower'],
       'batch_stats': state.variables['batch_stats']}, method=fn)


def apply(
    config: ml_collections.ConfigDict, data: types.DataSpec,
    params: types.PyTree, state: types.TrainState,
    fn: Callable[[ranker.Ranker], Any], axis_name: str | None
) -> tuple[Any, dict[str, types.PyTree]]:
  """Applies fn(module) in training.

  Returns:
    (what fn returns, the variables that changed).
  """
  out, updated = ranker.make(config.model, data, axis_name).apply(
      {'params': params['tower'],
       'batch_stats': state.variables['batch_stats']},
      method=fn, mutable=['batch_stats'])
  return out, {'batch_stats': updated['batch_stats']}
