"""Retrieves the items of the largest inner products, without a trie."""

import chex
import jax
import jax.numpy as jnp

from sidrec import types
from sidrec.decode import rows
from sidrec.decode import selection


def top_items(query: types.Array, table: types.Array, k: int, block: int,
              bias: tuple[types.Array, types.Array] | None = None
              ) -> types.Beams:
  """Finds the k best items of B users exactly, a block of the table at a time.

  Args:
    query: [B, D].
    table: [V, D], a row an item.
    k: items wanted, at most V.
    block: rows scored at once: the memory is [B, block], not [B, V].
    bias: None, or (item [B, N] int32, value [B, N] float32): added to the
      scores of these items, once each. Where an item stands more than once the
      values are equal, or 0 (padding); infinite ones are fine.

  Returns:
    Beams of k items, best first, ties by item number; `code` has no levels.

  Raises:
    types.InputError: no item wanted, more than there are, or no block.
  """
  chex.assert_rank([query, table], 2)
  num_items = table.shape[0]
  if not 1 <= k <= num_items:
    raise types.InputError(f'k={k}: must lie in [1, {num_items}], the items')
  if block < 1:
    raise types.InputError(f'block={block}: must be at least 1')
  block, batch = min(block, num_items), query.shape[0]

  def one(best, index):
    # The last block ends with the table: nothing is padded, and what the
    # blocks before it have seen is left out.
    start = jnp.minimum(index * block, num_items - block)
    item = start + jnp.arange(block, dtype=jnp.int32)
    part = jax.lax.dynamic_slice_in_dim(table, start, block)
    score = jnp.dot(query, part.T, preferred_element_type=jnp.float32)
    if bias is not None:
      score = score + _biases(bias, start, block)
    key = selection.rank_key(score, (item >= index * block)[None])
    place = selection.best(key, min(k, block))
    # Ties by place: what stands in `best` has the smaller numbers.
    key = jnp.concatenate([best[0], rows.take(key, place)], 1)
    item = jnp.concatenate([best[1], start + place], 1)
    place = selection.best(key, k)
    return (rows.take(key, place), rows.take(item, place)), None

  empty = (jnp.full((batch, k), -jnp.inf), jnp.zeros((batch, k), jnp.int32))
  (key, item), _ = jax.lax.scan(
      one, empty, jnp.arange(-(-num_items // block), dtype=jnp.int32))
  return types.Beams(
      item=item, code=jnp.zeros((batch, k, 0), jnp.int32),
      score=selection.score_of(key), mask=jnp.ones((batch, k), bool))


def _biases(bias: tuple[types.Array, types.Array], start: jax.Array,
            block: int) -> jax.Array:
  """Returns what is added to the scores [B, block] of a block."""
  item, value = (jnp.asarray(x) for x in bias)
  chex.assert_equal_shape([item, value])
  row = jnp.arange(item.shape[0])[:, None]
  place = item - start
  place = jnp.where((place >= 0) & (place < block), place, block)  # Dropped.
  nothing = jnp.zeros((item.shape[0], block), jnp.float32)
  return (nothing.at[row, place].max(value, mode='drop')
          + nothing.at[row, place].min(value, mode='drop'))
