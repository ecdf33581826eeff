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
_SIZES = (4, 6, 3)  # Codebooks of the small random worlds.
_MOST = 40  # Items of the largest of them.


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion('raise'):
    yield


def _dense(tables, prefix, state):
  """The model: scores of all codes, from the whole prefix."""
  level = prefix.shape[-1]
  weight = jnp.arange(3, 3 + level, dtype=jnp.int32)
  row = (7 + jnp.sum(prefix * weight[None, None], -1)) % _SLOTS
  return jax.vmap(lambda t, r: t[r])(jnp.asarray(tables[level]), row), state


def _sparse(tables, prefix, state):
  """The same model, asked for children only; junk where there is none."""
  dense, state = _dense(tables, prefix, state)
  def score_fn(found):
    scores = jax.vmap(lambda d, p, c: d[p, c])(
        dense, found.parent(dense.shape[1]), found.code)
    return jnp.where(found.mask, scores, jnp.nan)
  return score_fn, state


@functools.partial(jax.jit, static_argnames=(
    'bounds', 'beam_size', 'score', 'top_k', 'per_prefix', 'num_rungs',
    'model', 'num_levels'))
def _search(t, tables, *, model=_dense, **kwargs):
  return decode.beam_search(
      functools.partial(model, tables), t, batch_size=tables[0].shape[0],
      **kwargs)


def _widest_bounds(sizes, num_items, beam_size, mean=1):
  """Bounds that hold for any catalog of this size."""
  widest = (*sizes[:-1], num_items)
  return trie.Bounds(
      widest, tuple(min(beam_size * k, num_items) for k in widest),
      tuple(min(mean, k) for k in widest))


class _World:
  """A random catalog and a random table model, for both kinds of search."""

  def __init__(self, codes, tables, allowed=None):
    self.codes, self.tables, self.trie = codes, tables, trie.build(codes)
    self.batch = tables[0].shape[0]
    self.allowed = np.ones(len(codes), bool) if allowed is None else allowed
    if allowed is not None:
      self.trie = trie.restrict(self.trie, allowed)

  def search(self, beam_size, sizes=None, **kwargs):
    t, bounds = self.trie, trie.bounds(self.trie, beam_size)
    if sizes is not None:
      # One program serves all worlds of these sizes.
      t, _ = trie.pad(t, sizes, beam_size)
      bounds = _widest_bounds(sizes, len(self.codes), beam_size)
    return jax.device_get(_search(
        t, self.tables, beam_size=beam_size, bounds=bounds, **kwargs))

  def score(self, user, prefix, code):
    row = (7 + sum((i + 3) * c for i, c in enumerate(prefix))) % _SLOTS
    return self.tables[len(prefix)][user, row, code]

  def plain(self, user, beam_size, score='sum', top_k=None, per_prefix=None):
    """The oracle: beam search over tuples; never looks at the trie."""
    rows = {}  # prefix -> items, the allowed ones
    for i, code in enumerate(map(tuple, self.codes.tolist())):
      if self.allowed[i]:
        for level in range(len(code) + 1):
          rows.setdefault(code[:level], []).append(i)
    beams, num_levels = [((), np.float32(0))], self.codes.shape[1]
    if not self.allowed.any():
      return []
    for level in range(num_levels):
      grown = []
      for prefix, total in beams:
        for c in sorted({int(self.codes[i, level]) for i in rows[prefix]}):
          s = self.score(user, prefix, c)
          s = np.float32(total + s) if score == 'sum' else s
          here = prefix + (c,)
          last = level + 1 == num_levels
          grown += [(here, s, i) for i in (rows[here] if last else [0])]
      grown = sorted(grown, key=lambda x: (-x[1], x[0], x[2]))
      if per_prefix is not None and level >= per_prefix[0]:
        seen, kept = {}, []
        for row in grown:
          key = row[0][:per_prefix[0]]
          seen[key] = seen.get(key, 0) + 1
          kept += [row] * (seen[key] <= per_prefix[1])
        grown = kept
      beams = [(code, s) for code, s, _ in grown[:beam_size]]
    return [(i, code, s) for code, s, i in grown[:top_k or beam_size]]

  def enumerate(self, user, score='sum'):
    """All items by the score of their whole path."""
    rows = []
    for i, code in enumerate(map(tuple, self.codes.tolist())):
      total = np.float32(0)
      for level, c in enumerate(code):
        s = self.score(user, code[:level], c)
        total = np.float32(total + s) if score == 'sum' else s
      if self.allowed[i]:
        rows.append((i, code, total))
    return sorted(rows, key=lambda x: (-x[2], x[1], x[0]))


def _world(seed, ties, sizes=_SIZES, num_items=_MOST, share=None):
  """Draws ragged codes with collisions, and scores with or without ties."""
  rng = np.random.default_rng(seed)
  # Skewed, so that branching is ragged.
  codes = np.stack([
      (k * rng.random(num_items) ** rng.integers(1, 5)).astype(int)
      for k in sizes], 1)
  tables = []
  for k in sizes:
    shape = (_BATCH, _SLOTS, k)
    # Small integers: many ties, and sums without rounding.
    tables.append((rng.integers(-2, 2, shape) if ties else
                   rng.normal(size=shape)).astype(np.float32))
  allowed = None if share is None else rng.random(num_items) < share
  return _World(codes, tuple(tables), allowed)


def _flat(codes):
  """A world whose scores all tie."""
  codes = np.array(codes)
  tables = (np.zeros((1, _SLOTS, codes.max() + 1), np.float32),)
  return _World(codes, tables * codes.shape[1])


def _check(beams, user, rows):
  """Compares one user's beams with (item, code, score) rows."""
  n, width = len(rows), beams.mask.shape[1]
  assert np.asarray(beams.mask[user]).tolist() == [i < n for i in range(width)]
  assert np.asarray(beams.item[user, :n]).tolist() == [r[0] for r in rows]
  assert [tuple(c) for c in np.asarray(beams.code[user, :n]).tolist()] == [
      r[1] for r in rows]
  np.testing.assert_array_equal(beams.score[user, :n],
                                np.array([r[2] for r in rows], np.float32))
  assert not np.asarray(beams.item[user, n:]).any()
  assert not np.asarray(beams.code[user, n:]).any()
  assert np.isneginf(np.asarray(beams.score[user, n:])).all()


@pytest.mark.parametrize('score', decode.SCORES)
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('model', [_dense, _sparse])
def test_equals_enumeration_when_wide(ties, score, model):
  for seed in range(30):
    world = _world(seed, ties)
    beams = world.search(_MOST, sizes=_SIZES, score=score, model=model)
    for user in range(_BATCH):
      _check(beams, user, world.enumerate(user, score))


@pytest.mark.parametrize('score', decode.SCORES)
@pytest.mark.parametrize('beam_size, top_k', [(1, 1), (3, 7), (6, 4)])
def test_equals_plain_search_when_narrow(beam_size, top_k, score):
  for seed in range(30):
    world = _world(100 + seed, ties=seed % 2 == 0)
    beams = world.search(beam_size, sizes=_SIZES, score=score, top_k=top_k)
    for user in range(_BATCH):
      _check(beams, user, world.plain(user, beam_size, score, top_k))


# Programs that many random catalogs share: sizes, items, mean number of
# children (it sets the layout) and the search.
_PROGRAMS = (
    ((2, 3, 2), 1, 1, dict(beam_size=1)),
    ((3, 3, 3, 3), 30, 1, dict(beam_size=7, num_rungs=4, top_k=10)),
    ((16, 16, 2), 300, 4, dict(beam_size=7, score='level')),
    ((256, 16, 3), 900, 2, dict(beam_size=50, num_rungs=2, top_k=60)),
    ((2048, 3), 5000, 8, dict(beam_size=20, score='level', top_k=200)),
    ((5, 2048, 2), 5000, 16, dict(beam_size=50)),
    ((16, 256), 700, 1, dict(beam_size=700, num_rungs=1)),
    ((9, 9, 9), 400, 2, dict(beam_size=20, per_prefix=(1, 3))),
    ((9, 9, 9), 400, 2, dict(beam_size=30, per_prefix=(2, 1), top_k=5)),
    ((4, 4, 4, 4), 200, 2, dict(beam_size=10, score='level',
                                per_prefix=(3, 2))),
)


def _compare_random(program, seeds):
  sizes, num_items, mean, kwargs = _PROGRAMS[program]
  beam = kwargs['beam_size']
  bounds = _widest_bounds(sizes, num_items, beam, mean)
  for seed in seeds:
    world = _world((program, seed), seed % 2 == 1, sizes, num_items,
                   share=[1., .5, .02][seed % 3])
    t, _ = trie.pad(world.trie, sizes, beam)
    beams = jax.device_get(_search(
        t, world.tables, model=[_dense, _sparse][program % 2], bounds=bounds,
        **kwargs))
    oracle = {k: v for k, v in kwargs.items() if k != 'num_rungs'}
    for user in range(_BATCH):
      _check(beams, user, world.plain(user, **oracle))


@pytest.mark.parametrize('program', range(len(_PROGRAMS)))
def test_random_tries_equal_the_plain_search(program):
  _compare_random(program, range(10))


@pytest.mark.slow
@pytest.mark.parametrize('program', range(len(_PROGRAMS)))
def test_a_thousand_random_tries_equal_the_plain_search(program):
  _compare_random(program, range(1000, 1100))


@pytest.mark.parametrize('sizes', [(9,), (3, 1, 2, 2)])
def test_other_depths_without_padding(sizes):
  world = _world(3, True, sizes)
  beams = world.search(100)
  for user in range(_BATCH):
    _check(beams, user, world.enumerate(user))


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

  def search(t=t, **kwargs):
    return jax.jit(lambda: decode.beam_search(model, t, **kwargs))()

  narrow = search(beam_size=1, top_k=3)
  # No more items below that prefix.
  assert narrow.item.tolist() == [[2, 0, 0]]
  assert narrow.mask.tolist() == [[True, False, False]]
  assert narrow.score.tolist() == [[3., -np.inf, -np.inf]]
  wide = search(beam_size=3)
  assert wide.item.tolist() == [[1, 3, 2]]  # One code, two items, two places.
  assert wide.score.tolist() == [[5., 5., 3.]]
  level = search(beam_size=9, score='level')
  assert level.item.tolist() == [[1, 3, 2, 0]]  # Clipped to the catalog.
  assert level.score.tolist() == [[4., 4., 1., 0.]]
  prefix = search(beam_size=2, num_levels=1, top_k=9)
  assert prefix.item.tolist() == [[2, 0, 1, 3]]
  assert prefix.code.tolist() == [[[1], [0], [0], [0]]]
  assert prefix.score.tolist() == [[2., 1., 1., 1.]]
  few = search(trie.restrict(t, [0, 3]), beam_size=2, num_levels=1, top_k=9)
  assert few.item.tolist() == [[0, 3, 0, 0]]
  assert few.mask.tolist() == [[True, True, False, False]]
  diverse = search(beam_size=3, per_prefix=(1, 1))
  assert diverse.item[diverse.mask].tolist() == [1, 2]


def test_fewer_items_than_places():
  world = _flat([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]])
  beams = world.search(2, top_k=5)
  assert beams.mask.tolist() == [[True, True, False, False, False]]
  assert beams.item.tolist() == [[0, 1, 0, 0, 0]]
  few = _World(world.codes, world.tables, np.array([0, 1, 0, 1, 0], bool))
  beams = few.search(5)
  assert beams.mask.tolist() == [[True, True, False, False, False]]
  assert beams.item.tolist() == [[1, 3, 0, 0, 0]]


@pytest.mark.parametrize('value', [-np.inf, np.nan, -3e38, -0.])
def test_strange_scores_keep_real_items_in_code_order(value):
  codes = np.array([[2, 0], [0, 1], [1, 3], [0, 0], [2, 2]])
  t = trie.build(codes)

  def model(prefix, state):
    # Children that do not exist are offered the best score there is.
    return (lambda found: jnp.where(
        found.mask, value, jnp.inf).astype(jnp.float32)), state

  beams = jax.jit(lambda: decode.beam_search(model, t, beam_size=5))()
  assert beams.mask.all()
  assert beams.item.tolist() == [[3, 1, 2, 0, 4]]


@pytest.mark.parametrize('spread', [1, 40, 300])
def test_negative_zero_ties_with_zero_and_nan_ranks_last(spread):
  # Short rows are ranked by pairs, long ones by top-k, very long ones through
  # groups.
  codes = np.arange(4 * spread)[:, None]
  t = trie.build(codes)
  scores = np.full(4 * spread, -np.inf, np.float32)
  place = np.array([0, 1, 2, 3]) * spread
  scores[place] = [np.nan, -0., 0., -1.]
  search = jax.jit(lambda scores: decode.beam_search(
      lambda prefix, state: (jnp.broadcast_to(
          scores, prefix.shape[:2] + scores.shape), state), t, beam_size=4))
  got = search(scores).item[0].tolist()
  assert got[:3] == place[1:].tolist()
  # NaN and -inf tie as the last of the real ones: the smaller code comes.
  assert got[3] == 0


def test_codes_the_model_does_not_know_rank_last():
  t = trie.build(np.array([[5], [0], [1]]))
  beams = jax.jit(lambda: decode.beam_search(
      lambda prefix, state: (jnp.array([[[-9., 0.]]]), state), t,
      beam_size=3))()
  assert beams.item.tolist() == [[2, 1, 0]] and bool(beams.mask.all())


def test_state_follows_the_parents():
  world = _world(107, False)

  def model(prefix, state):
    # Like a cache: sees the newest code only, the earlier ones are its own.
    level = prefix.shape[-1]
    seen = state['seen']
    if level:
      seen = seen.at[..., level - 1].set(prefix[..., -1])
    scores, _ = _dense(world.tables, seen[..., :level], None)
    return scores, {'seen': seen}

  state = {'seen': jnp.zeros((_BATCH, 1, len(_SIZES)), jnp.int32)}
  got = jax.jit(lambda state: decode.beam_search(
      model, world.trie, beam_size=4, batch_size=_BATCH, state=state))(state)
  for user in range(_BATCH):
    _check(got, user, world.plain(user, 4))


def test_normalize_subtracts_the_logsumexp_of_the_codebook():
  world = _world(5, False)
  logs = tuple(np.array(jax.nn.log_softmax(t, -1)) for t in world.tables)
  want = _World(world.codes, logs).search(6)
  got = jax.jit(lambda: decode.beam_search(
      functools.partial(_dense, world.tables), world.trie, beam_size=6,
      batch_size=_BATCH, normalize=True))()
  np.testing.assert_array_equal(got.item, want.item)
  np.testing.assert_allclose(got.score, want.score, rtol=1e-5)


def test_vmap_bfloat16_and_wider_bounds():
  world = _world(3, True)
  want = world.search(5)
  bounds = trie.bounds(world.trie, 5)
  wider = trie.Bounds(*(tuple(n + 3 for n in x) for x in bounds))
  chex.assert_trees_all_equal(
      _search(world.trie, world.tables, beam_size=5, bounds=wider), want)
  twice = jax.vmap(lambda t: _search(
      t, world.tables, beam_size=5, bounds=bounds))(
          jax.tree.map(lambda x: np.stack([x, x]), world.trie))
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1], twice), want)

  def half(prefix, state):
    scores, state = _dense(world.tables, prefix, state)
    return scores.astype(jnp.bfloat16), state
  low = jax.jit(lambda: decode.beam_search(
      half, world.trie, beam_size=5, batch_size=_BATCH))()
  assert low.score.dtype == jnp.float32
  chex.assert_trees_all_equal(low, want)  # Small integers are exact.


def test_one_program_serves_catalogs_of_one_padded_size():
  _search.clear_cache()
  rng = np.random.default_rng(0)
  tables = _world(0, False).tables
  for _ in range(4):
    codes = np.stack([rng.permutation(40) % k for k in _SIZES], 1)
    world = _World(codes, tables)
    world.search(5, sizes=_SIZES)
  assert _search._cache_size() == 1


def test_shards_of_users_agree():
  world = _world(5, False)
  bounds = trie.bounds(world.trie, 6)
  stacked = jax.tree.map(lambda x: np.asarray(x)[None], world.trie)
  got = jax.pmap(lambda t: _search(
      t, world.tables, beam_size=6, bounds=bounds))(stacked)
  want = world.search(6)
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], got), want)
  mesh = jax.make_mesh((1,), ('users',))
  users = jax.sharding.PartitionSpec('users')
  got = jax.jit(jax.shard_map(
      lambda tables: _search(
          world.trie, tables, beam_size=6, bounds=bounds),
      mesh=mesh, in_specs=users, out_specs=users, check_vma=False))(
          world.tables)
  chex.assert_trees_all_equal(jax.device_get(got), want)


@pytest.mark.parametrize('score', decode.SCORES)
def test_score_items_equals_what_a_wide_search_gives(score):
  for seed in range(4):
    world = _world(seed, False, share=[None, .6][seed % 2])
    asked = np.concatenate([world.codes, np.random.default_rng(
        seed).integers(0, 3, (20, len(_SIZES)))])
    got, mask = jax.jit(lambda codes, world=world: decode.score_items(
        functools.partial(_dense, world.tables), world.trie, codes,
        score=score))(np.stack([asked] * _BATCH))
    have = {tuple(c) for c in world.codes[world.allowed].tolist()}
    for user in range(_BATCH):
      want = {code: s for _, code, s in world.enumerate(user, score)}
      for code, s, valid in zip(map(tuple, asked.tolist()), got[user],
                                mask[user]):
        assert bool(valid) == (code in have)
        assert float(s) == (want[code] if valid else -np.inf)


def _probabilities(codes, first, second):
  """P(item) when every level is a softmax over what the trie allows."""
  softmax = lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()
  tops = sorted(set(codes[:, 0]))
  top = dict(zip(tops, softmax(first[tops])))
  out = np.zeros(len(codes))
  for a in tops:
    rows = np.flatnonzero(codes[:, 0] == a)
    out[rows] = top[a] * softmax(second[a, codes[rows, 1]])
  return out


def test_sample_draws_without_replacement_from_the_model():
  codes = np.array([[0, 0], [0, 1], [0, 1], [1, 2], [2, 0], [2, 3]])
  rng = np.random.default_rng(0)
  first, second = rng.normal(size=3), rng.normal(size=(3, 4))
  p = _probabilities(codes, first, second)
  first, second = (jnp.asarray(x, jnp.float32) for x in (first, second))

  def model(prefix, state):
    if prefix.shape[-1] == 0:
      return jnp.broadcast_to(first, prefix.shape[:2] + (3,)), state
    return second[prefix[..., 0]], state

  batch = 20_000
  t = trie.build(codes)
  draw = jax.jit(lambda key: decode.sample(
      key, model, t, num_samples=3, batch_size=batch))
  got = jax.device_get(draw(jax.random.key(1)))
  assert got.mask.all()
  np.testing.assert_allclose(got.score, np.log(p)[got.item], atol=1e-5)
  pairs = np.zeros((6, 6))
  np.add.at(pairs, (got.item[:, 0], got.item[:, 1]), 1 / batch)
  want = p[:, None] * p[None] / (1 - p[:, None]) * (1 - np.eye(6))
  error = 4 * np.sqrt(want * (1 - want) / batch)
  assert (np.abs(pairs - want) <= error + 1e-9).all()
  # A user's draw does not depend on who else is there.
  fewer = jax.jit(lambda key: decode.sample(
      key, model, t, num_samples=3, batch_size=5))(jax.random.key(1))
  np.testing.assert_array_equal(fewer.item, got.item[:5])
  everything = jax.jit(lambda key: decode.sample(
      key, model, trie.restrict(t, [1, 3, 4]), num_samples=9, batch_size=4))(
          jax.random.key(2))
  assert [sorted(x[m].tolist()) for x, m in zip(
      everything.item, everything.mask)] == [[1, 3, 4]] * 4


def test_traced_trie_needs_bounds():
  world = _world(3, True)
  with pytest.raises(types.InputError, match='traced'):
    _search(world.trie, world.tables, beam_size=5, bounds=None)


@pytest.mark.parametrize('kwargs, words', [
    (dict(beam_size=0), 'beam_size'),
    (dict(beam_size=1, top_k=0), 'top_k'),
    (dict(beam_size=1, num_rungs=0), 'num_rungs'),
    (dict(beam_size=1, num_levels=3), 'num_levels'),
    (dict(beam_size=1, score='max'), 'score'),
    (dict(beam_size=1, per_prefix=(0, 1)), 'per_prefix'),
    (dict(beam_size=1, bounds=trie.Bounds((2, 1), (2, 1), (1, 1))),
     'level 2'),
    (dict(beam_size=1, bounds=trie.Bounds((2,), (2,), (2,))), 'bounds'),
])
def test_bad_arguments(kwargs, words):
  t = trie.build(np.array([[0, 0], [0, 1], [1, 0]]))
  with pytest.raises(types.InputError, match=words):
    decode.beam_search(lambda p, s: (jnp.zeros((1, 1, 2)), s), t, **kwargs)
