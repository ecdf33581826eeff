"""Popularity: the training split's counts, for everyone. No training."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sidrec import trie
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base


def make(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
         ) -> base.Method:
  """Builds the popularity baseline.

  Args:
    config: not read.
    dataset: not read.

  Returns:
    The method: no programs, no codes.
  """
  del config, dataset
  return base.Method(
      init=lambda key, catalog: ({}, {}), score=score, retrieve=retrieve,
      width=width)


def score(state: types.TrainState, catalog: types.Catalog,
          batch: types.Batch) -> jax.Array:
  """Log-odds-like score [B, C]: log of an item's positive events plus one."""
  del state
  return jnp.log1p(catalog.popularity)[batch.item]


def width(catalog: types.Catalog, beam_size: int) -> int:
  """Returns how many items have at least the count of the `beam_size`-th."""
  count = np.sort(np.asarray(catalog.popularity))[::-1]
  return int(np.sum(count >= count[min(beam_size, len(count)) - 1]))


def retrieve(state: types.TrainState, catalog: types.Catalog,
             batch: types.Batch, t: types.Trie | None, beam_size: int,
             bounds: trie.Bounds | None) -> types.Beams:
  """The same `beam_size` most popular items for each of B users."""
  del state, t, bounds
  size = min(beam_size, catalog.popularity.shape[0])
  top, item = jax.lax.top_k(catalog.popularity, size)
  rows = batch.user.shape[0]
  spread = lambda x: jnp.broadcast_to(x[None], (rows, size))
  return types.Beams(
      item=spread(item.astype(jnp.int32)),
      code=jnp.zeros((rows, size, 0), jnp.int32),
      score=spread(jnp.log1p(top)), mask=jnp.ones((rows, size), bool))
