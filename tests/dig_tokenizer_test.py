"""Tests of the DIG quantizer: values, gate, gradients, statistics."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sidrec import tokenizers
from sidrec import types

V, D, L, K = 60, 6, 3, 5


@functools.lru_cache(None)  # So that jit's own caches are kept.
def _make(num_items=V, **settings):
  config = ml_collections.ConfigDict(dict(
      dim=D, num_levels=L, codebook_size=K, assignment='gumbel_st',
      forward_code='mixed', tau=.5, usage_ratio=1.5, usage_momentum=.9,
      ema_decay=.8, commit_weight=.25, book_weight=1., slack=1.25, margin=.5,
      ste_recall=False, cut_path=False))
  config.update(settings)
  spec = types.DataSpec(
      num_items=num_items, num_users=1, items=types.FeatureSpec(),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)
  tokenizer = tokenizers.get('dig').make(config, spec)
  jitted = jax.jit(tokenizer.encode)

  def encode(params, codebook, x, *, key=None, item=None, noise=0., live=1.):
    # Always the same argument types: one compilation serves most tests.
    return jitted(params, codebook, x, key=key, item=item,
                  noise=jnp.float32(noise), live=jnp.float32(live))

  return tokenizer._replace(
      encode=encode,
      update=jax.jit(tokenizer.update, static_argnames='axis_name'))


def _fitted(hot=False, **settings):
  """Returns (tokenizer, params, codebook, vectors) after the tree start."""
  tokenizer = _make(**settings)
  x = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
  params, codebook = tokenizer.fit(0, {}, {}, x)
  # Semantic rows apart from the address rows, or mistakes would not show.
  params['semantic'] += .1 * np.random.default_rng(1).normal(
      size=params['semantic'].shape).astype(np.float32)
  params, codebook = jax.tree.map(jnp.asarray, (params, codebook))
  if hot:
    codebook['usage'] = jnp.asarray(np.ones(K, np.float32))
  return tokenizer, params, codebook, jnp.asarray(x)


KEY = jax.random.key(7)
ITEMS = jnp.arange(V)


def test_fit_gives_distinct_codes_and_copies_the_table():
  tokenizer = _make()
  x = np.random.default_rng(0).normal(size=(V, D)).astype(np.float32)
  params, codebook = tokenizer.fit(0, {}, {}, x)
  assert len(np.unique(codebook['sid'], axis=0)) == V
  np.testing.assert_array_equal(params['address'], params['semantic'])
  np.testing.assert_allclose(codebook['usage'], 1 / K)
  # The prefix sums start near the vectors.
  embedded = tokenizer.prefix(params, codebook['sid'])
  assert np.mean(np.square(embedded - x)) < .5 * np.mean(np.square(x))


def test_wrong_settings_name_the_key():
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    _make(num_items=K**L + 1)
  with pytest.raises(types.InputError, match='tokenizer.assignment'):
    _make(assignment='best')
  with pytest.raises(types.InputError, match='tokenizer.slack'):
    _make(slack=.5)


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_forward_is_the_integer_gather(assignment):
  tokenizer, params, codebook, x = _fitted(hot=True, assignment=assignment)
  output = tokenizer.encode(
      params, codebook, x, key=KEY, item=ITEMS, noise=.5)
  semantic, codes = np.asarray(params['semantic']), np.asarray(output.codes)
  want = np.zeros((V, L, D))
  for v in range(V):
    for level in range(L):
      want[v, level:] += semantic[level, codes[v, level]]
  np.testing.assert_allclose(output.quantized, want, atol=1e-6)
  for level in range(L):
    np.testing.assert_allclose(
        tokenizer.prefix(params, codes[:, :level + 1]), want[:, level],
        atol=1e-6)


@pytest.mark.parametrize('forward_code', ['mixed', 'sampled'])
def test_without_noise_the_codes_are_the_stored_ones(forward_code):
  tokenizer, params, codebook, x = _fitted(hot=True, forward_code=forward_code)
  stored = _fitted(hot=True, forward_code='stored')[0]
  want = stored.encode(params, codebook, x, key=KEY, item=ITEMS, noise=0.)
  np.testing.assert_array_equal(want.codes, codebook['sid'])
  for settings in (dict(key=None), dict(key=KEY, noise=0.),
                   dict(key=KEY, noise=.5, live=0.)):
    got = tokenizer.encode(params, codebook, x, item=ITEMS, **settings)
    np.testing.assert_array_equal(got.codes, want.codes)
    np.testing.assert_allclose(got.quantized, want.quantized, atol=1e-6)


def test_forward_codes_differ_as_named():
  hot = jnp.arange(K) == 0  # Only items near code 0 explore.
  run = {}
  for name in ('mixed', 'stored', 'sampled'):
    tokenizer, params, codebook, x = _fitted(forward_code=name)
    codebook['usage'] = jnp.where(hot, .7, .05)
    run[name] = tokenizer.encode(
        params, codebook, x, key=KEY, item=ITEMS, noise=2.)
  sid = np.asarray(codebook['sid'])
  hot_row = np.asarray(run['mixed'].aux['hot']) > 0
  assert 0 < hot_row.sum() < V
  np.testing.assert_array_equal(run['stored'].codes, sid)
  np.testing.assert_array_equal(run['mixed'].codes[~hot_row], sid[~hot_row])
  assert (run['mixed'].codes[hot_row] != sid[hot_row]).any()
  np.testing.assert_array_equal(
      run['sampled'].codes, np.argmax(run['sampled'].logits, -1))


def test_gate():
  tokenizer, params, codebook, x = _fitted()
  codebook['usage'] = jnp.array([.7, .1, .1, .05, .05])
  output = tokenizer.encode(params, codebook, x, key=KEY, item=ITEMS, noise=.5)
  distance = np.square(
      np.asarray(x)[:, None] - np.asarray(params['address'])[0][None]).sum(-1)
  near = distance.argmin(1)
  np.testing.assert_array_equal(output.aux['near'], near)
  np.testing.assert_array_equal(output.aux['hot'], near == 0)
  assert (near == 0).any()
  np.testing.assert_array_equal(
      np.asarray(output.aux['commit'])[near == 0], 0)
  assert (np.asarray(output.aux['commit'])[near != 0] > 0).all()


def test_noise_belongs_to_the_item():
  tokenizer, params, codebook, x = _fitted(hot=True)
  run = lambda key, item: np.asarray(tokenizer.encode(
      params, codebook, x[item], key=key, item=item, noise=1.).codes)
  codes = run(KEY, ITEMS)
  twice = jnp.array([3, 9, 3, 3, 50, 9])
  np.testing.assert_array_equal(run(KEY, twice), codes[twice])
  assert (run(jax.random.key(8), ITEMS) != codes).any()


def test_noise_is_gumbel():
  # All distances equal: logits are the noise and a constant.
  tokenizer, params, codebook, x = _fitted(hot=True)
  params['address'] = jnp.zeros_like(params['address'])
  draws = []
  for seed in range(40):
    output = tokenizer.encode(
        params, codebook, jnp.zeros_like(x), key=jax.random.key(seed),
        item=ITEMS, noise=1.)
    draws.append(np.asarray(output.logits))
  draws = np.stack(draws)                                  # [40, V, L, K]
  assert abs(draws.mean() - .5772) < .03
  assert abs(draws.var() - np.pi**2 / 6) < .06
  uniform = np.sort(np.exp(-np.exp(-draws.astype(np.float64))).reshape(-1))
  ideal = (np.arange(uniform.size) + .5) / uniform.size
  assert np.abs(uniform - ideal).max() < 1.63 / np.sqrt(uniform.size)  # KS 1 %
  flat = draws.reshape(40 * V, L * K)
  corr = np.corrcoef(flat.T) - np.eye(L * K)
  assert np.abs(corr).max() < .1
  flat = draws.transpose(1, 0, 2, 3).reshape(V, -1)  # Items do not agree.
  assert np.abs(np.corrcoef(flat) - np.eye(V)).max() < .2


@functools.lru_cache(None)
def _grad_fn(loss, **settings):
  tokenizer = _make(**settings)

  def value(params, x, floats, sid, reader, live):
    codebook = {**floats, 'sid': sid}
    output = tokenizer.encode(
        params, codebook, x, key=KEY, item=ITEMS, noise=.5, live=live)
    if loss:
      return jnp.sum(tokenizer.loss(params, codebook, x, output)[0])
    return jnp.sum(reader * output.quantized)

  return jax.jit(jax.grad(value, argnums=(0, 1, 2)))


def _grads(level=None, live=1., loss=False, hot=False, **settings):
  """Gradients to params, x and codebook of a random read-out, or the loss."""
  _, params, codebook, x = _fitted(hot=hot, **settings)
  reader = np.random.default_rng(3).normal(size=(V, L, D))
  if level is not None:
    reader *= (np.arange(L) == level)[None, :, None]
  sid = codebook.pop('sid')
  return _grad_fn(loss, **settings)(params, x, codebook, sid, reader, live)


@pytest.mark.parametrize('hot', [False, True])
@pytest.mark.parametrize('level', range(L))
def test_recommendation_gradient_reaches_both_tables_and_items(level, hot):
  grads, to_x, to_book = _grads(level, hot=hot)
  for l in range(L):  # A prefix depends on the levels up to its own.
    for name in ('address', 'semantic'):
      assert (np.abs(grads[name][l]).max() > 0) == (l <= level), (name, l)
  assert (np.abs(to_x).max(1) > 0).all()
  for leaf in jax.tree.leaves(to_book):
    np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize(
    'settings', [dict(cut_path=True), dict(live=0.)])
def test_cut_path_and_freezing_stop_the_gradient(settings):
  grads, to_x, _ = _grads(**settings)
  np.testing.assert_array_equal(grads['address'], 0)
  np.testing.assert_array_equal(to_x, 0)
  assert all(np.abs(g).max() > 0 for g in grads['semantic'])


@pytest.mark.parametrize('ste', [False, True])
def test_ema_gradients(ste):
  grads, to_x, to_book = _grads(assignment='ema', ste_recall=ste)
  assert set(grads) == {'semantic'}
  assert all(np.abs(g).max() > 0 for g in grads['semantic'])
  assert (np.abs(to_x).max() > 0) == ste
  np.testing.assert_array_equal(to_book['address'], 0)
  grads, to_x, to_book = _grads(assignment='ema', loss=True)
  assert np.abs(to_x).max() > 0
  np.testing.assert_array_equal(grads['semantic'], 0)
  np.testing.assert_array_equal(to_book['address'], 0)


def test_quantization_loss_equals_numpy():
  tokenizer, params, codebook, x = _fitted()
  output = tokenizer.encode(params, codebook, x, item=ITEMS)
  got, _ = tokenizer.loss(params, codebook, x, output)
  residual, want = np.asarray(x, np.float64), 0.
  for level in range(L):
    np.testing.assert_allclose(
        output.residuals[:, level], residual, atol=1e-5)
    residual = residual - np.asarray(
        params['address'])[level][np.asarray(codebook['sid'])[:, level]]
    want = want + (.25 + 1.) * np.mean(np.square(residual), 1)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  grads, to_x, _ = _grads(loss=True)
  assert np.abs(grads['address']).max() > 0 and np.abs(to_x).max() > 0
  np.testing.assert_array_equal(grads['semantic'], 0)
  frozen, _, _ = _grads(loss=True, live=0.)
  np.testing.assert_array_equal(frozen['address'], 0)


def test_logits_are_in_units_of_the_gap():
  # The same world 100 times larger explores alike.
  tokenizer, params, codebook, x = _fitted(hot=True)
  small = tokenizer.encode(params, codebook, x, key=KEY, item=ITEMS, noise=.5)
  params = {k: 100 * v for k, v in params.items()}
  codebook['gap'] *= 100**2
  large = tokenizer.encode(
      params, codebook, 100 * x, key=KEY, item=ITEMS, noise=.5)
  assert np.mean(np.asarray(small.codes == large.codes)) > .99


def _reference_update(codebook, output, mask, ema):
  new = {k: np.array(v, np.float64) for k, v in codebook.items()}
  rows = np.flatnonzero(mask)
  near, gaps = np.asarray(output.aux['near']), np.asarray(output.aux['gaps'])
  share = np.bincount(near[rows], minlength=K) / len(rows)
  new['usage'] = .9 * new['usage'] + .1 * share
  new['gap'] = .9 * new['gap'] + .1 * gaps[rows].mean(0)
  if ema:
    codes, r = np.asarray(output.codes), np.asarray(output.residuals)
    for level in range(L):
      for k in range(K):
        mine = [i for i in rows if codes[i, level] == k]
        new['count'][level, k] *= .8
        new['sum'][level, k] *= .8
        new['count'][level, k] += .2 * len(mine) / len(rows)
        for i in mine:
          new['sum'][level, k] += .2 * r[i, level] / len(rows)
        new['address'][level, k] = (
            new['sum'][level, k] / new['count'][level, k])
  return new


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_update_equals_numpy_and_replicas_agree(assignment):
  tokenizer, params, codebook, x = _fitted(assignment=assignment)
  item = jax.random.randint(jax.random.key(2), (32,), 0, V)
  mask = (jnp.arange(32) % 3 > 0).astype(jnp.float32)

  def step(item, mask, axis_name):
    output = tokenizer.encode(
        params, codebook, x[item] + .1, key=KEY, item=item, noise=.5)
    return output, tokenizer.update(
        codebook, output, mask=mask, axis_name=axis_name)

  output, one = step(item, mask, None)
  want = _reference_update(codebook, output, mask, assignment == 'ema')
  assert set(one) == set(want)
  for name, value in want.items():
    np.testing.assert_allclose(one[name], value, atol=2e-5, err_msg=name)
  assert one['sid'].dtype == codebook['sid'].dtype
  split, many = jax.vmap(
      lambda i, m: step(i, m, 'device'), axis_name='device')(
          item.reshape(4, 8), mask.reshape(4, 8))
  np.testing.assert_array_equal(
      np.asarray(split.codes).reshape(32, L), output.codes)
  for name, value in many.items():
    assert (value == value[:1]).all(), name  # Replicas are identical.
    np.testing.assert_allclose(value[0], one[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_update_with_nothing_to_learn_changes_nothing(assignment):
  tokenizer, params, codebook, x = _fitted(assignment=assignment)
  for live, mask in ((1., jnp.zeros(V)), (0., jnp.ones(V))):
    output = tokenizer.encode(params, codebook, x, item=ITEMS, live=live)
    new = tokenizer.update(codebook, output, mask=mask, axis_name=None)
    for name in codebook:
      np.testing.assert_allclose(new[name], codebook[name], rtol=1e-6)


@pytest.mark.parametrize('assignment', ['gumbel_st', 'ema'])
def test_refresh(assignment):
  tokenizer, params, codebook, x = _fitted(assignment=assignment, slack=1.)
  same, metrics = tokenizer.refresh(params, codebook, x)
  np.testing.assert_array_equal(same['sid'], codebook['sid'])
  assert metrics['tokenizer/churn'] == 0
  moved = x + .5 * jax.random.normal(jax.random.key(4), x.shape)
  new, metrics = tokenizer.refresh(params, codebook, moved)
  assert len(np.unique(new['sid'], axis=0)) == V
  assert metrics['tokenizer/churn'] == np.mean(
      (new['sid'] != np.asarray(codebook['sid'])).any(1)) > 0
  assert set(new) == set(codebook)
  calm = _fitted(assignment=assignment, slack=1., margin=1e6)[0]
  assert calm.refresh(params, codebook, moved)[1]['tokenizer/churn'] == 0


def test_refresh_refuses_broken_vectors():
  tokenizer, params, codebook, x = _fitted()
  with pytest.raises(FloatingPointError):
    tokenizer.refresh(params, codebook, x.at[3, 2].set(jnp.nan))


def test_items_outside_the_catalog_get_nearest_codes():
  tokenizer, params, codebook, x = _fitted(hot=True)
  output = tokenizer.encode(params, codebook, x, key=KEY, noise=.5)
  residual = np.asarray(x)
  for level in range(L):
    book = np.asarray(params['address'])[level]
    code = np.square(residual[:, None] - book[None]).sum(-1).argmin(1)
    np.testing.assert_array_equal(output.codes[:, level], code)
    residual = residual - book[code]
