"""Beam search over the trie of a catalog.

The model, `logits_fn`, is called once a level with the live prefixes [B, W,
l - 1] int32 (a dead beam's is all 0) and the state; it returns the level's
scores and the state. Scores are [B, W, K] of the whole codebook, K may differ
between levels, or a function of `Children` that returns [B, C]: those of the
children only (what it returns where `mask` is False is ignored). Any float
type: they are summed and ranked in float32. The state is None or a pytree of
arrays [B, W, ...] (first [B, 1, ...]) such as a cache; what the model returns
is gathered by parent beam.

Order is total: by score (NaN last), then lexicographically by code, then by
item id. A beam that ran out of nodes is dead and says so by a flag; real nodes
may have any score, -inf included.
"""

import functools
from typing import Any, Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from sidrec import trie
from sidrec import types
from sidrec.decode import children as children_lib
from sidrec.decode import rows
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
    logits_fn, state: the model and its own state, see above.
    t: trie with NumPy or (traced) device arrays.
    beam_size: most prefixes kept a user; wider than the catalog is clipped.
    batch_size: B, users.
    score: 'sum' of the levels' scores along the path (log-probabilities, in
      nats), or 'level', the level's own score only (arXiv 2605.14853).
    normalize: dense scores are logits: subtract their logsumexp [B, W, 1].
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
    `mask` is False: item and code 0, score -inf. `code` has `num_levels` levels.

  Raises:
    InputError: arguments out of range, or bounds smaller than the trie's.
  """
  num_levels = len(t.code) if num_levels is None else num_levels
  top_k = beam_size if top_k is None else top_k
  check(t, num_levels, beam_size=beam_size, batch_size=batch_size, top_k=top_k,
        num_rungs=num_rungs)
  _check_rules(score, per_prefix, num_levels)
  chex.assert_tree_shape_prefix(state, (batch_size, 1))
  bounds = check_bounds(t, bounds, beam_size)
  t = jax.tree.map(jnp.asarray, t)
  # Items are nodes of the last level: it may keep more than a beam.
  widths = [beam_size] * (len(t.code) - 1) + [top_k]
  live = _levels(
      logits_fn, t, children_lib.root(batch_size), state, widths[:num_levels],
      bounds, score, normalize, per_prefix, num_rungs)
  return expand(live, t, num_levels, top_k)


def _levels(logits_fn: LogitsFn, t: types.Trie, live: children_lib.Live,
            state: types.PyTree, widths: Sequence[int], bounds: trie.Bounds,
            rule: str, normalize: bool, per_prefix: tuple[int, int] | None,
            num_rungs: int) -> children_lib.Live:
  """Searches one level for each of `widths`, the most beams to keep."""
  if per_prefix is not None:
    live = live.replace(extra=live.node)  # The ancestor at `levels`.
  for level, width in enumerate(widths):
    answer, state = logits_fn(live.code, state)
    last = level + 1 == len(widths)
    rank = functools.partial(
        _rank, rule=rule, per_prefix=per_prefix, level=level)
    live, parent = advance(
        answer, live, t, level, bounds, rank, normalize=normalize,
        width=width, last=last, num_rungs=num_rungs)
    if per_prefix is not None and level + 1 == per_prefix[0]:
      live = live.replace(extra=live.node)
    if not last:
      state = reorder(state, parent)
  return live


def check(t: types.Trie, num_levels: int, **at_least_one: int) -> None:
  """Raises InputError for arguments that no search can serve."""
  for name, value in at_least_one.items():
    if value < 1:
      raise types.InputError(f'{name}: {value} must be at least 1')
  if not 1 <= num_levels <= len(t.code):
    raise types.InputError(
        f'num_levels: {num_levels} must lie in [1, {len(t.code)}]')
  chex.assert_rank([*t.first_child, *t.code, t.items], 1)


def _check_rules(score: str, per_prefix: tuple[int, int] | None,
                 num_levels: int) -> None:
  if score not in SCORES:
    raise types.InputError(f'score: {score!r} must be one of {SCORES}')
  if per_prefix is not None and not (
      1 <= per_prefix[0] <= num_levels and per_prefix[1] >= 1):
    raise types.InputError(
        f'per_prefix: {per_prefix} must be (levels in [1, {num_levels}], '
        'most >= 1)')


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
          scores: jax.Array, normalizer: jax.Array | None, *, rule: str,
          per_prefix: tuple[int, int] | None, level: int
          ) -> tuple[jax.Array, None]:
  """Returns the keys [B, C] to rank by; what is reported follows from them."""
  start = offset(live.score, normalizer, rule)
  if start is not None:
    scores = found.take(start) + scores
  key = selection.rank_key(scores, found.mask)
  if per_prefix is not None and level >= per_prefix[0]:
    key = selection.cap(key, found.take(live.extra), per_prefix[1])
  return key, None


def offset(score: types.Array, normalizer: types.Array | None, rule: str
           ) -> jax.Array | None:
  """Returns what a level adds to the scores of a beam's children [B, W]."""
  if normalizer is None:
    return score if rule == 'sum' else None
  return score - normalizer if rule == 'sum' else -normalizer


def rungs(bounds: trie.Bounds, level: int, beams: int, num_rungs: int,
          width: int) -> tuple[int, list[int]]:
  """Chooses how the children of a level are laid out.

  Args:
    bounds: of the trie.
    level: 0-based level of the children.
    beams: W, parents a user.
    num_rungs: most row lengths to compile.
    width: beams kept.

  Returns:
    (slots of a chunk, numbers of chunks to compile, ascending); or (0, [slots
    of a beam]): the padded layout.
  """
  widest, mean = bounds.widest[level], bounds.mean[level]
  if selection.is_long(beams * widest, width):
    # In whole groups, so that nothing is padded later.
    widest = -(-widest // selection.GROUP) * selection.GROUP
  total = min(bounds.total[level], beams * widest)
  size = 1
  while 2 * size <= min(mean / 2, selection.GROUP):
    size *= 2
  # Every beam may leave its last chunk unfilled.
  most = min((total + beams * (size - 1)) // size, beams * -(-widest // size))
  usual = beams * (mean / size + (size > 1) / 2)
  steps = [min(int(usual * factor) + 1, most) for factor in (1.125, 1.5)]
  steps = sorted({*steps[:num_rungs - 1], most})
  if beams == 1 or beams * widest <= 1.25 * steps[0] * size:
    return 0, [widest]
  return size, steps


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
    rank: (live, children, scores [B, C], normalizer [B, W] or None) -> (key
      [B, C] of `selection.rank_key`, score [B, C] or None: what key stands
      for).
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
  size, steps = rungs(bounds, level, low.shape[1], num_rungs, width)
  width = min(width, t.code[level].shape[0])
  if not last:
    width = min(width, steps[-1] * size if size else steps[0] * low.shape[1])

  def run(chunks: int) -> tuple[children_lib.Live, jax.Array]:
    found = (children_lib.chunked(low, count, chunks, size, t, level) if size
             else children_lib.padded(low, count, chunks, t, level))
    key, score = rank(
        live, found, children_lib.score(answer, found), normalizer)
    return _keep(live, found, key, score, t.code[level], width, last)

  if len(steps) == 1:
    return run(steps[0])
  need = jnp.max(jnp.sum(-(-count // size), -1))
  rung = jnp.sum(need > jnp.asarray(steps[:-1]))
  return jax.lax.switch(
      rung, [functools.partial(run, chunks) for chunks in steps])


def _keep(live: children_lib.Live, found: children_lib.Children,
          key: jax.Array, score: jax.Array | None, codes: jax.Array,
          width: int, last: bool) -> tuple[children_lib.Live, jax.Array]:
  """Keeps the best `width` children; short rows are filled with dead ones."""
  slots = key.shape[1]
  # Flat order is code order, as the beams are in code order and a node's
  # children are too: a tie goes to the smaller code.
  if slots > width or last:
    index = selection.best(key, min(width, slots))
    if not last:
      index = jnp.sort(index, -1)  # Code order, for the next level's ties.
  else:
    index = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), key.shape)
  key = rows.take(key, index)
  parent, node = found.at(index)
  alive = key > -jnp.inf
  node = jnp.where(alive, node, 0)
  code = jnp.where(alive, rows.at(codes, node).astype(jnp.int32), 0)
  prefix = jnp.where(alive[..., None], rows.take(live.code, parent), 0)
  value = selection.score_of(key)
  if score is not None:
    score = jnp.where(alive, rows.take(score, index), -jnp.inf)
  kept = children_lib.Live(
      node=node, code=jnp.concatenate([prefix, code[..., None]], -1),
      value=value, score=value if score is None else score, alive=alive,
      extra=jax.tree.map(lambda x: jnp.where(
          alive, rows.take(x, parent), 0), live.extra))
  return jax.tree.map(lambda x, fill: jnp.pad(
      x, ((0, 0), (0, width - x.shape[1])) + ((0, 0),) * (x.ndim - 2),
      constant_values=fill), (kept, parent), (_fills(kept), 0))


def _fills(live: children_lib.Live) -> children_lib.Live:
  """Returns what a dead beam holds in each place."""
  zeros = jax.tree.map(lambda x: 0, live)
  return zeros.replace(value=-jnp.inf, score=-jnp.inf, alive=False)


def reorder(state: types.PyTree, parent: jax.Array) -> types.PyTree:
  """Gathers a state [B, W, ...] by parent beam [B, W']."""
  chex.assert_tree_shape_prefix(state, parent.shape[:1])
  return jax.tree.map(lambda x: rows.take(x, parent), state)


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
