"""Trained residual quantizers against NumPy, their gradients, collapse."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import checks
from sidrec.tokenizers import diagnostics
from sidrec.tokenizers import residual
from sidrec.tokenizers import transport
from sidrec.tokenizers import walk

V, D, WIDTH = 96, 10, 5
SIZES = (8, 6, 9)
L = len(SIZES)


def _config(**settings):
  return ml_collections.ConfigDict({**dict(
      name='rqvae', hidden=(12, 7), latent_dim=WIDTH, num_levels=L,
      codebook_size=SIZES, commitment=.25, next_residual='sg',
      reduction='mean', sinkhorn_epsilon=0., sinkhorn_steps=50, start_rows=0,
      kmeans_steps=10, revive=True), **settings})


def _spec(num_items=V):
  return types.DataSpec(
      num_items=num_items, num_users=1, items=types.FeatureSpec(),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)


def _vectors(num=V, dim=D, seed=0):
  return np.random.default_rng(seed).normal(
      size=(num, dim)).astype(np.float32)


def _items(tokenizer, params, x):
  return base.Items(
      np.arange(len(x)), np.asarray(x), types.FeatureTable(),
      np.ones(len(x)), latents=np.asarray(
          jax.jit(tokenizer.latent)(params, x)))


@functools.lru_cache(None)
def _start():
  """Returns (params, vectors) that serve all settings here."""
  tokenizer, x = tokenizers.make(_config(), _spec()), _vectors()
  params, variables = jax.jit(
      tokenizer.init, static_argnums=1)(jax.random.key(0), D)
  params, _, codes = tokenizer.start(
      0, params, variables, _items(tokenizer, params, x))
  assert codes is None
  # Biases that are not 0, or a forgotten one would not show.
  params = jax.tree.map(
      lambda p: jnp.asarray(p + .05 * np.sin(np.arange(p.size)).reshape(
          p.shape).astype(np.float32)), params)
  return params, jnp.asarray(x)


def _fitted(**settings):
  """Returns (settings, tokenizer, params, vectors)."""
  config = _config(**settings)
  tokenizer = tokenizers.make(config, _spec())
  tokenizer = tokenizer._replace(
      quantize=jax.jit(
          tokenizer.quantize, static_argnames=('train', 'axis_name')),
      loss=jax.jit(tokenizer.loss))
  return residual.settings(config, _spec()), tokenizer, *_start()


def _numpy_mlp(layers, x):
  for i in range(len(layers)):
    layer = layers[f'layer_{i}']
    x = x @ np.asarray(layer['kernel'], np.float64) + np.asarray(layer['bias'])
    x = np.maximum(x, 0) if i + 1 < len(layers) else x
  return x


def _numpy_forward(params, x):
  """Returns (z, codes, prefix sums, residuals, distances, xhat), float64."""
  r = z = _numpy_mlp(params['encoder'], np.asarray(x, np.float64))
  codes, sums, residuals, dists = [], [], [], []
  total = np.zeros_like(r)
  for book in params['books']:
    book = np.asarray(book, np.float64)
    residuals.append(r)
    dists.append(np.square(r[:, None] - book[None]).sum(-1))
    codes.append(dists[-1].argmin(1))
    total, r = total + book[codes[-1]], r - book[codes[-1]]
    sums.append(total)
  stack = lambda v: np.stack(v, 1)
  return (z, stack(codes), stack(sums), stack(residuals), dists,
          _numpy_mlp(params['decoder'], total))


@pytest.mark.parametrize('mode, reduction', [
    ('sg', 'mean'), ('paper', 'sum'), ('code_family', 'mean')])
def test_forward_and_losses_equal_numpy(mode, reduction):
  _, tokenizer, params, x = _fitted(next_residual=mode, reduction=reduction)
  z = jax.jit(tokenizer.latent)(params, x)
  path = tokenizer.quantize(params, {}, z)
  latent, codes, sums, residuals, dists, decoded = _numpy_forward(params, x)
  np.testing.assert_allclose(z, latent, atol=1e-5)
  np.testing.assert_array_equal(path.codes, codes)
  np.testing.assert_allclose(
      tokenizer.read(params, {}, path, z), sums, atol=1e-5)
  np.testing.assert_allclose(path.residuals, residuals, atol=1e-5)
  for got, want in zip(path.distances, dists):
    np.testing.assert_allclose(got, want, atol=1e-4)
  np.testing.assert_allclose(
      jax.jit(residual.decoded)(params, path), decoded, atol=1e-5)
  np.testing.assert_allclose(
      jax.jit(tokenizer.decode)(params, sums[:, -1].astype(np.float32)),
      decoded, atol=1e-5)
  per_example, metrics = tokenizer.loss(params, {}, x, path)
  over = np.mean if reduction == 'mean' else np.sum
  words = np.stack([np.asarray(book, np.float64)[codes[:, level]]
                    for level, book in enumerate(params['books'])], 1)
  square = over(np.square(residuals - words), axis=(1, 2))
  want = over(np.square(decoded - np.asarray(x)), axis=1) + 1.25 * square
  np.testing.assert_allclose(per_example, want, rtol=1e-4)
  np.testing.assert_allclose(metrics['quantization'], 1.25 * square, rtol=1e-4)
  np.testing.assert_allclose(
      metrics['commitment'], np.square(residuals - words).mean((1, 2)),
      rtol=1e-4)
  np.testing.assert_allclose(
      metrics['residual@3'],
      np.linalg.norm(latent - sums[:, -1], axis=-1), atol=1e-4)


def _term(s, name, level, params, x):
  """One term of the losses of a level, as a scalar."""
  latent = residual.mlp(params['encoder'], x)
  path = residual.quantize(s, params, {}, latent)
  r, sg = path.residuals[:, level], jax.lax.stop_gradient
  q = path.words[:, level]
  if name == 'commitment':
    return jnp.sum(jnp.square(r - sg(q)))
  if name == 'codebook':
    return jnp.sum(jnp.square(sg(r) - q))
  if name == 'distance':
    return jnp.sum(path.distances[level])
  return jnp.sum(jnp.sin(walk.straight_through(path, latent)[:, level]))


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
     for mode in walk.LEFT} | {
         (mode, 'sum'): [(True, set())] * 3 for mode in walk.LEFT}


@pytest.mark.parametrize('mode', tuple(walk.LEFT))
def test_who_learns_from_what(mode):
  s, _, params, x = _fitted(next_residual=mode)
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
    books = {l for l, g in enumerate(every['books']) if np.any(g[i])}
    assert (encoder, books) == _TABLE[mode, name][level], (name, level)


def test_commitment_and_reduction_scale_as_named():
  """Means over D and L against sums: weights do not transfer."""
  s, tokenizer, params, x = _fitted(reduction='mean')
  path = tokenizer.quantize(params, {}, tokenizer.latent(params, x))
  mean, _ = residual.quantization_loss(s, path)
  summed = s._replace(reduction='sum')
  total, _ = residual.quantization_loss(summed, path)
  np.testing.assert_allclose(total, mean * L * WIDTH, rtol=1e-5)
  recon = residual.reconstruction_loss(s, params, x, path)
  np.testing.assert_allclose(
      residual.reconstruction_loss(summed, params, x, path), recon * D,
      rtol=1e-5)
  twice, _ = residual.quantization_loss(s._replace(commitment=1.), path)
  np.testing.assert_allclose(twice, mean * 2 / 1.25, rtol=1e-5)


def test_init_mlp_is_xavier_normal_with_zero_bias():
  layers = residual.init_mlp(jax.random.key(0), (200, 300, 100))
  for name, fans in (('layer_0', 500), ('layer_1', 400)):
    np.testing.assert_allclose(
        np.std(layers[name]['kernel']), np.sqrt(2 / fans), rtol=.02)
    assert not np.any(layers[name]['bias'])


def test_sinkhorn_runs_on_the_last_level_in_training_alone():
  _, tokenizer, params, x = _fitted(sinkhorn_epsilon=.003)
  z = tokenizer.latent(params, x)
  plain = tokenizer.quantize(params, {}, z)
  train = tokenizer.quantize(params, {}, z, train=True)
  np.testing.assert_array_equal(train.codes[:, :-1], plain.codes[:, :-1])
  want = jax.jit(functools.partial(transport.spread, epsilon=.003))(
      plain.distances[-1])
  np.testing.assert_array_equal(train.codes[:, -1], want)
  assert np.any(train.codes[:, -1] != plain.codes[:, -1])
  count = np.bincount(train.codes[:, -1], minlength=SIZES[-1])
  assert np.ptp(count) < np.ptp(
      np.bincount(plain.codes[:, -1], minlength=SIZES[-1]))
  four = jax.jit(jax.vmap(
      lambda z: tokenizer.quantize(
          params, {}, z, train=True, axis_name='device').codes,
      axis_name='device'))(z.reshape(4, -1, WIDTH))
  np.testing.assert_array_equal(four.reshape(V, L), train.codes)
  # Who reads codes balances none.
  np.testing.assert_array_equal(tokenizer.quantize(
      params, {}, z, stored=plain.codes, train=True).codes, plain.codes)


def test_dead_codewords_are_revived():
  _, tokenizer, params, x = _fitted()
  params = dict(params, books=tuple(
      book.at[2:].set(100.) for book in params['books']))
  items = _items(tokenizer, params, x)
  new, _, metrics = tokenizer.between(0, 1, params, {}, items)
  before, _ = tokenizer.assign(params, {}, items, None)
  after, _ = tokenizer.assign(new, {}, items, None)
  for level, size in enumerate(SIZES):
    assert metrics[f'tokenizer/revived@{level + 1}'] == size - 2
    assert len(np.unique(before[:, level])) <= 2
    assert len(np.unique(after[:, level])) > min(size - 2, 5)
    np.testing.assert_array_equal(  # Those in use stay.
        new['books'][level][:2], params['books'][level][:2])
  assert tokenizers.make(_config(revive=False), _spec()).between is None


def test_the_start_needs_latents_of_the_encoder():
  _, tokenizer, params, x = _fitted()
  items = _items(tokenizer, params, x)
  with pytest.raises(ValueError, match='give them'):
    tokenizer.start(0, params, {}, items._replace(latents=None))
  with pytest.raises(ValueError, match='shape'):
    tokenizer.start(0, params, {}, items._replace(latents=items.vectors))
  broken = items.latents.copy()
  broken[3, 1] = np.nan
  with pytest.raises(FloatingPointError):
    tokenizer.assign(params, {}, items._replace(latents=broken), None)


def test_wrong_settings_name_the_key():
  for name, value in (
      ('next_residual', 'both'), ('reduction', 'max'), ('latent_dim', 0),
      ('commitment', -1.), ('hidden', (4, 0)), ('start_rows', max(SIZES) - 1),
      ('sinkhorn_epsilon', -.1), ('codebook_size', 1)):
    with pytest.raises(types.InputError, match=f'tokenizer.{name}'):
      tokenizers.make(_config(**{name: value}), _spec())


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
  tokenizer = tokenizers.make(_config(
      hidden=(128, 64), latent_dim=16, codebook_size=16, revive=False),
      _spec(512))
  optimizer = optax.adam(1e-2)

  def loss(params, rows):
    path = tokenizer.quantize(
        params, {}, tokenizer.latent(params, rows), train=True)
    return jnp.mean(tokenizer.loss(params, {}, rows, path)[0])

  @jax.jit
  def step(params, state, rows):
    updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
    return optax.apply_updates(params, updates), state

  return tokenizer, optimizer, step


def _trained_entropies(x):
  """Trains an RQ-VAE for 100 steps; returns nats of each level's codes."""
  tokenizer, optimizer, step = _trainer()
  params, variables = jax.jit(
      tokenizer.init, static_argnums=1)(jax.random.key(0), x.shape[1])
  params, _, _ = tokenizer.start(
      0, params, variables, _items(tokenizer, params, x))
  params = jax.tree.map(jnp.asarray, params)
  state, rng = jax.jit(optimizer.init)(params), np.random.default_rng(0)
  for _ in range(100):
    params, state = step(params, state, x[rng.integers(0, len(x), 128)])
  codes, _ = tokenizer.assign(params, {}, _items(tokenizer, params, x), None)
  return diagnostics.report(codes, tokenizer.sizes, vectors=x)


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
  monkeypatch.setattr(checks, 'check_scale', lambda x: None)
  collapsed = _trained_entropies(unit)
  assert max(_entropies(collapsed)) < .5
  with pytest.raises(types.InputError, match='level 1 has collapsed'):
    diagnostics.check_collapse(collapsed, (16,) * 3, 1.)
