"""The ranking tower alone: no tokenizer, no retrieval ("Base" of DIG).

The comparison that DIG's ranking gain is measured against: the same encoder,
attention, mixer, optimizer and batches through the same trainer.
"""

import functools
from typing import Any, Mapping

import jax
import ml_collections

from sidrec import rng
from sidrec import schedule
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base
from sidrec.methods import prefixes
from sidrec.methods import ranking
from sidrec.models import ranker

RANGES = ranking.RANGES


def make(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
         ) -> base.Method:
  """Builds the plain ranker.

  Args:
    config: the whole configuration.
    dataset: what it learns from.

  Returns:
    The method; it can score but not retrieve.
  """
  data = dataset.spec
  stream = ranking.exposures(config, data)
  num_steps = base.main_steps(config, dataset, stream)
  return base.Method(
      init=functools.partial(init, config, data),
      programs={'rank': base.Program(
          functools.partial(loss_fn, config, data), {'rank': stream},
          ('tower',))},
      optimizers={'tower': base.Optimizer(
          ('tower',), ranking.optimizer(
              config, num_steps, base.num_examples(dataset, stream)))},
      sections=(schedule.Section(
          'rank', (schedule.Train('rank', num_steps),),
          base.watch(config, num_steps), 'best'),),
      score=functools.partial(score, config, data))


def init(config: ml_collections.ConfigDict, data: types.DataSpec,
         key: jax.Array, catalog: types.Catalog
         ) -> tuple[dict[str, types.PyTree], dict[str, types.PyTree]]:
  """Returns fresh (params, variables); consumes `key`."""
  params, batch_stats = ranker.init(
      rng.stream(key, 'tower'), ranker.make(config.model, data),
      lambda model, batch: path(model, catalog, batch, False))
  return {'tower': params}, {'batch_stats': batch_stats}


def path(model: ranker.Ranker, catalog: types.Catalog, batch: types.Batch,
         train: bool) -> jax.Array:
  """Logits [B, C] of the candidates, in training and in serving."""
  x, history = model.vectors(catalog, [batch.item, batch.history.item])
  h = model.attend(model.users(batch, history, True), x)
  return model.logits(
      h, model.normalize('item', x, train),
      model.normalize('cross', batch.cross, train),
      prefixes.known_of(catalog, batch, batch.item), ranker.RANKING, train)


def loss_fn(config: ml_collections.ConfigDict, data: types.DataSpec,
            params: types.PyTree, state: types.TrainState,
            catalog: types.Catalog, batches: Mapping[str, types.Batch], *,
            key: jax.Array, axis_name: str | None
            ) -> tuple[jax.Array, base.Aux]:
  """Binary cross-entropy over every exposure; see `base.LossFn`."""
  del key
  batch = batches['rank']
  logits, variables = ranking.apply(
      config, data, params, state,
      lambda model: path(model, catalog, batch, True), axis_name)
  loss = ranking.loss(config, logits, batch, axis_name)
  metrics: dict[str, Any] = {'loss': loss, 'loss/rank': loss}
  return loss, base.Aux(metrics, variables)


def score(config: ml_collections.ConfigDict, data: types.DataSpec,
          state: types.TrainState, catalog: types.Catalog, batch: types.Batch
          ) -> jax.Array:
  """Logits [B, C] of the candidates."""
  return ranking.serve(
      config, data, state, lambda model: path(model, catalog, batch, False))
