"""What methods share that learn the next item of a packed sequence."""

import functools
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import losses
from sidrec import rng
from sidrec import types
from sidrec.methods import base
from sidrec.models import sasrec


def stream(train: ml_collections.ConfigDict) -> dict[str, types.StreamSpec]:
  """Returns the batches of a step: packed sequences.

  Args:
    train: a sub-tree with `batch_size` (rows) and `row_items` (places a row).
  """
  return {'sequences': types.StreamSpec(
      'sequences', train.batch_size, length=train.row_items)}


def share(metrics: Mapping[str, jax.Array], axis_name: str | None
          ) -> dict[str, Any]:
  """Adds up the devices' shares of global means."""
  metrics = dict(metrics)
  return metrics if axis_name is None else jax.lax.psum(metrics, axis_name)


def sasrec_phase(
    name: str, model: sasrec.Sasrec, config: ml_collections.ConfigDict,
    num_steps: int, **kwargs: Any) -> base.Phase:
  """Trains SASRec (arXiv 1808.09781) on packed sequences.

  Args:
    name: of the phase and of its parameters.
    model: the pure functions.
    config: a sub-tree with what `base.adamw` reads, `batch_size`, `row_items`
      and `negatives`: items of a step that the softmax runs over, drawn
      uniformly; 0, or as many as there are, = the whole catalog.
    num_steps: length.
    **kwargs: further fields of the phase.
  """
  return base.Phase(
      name, num_steps, stream(config), base.adamw(config, num_steps),
      functools.partial(_sasrec_loss, name, model, config.negatives),
      trains=(name,), **kwargs)


def _seen(item: jax.Array, segment: jax.Array) -> jax.Array:
  """Whether place s of a row has read place t: [B, S, S], s before t.

  An item counts once, where its segment has it first.
  """
  num = item.shape[1]
  earlier = jnp.tril(jnp.ones((num, num), bool))[None] & (
      segment[:, :, None] == segment[:, None]) & (segment > 0)[:, None]
  again = jnp.any(
      jnp.tril(earlier, -1) & (item[:, :, None] == item[:, None]), -1)
  return earlier & ~again[:, None]


def _sasrec_loss(
    name: str, model: sasrec.Sasrec, negatives: int, params: types.PyTree,
    state: types.TrainState, catalog: types.Catalog,
    batches: Mapping[str, types.SequenceBatch], *, key: jax.Array,
    axis_name: str | None) -> tuple[jax.Array, base.LossOutput]:
  """Cross entropy of each target among the catalog, or an estimate of it.

  The items that the user has seen stand in the sum one by one, the others by a
  uniform sample that stands for all: the sum over the catalog, in expectation.
  """
  batch, own = batches['sequences'], params[name]
  hidden = model.train_hidden(
      own, batch.item, batch.segment, key=rng.stream(key, 'dropout'),
      row=batch.row)[:, :-1]
  table, bias = model.table(own), model.seen(own)
  label, item = batch.item[:, 1:], batch.item[:, :-1]
  num_items, other = table.shape[0], jnp.arange(table.shape[0])
  if 0 < negatives < num_items:
    other = jax.random.randint(
        rng.stream(key, 'negatives'), (negatives,), 0, num_items)
  seen = _seen(item, batch.segment[:, :-1])
  again = seen & (item[:, None] == label[..., None])
  right = jnp.sum(hidden * table[label], -1) + jnp.where(
      jnp.any(again, -1), bias, 0.)
  old = jnp.einsum('bsd,btd->bst', hidden, table[item]) + bias
  # Which of the others place s has seen: a product, as [B, S, S, n] is large.
  is_old = jnp.einsum(
      'bst,btn->bsn', seen.astype(hidden.dtype),
      (item[..., None] == other[None, None]).astype(hidden.dtype)) > 0
  new = hidden @ table[other].T + jnp.log(num_items / other.shape[0])
  logits = jnp.concatenate([
      right[..., None], jnp.where(seen & ~again, old, -jnp.inf),
      jnp.where(is_old | (other[None, None] == label[..., None]), -jnp.inf,
                new)], -1)
  label = jnp.zeros_like(label)
  loss = losses.reduce(
      losses.softmax_cross_entropy(logits, label), batch.target[:, 1:],
      axis_name)
  return loss, base.LossOutput(
      share({'loss': loss}, axis_name), state.codebook, state.batch_stats)
