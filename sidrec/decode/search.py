"""Beam search over the trie of a catalog.

Order is total: by score, then lexicographically by code, then by item id. A
beam that ran out of nodes is dead and says so by a flag; real nodes may have
any score, -inf included.
"""

import functools
from typing import Any, Callable

import chex
import jax
import jax.numpy as jnp

from sidrec import trie
from sidrec import types
from sidrec.decode import children as children_lib
from sidrec.decode import selection

# (prefix [B, W, l], state) -> (scores [B, W, K] or ScoreFn, state).
LogitsFn = Callable[
    [types.Array, Any], tuple[types.Array | children_lib.ScoreFn, Any]]

SCORES = ('sum', 'level')


def beam_search(
    logits_fn: LogitsFn,
    t: types.Trie,
    *,
    beam_size: int,
    batch_size: int = 1,
    state: types.PyTree = None,
    score: str = 'sum',
    normalize: bool = False,
    num_levels: int | None = None,
    bounds: trie.Bounds | None = None,
    top_k: int | None = None,
    per_prefix: tuple[int, int] | None = None,
    num_rungs: int = 3,
) -> types.Beams:
  """Retrieves the best items of B users by beam search over the trie.

  Level l (1-based) keeps at most `beam_size` prefixes. The search is exact
  when the beam is as wide as the widest level. Works under jit, vmap, pmap and
  shard_map; consumes no key.

  Args:
    logits_fn: called once a level with the live prefixes [B, W, l - 1] int32
      (a dead beam's is all 0) and the state. Returns the level's scores and
      the state. Scores are [B, W, K] of the whole codebook, K may differ
      between levels, or a function of `Children` that returns [B, C]: those
      of children only (what it returns where `mask` is False is ignored). Any
      float type; NaN ranks last among real nodes. They are summed and ranked
      in float32.
    t: trie with NumPy or (traced) device arrays.
    beam_size: most prefixes kept a user; wider than the catalog is clipped.
    batch_size: B, users.
    state: None, or a pytree of arrays [B, W, ...] (first [B, 1, ...]) such as
      a cache; what the model returns is gathered by parent beam.
    score: 'sum' of the levels' scores along the path (log-probabilities, in
      nats), or 'level', the level's own score only (arXiv 2605.14853).
    normalize: dense scores are logits: subtract their logsumexp over the
      codebook, so that they are log-probabilities of the model.
    num_levels: levels to search, all L by default. Fewer: every item below a
      surviving prefix has the prefix's score; order within it is by code.
    bounds: `trie.bounds(t, beam_size)`, static; needed where `t` is traced.
    top_k: items returned, `beam_size` by default.
    per_prefix: (levels, most): from level `levels + 1` on, at most `most`
      beams of a user, and so of its items, share their first `levels` codes.
    num_rungs: row lengths a level that are compiled; the shortest that holds
      the children of all users is run. 1 where `logits_fn` has collectives.

  Returns:
    Beams of at most top_k items, best first; ties by code, then by item. An
    item that shares its code stands beside the others of that code. Where
    `mask` is False: item and code 0, score -inf. (A real item may have score
    -inf: trust the mask.) `code` has `num_levels` levels.

  Raises:
    InputError: arguments out of range, or bounds smaller than the trie's.
  """
  num_levels = len(t.code) if num_levels is None else num_levels
  top_k = beam_size if top_k is None else top_k
  check(t, num_levels, beam_size=beam_size, batch_size=batch_size, top_k=top_k,
        num_rungs=num_rungs)
  if score not in SCORES:
    raise types.InputError(f'score: {score!r} must be one of {SCORES}')
  if per_prefix is not None and not (
      1 <= per_prefix[0] <= num_levels and per_prefix[1] >= 1):
    raise types.InputError(
        f'per_prefix: {per_prefix} must be (levels in [1, {num_levels}], '
        'most >= 1)')
  chex.assert_tree_shape_prefix(state, (batch_size, 1))
  bounds = check_bounds(t, bounds, beam_size)
  t = jax.tree.map(jnp.asarray, t)
  live = children_lib.root(batch_size)
  if per_prefix is not None:
    live = live.replace(extra=live.node)  # The ancestor at `levels`.
  for level in range(num_levels):
    answer, state = logits_fn(live.code, state)
    last = level + 1 == num_levels
    rank = functools.partial(
        _rank, rule=score, per_prefix=per_prefix, level=level)
    live, parent = advance(
        answer, live, t, level, bounds, rank, normalize=normalize,
        # Items are nodes of the last level: it may keep more than a beam.
        width=top_k if level + 1 == len(t.code) else beam_size, last=last,
        num_rungs=num_rungs)
    if per_prefix is not None and level + 1 == per_prefix[0]:
      live = live.replace(extra=live.node)
    if not last:
      state = reorder(state, parent)
  return expand(live, t, num_levels, top_k)


def check(t: types.Trie, num_levels: int, **at_least_one: int) -> None:
  """Raises InputError for arguments that no search can serve."""
  for name, value in at_least_one.items():
    if value < 1:
      raise types.InputError(f'{name}: {value} must be at least 1')
  if not 1 <= num_levels <= len(t.code):
    raise types.InputError(
        f'num_levels: {num_levels} must lie in [1, {len(t.code)}]')
  chex.assert_rank([*t.first_child, *t.code, t.items], 1)


def check_bounds(t: types.Trie, given: trie.Bounds | None, beam_size: int
                 ) -> trie.Bounds:
  """Returns the static bounds, checked where the trie is concrete."""
  if given is None:
    return trie.bounds(t, beam_size)
  if len(given.widest) != len(t.code):
    raise types.InputError(
        f'bounds: of {len(given.widest)} levels, but the trie has '
        f'{len(t.code)}; pass trie.bounds(t, beam_size)')
  if not any(isinstance(x, jax.core.Tracer) for x in t.first_child):
    need = trie.bounds(t, beam_size)
    for level in range(len(t.code)):
      if (given.widest[level] < need.widest[level]
          or given.total[level] < need.total[level]):
        raise types.InputError(
            f'bounds: level {level + 1} of this trie has more children; pass '
            'trie.bounds(t, beam_size)')
  return given


def _rank(live: children_lib.Live, found: children_lib.Children,
          scores: jax.Array, *, rule: str, per_prefix: tuple[int, int] | None,
          level: int) -> tuple[jax.Array, jax.Array, Any]:
  """Returns (key to rank by, score to keep, extra to keep), [B, C] each."""
  if rule == 'sum':
    scores = found.take(live.score) + scores
  key = selection.rank_key(scores, found.mask)
  if per_prefix is None:
    return key, scores, None
  group = found.take(live.extra)
  if level >= per_prefix[0]:
    key = selection.cap(key, group, per_prefix[1])
  return key, scores, group


def rungs(bounds: trie.Bounds, level: int, beams: int, num_rungs: int
          ) -> tuple[int, list[int]]:
  """Returns (slots of a chunk, numbers of chunks to compile, ascending).

  A chunk of 0 slots stands for the padded layout: one chunk a beam.
  """
  widest = bounds.widest[level]
  total = min(bounds.total[level], beams * widest)
  size = 1
  while 2 * size <= min(bounds.mean[level], widest):
    size *= 2
  # Every beam may leave its last chunk unfilled.
  most = min((total + beams * (size - 1)) // size, beams * -(-widest // size))
  if beams == 1 or beams * widest <= 1.25 * most * size:
    return 0, [widest]
  usual = beams * -(-bounds.mean[level] // size)
  steps = {most}
  for _ in range(num_rungs - 1):
    usual += -(-usual // 3)
    if usual >= most:
      break
    steps.add(usual)
    usual *= 3
  return size, sorted(steps)


def advance(
    answer: Any, live: children_lib.Live, t: types.Trie, level: int,
    bounds: trie.Bounds, rank: Callable[..., Any], *, normalize: bool,
    width: int, last: bool, num_rungs: int
) -> tuple[children_lib.Live, jax.Array]:
  """Scores one level's children of all users and keeps the best.

  Args:
    answer: of the model.
    live: beams [B, W].
    t: the trie.
    level: 0-based level of the children.
    bounds: static sizes.
    rank: (live, children, scores) -> (key, score, extra) [B, C].
    normalize: see `beam_search`.
    width: most beams kept.
    last: keep the order by score; else back to code order.
    num_rungs: see `beam_search`.

  Returns:
    (live beams [B, W'], their parents [B, W']).
  """
  normalizer = None
  if normalize and not callable(answer):
    normalizer = jax.nn.logsumexp(answer.astype(jnp.float32), -1)
  low, count = children_lib.spans(live, t, level)
  size, steps = rungs(bounds, level, low.shape[1], num_rungs)
  width = min(width, t.code[level].shape[0],
              steps[-1] * size if size else steps[0] * low.shape[1])

  def run(chunks: int) -> tuple[children_lib.Live, jax.Array]:
    found = (children_lib.chunked(low, count, chunks, size, t, level) if size
             else children_lib.padded(low, count, chunks, t, level))
    key, score, extra = rank(
        live, found, children_lib.score(answer, found, normalizer))
    return _keep(live, found, key, score, extra, width, last)

  if len(steps) == 1:
    return run(steps[0])
  need = jnp.max(jnp.sum(-(-count // size), -1))
  rung = jnp.sum(need > jnp.asarray(steps[:-1]))
  return jax.lax.switch(
      rung, [functools.partial(run, chunks) for chunks in steps])


def _keep(live: children_lib.Live, found: children_lib.Children,
          key: jax.Array, score: jax.Array, extra: Any, width: int,
          last: bool) -> tuple[children_lib.Live, jax.Array]:
  """Keeps the best `width` children; short rows are filled with dead ones."""
  beams, slots = live.node.shape[1], key.shape[1]
  # Flat order is code order, as the beams are in code order and a node's
  # children are too: a tie goes to the smaller code.
  if slots > width or last:
    index = selection.best(key, min(width, slots))
    if not last:
      index = jnp.sort(index, -1)  # Code order, for the next level's ties.
    take = lambda x: jnp.take_along_axis(x, index, 1)
    key, score, code, node = map(take, (key, score, found.code, found.node))
    parent, extra = found.parent_of(index, beams), jax.tree.map(take, extra)
  else:
    parent, code, node = found.parent(beams), found.code, found.node
  short = width - key.shape[1]
  if short > 0:
    fill = lambda x, value=0: jnp.pad(
        x, ((0, 0), (0, short)), constant_values=value)
    key = fill(key, -jnp.inf)
    score, parent, code, node, extra = jax.tree.map(
        fill, (score, parent, code, node, extra))
  alive = key > -jnp.inf
  zero = lambda x: jnp.where(alive, x, 0)
  prefix = jnp.take_along_axis(live.code, parent[..., None], 1)
  prefix = jnp.concatenate([prefix, code[..., None]], -1)
  return children_lib.Live(
      node=zero(node), code=jnp.where(alive[..., None], prefix, 0),
      score=jnp.where(alive, score, -jnp.inf), alive=alive,
      extra=jax.tree.map(zero, extra)), parent


def reorder(state: types.PyTree, parent: jax.Array) -> types.PyTree:
  """Gathers a state [B, W, ...] by parent beam [B, W']."""
  chex.assert_tree_shape_prefix(state, parent.shape[:1])
  return jax.vmap(lambda s, p: jax.tree.map(lambda x: x[p], s))(state, parent)


def expand(live: children_lib.Live, t: types.Trie, num_levels: int,
           width: int) -> types.Beams:
  """Turns surviving nodes [B, W], best first, into their items."""
  if num_levels == len(t.code):
    return types.Beams(
        item=jnp.where(live.alive, t.items[live.node], 0), code=live.code,
        score=live.score, mask=live.alive)
  return jax.vmap(
      lambda live: _items_below(live, t, num_levels, width))(live)


def _items_below(live: children_lib.Live, t: types.Trie, num_levels: int,
                 width: int) -> types.Beams:
  """All items below one user's nodes, those of the best node first."""
  low, high = live.node, live.node + 1
  for first in t.first_child[num_levels:]:
    low, high = first[low], first[high]
  width = min(width, t.items.shape[0])
  if t.allowed is not None:
    # In numbers that count allowed items only.
    seen = jnp.cumsum(t.allowed[-1], dtype=jnp.int32)
    zero = jnp.zeros(1, jnp.int32)
    before = jnp.concatenate([zero, seen])
    low, high = before[low], before[high]
  count = jnp.where(live.alive, high - low, 0)
  count = jnp.minimum(count, width)  # More are never shown; int32 is enough.
  stop = jnp.cumsum(count, dtype=jnp.int32)
  place = jnp.arange(width, dtype=jnp.int32)
  beam = jnp.searchsorted(stop, place, side='right').astype(jnp.int32)
  mask = place < stop[-1]
  beam = jnp.where(mask, beam, 0)
  index = low[beam] + place - (stop - count)[beam]
  if t.allowed is not None:
    index = jnp.searchsorted(seen, index + 1).astype(jnp.int32)
  return types.Beams(
      item=jnp.where(mask, t.items[jnp.where(mask, index, 0)], 0),
      code=jnp.where(mask[:, None], live.code[beam], 0),
      score=jnp.where(mask, live.score[beam], -jnp.inf), mask=mask)
