"""SASRec: self-attention over item ids, the whole catalog scored at once.

Paper: arXiv 1808.09781. The ID-based retriever that codes are compared with,
trained with a softmax over items instead of one sampled negative
(`next_item`).
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import rng
from sidrec import trie
from sidrec import types
from sidrec.methods import base
from sidrec.methods import next_item
from sidrec.models import sasrec


def make(
    config: ml_collections.ConfigDict, data: types.DataSpec, num_steps: int
) -> base.Method:
  """Builds SASRec.

  Args:
    config: the whole configuration.
    data: static facts of the data set.
    num_steps: steps of the run.

  Returns:
    The method: it retrieves items without codes, and does not rank exposures.
  """
  model = sasrec.make(config.model, data.num_items)
  phase = next_item.sasrec_phase('sasrec', model, config.train, num_steps)
  return base.Method(
      init=functools.partial(init, model), phases=(phase,), score=None,
      token_score=None, retrieve=functools.partial(retrieve, model),
      codes=None)


def init(model: sasrec.Sasrec, key: jax.Array, catalog: types.Catalog
         ) -> tuple[types.PyTree, types.PyTree, types.PyTree]:
  """Returns fresh (params, codebook, batch_stats); consumes `key`."""
  del catalog
  return {'sasrec': model.init(rng.stream(key, 'sasrec'))}, {}, {}


def retrieve(model: sasrec.Sasrec, state: types.TrainState,
             catalog: types.Catalog, batch: types.Batch,
             t: types.Trie | None, beam_size: int, bounds: trie.Bounds | None
             ) -> types.Beams:
  """The items of the highest score for each of B users."""
  del catalog, t, bounds
  params = state.params['sasrec']
  hidden = model.encode(params, batch.history, batch.history_mask)
  score = hidden @ model.table(params).T
  seen = jnp.zeros(score.shape, bool).at[
      jnp.arange(score.shape[0])[:, None], batch.history].max(
          batch.history_mask > 0)
  score, item = jax.lax.top_k(
      score + jnp.where(seen, model.seen(params), 0.), beam_size)
  return types.Beams(
      item=item.astype(jnp.int32), score=score,
      code=jnp.zeros((*item.shape, 0), jnp.int32),
      mask=jnp.ones(item.shape, bool))
