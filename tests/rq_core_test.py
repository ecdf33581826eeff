"""Residual quantizer against NumPy, its gradients, Sinkhorn, collapse."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from scipy import special

from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import diagnostics
from sidrec.tokenizers import residual
from sidrec.tokenizers import sinkhorn

V, D, L, K, WIDTH = 96, 10, 3, 8, 5


def _config(**settings):
  config = ml_collections.ConfigDict(dict(
      hidden=(12, 7), latent_dim=WIDTH, num_levels=L, codebook_size=K,
      commitment=.25, next_residual='sg', reduction='mean',
      sinkhorn_epsilon=0., sinkhorn_steps=50, start_rows=0, kmeans_steps=10,
      revive=True))
  config.update(settings)
  return config


def _spec(num_items=V):
  return types.DataSpec(
      num_items=num_items, num_users=1, items=types.FeatureSpec(),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)


def _vectors(num=V, dim=D, seed=0):
  return np.random.default_rng(seed).normal(
      size=(num, dim)).astype(np.float32)


@functools.lru_cache(None)
def _start():
  """Returns (params, codebook, vectors) that serve all settings here."""
  tokenizer, x = tokenizers.get('rqvae').make(_config(), _spec()), _vectors()
  params, codebook = jax.jit(tokenizer.init)(jax.random.key(0), x)
  params, codebook = tokenizer.fit(0, params, codebook, x)
  # Biases that are not 0, or a forgotten one would not show.
  params = jax.tree.map(
      lambda p: jnp.asarray(p + .05 * np.sin(np.arange(p.size)).reshape(
          p.shape).astype(np.float32)), params)
  return params, jax.tree.map(jnp.asarray, codebook), jnp.asarray(x)


def _fitted(**settings):
  """Returns (settings, tokenizer, params, codebook, vectors)."""
  config = _config(**settings)
  tokenizer = tokenizers.get('rqvae').make(config, _spec())
  tokenizer = tokenizer._replace(
      encode=jax.jit(
          tokenizer.encode, static_argnames=('train', 'axis_name')),
      loss=jax.jit(tokenizer.loss))
  return (residual.settings(config, _spec()), tokenizer, *_start())


def _numpy_mlp(layers, x):
  for i in range(len(layers)):
    layer = layers[f'layer_{i}']
    x = x @ np.asarray(layer['kernel'], np.float64) + np.asarray(layer['bias'])
    x = np.maximum(x, 0) if i + 1 < len(layers) else x
  return x


def _numpy_forward(params, x):
  """Returns (codes, prefix sums, residuals, distances, xhat), float64."""
  r = _numpy_mlp(params['encoder'], np.asarray(x, np.float64))
  codes, sums, residuals, dists = [], [], [], []
  total = np.zeros_like(r)
  for book in np.asarray(params['books'], np.float64):
    residuals.append(r)
    dist = np.square(r[:, None] - book[None]).sum(-1)
    code = dist.argmin(1)
    total, r = total + book[code], r - book[code]
    codes.append(code)
    sums.append(total)
    dists.append(dist)
  stack = lambda v: np.stack(v, 1)
  return (stack(codes), stack(sums), stack(residuals), stack(dists),
          _numpy_mlp(params['decoder'], total))


@pytest.mark.parametrize('mode, reduction', [
    ('sg', 'mean'), ('paper', 'sum'), ('code_family', 'mean')])
def test_forward_and_losses_equal_numpy(mode, reduction):
  _, tokenizer, params, codebook, x = _fitted(
      next_residual=mode, reduction=reduction)
  output = tokenizer.encode(params, codebook, x)
  codes, sums, residuals, dists, decoded = _numpy_forward(params, x)
  np.testing.assert_array_equal(output.codes, codes)
  np.testing.assert_allclose(output.quantized, sums, atol=1e-5)
  np.testing.assert_allclose(output.residuals, residuals, atol=1e-5)
  np.testing.assert_allclose(-output.logits, dists, atol=1e-4)
  np.testing.assert_allclose(
      jax.jit(residual.decode)(params, output), decoded, atol=1e-5)
  per_example, metrics = tokenizer.loss(params, codebook, x, output)
  over = np.mean if reduction == 'mean' else np.sum
  left = np.asarray(params['books'], np.float64)[np.arange(L), codes]
  square = over(np.square(residuals - left), axis=(1, 2))
  want = over(np.square(decoded - np.asarray(x)), axis=1) + 1.25 * square
  np.testing.assert_allclose(per_example, want, rtol=1e-4)
  np.testing.assert_allclose(metrics['quantization'], 1.25 * square, rtol=1e-4)
  np.testing.assert_allclose(
      metrics['residual@3'], np.linalg.norm(
          np.asarray(output.aux['latent']) - sums[:, -1], axis=-1), atol=1e-4)


def _term(s, name, level, params, x):
  """One term of the losses of a level, as a scalar."""
  latent = residual.mlp(params['encoder'], x)
  output = residual.quantize(s, params['books'], latent)
  r, sg = output.residuals[:, level], jax.lax.stop_gradient
  q = residual.words(params, output.codes)[:, level]
  if name == 'commitment':
    return jnp.sum(jnp.square(r - sg(q)))
  if name == 'codebook':
    return jnp.sum(jnp.square(sg(r) - q))
  if name == 'distance':
    return jnp.sum(output.logits[:, level])
  return jnp.sum(jnp.sin(output.quantized[:, level]))


# What a term moves: the encoder, and the codebooks of which levels, for a term
# of level 1, 2 and 3 (0-based sets).
_NOTHING = (False, set())
_TABLE = {
    ('code_family', 'commitment'): [(True, set()), _NOTHING, _NOTHING],
    ('code_family', 'distance'): [(True, {0}), (False, {1}), (False, {2})],
    ('sg', 'commitment'): [(True, set())] * 3,
    ('sg', 'distance'): [(True, {0}), (True, {1}), (True, {2})],
    ('paper', 'commitment'): [(True, set()), (True, {0}), (True, {0, 1})],
    ('paper', 'distance'): [(True, {0}), (True, {0, 1}), (True, {0, 1, 2})],
} | {(mode, 'codebook'): [(False, {0}), (False, {1}), (False, {2})]
     for mode in residual.MODES} | {
         (mode, 'sum'): [(True, set())] * 3 for mode in residual.MODES}


@pytest.mark.parametrize('mode', residual.MODES)
def test_who_learns_from_what(mode):
  s, _, params, _, x = _fitted(next_residual=mode)
  terms = ('commitment', 'codebook', 'distance', 'sum')
  # Tiny, for it is compiled: one layer shows as much as three.
  params = dict(params, encoder={'layer_0': {
      'kernel': jnp.asarray(_vectors(D, WIDTH, 1)),
      'bias': jnp.zeros((WIDTH,))}})
  every = jax.jit(jax.jacrev(lambda p: jnp.stack([
      _term(s, name, level, p, x) for name in terms for level in range(L)])))(
          params)
  for i, (name, level) in enumerate(
      (name, level) for name in terms for level in range(L)):
    encoder = any(np.any(g[i]) for g in jax.tree.leaves(every['encoder']))
    books = set(np.flatnonzero(np.any(every['books'][i], axis=(1, 2))))
    assert (encoder, books) == _TABLE[mode, name][level], (name, level)


def test_losses_on_the_sum_reach_the_encoder_as_identity():
  s, _, params, _, _ = _fitted(next_residual='code_family')
  latent = jnp.asarray(_vectors(6, WIDTH, 3))
  jacobian = jax.jit(jax.jacobian(lambda z: residual.quantize(
      s, params['books'], z).quantized[:, -1].sum(0)))(latent)
  for row in np.asarray(jacobian).transpose(1, 0, 2):
    np.testing.assert_allclose(row, np.eye(WIDTH))


def test_commitment_and_reduction_scale_as_named():
  """Means over D and L against sums: weights do not transfer."""
  *_, x = given = _fitted(reduction='mean')
  mean = residual.quantization_loss(
      given[0], given[2], given[1].encode(given[2], given[3], x))[0]
  s = given[0]._replace(reduction='sum')
  output = given[1].encode(given[2], given[3], x)
  total = residual.quantization_loss(s, given[2], output)[0]
  np.testing.assert_allclose(total, mean * L * WIDTH, rtol=1e-5)
  recon = residual.reconstruction_loss(given[0], given[2], x, output)
  np.testing.assert_allclose(
      residual.reconstruction_loss(s, given[2], x, output), recon * D,
      rtol=1e-5)
  twice = residual.quantization_loss(
      given[0]._replace(commitment=1.), given[2], output)[0]
  np.testing.assert_allclose(twice, mean * 2 / 1.25, rtol=1e-5)


def test_init_mlp_is_xavier_normal_with_zero_bias():
  layers = residual.init_mlp(jax.random.key(0), (200, 300, 100))
  for name, fans in (('layer_0', 500), ('layer_1', 400)):
    np.testing.assert_allclose(
        np.std(layers[name]['kernel']), np.sqrt(2 / fans), rtol=.02)
    assert not np.any(layers[name]['bias'])


@pytest.mark.parametrize('rows', [64, 200])
def test_sinkhorn_equals_float64_and_fills_columns(rows):
  rng = np.random.default_rng(0)
  dist = np.square(rng.normal(size=(rows, 1, 4))
                   - .5 * rng.normal(size=(1, 16, 4))).sum(-1)
  middle, half = (dist.max() + dist.min()) / 2, np.ptp(dist) / 2 + 1e-5
  want = -(dist - middle) / (half * .003)
  for _ in range(50):
    want -= special.logsumexp(want, 1, keepdims=True) + np.log(rows)
    want -= special.logsumexp(want, 0, keepdims=True) + np.log(16)
  log_plan = jax.jit(functools.partial(sinkhorn.log_plan, epsilon=.003))
  got = np.asarray(log_plan(dist.astype(np.float32)))
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got, want, atol=5e-3, rtol=1e-4)
  np.testing.assert_allclose(np.exp(got).sum(0) * 16, 1, atol=.01)
  assign = jax.jit(functools.partial(sinkhorn.assign, epsilon=.003))
  codes = np.asarray(assign(dist.astype(np.float32)))
  np.testing.assert_array_equal(codes, want.argmax(1))
  even = np.bincount(codes, minlength=16).max()
  assert even < np.bincount(dist.argmin(1), minlength=16).max()
  # What float32 makes of the plain form.
  with np.errstate(over='ignore'):
    assert not np.isfinite(
        np.exp(np.float32(-(dist - middle) / (half * .003)))).all()


def test_sinkhorn_runs_on_the_last_level_in_training_alone():
  _, tokenizer, params, codebook, x = _fitted(sinkhorn_epsilon=.003)
  plain = tokenizer.encode(params, codebook, x)
  train = tokenizer.encode(
      params, codebook, x, item=jnp.arange(V), train=True)
  np.testing.assert_array_equal(train.codes[:, :-1], plain.codes[:, :-1])
  want = jax.jit(functools.partial(sinkhorn.assign, epsilon=.003))(
      -plain.logits[:, -1])
  np.testing.assert_array_equal(train.codes[:, -1], want)
  assert np.any(train.codes[:, -1] != plain.codes[:, -1])
  count = np.bincount(train.codes[:, -1], minlength=K)
  assert np.ptp(count) < np.ptp(np.bincount(plain.codes[:, -1], minlength=K))
  four = jax.jit(jax.vmap(
      lambda x: tokenizer.encode(
          params, codebook, x, train=True, axis_name='device').codes,
      axis_name='device'))(x.reshape(4, -1, D))
  np.testing.assert_array_equal(four.reshape(V, L), train.codes)


def test_training_reads_today_and_serving_the_stored_codes():
  _, tokenizer, params, codebook, x = _fitted()
  moved = dict(codebook, codes=(codebook['codes'] + 1) % K)
  item = jnp.arange(V)
  stored = tokenizer.encode(params, moved, x, item=item)
  np.testing.assert_array_equal(stored.codes, moved['codes'])
  train = tokenizer.encode(params, moved, x, item=item, train=True)
  np.testing.assert_array_equal(
      train.codes, tokenizer.encode(params, moved, x).codes)
  # A refresh stores what training sees.
  new, metrics = tokenizer.refresh(params, moved, np.asarray(x))
  np.testing.assert_array_equal(new['codes'], train.codes)
  assert metrics['tokenizer/churn'] == np.mean(
      np.any(np.asarray(train.codes != moved['codes']), 1))


def test_dead_codewords_are_revived():
  _, tokenizer, params, codebook, x = _fitted()
  params = dict(params, books=params['books'].at[:, 2:].set(100.))
  new, _, metrics = tokenizer.tend(0, 1, params, codebook, np.asarray(x))
  before, _ = tokenizer.refresh(params, codebook, np.asarray(x))
  after, _ = tokenizer.refresh(new, codebook, np.asarray(x))
  for level in range(L):
    assert metrics[f'tokenizer/revived@{level + 1}'] == K - 2
    assert len(np.unique(before['codes'][:, level])) <= 2
    assert len(np.unique(after['codes'][:, level])) > 5
  np.testing.assert_array_equal(  # Those in use stay.
      new['books'][:, :2], params['books'][:, :2])
  off = tokenizers.get('rqvae').make(_config(revive=False), _spec())
  assert off.tend is None


def test_wrong_settings_name_the_key():
  for name, value in (
      ('next_residual', 'both'), ('reduction', 'max'), ('latent_dim', 0),
      ('commitment', -1.), ('hidden', (4, 0)), ('start_rows', K - 1),
      ('sinkhorn_epsilon', -.1), ('codebook_size', 1)):
    with pytest.raises(types.InputError, match=f'tokenizer.{name}'):
      tokenizers.get('rqvae').make(_config(**{name: value}), _spec())


def _world_of_embeddings():
  """Returns vectors like those of a text encoder: unit norm, one direction."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(512, 32)) @ rng.normal(size=(32, 256)) / np.sqrt(32)
  x += .5 * rng.normal(size=x.shape) + 2 * rng.normal(size=(1, 256))
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  return unit.astype(np.float32), (
      (unit - unit.mean(0)) / unit.std(0)).astype(np.float32)


@functools.lru_cache(None)
def _trainer():
  """Returns (tokenizer, optimizer, step) for 512 vectors of 256 numbers."""
  tokenizer = tokenizers.get('rqvae').make(_config(
      hidden=(128, 64), latent_dim=16, codebook_size=16, revive=False),
      _spec(512))
  optimizer = optax.adam(1e-2)

  def loss(params, rows):
    output = tokenizer.encode(params, {}, rows, train=True)
    return jnp.mean(tokenizer.loss(params, {}, rows, output)[0])

  @jax.jit
  def step(params, state, rows):
    updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
    return optax.apply_updates(params, updates), state

  return tokenizer, optimizer, step


def _trained_entropies(x):
  """Trains an RQ-VAE for 100 steps; returns nats of each level's codes."""
  tokenizer, optimizer, step = _trainer()
  params, codebook = jax.jit(tokenizer.init)(jax.random.key(0), x)
  params, codebook = jax.tree.map(
      jnp.asarray, tokenizer.fit(0, params, codebook, x))
  state, rng = jax.jit(optimizer.init)(params), np.random.default_rng(0)
  for _ in range(100):
    params, state = step(params, state, x[rng.integers(0, len(x), 128)])
  codebook, _ = tokenizer.refresh(
      jax.tree.map(np.asarray, params), codebook, x)
  return diagnostics.report(
      codebook['codes'], tokenizer.codebook_sizes, vectors=x)


def _entropies(found):
  return [found[f'tokenizer/entropy@{level}'] for level in (1, 2, 3)]


def test_vectors_of_length_one_are_refused_for_they_collapse(monkeypatch):
  unit, standard = _world_of_embeddings()
  with pytest.raises(types.InputError, match='standardize') as error:
    _trained_entropies(unit)
  assert '\n' not in str(error.value)
  healthy = _trained_entropies(standard)
  assert min(_entropies(healthy)) > 2.  # Of log 16 = 2.77 nats.
  diagnostics.check_collapse(healthy, (16,) * 3, 1.)
  monkeypatch.setattr(base, 'check_scale', lambda x: None)
  collapsed = _trained_entropies(unit)
  assert max(_entropies(collapsed)) < .5
  with pytest.raises(types.InputError, match='level 1 has collapsed'):
    diagnostics.check_collapse(collapsed, (16,) * 3, 1.)
