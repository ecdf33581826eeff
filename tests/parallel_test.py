"""Tests of `sidrec.parallel`: wrappers agree, donation, two processes."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sidrec import parallel
from sidrec import types


class Model(nn.Module):
  """Two layers around a synchronized batch norm."""

  @nn.compact
  def __call__(self, x, train):
    # No bias: before a batch norm its gradient is rounding noise, which Adam
    # blows up to whole steps that differ from wrapper to wrapper.
    x = nn.Dense(8, use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9,
                     axis_name=types.AXIS)(x)
    return nn.Dense(1)(nn.relu(x))[:, 0]


MODEL = Model()
OPTIMIZER = optax.adam(1e-2)


@functools.cache
def make_state():
  # One compilation and host values: eager, every operation would compile.
  return jax.device_get(jax.jit(_make_state)())


def _make_state():
  variables = MODEL.init(jax.random.key(0), jnp.zeros((2, 5)), False)
  return types.TrainState(
      params=variables['params'],
      variables={'seen': jnp.zeros([], jnp.int32),
                 'batch_stats': variables['batch_stats']},
      opt_state=OPTIMIZER.init(variables['params']),
      clock={'train': jnp.zeros([], jnp.int32)}, seed=jnp.uint32(0))


def make_batch(step, num_rows=16):
  random = np.random.default_rng(step)
  x = random.normal(size=(num_rows, 5)).astype(np.float32)
  return {'x': x, 'y': (x @ np.arange(5) + 1).astype(np.float32)}


def train_step(state, const, batch):
  """Weighted regression; metrics are sums over all devices, then divided."""
  def loss_fn(params):
    output, updated = MODEL.apply(
        {'params': params, 'batch_stats': state.variables['batch_stats']},
        batch['x'], True, mutable=['batch_stats'])
    error = jnp.square(output - batch['y']) * const['weight']
    return jnp.sum(error), (updated['batch_stats'], jnp.float32(len(error)))
  (loss, (stats, count)), grads = jax.value_and_grad(
      loss_fn, has_aux=True)(state.params)
  loss, count, grads = jax.lax.psum((loss, count, grads), types.AXIS)
  grads = jax.tree.map(lambda g: g / count, grads)
  updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
  rows = jax.lax.all_gather(batch['y'], types.AXIS, tiled=True)
  state = state.replace(
      params=optax.apply_updates(state.params, updates), opt_state=opt_state,
      clock={'train': state.clock['train'] + 1},
      variables={'seen': state.variables['seen'] + rows.shape[0],
                 'batch_stats': stats})
  return state, {'loss': loss / count, 'grad': optax.tree.norm(grads),
                 'largest': jnp.max(rows)}


def predict(state, const, batch):
  output = MODEL.apply(
      {'params': state.params,
       'batch_stats': state.variables['batch_stats']}, batch['x'],
      False)
  return {'output': output * const['weight'], 'x': batch['x']}


CONST = {'weight': np.float32(0.5)}


def run(p, num_steps=3, donate=True):
  """Trains on the rows of this process; gives host state and metrics."""
  step = p.map_step(train_step, donate=donate)
  state, const = p.place(make_state()), p.place(CONST)
  history = []
  for t in range(num_steps):
    batch = jax.tree.map(
        lambda x: np.split(x, p.process_count)[p.process_index], make_batch(t))
    state, metrics = step(state, const, p.shard(batch))
    history.append(p.to_host(metrics))
  return p.to_host(state), history


@pytest.fixture(scope='module')
def reference():
  """Plain jit of the whole batch, with no wrapper of ours."""
  def step(state, batch):
    fn = jax.vmap(lambda b: train_step(state, CONST, b), axis_name=types.AXIS)
    outputs = fn(jax.tree.map(lambda x: x[None], batch))
    return jax.tree.map(lambda x: x[0], outputs)
  state, history = make_state(), []
  for t in range(3):
    state, metrics = jax.jit(step)(state, make_batch(t))
    history.append(metrics)
  return jax.device_get((state, history))


CASES = {
    'pmap1': ('pmap', 1, None), 'pmap4': ('pmap', 4, None),
    'shard_map4': ('shard_map', 4, None), 'vmap': ('vmap', 4, None),
    'vmap8': ('vmap', 1, 8),
}


def _make(case):
  wrapper, num_devices, num_shards = CASES[case]
  return parallel.make(wrapper, jax.devices()[:num_devices], num_shards)


@pytest.mark.parametrize('case', CASES)
def test_wrappers_and_device_counts_agree(case, reference):
  p = _make(case)
  result = run(p)
  chex.assert_trees_all_equal_shapes_and_dtypes(result, reference)
  chex.assert_trees_all_close(result, reference, rtol=1e-5, atol=1e-5)
  assert result[0].variables['seen'] == 48
  assert p.num_devices == p.num_local_devices == (
      CASES[case][2] or CASES[case][1])


@pytest.mark.parametrize('case', ['pmap4', 'shard_map4', 'vmap'])
def test_step_compiles_once_and_leaves_host_values_alone(case):
  p = _make(case)
  traced = []
  def step_fn(state, const, batch):
    traced.append(1)
    total = jax.lax.psum(jnp.sum(batch['y'] * const['weight']), types.AXIS)
    return jax.tree.map(lambda x: x + total.astype(x.dtype), state), total
  initial = types.TrainState(
      params={'w': np.ones((64, 64), np.float32)}, variables={},
      opt_state=(np.zeros(256, np.float32),), clock={}, seed=np.uint32(0))
  kept = jax.tree.map(np.copy, initial)
  step, state, const = p.map_step(step_fn), p.place(initial), p.place(CONST)
  host = p.to_host(state)
  state, _ = step(state, const, p.shard(make_batch(0)))
  sharding = state.seed.sharding
  for t in range(3):
    state, _ = step(state, const, p.shard(make_batch(t)))
  assert len(traced) == 1
  assert state.seed.sharding.is_equivalent_to(sharding, 0)
  chex.assert_trees_all_equal(initial, kept)  # Donation wrote into neither.
  chex.assert_trees_all_equal(host, kept)


def test_donation_frees_the_old_state():
  step = lambda state, const, batch: (state + const, jnp.float32(0))
  for case in ('pmap4', 'shard_map4', 'vmap'):
    for donate in (True, False):
      p = _make(case)
      old = p.place(np.ones((64, 64), np.float32))
      p.map_step(step, donate)(
          old, p.place(np.float32(1)), p.shard(make_batch(0)))
      assert old.is_deleted() == donate


def test_shard_map_gradient_is_not_multiplied_by_devices():
  # With check_vma=True this very body gives 4 times the gradient.
  p = parallel.make('shard_map')
  def step(state, const, batch):
    del const
    grad = jax.grad(lambda w: jnp.mean(jnp.square(batch * w)))(state)
    return state, jax.lax.pmean(grad, types.AXIS)
  x = np.arange(8, dtype=np.float32)
  _, grad = p.map_step(step)(p.place(np.float32(3)), None, p.shard(x))
  np.testing.assert_allclose(grad, np.mean(2 * 3 * x**2), rtol=1e-6)


@pytest.mark.parametrize('case', ['pmap4', 'shard_map4', 'vmap'])
def test_map_rows_pads_and_cuts(case):
  p = _make(case)
  state = make_state()
  rows, jitted = p.map_rows(predict), jax.jit(predict)
  for num_rows in (5, 8, 3, 0):
    batch = make_batch(0, num_rows)
    result = rows(p.place(state), p.place(CONST), batch)
    expected = jitted(state, CONST, batch)
    assert isinstance(result['output'], np.ndarray)
    assert result['output'].shape == (num_rows,)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result['x'], batch['x'])


def test_errors():
  with pytest.raises(types.InputError, match='parallel.wrapper=.pmep.'):
    parallel.make('pmep')
  with pytest.raises(types.InputError, match='train.batch_size.*multiple of 4'):
    parallel.make('pmap').shard(make_batch(0, 6))
  with pytest.raises(types.InputError, match='num_shards'):
    parallel.make('pmap', num_shards=2)


def test_initialize_refuses_half_an_environment(monkeypatch):
  parallel.initialize()  # Nothing set: nothing done.
  monkeypatch.setenv('SIDREC_COORDINATOR', 'localhost:1')
  with pytest.raises(types.InputError, match='SIDREC_NUM_PROCESSES'):
    parallel.initialize()
  monkeypatch.setenv('SIDREC_NUM_PROCESSES', 'two')
  monkeypatch.setenv('SIDREC_PROCESS_ID', '0')
  with pytest.raises(types.InputError, match="'two'"):
    parallel.initialize()


def test_one_process_collectives():
  p = parallel.make()
  rows = np.array([2**40, 1])
  np.testing.assert_array_equal(p.allgather_rows(rows), rows)
  assert p.broadcast({'a': 1}) == {'a': 1}
  assert p.once(lambda: 3) == 3
  assert p.any_true(True) and not p.any_true(False)
  p.barrier('alone')
