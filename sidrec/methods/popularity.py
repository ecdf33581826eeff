"""Popularity: the training split's counts, for everyone. No training."""

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import trie
from sidrec import types
from sidrec.methods import base


def make(
    config: ml_collections.ConfigDict, data: types.DataSpec, num_steps: int
) -> base.Method:
  """Builds the popularity baseline.

  Args:
    config: not read.
    data: not read.
    num_steps: not read.

  Returns:
    The method: no phases, no codes.
  """
  del config, data, num_steps
  return base.Method(
      init=lambda key, catalog: ({}, {}, {}), phases=(), score=score, token_score=None, retrieve=retrieve, codes=None)


def score(state: types.TrainState, catalog: types.Catalog,
          batch: types.Batch) -> jax.Array:
  """Log-odds-like score [B, C]: log of an item's positive events plus one."""
  del state
  return jnp.log1p(catalog.popularity)[batch.item]


def retrieve(state: types.TrainState, catalog: types.Catalog,
             batch: types.Batch, t: types.Trie | None, beam_size: int,
             bounds: trie.Bounds | None) -> types.Beams:
  """The same `beam_size` most popular items for each of B users."""
  del state, t, bounds
  width = min(beam_size, catalog.popularity.shape[0])
  top, item = jax.lax.top_k(catalog.popularity, width)
  rows = batch.user.shape[0]
  spread = lambda x: jnp.broadcast_to(x[None], (rows, width))
  return types.Beams(
      item=spread(item.astype(jnp.int32)),
      code=jnp.zeros((rows, width, 0), jnp.int32),
      score=spread(jnp.log1p(top)), mask=jnp.ones((rows, width), bool))
