"""Tests of the DIG quantizer: values, gate, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec import types
from sidrec.tokenizers import noise
from sidrec.tokenizers import walk
from tests import dig_world

D, ITEMS, KEY, L, SIZES, V = (
    dig_world.D, dig_world.ITEMS, dig_world.KEY, dig_world.L, dig_world.SIZES,
    dig_world.V)
World, _explore, _items, _make = (
    dig_world.World, dig_world.explore, dig_world.items, dig_world.make)


def test_start_gives_distinct_codes_and_copies_the_table():
  tok = _make()
  x = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
  params, variables, codes = tok.start(0, {}, {}, _items(x))
  assert len(np.unique(codes, axis=0)) == V
  for address, semantic in zip(params['address'], params['semantic']):
    np.testing.assert_array_equal(address, semantic)
    assert address is not semantic
  np.testing.assert_allclose(variables['usage'], 1 / SIZES[0])
  # The prefix sums start near the vectors.
  embedded = walk.prefix(tok.books(params), codes)
  assert np.mean(np.square(embedded - x)) < .5 * np.mean(np.square(x))


def test_wrong_settings_name_the_key():
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    _make(num_items=5 * 4 * 6 + 1)
  with pytest.raises(types.InputError, match='tokenizer.assignment'):
    _make(assignment='best')
  with pytest.raises(types.InputError, match='tokenizer.slack'):
    _make(slack=.5)


def _one(s, params, address, usage, gap, x, stored, gumbel, sigma):
  """One vector, step by step: (codes, prefix sums, losses), see the module."""
  sg = jax.lax.stop_gradient
  near = jnp.argmin(jnp.sum((x[None] - address[0])**2, 1))
  hot = (usage[near] > 1.5 / SIZES[0]) & (sigma > 0)
  residual, total, out, commit, book = x, 0., [], 0., 0.
  for level in range(L):
    dist = jnp.sum((residual[None] - address[level])**2, 1)
    z = -dist / gap[level] + sigma * hot * gumbel[level]
    sampled = jnp.argmax(z)
    code = {'stored': stored[level],
            'mixed': jnp.where(hot, sampled, stored[level]),
            'sampled': sampled}[s]
    p = jax.nn.softmax(z / .5)
    table = params['semantic'][level]
    total = total + table[code] + (p - sg(p)) @ sg(table)
    word = address[level][code]
    commit += (1 - hot) * jnp.mean((sg(word) - residual)**2)
    book += (1 - hot) * jnp.mean((word - sg(residual))**2)
    out.append((code, total))
    residual = residual - sg(word)
  codes, sums = zip(*out)
  return jnp.stack(codes), jnp.stack(sums), .25 * commit + book


@pytest.mark.parametrize('forward_code', ['mixed', 'stored', 'sampled'])
def test_gumbel_st_equals_the_plain_recursion_values_and_gradients(
    forward_code):
  w = World(forward_code=forward_code)
  w.variables['usage'] = jnp.array([.7, .1, .6, .05, .05])
  gumbel = noise.gumbel(KEY, ITEMS, SIZES)
  weight = jnp.cos(jnp.arange(float(V * L * D))).reshape(V, L, D)
  explore = _explore(.7)

  def ours(params, x):
    path = w.tok.quantize(
        params, w.variables, x, stored=w.stored, explore=explore)
    sums = w.tok.read(params, w.variables, path, x, explore=explore)
    per_item, _ = w.tok.loss(
        params, w.variables, x, path, stored=w.stored, explore=explore)
    return jnp.sum(weight * sums) + jnp.sum(per_item), (path.codes, sums)

  def plain(params, x):
    codes, sums, per_item = jax.vmap(
        lambda x, stored, g: _one(
            forward_code, params, params['address'], w.variables['usage'],
            w.variables['gap'], x, stored, g, .7))(x, w.stored, gumbel)
    return jnp.sum(weight * sums) + jnp.sum(per_item), (codes, sums)

  (got, (codes, sums)), grads = jax.jit(
      jax.value_and_grad(ours, (0, 1), True))(w.params, w.x)
  (want, (own, total)), reference = jax.jit(
      jax.value_and_grad(plain, (0, 1), True))(w.params, w.x)
  np.testing.assert_array_equal(codes, own)
  assert np.any(codes != w.sid) == (forward_code != 'stored')
  np.testing.assert_allclose(sums, total, atol=1e-5)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(reference)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_forward_is_the_integer_gather(assignment):
  w = World(hot=True, assignment=assignment)
  path = w.quantize(explore=_explore())
  codes = np.asarray(path.codes)
  want = np.zeros((V, L, D))
  for v in range(V):
    for level in range(L):
      want[v, level:] += np.asarray(
          w.params['semantic'][level])[codes[v, level]]
  for settings in (dict(explore=_explore()), dict(), dict(live=False)):
    np.testing.assert_allclose(w.read(path, **settings), want, atol=1e-6)
  for level in range(L):
    np.testing.assert_allclose(
        walk.prefix(w.tok.books(w.params), codes[:, :level + 1]),
        want[:, level], atol=1e-6)


@pytest.mark.parametrize('forward_code', ['mixed', 'sampled'])
def test_without_noise_the_codes_are_the_stored_ones(forward_code):
  w = World(hot=True, forward_code=forward_code)
  for explore in (None, _explore(0.)):
    np.testing.assert_array_equal(w.quantize(explore=explore).codes, w.sid)


def test_forward_codes_differ_as_named():
  hot = jnp.arange(SIZES[0]) == 0  # Only items near code 0 explore.
  run = {}
  for name in ('mixed', 'stored', 'sampled'):
    w = World(forward_code=name)
    w.variables['usage'] = jnp.where(hot, .7, .05)
    run[name] = w.quantize(explore=_explore(2.))
    if name == 'mixed':
      hot_row = np.asarray(
          w.loss(run[name], explore=_explore(2.))[1]['hot']) > 0
  assert 0 < hot_row.sum() < V
  codes = np.asarray(run['mixed'].codes)
  np.testing.assert_array_equal(run['stored'].codes, w.sid)
  np.testing.assert_array_equal(codes[~hot_row], w.sid[~hot_row])
  assert (codes[hot_row] != w.sid[hot_row]).any()
  # Who does not explore has no noise, and so the nearest.
  sampled = np.asarray(run['sampled'].codes)
  for level in range(L):
    np.testing.assert_array_equal(
        sampled[~hot_row, level],
        np.argmin(run['sampled'].distances[level], 1)[~hot_row])


def test_gate():
  w = World()
  w.variables['usage'] = jnp.array([.7, .1, .1, .05, .05])
  path = w.quantize(explore=_explore())
  near = np.square(
      np.asarray(w.x)[:, None] - np.asarray(w.params['address'][0])[None]
      ).sum(-1).argmin(1)
  _, metrics = w.loss(path, explore=_explore())
  np.testing.assert_array_equal(metrics['hot'], near == 0)
  assert (near == 0).any()
  commit = np.asarray(metrics['commit'])
  np.testing.assert_array_equal(commit[near == 0], 0)
  assert (commit[near != 0] > 0).all()
  np.testing.assert_array_equal(
      metrics['near_agreement'], near == np.asarray(path.codes)[:, 0])
  np.testing.assert_array_equal(
      metrics['flip'], np.any(np.asarray(path.codes) != w.sid, 1))


def test_noise_belongs_to_the_item():
  w = World(hot=True)
  run = lambda key, item: np.asarray(w.quantize(
      w.x[item], w.stored[item], explore=_explore(1., key, item)).codes)
  codes = run(KEY, ITEMS)
  twice = jnp.array([3, 9, 3, 3, 50, 9])
  np.testing.assert_array_equal(run(KEY, twice), codes[twice])
  assert (run(jax.random.key(8), ITEMS) != codes).any()


@functools.lru_cache(None)
def _grad_fn(loss, live, **settings):
  tok = _make(**settings)
  # What the frozen program hands over.
  explore = _explore() if live else None

  def value(params, x, variables, stored, reader):
    path = tok.quantize(params, variables, x, stored=stored, explore=explore)
    if loss:
      return jnp.sum(tok.loss(
          params, variables, x, path, stored=stored, explore=explore)[0])
    return jnp.sum(reader * tok.read(
        params, variables, path, x, explore=explore, live=live))

  return jax.jit(jax.grad(value, argnums=(0, 1, 2)))


def _grads(level=None, live=True, loss=False, hot=False, **settings):
  """Gradients to params, x, variables of a random read-out, or the loss."""
  w = World(hot=hot, **settings)
  reader = np.random.default_rng(3).normal(size=(V, L, D))
  if level is not None:
    reader *= (np.arange(L) == level)[None, :, None]
  return _grad_fn(loss, live, **settings)(
      w.params, w.x, w.variables, w.stored, reader)


@pytest.mark.parametrize('hot', [False, True])
@pytest.mark.parametrize('level', range(L))
def test_recommendation_gradient_reaches_both_tables_and_items(level, hot):
  grads, to_x, to_variables = _grads(level, hot=hot)
  for l in range(L):  # A prefix depends on the levels up to its own.
    for name in ('address', 'semantic'):
      assert (np.abs(grads[name][l]).max() > 0) == (l <= level), (name, l)
  assert (np.abs(to_x).max(1) > 0).all()
  for leaf in jax.tree.leaves(to_variables):
    np.testing.assert_array_equal(leaf, 0)


def _none(tree):
  return not any(np.any(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('settings', [dict(cut_path=True), dict(live=False)])
def test_cut_path_and_freezing_stop_the_gradient(settings):
  grads, to_x, _ = _grads(**settings)
  assert _none(grads['address']) and _none(to_x)
  assert all(np.abs(g).max() > 0 for g in grads['semantic'])


@pytest.mark.parametrize('ste', [False, True])
def test_ema_gradients(ste):
  grads, to_x, to_variables = _grads(assignment='ema', ste_recall=ste)
  assert set(grads) == {'semantic'}
  assert all(np.abs(g).max() > 0 for g in grads['semantic'])
  assert (np.abs(to_x).max() > 0) == ste
  assert _none(to_variables)
  grads, to_x, to_variables = _grads(assignment='ema', loss=True)
  assert np.abs(to_x).max() > 0
  assert _none(grads['semantic']) and _none(to_variables)


def test_quantization_loss_equals_numpy():
  w = World()
  path = w.quantize()
  got, metrics = w.loss(path)
  residual, want = np.asarray(w.x, np.float64), 0.
  for level in range(L):
    np.testing.assert_allclose(path.residuals[:, level], residual, atol=1e-5)
    residual = residual - np.asarray(
        w.params['address'][level])[w.sid[:, level]]
    want = want + (.25 + 1.) * np.mean(np.square(residual), 1)
    p = np.exp(-np.asarray(path.distances[level], np.float64) / .5
               / float(w.variables['gap'][level]))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(
        metrics[f'soft_perplexity@{level + 1}'],
        np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)), 1)), rtol=1e-3)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  grads, to_x, _ = _grads(loss=True)
  assert all(np.abs(g).max() > 0 for g in grads['address'])
  assert np.abs(to_x).max() > 0
  assert _none(grads['semantic'])


def test_vectors_outside_the_catalog_get_nearest_codes():
  w = World(hot=True)
  path = w.quantize(stored=None)
  residual = np.asarray(w.x)
  for level in range(L):
    book = np.asarray(w.params['address'][level])
    code = np.square(residual[:, None] - book[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(path.codes[:, level], code)
    residual = residual - book[code]
