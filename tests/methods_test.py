"""One suite over every method that the package holds; more on DIG below."""

import functools
import math
import types as python_types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sidrec import data
from sidrec import methods
from sidrec import parallel
from sidrec import schedule
from sidrec import trie
from sidrec import types
from sidrec.data import pipeline
from sidrec.methods import base
from tests import tiny_run

NAMES = ['dig', 'letter', 'popularity', 'ranker', 'sasrec', 'tiger']
STEPS, BEAMS, ROWS, CANDIDATES = 12, 8, 8, 5


@functools.cache
def _dataset():
  return data.load(tiny_run.config('popularity').data, 0)


class _Bench:
  """Host work's bench on one device."""

  def __init__(self, dataset, count):
    self.dataset, self.seed, self.count = dataset, 0, count

  def rows(self, fn, state, batches):
    out = [jax.device_get(fn(state, self.dataset.catalog, batch))
           for batch in batches]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *out)

  def once(self, fn):
    return fn()

  def host(self, tree):
    return jax.tree.map(np.array, tree)


def _after_hosts(method, state, dataset):
  """The host work of the whole schedule, as the trainer does it."""
  for section in method.sections:
    for item in section.items:
      if isinstance(item, schedule.Host):
        changes = item.fn(_Bench(dataset, 0), state)
        assert isinstance(changes, base.Changes), item.name
        assert set(changes.variables) <= set(state.variables)
        assert set(changes.reset) <= set(method.optimizers)
        assert all(math.isfinite(v) for v in changes.metrics.values())
        state = state.replace(
            params=base.merge(state.params, changes.params),
            variables={**state.variables, **changes.variables})
  return state


@functools.cache
def _world(name, **changes):
  """A method with codes from the first step on, and batches for it."""
  if name == 'dig':
    changes = {'loss__warmup': .25, **changes}
  config = tiny_run.config(name, train__num_steps=STEPS, **changes)
  dataset = _dataset()
  method = methods.get(config.method).make(config, dataset)
  fresh = jax.jit(functools.partial(base.init_state, method))(
      0, dataset.catalog)
  batches = {}
  for program, own in method.programs.items():
    reader = pipeline.Pipeline(dataset, own.streams, seed=0)
    batches[program] = [reader.batch({name: step for name in own.streams})
                        for step in range(3)]
  draw = np.random.default_rng(0)
  items = np.stack([
      draw.permutation(dataset.spec.num_items)[:CANDIDATES]
      for _ in range(ROWS)]).astype(np.int32)
  jit = lambda fn, **kwargs: None if fn is None else jax.jit(fn, **kwargs)
  return python_types.SimpleNamespace(
      config=config, method=method, fresh=fresh, batches=batches,
      state=_after_hosts(method, fresh, dataset), catalog=dataset.catalog,
      request=_request(items), num_items=dataset.spec.num_items,
      score=jit(method.score), token_score=jit(method.token_score),
      retrieve=jit(method.retrieve, static_argnames=(
          'beam_size', 'bounds')))


def _request(items):
  """Candidates [B, C] of the first B exposures of the validation split."""
  dataset = _dataset()
  events = dataset.examples('valid', 'impressions')[:len(items)]
  return dataset.assemble(events, items, np.zeros(items.shape, np.float32))


def _retrieve(world, batch, beam_size=BEAMS):
  """Retrieves with the trie as an argument, as the evaluator does."""
  tree, bounds = None, None
  if world.method.sizes:
    tree, bounds = trie.pad(
        trie.build(np.asarray(world.state.variables['codes'])),
        world.method.sizes, beam_size)
  return jax.device_get(world.retrieve(
      world.state, world.catalog, batch, tree, beam_size=beam_size,
      bounds=bounds))


@pytest.fixture(name='world', params=NAMES)
def _world_fixture(request):
  return _world(request.param)


def test_names():
  assert 'base' not in methods.names()
  assert set(methods.names()) == {tiny_run.config(name).method for name in NAMES}
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
  world, sgd = _world(name), optax.sgd(.1)
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
  beams = _retrieve(world, world.request)
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
  chex.assert_trees_all_close(_retrieve(world, other), beams, atol=1e-6)


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


# --- Which loss teaches what, in DIG -----------------------------------------

TERMS = ('rank', 'recall', 'code', 'recon', 'u2t')


def _dig(leaf, rank_item):
  """DIG in one of two ways to read the codes, frozen at half time."""
  return _world('dig', loss__leaf=leaf, loss__rank_item=rank_item,
                loss__freeze=.5, loss__stop_h=rank_item == 'e_v')


@functools.cache
def _term_gradient(leaf, rank_item):
  """(term, step, label of the retrieval batch) -> gradients."""
  world = _dig(leaf, rank_item)

  def terms(program, params, label, state, batches):
    found = batches['retrieval'].replace(label=label)
    _, out = world.method.programs[program].loss_fn(
        params, state, world.catalog, {**batches, 'retrieval': found},
        key=jax.random.key(1), axis_name=None)
    return jnp.stack([
        *(out.metrics.get(f'loss/{name}', jnp.zeros([])) for name in TERMS),
        out.metrics['loss']])

  @functools.partial(jax.jit, static_argnames='program')
  def pull(params, label, state, batches, weight, program):
    _, back = jax.vjp(
        lambda *args: terms(program, *args, state, batches), params, label)
    return back(weight)

  def gradient(term, program='joint', batches=None):
    batches = batches or world.batches[program][0]
    weight = np.eye(len(TERMS) + 1, dtype=np.float32)[
        (*TERMS, 'loss').index(term)]
    clock = {**world.state.clock, 'joint': jnp.int32(1)}
    state = world.state.replace(clock=clock)
    return jax.device_get(pull(
        state.params, batches['retrieval'].label, state, batches, weight,
        program))
  return world, gradient


def _reached(params):
  """Whether a gradient reaches each level of both tables, and the encoder."""
  touched = lambda x: bool(np.abs(x).max() > 0)
  tables = params['tokenizer']
  return {
      'address': [touched(x) for x in tables['address']],
      'semantic': [touched(x) for x in tables['semantic']],
      'encoder': any(map(touched, jax.tree.leaves(
          params['tower']['encoder'])))}


def _all(levels, encoder=True):
  return {'address': levels, 'semantic': levels, 'encoder': encoder}


def test_recommendation_loss_reaches_codes_and_encoder():
  _, gradient = _term_gradient('tokens', 'e_v')
  assert _reached(gradient('recall')[0]) == _all([True] * 3)
  # The paths share no batch norm: nothing carries a gradient across.
  assert _reached(gradient('rank')[0]) == _all([False] * 3)
  _, gradient = _term_gradient('item', 'both')
  # The last level of the retrieval path is the item itself, not its tokens.
  assert _reached(gradient('recall')[0]) == _all([True, True, False])
  assert _reached(gradient('rank')[0]) == _all([True] * 3)


@pytest.mark.parametrize('leaf, rank_item', [
    ('tokens', 'e_v'), ('item', 'both')])
def test_ranking_path_reads_codes_only_if_told_to(leaf, rank_item):
  world = _dig(leaf, rank_item)
  grads = jax.jit(jax.grad(lambda params: jnp.sum(world.method.score(
      world.state.replace(params=params), world.catalog, world.request))))(
          world.state.params)
  for level in grads['tokenizer']['semantic']:
    assert (np.abs(level).max() > 0) == (rank_item == 'both')
  np.testing.assert_array_equal(grads['tokenizer']['address'], 0)


def test_retrieval_teaches_items_that_are_candidates_only():
  # Tokens are then the only way from the loss to such an item's vector.
  world, gradient = _term_gradient('tokens', 'e_v')
  batches = world.batches['joint'][0]
  seen = np.concatenate([
      np.ravel(batches['rank'].item), np.ravel(batches['rank'].history.item),
      np.ravel(batches['retrieval'].history.item)])
  only = np.setdiff1d(batches['retrieval'].item, seen)
  assert only.size
  rows = gradient('recall')[0]['tower']['encoder']['item_id']
  assert (np.abs(rows[only]).max(1) > 0).all()


def test_freezing_stops_the_addresses():
  _, gradient = _term_gradient('item', 'both')
  for term in ('recall', 'rank', 'loss'):
    reached = _reached(gradient(term, 'frozen')[0])
    assert reached['address'] == [False] * 3 and any(reached['semantic'])
  assert all(_reached(gradient('loss')[0])['address'])


def test_the_warmup_pays_for_the_ranker_alone():
  world = _dig('item', 'both')
  program = world.method.programs['warmup']
  assert set(program.streams) == {'rank'} and program.optimizers == ('tower',)
  grads = jax.jit(jax.grad(lambda params: program.loss_fn(
      params, world.state, world.catalog, world.batches['warmup'][0],
      key=jax.random.key(1), axis_name=None)[0]))(world.state.params)
  assert not any(np.abs(x).max() > 0 for x in jax.tree.leaves(
      grads['tokenizer']))
  for name in ('leaf_id', 'to_u2t'):
    assert not any(np.abs(x).max() > 0 for x in jax.tree.leaves(
        grads['tower'][name])), name


def test_u2t_teaches_its_network_alone():
  _, gradient = _term_gradient('tokens', 'e_v')
  params = gradient('u2t')[0]
  own = params['tower'].pop('to_u2t')
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(own))
  assert not any(np.abs(x).max() > 0 for x in jax.tree.leaves(params))


def test_masked_negatives_have_no_gradient():
  # d loss / d label = -(what the logits of kept places sum to) / count.
  world, gradient = _term_gradient('tokens', 'e_v')
  found = world.batches['joint'][0]['retrieval']
  item, mask = found.item.copy(), found.mask.copy()
  item[:, 1] = item[:, 0]  # Shares every prefix with the positive.
  mask[:, 2:] = 0.
  batches = {**world.batches['joint'][0],
             'retrieval': found.replace(item=item, mask=mask)}
  label = gradient('recall', batches=batches)[1]
  assert (label[:, 0] != 0).all()
  np.testing.assert_array_equal(label[:, 1:], 0)
  plain = gradient('recall')[1]
  assert (plain[:, 1:-1] != 0).all()
  # The last one comes from the history, where there is one.
  assert (plain[:, -1] != 0)[found.mask[:, -1] > 0].all()
  assert not plain[:, -1][found.mask[:, -1] == 0].any()


# --- Beam search against scoring everything ----------------------------------


@pytest.mark.parametrize('leaf, rank_item', [
    ('item', 'both'), ('tokens', 'e_v')])
def test_a_full_beam_equals_scoring_every_item(leaf, rank_item):
  world = _dig(leaf, rank_item)
  num = world.num_items
  every = np.broadcast_to(np.arange(num, dtype=np.int32), (ROWS, num))
  want = np.asarray(world.token_score(
      world.state, world.catalog, _request(every)))
  beams = _retrieve(world, world.request, beam_size=num)
  assert beams.mask.all()
  np.testing.assert_array_equal(np.sort(beams.item, 1), every)
  np.testing.assert_allclose(
      beams.score, np.take_along_axis(want, beams.item, 1), atol=2e-5)
  assert (np.diff(beams.score) <= 0).all()
