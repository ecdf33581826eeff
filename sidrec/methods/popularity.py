"""Popularity: the training split's counts, for everyone. No training."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sidrec import trie
from sidrec import types
from sidrec.config import ranges
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base

RANGES: ranges.Table = {'train': {'num_steps': ranges.STEPS}}


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
  item, score = _most(catalog, size)
  rows = batch.user.shape[0]
  spread = lambda x: jnp.broadcast_to(x[None], (rows, size))
  return types.Beams(
      item=spread(item), code=jnp.zeros((rows, size, 0), jnp.int32),
      score=spread(score), mask=jnp.ones((rows, size), bool))


def to_strangers(beams: types.Beams, batch: types.Batch, catalog: types.Catalog,
                 codes: jax.Array | None = None) -> types.Beams:
  """Gives popular items to users of whom nothing is known to go on.

  A model of the next item learns nothing for an empty history: what it would
  answer is the order of its tables.

  Args:
    beams: [B, W] of the method.
    batch: whose histories say who is a stranger.
    catalog: with the popularity of items.
    codes: [V, L] of the items, where beams have codes.
  """
  known = jnp.any(batch.history.segment > 0, 1)
  width, num_items = beams.item.shape[1], catalog.popularity.shape[0]
  size = min(width, num_items)
  item, score = (jnp.pad(x, (0, width - size))
                 for x in _most(catalog, size))
  code = (jnp.zeros((width, 0), jnp.int32) if codes is None
          else codes[item, :beams.code.shape[2]])
  popular = types.Beams(
      item=item, code=code, score=score, mask=jnp.arange(width) < size)
  return jax.tree.map(
      lambda own, other: jnp.where(
          known.reshape(-1, *(1,) * (own.ndim - 1)), own, other[None]),
      beams, popular)


def _most(catalog: types.Catalog, size: int) -> tuple[jax.Array, jax.Array]:
  """Returns the most popular items [size] int32, and their scores."""
  top, item = jax.lax.top_k(catalog.popularity, size)
  return item.astype(jnp.int32), jnp.log1p(top)
