"""Tests beam search against enumeration and a plain search over tuples."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec import decode
from sidrec import trie
from sidrec import types

_SLOTS = 13  # Rows of a score table: prefixes are hashed to them.
_BATCH = 2
_SIZES = (4, 6, 3)  # Codebooks of the random worlds.
_MOST = 40  # Items of the largest random world.


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion('raise'):
    yield


def _pad(t):
  """Pads a trie to one size for all worlds, so that one program serves all."""
  def longer(x, size, value):
    return np.concatenate([x, np.full(size - x.size, value, x.dtype)])
  return types.Trie(
      first_child=tuple(longer(x, _MOST + 1, x[-1]) if level else x
                        for level, x in enumerate(t.first_child)),
      code=tuple(longer(x, _MOST, 0) for x in t.code),
      first_item=longer(t.first_item, _MOST + 1, t.first_item[-1]),
      items=longer(t.items, _MOST, 0))


def _dense(tables, prefix, state):
  """The model: scores of all codes, from the whole prefix."""
  level = prefix.shape[-1]
  weight = jnp.arange(3, 3 + level, dtype=jnp.int32)
  row = (7 + jnp.sum(prefix * weight[None, None], -1)) % _SLOTS
  return jax.vmap(lambda t, r: t[r])(jnp.asarray(tables[level]), row), state


@functools.partial(jax.jit, static_argnames=(
    'beam_size', 'rule', 'branching', 'top_k'))
def _search(t, tables, *, beam_size, branching, rule='sum', top_k=None):
  return decode.beam_search(
      decode.adapt_dense(functools.partial(_dense, tables)), t,
      beam_size=beam_size, batch_size=tables[0].shape[0], score=rule,
      branching=branching, top_k=top_k)


class _World:
  """A random catalog and a random table model, for both kinds of search."""

  def __init__(self, codes, tables):
    self.codes, self.tables, self.trie = codes, tables, trie.build(codes)
    self.batch = tables[0].shape[0]

  def search(self, beam_size, pad=False, **kwargs):
    t, branching = self.trie, trie.branching(self.trie)
    if pad:
      t, branching = _pad(t), _SIZES
    return _search(t, self.tables, beam_size=beam_size, branching=branching,
                   **kwargs)

  def score(self, user, prefix, code):
    row = (7 + sum((i + 3) * c for i, c in enumerate(prefix))) % _SLOTS
    return self.tables[len(prefix)][user, row, code]

  def plain(self, user, beam_size, rule, top_k):
    """The oracle: beam search over tuples; never looks at the trie."""
    codes = [tuple(c) for c in self.codes.tolist()]
    beams = [((), np.float32(0))]
    for level in range(self.codes.shape[1]):
      grown = []
      for prefix, total in beams:
        children = {c[level] for c in codes if c[:level] == prefix}
        for c in children:
          s = self.score(user, prefix, c)
          grown.append((prefix + (c,), total + s if rule == 'sum' else s))
      beams = sorted(grown, key=lambda x: (-x[1], x[0]))[:beam_size]
    rows = [(i, code, s) for code, s in beams
            for i, c in enumerate(codes) if c == code]
    return rows[:top_k]

  def enumerate(self, user, rule):
    """All items by the score of their whole path."""
    rows = []
    for i, code in enumerate(map(tuple, self.codes.tolist())):
      total = np.float32(0)
      for level, c in enumerate(code):
        s = self.score(user, code[:level], c)
        total = total + s if rule == 'sum' else s
      rows.append((i, code, total))
    return sorted(rows, key=lambda x: (-x[2], x[1], x[0]))


def _world(seed, ties, sizes=_SIZES):
  """Draws ragged codes with collisions, and scores with or without ties."""
  rng = np.random.default_rng(seed)
  num_items = int(rng.integers(1, _MOST + 1))
  codes = np.stack([rng.integers(0, k, num_items) for k in sizes], 1)
  tables = []
  for k in sizes:
    shape = (_BATCH, _SLOTS, k)
    # Small integers: many ties, and sums without rounding.
    tables.append((rng.integers(-2, 2, shape) if ties else
                   rng.normal(size=shape)).astype(np.float32))
  return _World(codes, tuple(tables))


def _flat(codes):
  """A world whose scores all tie."""
  codes = np.array(codes)
  tables = (np.zeros((1, _SLOTS, codes.max() + 1), np.float32),)
  return _World(codes, tables * codes.shape[1])


def _check(beams, user, rows, width):
  """Compares one user's beams with (item, code, score) rows."""
  n = len(rows)
  assert beams.mask.shape[1] == width
  assert np.asarray(beams.mask[user]).tolist() == [i < n for i in range(width)]
  assert np.asarray(beams.item[user, :n]).tolist() == [r[0] for r in rows]
  assert [tuple(c) for c in np.asarray(beams.code[user, :n]).tolist()] == [
      r[1] for r in rows]
  np.testing.assert_array_equal(beams.score[user, :n],
                                np.array([r[2] for r in rows], np.float32))
  assert not np.asarray(beams.item[user, n:]).any()
  assert not np.asarray(beams.code[user, n:]).any()
  assert np.isneginf(np.asarray(beams.score[user, n:])).all()


@pytest.mark.parametrize('rule', decode.SCORES)
@pytest.mark.parametrize('ties', [False, True])
def test_equals_enumeration_when_wide(ties, rule):
  for seed in range(40):
    world = _world(seed, ties)
    beams = jax.device_get(world.search(_MOST, pad=True, rule=rule))
    for user in range(_BATCH):
      _check(beams, user, world.enumerate(user, rule), _MOST)


@pytest.mark.parametrize('rule', decode.SCORES)
@pytest.mark.parametrize('beam_size, top_k', [(1, 1), (3, 7), (6, 4)])
def test_equals_plain_search_when_narrow(beam_size, top_k, rule):
  for seed in range(40):
    world = _world(100 + seed, ties=seed % 2 == 0)
    beams = jax.device_get(world.search(beam_size, pad=True, rule=rule,
                                        top_k=top_k))
    for user in range(_BATCH):
      _check(beams, user, world.plain(user, beam_size, rule, top_k), top_k)


@pytest.mark.parametrize('sizes', [(9,), (3, 1, 2, 2)])
def test_other_depths_without_padding(sizes):
  world = _world(3, True, sizes)
  beams = jax.device_get(world.search(100))
  for user in range(_BATCH):
    _check(beams, user, world.enumerate(user, 'sum'), len(world.codes))


def test_hand_trellis():
  # After 0: children 0, 1; after 1: only 2. Greedy takes 1, then 2; the best
  # sum goes through 0.
  codes = np.array([[0, 0], [0, 1], [1, 2], [0, 1]])
  t = trie.build(codes)
  first = jnp.array([1., 2., 9.])
  second = jnp.array([[0., 4., 9.], [9., 9., 1.], [9., 9., 9.]])

  def model(prefix, state):
    if prefix.shape[-1] == 0:
      return jnp.broadcast_to(first, prefix.shape[:2] + (3,)), state
    return second[prefix[..., 0]], state

  def search(**kwargs):
    return jax.jit(lambda: decode.beam_search(
        decode.adapt_dense(model), t, **kwargs))()

  narrow = search(beam_size=1, top_k=3)
  assert narrow.item.tolist() == [[2, 0, 0]]
  assert narrow.mask.tolist() == [[True, False, False]]
  assert narrow.score.tolist() == [[3., -np.inf, -np.inf]]
  wide = search(beam_size=3)
  assert wide.item.tolist() == [[1, 3, 2]]  # One leaf, two items, two places.
  assert wide.score.tolist() == [[5., 5., 3.]]
  level = search(beam_size=9, score='level')
  assert level.item.tolist() == [[1, 3, 2, 0]]  # Clipped to the catalog.
  assert level.score.tolist() == [[4., 4., 1., 0.]]
  prefix = search(beam_size=2, num_levels=1, top_k=9)
  assert prefix.item.tolist() == [[2, 0, 1, 3]]
  assert prefix.code.tolist() == [[[1], [0], [0], [0]]]
  assert prefix.score.tolist() == [[2., 1., 1., 1.]]


def test_fewer_items_than_places():
  # Two leaves survive for five places. (Dead beams, which only a padded trie
  # has, are in the random worlds above.)
  world = _flat([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]])
  beams = world.search(2, top_k=5)
  assert beams.mask.tolist() == [[True, True, False, False, False]]
  assert beams.item.tolist() == [[0, 1, 0, 0, 0]]


@pytest.mark.parametrize('value', [-np.inf, np.nan, -3e38, -0.])
def test_strange_scores_keep_real_items_in_code_order(value):
  codes = np.array([[2, 0], [0, 1], [1, 3], [0, 0], [2, 2]])
  t = trie.build(codes)

  first, code = jnp.asarray(t.first_child[1]), t.code[0]

  def model(prefix, child, state):
    scores = jnp.full(child.shape, value, jnp.float32)
    if prefix.shape[-1]:
      # Children that do not exist are offered the best score there is.
      parent = jnp.searchsorted(jnp.asarray(code), prefix[..., 0])
      place = jnp.arange(child.shape[-1])[None, None]
      real = place < (first[parent + 1] - first[parent])[..., None]
      scores = jnp.where(real, scores, jnp.inf)
    return scores, state

  beams = jax.jit(lambda: decode.beam_search(model, t, beam_size=5))()
  assert beams.mask.all()
  assert beams.item.tolist() == [[3, 1, 2, 0, 4]]


def test_negative_zero_ties_with_zero_and_nan_ranks_last():
  t = trie.build(np.arange(4)[:, None])
  scores = jnp.array([np.nan, -0., 0., -np.inf])
  # Jitted, for op by op every operation is a program to compile.
  search = jax.jit(lambda scores: decode.beam_search(
      lambda prefix, child, state: (scores[child], state), t, beam_size=4))
  assert search(scores).item.tolist() == [[1, 2, 0, 3]]
  assert search(scores[::-1]).item.tolist() == [[1, 2, 0, 3]]


def test_state_follows_the_parents():
  world = _world(107, False)
  dense = functools.partial(_dense, world.tables)

  def model(prefix, child, state):
    # Like a cache: sees the newest code only, the earlier ones are its own.
    level = prefix.shape[-1]
    seen = state['seen']
    if level:
      seen = seen.at[..., level - 1].set(prefix[..., -1])
    scores, _ = decode.adapt_dense(dense)(seen[..., :level], child, None)
    return scores, {'seen': seen}

  state = {'seen': jnp.zeros((_BATCH, 1, len(_SIZES)), jnp.int32)}
  got = jax.jit(lambda state: decode.beam_search(
      model, world.trie, beam_size=4, batch_size=_BATCH, state=state))(state)
  for user in range(_BATCH):
    _check(got, user, world.plain(user, 4, 'sum', 4), 4)


def test_concrete_trie_vmap_and_bfloat16():
  world = _world(3, True)
  want = world.search(5)
  branching = trie.branching(world.trie)
  # A wider static branching changes nothing: padding is never chosen.
  chex.assert_trees_all_equal(
      _search(world.trie, world.tables, beam_size=5,
              branching=tuple(x + 3 for x in branching)), want)
  twice = jax.vmap(lambda t: _search(
      t, world.tables, beam_size=5, branching=branching))(
          jax.tree.map(lambda x: np.stack([x, x]), world.trie))
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1], twice), want)

  def half(prefix, state):
    scores, state = _dense(world.tables, prefix, state)
    return scores.astype(jnp.bfloat16), state
  # Not traced: the branching is read from the trie.
  low = jax.jit(lambda: decode.beam_search(
      decode.adapt_dense(half), world.trie, beam_size=5,
      batch_size=_BATCH))()
  assert low.score.dtype == jnp.float32
  chex.assert_trees_all_equal(low, want)  # Small integers are exact.


def test_traced_trie_needs_branching():
  world = _world(3, True)
  with pytest.raises(types.InputError, match='traced'):
    _search(world.trie, world.tables, beam_size=5, branching=None)


def test_pmap_on_one_device():
  world = _world(5, False)
  branching = trie.branching(world.trie)
  stacked = jax.tree.map(lambda x: np.asarray(x)[None], world.trie)
  got = jax.pmap(lambda t: _search(
      t, world.tables, beam_size=6, branching=branching))(stacked)
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], got),
                              world.search(6))


@pytest.mark.parametrize('kwargs, words', [
    (dict(beam_size=0), 'beam_size'),
    (dict(beam_size=1, top_k=0), 'top_k'),
    (dict(beam_size=1, num_levels=3), 'num_levels'),
    (dict(beam_size=1, score='max'), 'score'),
    (dict(beam_size=1, branching=(2, 1)), 'level 2'),
    (dict(beam_size=1, branching=(2,)), 'branching'),
])
def test_bad_arguments(kwargs, words):
  t = trie.build(np.array([[0, 0], [0, 1], [1, 0]]))
  with pytest.raises(types.InputError, match=words):
    decode.beam_search(lambda p, c, s: (c * 1., s), t, **kwargs)
