"""Lays out the children of all live beams of a user as one short row.

A beam's children are contiguous in the trie, and most beams have few of them
while some have many. They are cut into chunks of `size` slots; a beam takes
as many chunks as it needs, so the row is as long as the children are many and
not as long as the widest node would make it.
"""

from typing import Callable

import chex
import jax
import jax.numpy as jnp

from sidrec import types


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Live:
  """Live beams of one user after l levels, in code order.

  node: [W] int32 node of level l, 0 where dead.
  code: [W, l] int32 its prefix, 0 where dead.
  score: [W] float32, -inf where dead.
  alive: [W] bool.
  extra: pytree of [W, ...] of the search's own, 0 where dead.
  """
  node: types.Array
  code: types.Array
  score: types.Array
  alive: types.Array
  extra: types.PyTree


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Children:
  """Candidates of a level for B users, in code order; C slots a user.

  Slots come in G runs of C / G, each of one beam.

  beam: [B, G] int32 the beam of each run, or None: run i is of beam i.
  code: [B, C] int32 its code at this level, 0 where not valid.
  node: [B, C] int32 its node in the trie, 0 where not valid; on the last
    level its place in `Trie.items`.
  mask: [B, C] bool, True = a real child.
  """
  beam: types.Array | None
  code: types.Array
  node: types.Array
  mask: types.Array

  def take(self, x: types.Array) -> jax.Array:
    """Spreads what beams have, [B, W, ...], over their children [B, C, ...].

    Cheaper than gathering by `parent`: one look-up a run, not one a slot.
    """
    if self.beam is not None:
      x = jax.vmap(lambda row, beam: row[beam])(x, self.beam)
    batch, runs, *rest = x.shape
    size = self.code.shape[1] // runs
    x = jnp.broadcast_to(x[:, :, None], (batch, runs, size, *rest))
    return x.reshape(batch, runs * size, *rest)

  def parent_of(self, slot: types.Array, num_beams: int) -> jax.Array:
    """Returns the beams [B, n] that slots [B, n] belong to."""
    if self.beam is None:
      return slot // (self.code.shape[1] // num_beams)
    run = slot // (self.code.shape[1] // self.beam.shape[1])
    return jnp.take_along_axis(self.beam, run, 1)

  def parent(self, num_beams: int) -> jax.Array:
    """Returns the beam of each slot, [B, C] int32, of `num_beams` a user."""
    beams = jnp.arange(num_beams, dtype=jnp.int32)[None]
    return self.take(jnp.broadcast_to(
        beams, (self.code.shape[0], num_beams)))


# Children -> scores [B, C], any float type.
ScoreFn = Callable[[Children], types.Array]


def root(batch_size: int, extra: types.PyTree = None) -> Live:
  """Returns one live beam a user: the empty prefix."""
  return Live(node=jnp.zeros((batch_size, 1), jnp.int32),
              code=jnp.zeros((batch_size, 1, 0), jnp.int32),
              score=jnp.zeros((batch_size, 1), jnp.float32),
              alive=jnp.ones((batch_size, 1), bool), extra=extra)


def spans(live: Live, t: types.Trie, level: int
          ) -> tuple[jax.Array, jax.Array]:
  """Returns the first child [B, W] of each beam and their number [B, W]."""
  first = t.first_child[level]
  low = first[live.node]
  return low, jnp.where(live.alive, first[live.node + 1] - low, 0)


def padded(low: jax.Array, count: jax.Array, width: int, t: types.Trie,
           level: int) -> Children:
  """Gives every beam `width` slots.

  Args:
    low, count: [B, W] of `spans`.
    width: M, at least the largest count.
    t: the trie.
    level: 0-based level of the children.

  Returns:
    Children [B, W * M].
  """
  slot = jnp.arange(width, dtype=jnp.int32)[None, None]
  return _finish(None, low[..., None] + slot, slot < count[..., None], t, level)


def chunked(low: jax.Array, count: jax.Array, num_chunks: int, size: int,
            t: types.Trie, level: int) -> Children:
  """Gives every beam as many chunks of `size` slots as it needs.

  Args:
    low, count: [B, W] of `spans`.
    num_chunks: G, at least what any user's beams need together.
    size: slots of a chunk.
    t: the trie.
    level: 0-based level of the children.

  Returns:
    Children [B, G * size].
  """
  need = -(-count // size)
  stop = jnp.cumsum(need, -1, dtype=jnp.int32)
  place = jnp.arange(num_chunks, dtype=jnp.int32)
  beam = jax.vmap(lambda s: jnp.searchsorted(
      s, place, side='right', method='compare_all'))(stop)
  beam = jnp.minimum(beam, low.shape[1] - 1).astype(jnp.int32)
  take = lambda x: jnp.take_along_axis(x, beam, 1)
  start = (place[None] - take(stop - need)) * size
  left = take(count) - start
  slot = jnp.arange(size, dtype=jnp.int32)[None, None]
  return _finish(beam, (take(low) + start)[..., None] + slot,
                 (slot < left[..., None]) & (start[..., None] >= 0), t, level)


def _finish(beam: jax.Array | None, node: jax.Array, mask: jax.Array,
            t: types.Trie, level: int) -> Children:
  """Reads the codes of nodes [B, G, size]."""
  flat = lambda x: x.reshape(x.shape[0], -1)
  node, mask = flat(jnp.where(mask, node, 0)), flat(mask)
  if t.allowed is not None:
    mask = mask & t.allowed[level][node]
    node = jnp.where(mask, node, 0)
  code = t.code[level][node].astype(jnp.int32)
  return Children(beam=beam, code=jnp.where(mask, code, 0), node=node,
                  mask=mask)


def score(given: types.Array | ScoreFn, found: Children,
          normalizer: jax.Array | None) -> jax.Array:
  """Returns float32 scores [B, C] of children.

  Args:
    given: a model's answer: [B, W, K] scores of the codebook (a code >= K
      gets NaN), or a function of the children.
    found: the children.
    normalizer: [B, W] subtracted from a dense answer, or None.
  """
  if callable(given):
    scores = given(found)
    chex.assert_shape(scores, found.code.shape)
    return scores.astype(jnp.float32)
  num_beams, size = given.shape[1:]
  flat = given.reshape(given.shape[0], -1)
  row = found.parent(num_beams) * size
  index = row + jnp.minimum(found.code, size - 1)
  scores = jnp.take_along_axis(flat, index, 1).astype(jnp.float32)
  if normalizer is not None:
    scores = scores - found.take(normalizer)
  return jnp.where(found.code < size, scores, jnp.nan)
