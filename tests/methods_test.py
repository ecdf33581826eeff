"""One suite over every method that the package holds."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sidrec import methods
from sidrec import parallel
from sidrec import schedule
from sidrec import types
from sidrec.methods import base
from tests import method_worlds
from tests import tiny_run

NAMES = ['dig', 'letter', 'popularity', 'ranker', 'sasrec', 'tiger']
ROWS, BEAMS = method_worlds.ROWS, method_worlds.BEAMS
CANDIDATES = method_worlds.CANDIDATES


@pytest.fixture(name='world', params=NAMES)
def _world_fixture(request):
  return method_worlds.world(request.param)


def test_names():
  assert 'base' not in methods.names()
  assert set(methods.names()) == {
      tiny_run.config(name).method for name in NAMES}
  with pytest.raises(types.InputError, match='config.method') as error:
    methods.get('digg')
  assert all(name in str(error.value) for name in methods.names())


def test_make_and_init(world):
  method = world.method
  assert isinstance(method, base.Method)
  for program in method.programs.values():
    assert program.streams and isinstance(program, base.Program)
    assert set(program.optimizers) <= set(method.optimizers)
  for optimizer in method.optimizers.values():
    base.select(world.fresh.params, optimizer.params)  # They are there.
  trained = [item for section in method.sections for item in section.items
             if isinstance(item, schedule.Train)]
  assert {item.program for item in trained} == set(method.programs)
  main = method.sections[-1:]
  assert [section.keep for section in main] in ([], ['best'])
  assert len({section.name for section in method.sections}) == len(
      method.sections)
  assert all(int(v) == 0 for v in world.fresh.clock.values())
  chex.assert_tree_all_finite(world.fresh)
  # Host work changes values, never what was compiled for.
  chex.assert_trees_all_equal_shapes_and_dtypes(world.fresh, world.state)
  leaves = jax.tree.leaves(world.fresh)
  assert not any(leaf.dtype == np.float64 for leaf in map(np.asarray, leaves))


@functools.cache
def _trained(name, wrapper, shards, program):
  """Three of the trainer's steps; (state, metrics) on the host.

  By plain gradient descent: where a gradient is rounding noise alone (a bias
  before a batch norm), Adam makes whole steps of it, which no two ways to add
  up can share.
  """
  world, sgd = method_worlds.world(name), optax.sgd(.1)
  devices = jax.devices()[:1 if wrapper == 'vmap' else shards]
  mapped = parallel.make(
      wrapper, devices, shards if wrapper == 'vmap' else None)
  method = world.method._replace(optimizers={
      k: v._replace(tx=sgd) for k, v in world.method.optimizers.items()})
  step_fn = mapped.map_step(base.make_step(method, program))
  memory = {k: sgd.init(base.select(world.state.params, v.params))
            for k, v in method.optimizers.items()}
  state = mapped.place(world.state.replace(opt_state=memory))
  catalog = mapped.place(world.catalog)
  history = []
  for batches in world.batches[program]:
    shards = {k: mapped.shard(v) for k, v in batches.items()}
    state, metrics = step_fn(state, catalog, shards)
    history.append(mapped.to_host(metrics))
  return mapped.to_host(state), history


def test_a_step_learns_and_keeps_its_shapes(world, request):
  if not world.method.programs:
    assert world.method.score is not None or world.method.retrieve is not None
    return
  name = request.node.callspec.params['world']
  for program, own in world.method.programs.items():
    state, history = _trained(name, 'vmap', 4, program)
    assert {k: int(v) for k, v in state.clock.items()} == {
        k: 3 * (k == program) for k in state.clock}
    chex.assert_trees_all_equal_shapes_and_dtypes(
        state.replace(opt_state=()), world.state.replace(opt_state=()))
    chex.assert_tree_all_finite((state.params, state.variables))
    for metrics in history:
      assert 'loss' in metrics
      assert all(np.shape(v) == () and math.isfinite(v)
                 for v in metrics.values())
    moved = jax.tree.map(
        lambda a, b: (np.asarray(a) != np.asarray(b)).any(), state.params,
        world.state.params)
    paths = [path for o in own.optimizers
             for path in world.method.optimizers[o].params]
    trained = base.select(moved, paths)
    least = .5 if program == 'warmup' else .7  # The tower's retrieval parts.
    assert np.mean(jax.tree.leaves(trained)) > least
    assert np.sum(jax.tree.leaves(moved)) == np.sum(jax.tree.leaves(trained))


def test_optimizer(world):
  for name, optimizer in world.method.optimizers.items():
    params = base.select(world.state.params, optimizer.params)
    memory = world.state.opt_state[name]
    grads = jax.tree.map(lambda x: jnp.ones_like(x), params)
    update = jax.jit(optimizer.tx.update)
    state = memory
    for _ in range(2):  # The first step may be of length 0: a warm-up.
      updates, state = update(grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, memory)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
      assert np.isfinite(leaf).all() and (np.asarray(leaf) != 0).all(), path


def test_scores(world):
  method, request = world.method, world.request
  for fn, have in ((world.score, method.score),
                   (world.token_score, method.token_score)):
    if have is None:
      assert fn is None
      continue
    score = np.asarray(fn(world.state, world.catalog, request))
    assert score.shape == (ROWS, CANDIDATES) and score.dtype == np.float32
    assert np.isfinite(score).all()
    # Rows do not mix, labels and masks are not read.
    turned = jax.tree.map(lambda x: x[::-1], request).replace(
        label=1. - request.label, mask=np.zeros_like(request.mask))
    np.testing.assert_allclose(
        fn(world.state, world.catalog, turned)[::-1], score, atol=1e-5)


def test_retrieval(world):
  if world.method.retrieve is None:
    pytest.skip('ranks only')
  beams = method_worlds.retrieve(world, world.request)
  levels = len(world.method.sizes)
  for name, shape, kind in (
      ('item', (), np.int32), ('code', (levels,), np.int32),
      ('score', (), np.float32), ('mask', (), np.bool_)):
    leaf = getattr(beams, name)
    assert leaf.shape == (ROWS, BEAMS, *shape) and leaf.dtype == kind, name
  for row in range(ROWS):
    items = beams.item[row][beams.mask[row]]
    assert len(set(items.tolist())) == len(items) > 0
    assert ((items >= 0) & (items < world.num_items)).all()
    assert (np.diff(beams.score[row][beams.mask[row]]) <= 0).all()
    if levels:
      codes = np.asarray(world.state.variables['codes'])
      np.testing.assert_array_equal(
          beams.code[row][beams.mask[row]], codes[items])
  # The candidates of a request are not known when it comes.
  cross = world.request.cross
  other = world.request.replace(
      item=world.request.item[::-1],
      cross=None if cross is None else cross + 1.)
  chex.assert_trees_all_close(
      method_worlds.retrieve(world, other), beams, atol=1e-6)


def test_codes(world):
  if not world.method.sizes:
    assert 'codes' not in world.fresh.variables
    pytest.skip('no codes')
  sizes = world.method.sizes
  for state in (world.fresh, world.state):
    codes = np.asarray(state.variables['codes'])
    assert codes.shape == (world.num_items, len(sizes))
    assert codes.dtype == np.int32
    if state is world.state and world.config.label != 'letter':
      # LETTER's repair may leave items that share a tuple.
      assert len(np.unique(codes, axis=0)) == world.num_items
    assert (codes >= 0).all() and (codes < np.array(sizes)[None]).all()


# --- The step on any number of devices ---------------------------------------


@pytest.mark.parametrize('name, program, wrapper', [
    ('dig', 'joint', 'pmap'), ('dig', 'joint', 'vmap'),
    ('dig', 'warmup', 'vmap'), ('dig', 'frozen', 'vmap'),
    ('tiger', 'tokenizer', 'vmap'), ('tiger', 'generator', 'vmap'),
    ('letter', 'collaborative', 'vmap'), ('letter', 'tokenizer', 'vmap')])
def test_four_shards_equal_one(name, program, wrapper):
  one, one_history = _trained(name, 'pmap', 1, program)
  many, many_history = _trained(name, wrapper, 4, program)
  for a, b in zip(one_history, many_history, strict=True):
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(
      (one.params, one.variables), (many.params, many.variables), rtol=1e-5,
      atol=1e-5)
