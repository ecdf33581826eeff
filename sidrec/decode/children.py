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
from sidrec.decode import rows


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Live:
  """Live beams of one user after l levels, in code order.

  node: [W] int32 node of level l, 0 where dead.
  code: [W, l] int32 its prefix, 0 where dead.
  value: [W] float32 what it was ranked by, -inf where dead.
  score: [W] float32 the same, or the score that is reported instead.
  alive: [W] bool.
  extra: pytree of [W, ...] of the search's own, 0 where dead; handed down.
  """
  node: types.Array
  code: types.Array
  value: types.Array
  score: types.Array
  alive: types.Array
  extra: types.PyTree


@chex.dataclass(frozen=True, mappable_dataclass=False)
class Children:
  """Candidates of a level for B users, in code order; C slots a user.

  Slots come in G runs of C / G, each of one beam and of neighbours in the
  trie. What is not used is not computed: these are cheap to make again for
  the few slots that are kept (`at`).

  beam: [B, G] int32 the beam of each run, or None: run i is of beam i.
  first: [B, G] int32 the node of each run's first slot.
  code: [B, C] int32 its code at this level; where not valid, any code.
  node: [B, C] int32 its node in the trie; on the last level its place in
    `Trie.items`. Where not valid, any node.
  mask: [B, C] bool, True = a real child.
  """
  beam: types.Array | None
  first: types.Array
  code: types.Array
  node: types.Array
  mask: types.Array

  def take(self, x: types.Array) -> jax.Array:
    """Spreads what beams have, [B, W, ...], over their children [B, C, ...].

    Cheaper than gathering by `parent`: one look-up a run, not one a slot.
    """
    if self.beam is not None:
      x = rows.take(x, self.beam)
    batch, runs, *rest = x.shape
    size = self.code.shape[1] // runs
    x = jnp.broadcast_to(x[:, :, None], (batch, runs, size, *rest))
    return x.reshape(batch, runs * size, *rest)

  def at(self, slot: types.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (beam, node) [B, n] int32 of slots [B, n] that are valid."""
    size = self.code.shape[1] // self.first.shape[1]
    run = slot // size
    beam = run if self.beam is None else rows.take(self.beam, run)
    return beam, rows.take(self.first, run) + slot % size

  def parent(self, num_beams: int) -> jax.Array:
    """Returns the beam of each slot, [B, C] int32, of `num_beams` a user."""
    beams = jnp.arange(num_beams, dtype=jnp.int32)[None]
    return self.take(jnp.broadcast_to(
        beams, (self.code.shape[0], num_beams)))


# Children -> scores [B, C], any float type.
ScoreFn = Callable[[Children], types.Array]


def root(batch_size: int, extra: types.PyTree = None) -> Live:
  """Returns one live beam a user: the empty prefix."""
  zero = jnp.zeros((batch_size, 1), jnp.float32)
  return Live(node=jnp.zeros((batch_size, 1), jnp.int32),
              code=jnp.zeros((batch_size, 1, 0), jnp.int32),
              value=zero, score=zero,
              alive=jnp.ones((batch_size, 1), bool), extra=extra)


def spans(live: Live, t: types.Trie, level: int
          ) -> tuple[jax.Array, jax.Array]:
  """Returns the first child [B, W] of each beam and their number [B, W]."""
  first = t.first_child[level]
  if level == 0:  # All users stand at the root.
    low = jnp.zeros(live.node.shape, jnp.int32)
    return low, jnp.broadcast_to(first[1], low.shape)
  low = rows.at(first, live.node)
  return low, jnp.where(live.alive, rows.at(first, live.node + 1) - low, 0)


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
  return _lay_out(None, low, count, width, t, level)


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
  # All pairs are one pass over little; bisecting many beams reads less.
  method = 'compare_all' if low.shape[1] <= 16 else 'scan_unrolled'
  beam = jax.vmap(lambda s: jnp.searchsorted(
      s, place, side='right', method=method))(stop)
  beam = jnp.minimum(beam, low.shape[1] - 1).astype(jnp.int32)
  # Of each beam: its first chunk, were its children to begin there.
  start = (place[None] - rows.take(stop - need, beam)) * size
  # Chunks behind the last beam's last have nothing left.
  return _lay_out(beam, rows.take(low, beam) + start,
                  rows.take(count, beam) - start, size, t, level)


def _lay_out(beam: jax.Array | None, first: jax.Array, left: jax.Array,
             size: int, t: types.Trie, level: int) -> Children:
  """Lays out runs of `size` slots, `left` [B, G] of which are real."""
  flat = lambda x: x.reshape(x.shape[0], -1)
  slot = jnp.arange(size, dtype=jnp.int32)[None, None]
  mask = flat(slot < left[..., None])
  codes = t.code[level]
  if level == 0:
    # The root's children are all nodes of level one, for every user.
    wide = lambda x: jnp.broadcast_to(
        jnp.pad(x, (0, max(size - x.shape[0], 0)))[None, :size], mask.shape)
    node = wide(jnp.arange(codes.shape[0], dtype=jnp.int32))
    code = wide(codes.astype(jnp.int32))
    allowed = None if t.allowed is None else wide(t.allowed[level])
  else:
    node = flat(first[..., None] + slot)
    node = jnp.clip(node, 0, codes.shape[0] - 1)
    code = rows.at(codes, node).astype(jnp.int32)
    allowed = None if t.allowed is None else rows.at(t.allowed[level], node)
  if allowed is not None:
    mask = mask & allowed
  return Children(beam=beam, first=first, code=code, node=node, mask=mask)


def score(given: types.Array | ScoreFn, found: Children) -> jax.Array:
  """Returns float32 scores [B, C] of children.

  Args:
    given: a model's answer: [B, W, K] scores of the codebook (a code >= K
      gets NaN), or a function of the children.
    found: the children.
  """
  if callable(given):
    scores = given(found)
    chex.assert_shape(scores, found.code.shape)
    return scores.astype(jnp.float32)
  num_beams, size = given.shape[1:]
  code = jnp.minimum(found.code, size - 1)
  flat = given.reshape(given.shape[0], -1)
  scores = rows.take(flat, found.parent(num_beams) * size + code)
  return jnp.where(found.code < size, scores.astype(jnp.float32), jnp.nan)
