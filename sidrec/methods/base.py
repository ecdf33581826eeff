"""What a method is: a NamedTuple of pure functions and a list of phases."""

import math
from typing import Any, Callable, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from sidrec import losses
from sidrec import types


class Hook(NamedTuple):
  """Host work between steps, done once and sent to all processes.

  name: for the log.
  at: says whether it runs when so many steps of the run are done.
  fn: (state, catalog, seed) -> (state, metrics), on NumPy leaves.
  """
  name: str
  at: Callable[[int], bool]
  fn: Callable[..., tuple[types.TrainState, types.Metrics]]


class LossOutput(NamedTuple):
  """What a loss function returns beside the loss.

  metrics: scalars, already reduced over the axis.
  codebook, batch_stats: the new ones.
  """
  metrics: Mapping[str, jax.Array]
  codebook: types.PyTree
  batch_stats: types.PyTree


class Phase(NamedTuple):
  """A stretch of training with one loss and one compiled step.

  name: for the log; phases of a method have different ones.
  num_steps: how many.
  streams: which batches the step reads, by name.
  optimizer: of the params that it trains; begins afresh with the phase.
  loss_fn: (params, state, catalog, batches, *, key, axis_name) ->
    (loss [], LossOutput); written for one device's rows, with collectives
    over `axis_name`; losses are local sums over global counts, so gradients
    are summed over devices.
  trains: names of the parameters (first level of the tree) that it trains,
    None for all.
  hooks: host work between its steps.
  validates: whether its states can be validated, and so be chosen.
  select_from: steps of the run before which no state can be the chosen one.
  """
  name: str
  num_steps: int
  streams: Mapping[str, types.StreamSpec]
  optimizer: optax.GradientTransformation
  loss_fn: Callable[..., tuple[jax.Array, LossOutput]]
  trains: tuple[str, ...] | None = None
  hooks: tuple[Hook, ...] = ()
  validates: bool = True
  select_from: int = 0

  def trained(self, params: Mapping[str, types.PyTree]) -> types.PyTree:
    """Returns the part of the params that this phase trains."""
    if self.trains is None:
      return params
    return {name: params[name] for name in self.trains}


class Method(NamedTuple):
  """A recommender as pure functions; absent abilities are None.

  init: (key, catalog) -> (params, codebook, batch_stats).
  phases: in order; none for a method without training.
  score: (state, catalog, batch) -> [B, C] logits of the ranking path.
  token_score: the same from the retrieval path alone (no u2i).
  retrieve: (state, catalog, batch, trie, beam_size, bounds) -> Beams.
  codes: (state) -> [V, L] int32 of the served semantic IDs.
  codebook_sizes: codes a level.
  """
  init: Callable[..., tuple[types.PyTree, types.PyTree, types.PyTree]]
  phases: tuple[Phase, ...]
  score: Callable[..., jax.Array] | None
  token_score: Callable[..., jax.Array] | None
  retrieve: Callable[..., types.Beams] | None
  codes: Callable[..., types.Array] | None
  codebook_sizes: tuple[int, ...] = ()


def make_optimizer(
    config: ml_collections.ConfigDict, num_steps: int,
    scale: Mapping[str, Callable[[jax.Array], jax.Array] | float],
    tables: tuple[str, ...],
) -> optax.GradientTransformation:
  """AdamW in groups: embedding tables, dense layers, and named subtrees.

  Args:
    config: the `train` sub-tree.
    num_steps: length of the schedule (linear warm-up, cosine to a hundredth).
    scale: learning-rate factors by parameter name; a function is called with
      the step.
    tables: names of parameters that are embedding tables.

  Returns:
    The optimizer.
  """
  def schedule(peak: float, factor: Any = 1.):
    cosine = optax.schedules.warmup_cosine_decay_schedule(
        0., peak, config.warmup_steps, max(num_steps, config.warmup_steps + 1),
        end_value=peak / 100)
    return lambda step: cosine(step) * (
        factor(step) if callable(factor) else factor)

  groups = {
      'dense': optax.adamw(
          schedule(config.learning_rate), weight_decay=config.weight_decay),
      'table': optax.adamw(
          schedule(config.embedding_learning_rate),
          weight_decay=config.embedding_weight_decay),
  }
  for name, factor in scale.items():
    groups[name] = optax.adam(schedule(config.learning_rate, factor))

  def label(path: tuple[Any, ...], _: jax.Array) -> str:
    keys = [k.key for k in path]
    for name in scale:
      if name in keys:
        return name
    return 'table' if any(k in tables for k in keys) else 'dense'

  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.multi_transform(
          groups, lambda p: jax.tree_util.tree_map_with_path(label, p)))


def adamw(config: ml_collections.ConfigDict, num_steps: int
          ) -> optax.GradientTransformation:
  """AdamW with clipping, linear warm-up and cosine decay to a hundredth.

  Args:
    config: a sub-tree with learning_rate, weight_decay, warmup_steps and
      clip_norm.
    num_steps: length of the schedule.
  """
  schedule = optax.schedules.warmup_cosine_decay_schedule(
      0., config.learning_rate, config.warmup_steps,
      max(num_steps, config.warmup_steps + 1),
      end_value=config.learning_rate / 100)
  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(schedule, weight_decay=config.weight_decay))


def num_steps(config: ml_collections.ConfigDict, dataset: Any) -> int:
  """Returns the steps of a run: as given, or epochs over the examples.

  Args:
    config: the whole configuration; `train.examples` names what an epoch
      goes through, as in `types.StreamSpec`.
    dataset: of the training split.
  """
  if config.train.num_steps >= 0:
    return config.train.num_steps
  if config.train.examples == 'sequences':
    rows = len(dataset.packed(
        config.train.row_items, np.random.default_rng(0)).item)
  else:
    rows = len(dataset.examples('train', config.train.examples))
  return math.ceil(config.train.num_epochs * rows / config.train.batch_size)


def init_state(method: Method, key: jax.Array, catalog: types.Catalog
               ) -> types.TrainState:
  """Returns a fresh TrainState; consumes `key`."""
  params, codebook, batch_stats = method.init(key, catalog)
  return types.TrainState(
      params=params, codebook=codebook, batch_stats=batch_stats,
      opt_state={p.name: p.optimizer.init(p.trained(params))
                 for p in method.phases},
      step=jnp.zeros([], jnp.int32))


def ranking_streams(
    config: ml_collections.ConfigDict, data: types.DataSpec, retrieval: bool
) -> dict[str, types.StreamSpec]:
  """Returns the batches of a step: exposures and, if asked, positives.

  Args:
    config: the whole configuration.
    data: says whether the log has negatives of its own.
    retrieval: whether the step needs positives with sampled negatives.
  """
  train = config.train
  streams = {'rank': types.StreamSpec(
      'impressions', train.batch_size,
      0 if data.has_negatives else train.rank_negatives,
      user_rows=config.train.pair_rows if config.train.pair_weight else 1)}
  if retrieval:
    streams['retrieval'] = types.StreamSpec(
        'positives', train.retrieval_batch_size, train.retrieval_negatives,
        train.retrieval_seen_negatives)
  return streams


def rank_loss(
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
  loss = losses.reduce(
      losses.sigmoid_bce(logits, batch.label), batch.mask, axis_name)
  weight = config.train.pair_weight
  if weight:
    user = jnp.broadcast_to(batch.user[:, None], logits.shape)
    loss += weight * losses.reduce(*losses.pairwise_within_user(
        logits.reshape(-1), batch.label.reshape(-1), user.reshape(-1),
        axis_name), axis_name)
  return loss
