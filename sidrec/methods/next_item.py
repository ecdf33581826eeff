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
      uniformly; 0 = the whole catalog.
    num_steps: length.
    **kwargs: further fields of the phase.
  """
  return base.Phase(
      name, num_steps, stream(config), base.adamw(config, num_steps),
      functools.partial(_sasrec_loss, name, model, config.negatives),
      trains=(name,), **kwargs)


def _sasrec_loss(
    name: str, model: sasrec.Sasrec, negatives: int, params: types.PyTree,
    state: types.TrainState, catalog: types.Catalog,
    batches: Mapping[str, types.SequenceBatch], *, key: jax.Array,
    axis_name: str | None) -> tuple[jax.Array, base.LossOutput]:
  """Cross entropy of each target among the catalog, or among drawn items."""
  batch, own = batches['sequences'], params[name]
  hidden = model.train_hidden(
      own, batch.item, batch.segment, key=rng.stream(key, 'dropout'),
      row=batch.row)
  table = model.table(own)
  hidden, label = hidden[:, :-1], batch.item[:, 1:]
  if negatives:
    drawn = jax.random.randint(
        rng.stream(key, 'negatives'), (negatives,), 0,
        catalog.popularity.shape[0])
    right = jnp.sum(hidden * table[label], -1, keepdims=True)
    wrong = jnp.where(drawn[None, None] == label[..., None], -jnp.inf,
                      hidden @ table[drawn].T)
    logits = jnp.concatenate([right, wrong], -1)
    label = jnp.zeros_like(label)
  else:
    logits = hidden @ table.T
  loss = losses.reduce(
      losses.softmax_cross_entropy(logits, label), batch.target[:, 1:],
      axis_name)
  return loss, base.LossOutput(
      share({'loss': loss}, axis_name), state.codebook, state.batch_stats)
