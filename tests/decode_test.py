"""Tests beam search case by case: ties, strange scores, shards, sampling."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import worlds
from sidrec import decode
from sidrec import trie
from sidrec import types


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion('raise'):
    yield


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
  world = worlds.flat([[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]])
  beams = world.search(2, top_k=5)
  assert beams.mask.tolist() == [[True, True, False, False, False]]
  assert beams.item.tolist() == [[0, 1, 0, 0, 0]]
  few = worlds.World(world.codes, world.tables, np.array([0, 1, 0, 1, 0], bool))
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


@pytest.mark.parametrize('spread', [1, 300])
def test_negative_zero_ties_with_zero_and_nan_ranks_last(spread):
  # Short rows are ranked by top-k, long ones through groups.
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
  # NaN is the last of the real ones, behind -inf.
  assert got[3] == (0 if spread == 1 else 1)


def test_codes_the_model_does_not_know_rank_last():
  t = trie.build(np.array([[5], [0], [1]]))
  beams = jax.jit(lambda: decode.beam_search(
      lambda prefix, state: (jnp.array([[[-9., 0.]]]), state), t,
      beam_size=3))()
  assert beams.item.tolist() == [[2, 1, 0]] and bool(beams.mask.all())


def test_state_follows_the_parents():
  world = worlds.make(107, False)

  def model(prefix, state):
    # Like a cache: sees the newest code only, the earlier ones are its own.
    level = prefix.shape[-1]
    seen = state['seen']
    if level:
      seen = seen.at[..., level - 1].set(prefix[..., -1])
    scores, _ = worlds.dense(world.tables, seen[..., :level], None)
    return scores, {'seen': seen}

  state = {'seen': jnp.zeros((worlds.BATCH, 1, len(worlds.SIZES)), jnp.int32)}
  got = jax.jit(lambda state: decode.beam_search(
      model, world.trie, beam_size=4, batch_size=worlds.BATCH,
      state=state))(state)
  for user in range(worlds.BATCH):
    worlds.check(got, user, world.plain(user, 4))


def test_normalize_subtracts_the_logsumexp_of_the_codebook():
  world = worlds.make(5, False)
  logs = tuple(np.array(jax.nn.log_softmax(t, -1)) for t in world.tables)
  want = worlds.World(world.codes, logs).search(6)
  got = jax.jit(lambda: decode.beam_search(
      functools.partial(worlds.dense, world.tables), world.trie, beam_size=6,
      batch_size=worlds.BATCH, normalize=True))()
  np.testing.assert_array_equal(got.item, want.item)
  np.testing.assert_allclose(got.score, want.score, rtol=1e-5)


def test_vmap_bfloat16_and_wider_bounds():
  world = worlds.make(3, True)
  want = world.search(5)
  bounds = trie.bounds(world.trie, 5)
  wider = trie.Bounds(*(tuple(n + 3 for n in x) for x in bounds))
  chex.assert_trees_all_equal(
      worlds.search(world.trie, world.tables, beam_size=5, bounds=wider), want)
  twice = jax.vmap(lambda t: worlds.search(
      t, world.tables, beam_size=5, bounds=bounds))(
          jax.tree.map(lambda x: np.stack([x, x]), world.trie))
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[1], twice), want)

  def half(prefix, state):
    scores, state = worlds.dense(world.tables, prefix, state)
    return scores.astype(jnp.bfloat16), state
  low = jax.jit(lambda: decode.beam_search(
      half, world.trie, beam_size=5, batch_size=worlds.BATCH))()
  assert low.score.dtype == jnp.float32
  chex.assert_trees_all_equal(low, want)  # Small integers are exact.


def test_one_program_serves_catalogs_of_one_padded_size():
  worlds.search.clear_cache()
  rng = np.random.default_rng(0)
  tables = worlds.make(0, False).tables
  for _ in range(4):
    codes = np.stack([rng.permutation(40) % k for k in worlds.SIZES], 1)
    world = worlds.World(codes, tables)
    world.search(5, sizes=worlds.SIZES)
  assert worlds.search._cache_size() == 1


def test_shards_of_users_agree():
  world = worlds.make(5, False)
  bounds = trie.bounds(world.trie, 6)
  stacked = jax.tree.map(lambda x: np.asarray(x)[None], world.trie)
  got = jax.pmap(lambda t: worlds.search(
      t, world.tables, beam_size=6, bounds=bounds))(stacked)
  want = world.search(6)
  chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], got), want)
  mesh = jax.make_mesh(
      (1,), ('users',), axis_types=(jax.sharding.AxisType.Auto,))
  users = jax.sharding.PartitionSpec('users')
  got = jax.jit(jax.shard_map(
      lambda tables: worlds.search(
          world.trie, tables, beam_size=6, bounds=bounds),
      mesh=mesh, in_specs=users, out_specs=users, check_vma=False))(
          world.tables)
  chex.assert_trees_all_equal(jax.device_get(got), want)


@pytest.mark.parametrize('score', decode.SCORES)
def test_score_items_equals_what_a_wide_search_gives(score):
  for seed in range(4):
    world = worlds.make(seed, False, share=[None, .6][seed % 2])
    asked = np.concatenate([world.codes, np.random.default_rng(
        seed).integers(0, 3, (20, len(worlds.SIZES)))])
    got, mask = jax.jit(lambda codes, world=world: decode.score_items(
        functools.partial(worlds.dense, world.tables), world.trie, codes,
        score=score))(np.stack([asked] * worlds.BATCH))
    have = {tuple(c) for c in world.codes[world.allowed].tolist()}
    for user in range(worlds.BATCH):
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
  world = worlds.make(3, True)
  with pytest.raises(types.InputError, match='traced'):
    worlds.search(world.trie, world.tables, beam_size=5, bounds=None)


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
