"""Learning and retrieving the next item by its id: SASRec's part.

A softmax over items instead of one sampled negative (arXiv 1808.09781 has the
latter).
"""

import functools
from typing import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import config as config_lib
from sidrec import decode
from sidrec import losses
from sidrec import rng
from sidrec import trie
from sidrec import types
from sidrec.config import ranges
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base
from sidrec.methods import popularity
from sidrec.models import attention
from sidrec.models import item_model

# Of a stage on packed sequences.
ROW_ITEMS = ranges.whole(2, 1 << 16).that(
    'more than data.history_length', lambda own, whole: own[
        'row_items'] > whole['data']['history_length'])
STAGE: ranges.Table = {
    **config_lib.STAGE, 'row_items': ROW_ITEMS,
    'negatives': ranges.whole(0, 1 << 24)}
_BLOCK = 8192  # Items whose scores retrieval holds at a time.


def stream(train: ml_collections.ConfigDict) -> types.StreamSpec:
  """Returns the batches of a step: packed sequences of positives.

  Args:
    train: a stage with `batch_size` (rows) and `row_items` (places a row).
  """
  return types.StreamSpec(
      'sequences', train.batch_size, length=train.row_items)


def part(name: str, model: item_model.ItemModel,
         train: ml_collections.ConfigDict, num_steps: int) -> base.Part:
  """Makes an item model with the program and the optimizer that train it.

  Args:
    name: of its parameters, program and optimizer.
    model: the pure functions.
    train: a stage with `row_items` and `negatives`: items of a step that the
      softmax runs over, drawn uniformly; 0, or as many as there are, = the
      whole catalog.
    num_steps: length of the schedule.
  """
  return base.Part(
      init=lambda key, catalog: ({name: model.init(rng.stream(key, name))}, {}),
      programs={name: base.Program(
          functools.partial(_loss, name, model, train.negatives),
          {'sequences': stream(train)}, (name,))},
      optimizers={name: base.Optimizer((name,), base.adamw(train, num_steps))})


def num_steps(train: ml_collections.ConfigDict, dataset: dataset_lib.Dataset,
              key: str) -> int:
  """Returns the length of a stage on packed sequences, in steps.

  Args:
    train: the stage.
    dataset: what it learns from.
    key: dotted name of the stage, for messages.
  """
  return config_lib.steps(
      train, rows=base.num_examples(dataset, stream(train)), key=key)


def _seen(sequence: types.Sequence) -> jax.Array:
  """Whether place s of a row has read place t: [B, S, S], s before t.

  An item counts once, where its segment has it first.
  """
  earlier = attention.visible(sequence.segment)
  strictly = earlier & ~jnp.eye(earlier.shape[-1], dtype=bool)[None]
  again = jnp.any(strictly & (
      sequence.item[:, :, None] == sequence.item[:, None]), -1)
  return earlier & ~again[:, None]


def _loss(
    name: str, model: item_model.ItemModel, negatives: int,
    params: types.PyTree, state: types.TrainState, catalog: types.Catalog,
    batches: Mapping[str, types.Sequence], *, key: jax.Array,
    axis_name: str | None) -> tuple[jax.Array, base.Aux]:
  """Cross entropy of each target among the catalog, or an estimate of it.

  The items that the user has seen stand in the sum one by one, the others by a
  uniform sample that stands for all: the sum over the catalog, in expectation.
  """
  del state, catalog
  batch, own = batches['sequences'], params[name]
  hidden = model.hidden(
      own, batch, key=rng.stream(key, 'dropout'))[:, :-1]
  table, bias = model.table(own), model.seen(own)
  label, item = batch.item[:, 1:], batch.item[:, :-1]
  num_items, other = table.shape[0], jnp.arange(table.shape[0])
  if 0 < negatives < num_items:
    other = jax.random.randint(
        rng.stream(key, 'negatives'), (negatives,), 0, num_items)
  seen = _seen(batch)[:, :-1, :-1]
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
  loss = losses.reduce(
      losses.softmax_cross_entropy(logits, jnp.zeros_like(label)),
      batch.target[:, 1:], axis_name)
  return loss, base.Aux({'loss': loss})


def retrieve(
    name: str, model: item_model.ItemModel, state: types.TrainState,
    catalog: types.Catalog, batch: types.Batch, t: types.Trie | None,
    beam_size: int, bounds: trie.Bounds | None) -> types.Beams:
  """The items of the highest score for each of B users, exactly.

  Users without a history get the popular ones.
  """
  del t, bounds
  own, history = state.params[name], batch.history
  query = model.hidden(own, history)[:, -1]
  bias = jnp.where(history.segment > 0, model.seen(own), 0.)
  beams = decode.top_items(
      query, model.table(own), beam_size, _BLOCK, bias=(history.item, bias))
  return popularity.to_strangers(beams, batch, catalog)
