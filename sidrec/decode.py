"""Searches the trie of a catalog for the best items of each user.

The model is a callback that scores the children of all beams of a level in one
batched call; the bookkeeping is written for one user and vmapped. Only nodes
of the trie are ever scored or ranked, so no code without an item can come out.

Order is total: by score, then lexicographically by code, then by item id. A
beam that ran out of nodes is dead and says so by a flag; real nodes may have
any score, -inf included.
"""

from typing import Any, Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import trie
from sidrec import types

# (prefix [B, W, l], child [B, W, M], state) -> (scores [B, W, M], state).
LogitsFn = Callable[[types.Array, types.Array, Any],
                    tuple[types.Array, Any]]
# (prefix [B, W, l], state) -> (scores [B, W, K], state).
DenseLogitsFn = Callable[[types.Array, Any], tuple[types.Array, Any]]

SCORES = ('sum', 'level')


@chex.dataclass(frozen=True, mappable_dataclass=False)
class _Live:
  """Live beams of one user after l levels, alive ones in code order.

  node: [W] int32 node of level l, 0 where dead.
  code: [W, l] int32 its prefix, 0 where dead.
  score: [W] float32, -inf where dead.
  alive: [W] bool.
  """
  node: types.Array
  code: types.Array
  score: types.Array
  alive: types.Array


def adapt_dense(logits_fn_dense: DenseLogitsFn) -> LogitsFn:
  """Wraps a model that scores the whole codebook into the children form.

  Args:
    logits_fn_dense: (prefix [B, W, l] int32, state) -> (scores [B, W, K]
      float, state). For the 'sum' rule these are log-probabilities in nats. K
      may differ between levels.

  Returns:
    A `logits_fn` for `beam_search`. A code >= K gets NaN and so ranks last.
  """
  def logits_fn(prefix, child, state):
    scores, state = logits_fn_dense(prefix, state)
    chex.assert_rank([scores, child], 3)
    return jnp.take_along_axis(scores, child, axis=-1, mode='fill'), state
  return logits_fn


def _rank_key(score: types.Array, valid: types.Array) -> types.Array:
  """Maps scores to keys that top_k orders as documented.

  Top-k puts NaN first and tells -0 from 0. Here NaN comes last among the valid
  and zeros tie; a valid -inf still comes before everything that is not valid.
  """
  lowest = jnp.finfo(jnp.float32).min
  key = jnp.where(jnp.isnan(score), lowest, jnp.maximum(score, lowest))
  key = jnp.where(key == 0, 0., key)
  return jnp.where(valid, key, -jnp.inf)


def _children(live: _Live, first: types.Array, code: types.Array,
              width: int) -> tuple[types.Array, types.Array, types.Array]:
  """Gathers the children of one user's beams: node, code, valid [W, M]."""
  low, high = first[live.node], first[live.node + 1]
  node = low[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
  valid = (node < high[:, None]) & live.alive[:, None]
  node = jnp.where(valid, node, 0)
  return node, jnp.where(valid, code[node], 0), valid


def _advance(live: _Live, node: types.Array, code: types.Array,
             valid: types.Array, scores: types.Array, *, rule: str, width: int,
             last: bool) -> tuple[_Live, types.Array]:
  """Keeps the best children of one user; returns them and their parents."""
  scores = scores.astype(jnp.float32)
  if rule == 'sum':
    scores = live.score[:, None] + scores
  # Flat order is code order, as the beams are in code order and a node's
  # children are too. Top-k is stable, so a tie goes to the smaller code.
  _, index = jax.lax.top_k(_rank_key(scores, valid).reshape(-1), width)
  if not last:
    index = jnp.sort(index)  # Back to code order, for the next level's ties.
  parent = index // node.shape[1]
  alive = valid.reshape(-1)[index]
  score = jnp.where(alive, scores.reshape(-1)[index], -jnp.inf)
  prefix = jnp.concatenate(
      [live.code[parent], code.reshape(-1)[index][:, None]], axis=1)
  prefix = jnp.where(alive[:, None], prefix, 0)
  # `node` and `code` are 0 already where not valid.
  return _Live(node=node.reshape(-1)[index], code=prefix, score=score,
               alive=alive), parent


def _expand(live: _Live, t: types.Trie, num_levels: int,
            width: int) -> types.Beams:
  """Turns one user's surviving nodes, best first, into their items."""
  low, high = live.node, live.node + 1
  for first in (*t.first_child[num_levels:], t.first_item):
    low, high = first[low], first[high]
  count = jnp.where(live.alive, high - low, 0)
  count = jnp.minimum(count, width)  # More are never shown; int32 is enough.
  stop = jnp.cumsum(count, dtype=jnp.int32)
  place = jnp.arange(width, dtype=jnp.int32)
  beam = jnp.searchsorted(stop, place, side='right').astype(jnp.int32)
  mask = place < stop[-1]
  beam = jnp.where(mask, beam, 0)
  index = low[beam] + place - (stop - count)[beam]
  return types.Beams(
      item=jnp.where(mask, t.items[jnp.where(mask, index, 0)], 0),
      code=jnp.where(mask[:, None], live.code[beam], 0),
      score=jnp.where(mask, live.score[beam], -jnp.inf),
      mask=mask)


def _check_branching(t: types.Trie, given: Sequence[int] | None,
                     num_levels: int) -> tuple[int, ...]:
  """Returns the static branching, checked where the trie is concrete."""
  traced = any(isinstance(x, jax.core.Tracer) for x in t.first_child)
  if given is None:
    return trie.branching(t)[:num_levels]
  given = tuple(int(x) for x in given)
  if len(given) < num_levels or min(given) < 1:
    raise types.InputError(
        f'branching: {given} must give a number >= 1 for each of {num_levels} '
        'levels; pass trie.branching(t)')
  if not traced:
    for level, (have, need) in enumerate(zip(given, trie.branching(t)), 1):
      if have < need and level <= num_levels:
        raise types.InputError(
            f'branching: {have} at level {level}, but a node has {need} '
            'children; pass trie.branching(t)')
  return given[:num_levels]


def _check_arguments(t: types.Trie, beam_size: int, batch_size: int,
                     num_levels: int, score: str, top_k: int) -> None:
  """Raises InputError for arguments that no search can serve."""
  for name, value in (('beam_size', beam_size), ('batch_size', batch_size),
                      ('top_k', top_k)):
    if value < 1:
      raise types.InputError(f'{name}: {value} must be at least 1')
  if not 1 <= num_levels <= len(t.code):
    raise types.InputError(
        f'num_levels: {num_levels} must lie in [1, {len(t.code)}]')
  if score not in SCORES:
    raise types.InputError(f'score: {score!r} must be one of {SCORES}')


def _root(batch_size: int) -> _Live:
  """One live beam a user: the empty prefix."""
  return _Live(node=jnp.zeros((batch_size, 1), jnp.int32),
               code=jnp.zeros((batch_size, 1, 0), jnp.int32),
               score=jnp.zeros((batch_size, 1), jnp.float32),
               alive=jnp.ones((batch_size, 1), bool))


def _step(logits_fn: LogitsFn, live: _Live, state: types.PyTree,
          t: types.Trie, level: int, num_children: int, *, rule: str,
          beam_size: int, last: bool) -> tuple[_Live, types.PyTree]:
  """Scores one level's children of all users and keeps the best."""
  first, code = t.first_child[level], t.code[level]
  node, child, valid = jax.vmap(
      lambda live: _children(live, first, code, num_children))(live)
  scores, state = logits_fn(live.code, child, state)
  chex.assert_shape(scores, child.shape)
  # Clipped by the candidates too: a padded trie has more nodes than paths.
  width = min(beam_size, code.shape[0], int(np.prod(child.shape[1:])))
  live, parent = jax.vmap(
      lambda *args: _advance(*args, rule=rule, width=width, last=last))(
          live, node, child, valid, scores)
  if not last:
    chex.assert_tree_shape_prefix(state, child.shape[:2])
    state = jax.vmap(
        lambda s, p: jax.tree.map(lambda x: x[p], s))(state, parent)
  return live, state


def beam_search(
    logits_fn: LogitsFn,
    t: types.Trie,
    *,
    beam_size: int,
    batch_size: int = 1,
    state: types.PyTree = None,
    score: str = 'sum',
    num_levels: int | None = None,
    branching: Sequence[int] | None = None,
    top_k: int | None = None,
) -> types.Beams:
  """Retrieves the best items of B users by beam search over the trie.

  Level l (1-based) keeps W_l = min(beam_size, nodes of level l) prefixes, W_0
  = 1 (the root). The search is exact when the beam is as wide as the widest
  level. Works under jit, vmap, pmap and shard_map; consumes no key.

  Args:
    logits_fn: called once a level with prefix [B, W_{l-1}, l - 1] int32, child
      [B, W_{l-1}, M_l] int32 and the state; returns the scores [B, W_{l-1},
      M_l] of these children, any float type, and the state. Children that do
      not exist have code 0, dead beams a prefix of zeros; their scores are
      ignored. NaN ranks last among real nodes. Scores are summed and ranked in
      float32.
    t: trie with NumPy or (traced) device arrays.
    beam_size: most prefixes kept a user; wider than the catalog is clipped.
    batch_size: B, users.
    state: None, or a pytree of arrays [B, W_l, ...] (first [B, 1, ...]) such
      as a cache; what the model returns is gathered by parent beam.
    score: 'sum' of the levels' scores along the path (log-probabilities, in
      nats), or 'level', the level's own score only (arXiv 2605.14853).
    num_levels: levels to search, all L by default. Fewer: every item below a
      surviving prefix has the prefix's score; order within it is by code.
    branching: `trie.branching(t)`, static; needed where `t` is traced.
    top_k: items returned, `beam_size` by default.

  Returns:
    Beams of W = min(top_k, V) items, best first; ties by code, then by item. A
    leaf of n items takes n places in a row. Where `mask` is False: item and
    code 0, score -inf. (A real item may have score -inf: trust the mask.)
    `code` has `num_levels` levels.

  Raises:
    InputError: arguments out of range, or a branching smaller than the trie's.
  """
  num_levels = len(t.code) if num_levels is None else num_levels
  top_k = beam_size if top_k is None else top_k
  _check_arguments(t, beam_size, batch_size, num_levels, score, top_k)
  chex.assert_rank([*t.first_child, *t.code, t.first_item, t.items], 1)
  chex.assert_tree_shape_prefix(state, (batch_size, 1))
  branching = _check_branching(t, branching, num_levels)
  t = jax.tree.map(jnp.asarray, t)
  live = _root(batch_size)
  for level, num_children in enumerate(branching):
    live, state = _step(logits_fn, live, state, t, level, num_children,
                        rule=score, beam_size=beam_size,
                        last=level + 1 == num_levels)
  width = min(top_k, t.items.shape[0])
  return jax.vmap(lambda live: _expand(live, t, num_levels, width))(live)
