"""DIG's noise, running statistics and reassignment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec.tokenizers import noise
from tests import dig_world

D, ITEMS, KEY, L, SIZES, V = (
    dig_world.D, dig_world.ITEMS, dig_world.KEY, dig_world.L, dig_world.SIZES,
    dig_world.V)
World, _explore, _items, _make = (
    dig_world.World, dig_world.explore, dig_world.items, dig_world.make)


def test_noise_is_gumbel():
  draw = jax.jit(lambda seed: jnp.concatenate(
      noise.gumbel(jax.random.key(seed), ITEMS, SIZES), 1))
  draws = np.stack([draw(seed) for seed in range(40)])  # [40, V, sum of K]
  assert abs(draws.mean() - .5772) < .03
  assert abs(draws.var() - np.pi**2 / 6) < .06
  uniform = np.sort(np.exp(-np.exp(-draws.astype(np.float64))).reshape(-1))
  ideal = (np.arange(uniform.size) + .5) / uniform.size
  assert np.abs(uniform - ideal).max() < 1.63 / np.sqrt(uniform.size)  # KS 1 %
  flat = draws.reshape(40 * V, -1)
  corr = np.corrcoef(flat.T) - np.eye(flat.shape[1])
  assert np.abs(corr).max() < .1
  flat = draws.transpose(1, 0, 2).reshape(V, -1)  # Items do not agree.
  assert np.abs(np.corrcoef(flat) - np.eye(V)).max() < .2


def test_logits_are_in_units_of_the_gap():
  # The same world 100 times larger explores alike.
  w = World(hot=True)
  small = w.quantize(explore=_explore()).codes
  w.params = jax.tree.map(lambda v: 100 * v, w.params)
  w.variables['gap'] *= 100**2
  large = w.quantize(100 * w.x, explore=_explore()).codes
  assert np.mean(np.asarray(small == large)) > .99


def _reference_update(variables, path, mask, ema):
  new = jax.tree.map(lambda v: np.array(v, np.float64), variables)
  rows = np.flatnonzero(mask)
  near = np.argmin(path.distances[0], 1)
  two = [np.sort(dist, 1)[rows, :2] for dist in path.distances]
  share = np.bincount(near[rows], minlength=SIZES[0]) / len(rows)
  new['usage'] = .9 * new['usage'] + .1 * share
  new['gap'] = .9 * new['gap'] + .1 * np.array(
      [np.mean(pair[:, 1] - pair[:, 0]) for pair in two])
  if ema:
    codes, r = np.asarray(path.codes), np.asarray(path.residuals)
    for level, size in enumerate(SIZES):
      for k in range(size):
        mine = [i for i in rows if codes[i, level] == k]
        new['count'][level][k] *= .8
        new['sum'][level][k] *= .8
        new['count'][level][k] += .2 * len(mine) / len(rows)
        for i in mine:
          new['sum'][level][k] += .2 * r[i, level] / len(rows)
        new['address'][level][k] = (
            new['sum'][level][k] / new['count'][level][k])
  return new


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_update_equals_numpy_and_replicas_agree(assignment):
  w = World(assignment=assignment)
  item = jax.random.randint(jax.random.key(2), (32,), 0, V)
  mask = (jnp.arange(32) % 3 > 0).astype(jnp.float32)
  x = (w.x[item] + .1).at[0].set(jnp.nan)  # Masked: it may hold anything.

  def step(x, item, mask, axis_name):
    path = w.quantize(
        x, w.stored[item], explore=_explore(item=item))
    return path, w.tok.update(
        w.variables, path, mask=mask, axis_name=axis_name)

  path, one = step(x, item, mask, None)
  want = _reference_update(w.variables, path, mask, assignment == 'ema')
  assert set(one) == set(want)
  for name, value in want.items():
    for a, b in zip(jax.tree.leaves(one[name]), jax.tree.leaves(value)):
      np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)
  split, many = jax.vmap(
      lambda x, i, m: step(x, i, m, 'device'), axis_name='device')(
          x.reshape(4, 8, D), item.reshape(4, 8), mask.reshape(4, 8))
  np.testing.assert_array_equal(
      np.asarray(split.codes).reshape(32, L), path.codes)
  for got, own in zip(jax.tree.leaves(many), jax.tree.leaves(one)):
    assert (got == got[:1]).all()  # Replicas are identical.
    np.testing.assert_allclose(got[0], own, atol=1e-5)


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_update_with_nothing_to_learn_changes_nothing(assignment):
  w = World(assignment=assignment)
  new = w.tok.update(
      w.variables, w.quantize(), mask=jnp.zeros(V), axis_name=None)
  for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(w.variables)):
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_assign(assignment):
  w = World(assignment=assignment, slack=1.)
  same, metrics = w.tok.assign(w.params, w.variables, _items(w.x), w.sid)
  np.testing.assert_array_equal(same, w.sid)
  assert metrics['tokenizer/churn'] == 0
  moved = _items(w.x + .5 * jax.random.normal(jax.random.key(4), w.x.shape))
  new, metrics = w.tok.assign(w.params, w.variables, moved, w.sid)
  assert len(np.unique(new, axis=0)) == V
  assert metrics['tokenizer/churn'] == np.mean((new != w.sid).any(1)) > 0
  free = w.quantize(jnp.asarray(moved.vectors), None).codes
  assert metrics['tokenizer/nearest_agreement'] == np.mean(
      np.all(np.asarray(free) == new, 1))
  calm = _make(assignment=assignment, slack=1., margin=1e6)
  np.testing.assert_array_equal(
      calm.assign(w.params, w.variables, moved, w.sid)[0], w.sid)
  # Without old codes none is favoured.
  fresh, _ = calm.assign(w.params, w.variables, moved, None)
  assert (fresh != w.sid).any()


def test_assign_refuses_broken_vectors():
  w = World()
  with pytest.raises(FloatingPointError):
    w.tok.assign(
        w.params, w.variables, _items(w.x.at[3, 2].set(jnp.nan)), w.sid)
