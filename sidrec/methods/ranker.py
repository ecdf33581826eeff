"""The ranking tower alone: no tokenizer, no retrieval ("Base" of DIG).

The comparison that DIG's ranking gain is measured against: the same encoder,
attention, mixer, optimizer and batches through the same trainer.
"""

import functools
from typing import Any, Mapping

import jax
import ml_collections

from sidrec import rng
from sidrec import types
from sidrec.methods import base
from sidrec.models import layers
from sidrec.models import ranker


def make(
    config: ml_collections.ConfigDict, data: types.DataSpec, num_steps: int
) -> base.Method:
  """Builds the plain ranker.

  Args:
    config: the whole configuration.
    data: static facts of the data set.
    num_steps: steps of the run.

  Returns:
    The method; it can score but not retrieve.
  """
  phase = base.Phase(
      'rank', num_steps, base.ranking_streams(config, data, False),
      base.make_optimizer(config.train, num_steps, {}, ranker.TABLES),
      functools.partial(loss_fn, config, data))
  return base.Method(
      init=functools.partial(init, config, data),
      phases=(phase,), score=functools.partial(score, config, data),
      token_score=None, retrieve=None, codes=None)


def init(config: ml_collections.ConfigDict, data: types.DataSpec,
         key: jax.Array, catalog: types.Catalog
         ) -> tuple[types.PyTree, types.PyTree, types.PyTree]:
  """Returns fresh (params, codebook, batch_stats); consumes `key`."""
  params, batch_stats = ranker.init(
      rng.stream(key, 'tower'), ranker.make(config.model, data), catalog)
  return {'tower': params}, {}, batch_stats


def loss_fn(config: ml_collections.ConfigDict, data: types.DataSpec,
            params: types.PyTree, state: types.TrainState,
            catalog: types.Catalog, batches: Mapping[str, types.Batch], *,
            key: jax.Array, axis_name: str | None
            ) -> tuple[jax.Array, base.LossOutput]:
  """Binary cross-entropy over every exposure; see `base.Phase.loss_fn`."""
  del key
  batch = batches['rank']

  def fn(model: ranker.Ranker) -> jax.Array:
    x, history = model.vectors(catalog, [batch.item, batch.history])
    h = model.attend(model.users(batch, history), x)
    flat = layers.flat
    return model.mix(
        model.normalize('user', flat(h), True),
        model.normalize('item', flat(x), True),
        model.normalize(
            'u2i', model.normalize('cross', flat(batch.cross), True), True))

  logits, updated = ranker.make(config.model, data, axis_name).apply(
      {'params': params['tower'], 'batch_stats': state.batch_stats},
      method=fn, mutable=['batch_stats'])
  loss = base.rank_loss(
      config, logits.reshape(batch.item.shape), batch, axis_name)
  metrics: dict[str, Any] = {'loss': loss, 'loss/rank': loss}
  if axis_name is not None:
    metrics = jax.lax.psum(metrics, axis_name)
  return loss, base.LossOutput(
      metrics, state.codebook, updated['batch_stats'])


def score(config: ml_collections.ConfigDict, data: types.DataSpec,
          state: types.TrainState, catalog: types.Catalog, batch: types.Batch
          ) -> jax.Array:
  """Logits [B, C] of the candidates."""
  def fn(model: ranker.Ranker) -> jax.Array:
    x, history = model.vectors(catalog, [batch.item, batch.history])
    h = model.attend(model.users(batch, history), x)
    return model.logits(
        h, model.normalize('item', x, False),
        model.normalize('cross', batch.cross, False), ranker.RANKING)
  return ranker.make(config.model, data).apply(
      {'params': state.params['tower'], 'batch_stats': state.batch_stats},
      method=fn)
