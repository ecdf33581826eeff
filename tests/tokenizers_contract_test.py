"""One suite over every tokenizer variant that the package holds."""

import inspect
import pkgutil

import chex
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import base

V, D, L, K, B = 40, 6, 3, 4, 24
NAMES = tokenizers.names()


def _spec(num_items=V):
  field = lambda name, at, size: types.Field(
      name, types.Role.ITEM_STATIC, 'category', at, at + 1, size)
  items = types.FeatureSpec(
      fields=(field('leaf', 0, 3), field('top', 1, 2)), vocabulary=6,
      num_slots=2)
  return types.DataSpec(
      num_items=num_items, num_users=1, items=items,
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)


def _inputs(seed=0):
  """Returns what `fit` may be given beside the vectors."""
  row = np.arange(V)  # Categories 0 (missing) to 3, and 0 to 2.
  ids = np.stack([row % 4, np.where(row % 3, row % 3 + 3, 0)], 1)
  return dict(
      features=types.FeatureTable(
          ids=ids.astype(np.int32), values=np.zeros((V, 0), np.float32),
          vectors=np.zeros((V, 0), np.float32)),
      collaborative=np.random.default_rng(seed).normal(
          size=(V, D)).astype(np.float32))


def _config():
  # Settings of all variants together: each reads those it knows.
  return ml_collections.ConfigDict(dict(
      hidden=(8,), latent_dim=D, commitment=.25, next_residual='sg',
      reduction='mean', sinkhorn_epsilon=.003, sinkhorn_steps=50, start_rows=0,
      kmeans_steps=10, revive=True, contrast_weight=.1,
      reconstruction_weight=1., alignment_weight=.1, diversity_weight=.1,
      num_clusters=2, balance='prices', fields=(), dim=D,
      num_levels=L, codebook_size=K, assignment='gumbel_st',
      forward_code='mixed', tau=.5, usage_ratio=1., usage_momentum=.99,
      ema_decay=.99, commit_weight=.25, book_weight=1., slack=1.25, margin=.5,
      ste_recall=False, cut_path=False))


@pytest.fixture(name='world', params=NAMES, scope='module')
def _world(request):
  """Returns (tokenizer, params, codebook, vectors) of one variant."""
  tokenizer = tokenizers.get(request.param).make(_config(), _spec())
  x = jax.random.normal(jax.random.key(5), (V, D))
  params, codebook = jax.jit(tokenizer.init)(jax.random.key(0), x)
  if tokenizer.fit is not None:
    params, codebook = tokenizer.fit(
        0, params, codebook, np.asarray(x), **_inputs())
  params, codebook = jax.tree.map(jnp.asarray, (params, codebook))
  tokenizer = tokenizer._replace(
      init=jax.jit(tokenizer.init),
      encode=jax.jit(
          tokenizer.encode, static_argnames=('train', 'axis_name')),
      loss=tokenizer.loss and jax.jit(
          tokenizer.loss, static_argnames='axis_name'),
      update=jax.jit(tokenizer.update, static_argnames='axis_name'))
  return tokenizer, params, codebook, x


def _shapes(tree):
  return jax.tree.map(lambda a: (np.shape(a), np.asarray(a).dtype.name), tree)


def test_every_module_with_make_is_found():
  modules = {m.name for m in pkgutil.iter_modules(tokenizers.__path__)}
  assert set(NAMES) <= modules
  assert {'dig', 'rqvae', 'cost', 'letter', 'rqkmeans', 'random',
          'category'} <= set(NAMES)
  assert {'base', 'balance', 'noise', 'residual', 'kmeans',
          'lookup'}.isdisjoint(NAMES)


def test_get_lists_what_there_is():
  with pytest.raises(types.InputError, match='dig') as error:
    tokenizers.get('digg')
  assert 'tokenizer.name' in str(error.value)
  assert '\n' not in str(error.value)
  with pytest.raises(types.InputError):
    tokenizers.get('base')


@pytest.mark.parametrize('name', NAMES)
def test_make_refuses_a_catalog_too_large(name):
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    tokenizers.get(name).make(_config(), _spec(K**L + 1))


def test_static_facts(world):
  tokenizer = world[0]
  assert isinstance(tokenizer, base.Tokenizer)
  assert len(tokenizer.codebook_sizes) == tokenizer.num_levels
  assert all(isinstance(k, int) for k in tokenizer.codebook_sizes)
  parameters = inspect.signature(tokenizer.encode).parameters
  assert {'key', 'item', 'noise', 'live', 'train',
          'axis_name'} <= set(parameters)
  assert tokenizer.loss is not None or tokenizer.fit is not None


def test_init_and_fit_agree_on_shapes(world):
  tokenizer, params, codebook, x = world
  first = tokenizer.init(jax.random.key(0), x[:B])
  assert _shapes(first) == _shapes((params, codebook))


def test_stored_codes(world):
  tokenizer, _, codebook, _ = world
  codes = np.asarray(tokenizer.codes(codebook))
  assert codes.shape == (V, tokenizer.num_levels)
  assert codes.dtype == np.int32
  assert (codes >= 0).all()
  assert (codes < np.array(tokenizer.codebook_sizes)).all()


def test_encode_reads_the_stored_codes_without_noise(world):
  tokenizer, params, codebook, x = world
  item = jnp.arange(B) % 7
  for settings in (dict(), dict(key=jax.random.key(1), noise=0.)):
    output = tokenizer.encode(
        params, codebook, x[item], item=item, **settings)
    np.testing.assert_array_equal(
        output.codes, tokenizer.codes(codebook)[item])


@pytest.mark.parametrize('known', [True, False])
def test_encode_shapes_and_prefix(world, known):
  tokenizer, params, codebook, x = world
  item = jnp.arange(B) if known else None
  if not known and tokenizer.prefix is None:
    with pytest.raises(ValueError, match='unknown items'):
      tokenizer.encode(params, codebook, x[:B])
    return
  output = tokenizer.encode(
      params, codebook, x[:B], key=jax.random.key(1), item=item, noise=.5)
  num_levels = tokenizer.num_levels
  assert output.codes.shape == (B, num_levels)
  assert output.codes.dtype == jnp.int32
  width = 0 if tokenizer.prefix is None else D
  assert output.quantized.shape == (B, num_levels, width)
  assert output.residuals.shape[:2] == (B, num_levels)
  assert output.logits.shape[:2] == (B, num_levels)
  assert output.quantized.dtype == jnp.float32
  for leaf in jax.tree.leaves(output.aux):
    assert leaf.shape[0] == B
  for level in range(num_levels if width else 0):
    np.testing.assert_allclose(
        tokenizer.prefix(params, output.codes[:, :level + 1]),
        output.quantized[:, level], atol=1e-6)


def test_reconstruct_is_what_the_codes_say(world):
  tokenizer, params, codebook, x = world
  codes = np.asarray(tokenizer.codes(codebook))
  if tokenizer.reconstruct is None:
    pytest.skip('The codes of this variant do not say what the vector was.')
  decoded = tokenizer.reconstruct(params, codes)
  assert isinstance(decoded, np.ndarray) and decoded.shape == x.shape
  alike = tokenizer.reconstruct(params, codes[[3, 3, 5]])
  np.testing.assert_allclose(alike, decoded[[3, 3, 5]], atol=1e-6)


def _trained(world):
  if world[0].loss is None:
    pytest.skip('This variant is fitted, not trained.')
  return world


def test_loss_is_per_example_and_finite(world):
  tokenizer, params, codebook, x = _trained(world)
  item = jnp.arange(B)
  output = tokenizer.encode(params, codebook, x[:B], item=item, train=True)
  per_example, metrics = tokenizer.loss(
      params, codebook, x[:B], output, item=item, key=jax.random.key(1))
  for value in (per_example, *metrics.values()):
    assert value.shape == (B,) and np.isfinite(value).all()


def test_loss_on_one_device_and_on_four(world):
  tokenizer, params, codebook, x = _trained(world)
  item = jnp.arange(B) % 20  # Some items twice, on different devices.

  def loss(params, item, axis_name):
    key = jax.random.key(1)
    output = tokenizer.encode(
        params, codebook, x[item], item=item, key=key, train=True,
        axis_name=axis_name)
    per_example, _ = tokenizer.loss(
        params, codebook, x[item], output, item=item, key=key,
        axis_name=axis_name)
    return jnp.sum(per_example), per_example

  @jax.jit
  def both():  # One program, or most of the time goes into compiling two.
    grad = jax.grad(loss, has_aux=True)
    return grad(params, item, None), jax.vmap(
        lambda i: grad(params, i, 'device'), axis_name='device')(
            item.reshape(4, -1))

  (one, want), (four, got) = both()
  np.testing.assert_allclose(got.reshape(-1), want, rtol=1e-4, atol=1e-5)
  total = jax.tree.map(lambda g: g.sum(0), four)
  for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(one)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  assert any(np.any(g) for g in jax.tree.leaves(one))


def test_same_key_same_codes_on_one_device_and_on_four(world):
  tokenizer, params, codebook, x = world
  item, mask = jnp.arange(B) % 9, jnp.ones(B)

  def step(item, mask, axis_name):
    output = tokenizer.encode(
        params, codebook, x[item], key=jax.random.key(3), item=item, noise=1.)
    return output.codes, tokenizer.update(
        codebook, output, mask=mask, axis_name=axis_name)

  codes, one = step(item, mask, None)
  for i in range(9):  # One item, one code.
    assert len(np.unique(np.asarray(codes)[np.asarray(item) == i], axis=0)) == 1
  assert _shapes(one) == _shapes(codebook)
  split, four = jax.vmap(lambda i, m: step(i, m, 'device'), axis_name='device')(
      item.reshape(4, -1), mask.reshape(4, -1))
  np.testing.assert_array_equal(split.reshape(codes.shape), codes)
  for got, want in zip(jax.tree.leaves(four), jax.tree.leaves(one)):
    assert (got == got[:1]).all()
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_refresh_keeps_shapes(world):
  tokenizer, params, codebook, x = world
  if tokenizer.refresh is None:
    pytest.skip('This variant has no refresh.')
  new, metrics = tokenizer.refresh(params, codebook, np.asarray(x))
  assert _shapes(new) == _shapes(codebook)
  assert 0 <= metrics['tokenizer/churn'] <= 1


def test_fit_is_deterministic(world):
  tokenizer, params, codebook, x = world
  first, second = (
      tokenizer.fit(3, params, codebook, np.asarray(x), **_inputs())
      for _ in range(2))
  chex.assert_trees_all_equal(first, second)


def test_tend_keeps_shapes_and_stored_codes(world):
  tokenizer, params, codebook, x = world
  if tokenizer.tend is None:
    pytest.skip('This variant has no work between epochs.')
  given = jax.tree.map(np.asarray, (params, codebook))
  *new, metrics = tokenizer.tend(0, 1, *given, np.asarray(x))
  assert _shapes(tuple(new)) == _shapes(given)
  np.testing.assert_array_equal(
      tokenizer.codes(new[1]), tokenizer.codes(codebook))
  assert all(np.isfinite(value) for value in metrics.values())
  again = tokenizer.tend(0, 1, *given, np.asarray(x))
  chex.assert_trees_all_equal(again[:2], tuple(new))


def test_last_level_is_what_encode_leaves(world):
  tokenizer, params, codebook, x = world
  if tokenizer.last_level is None:
    pytest.skip('This variant has no last level to choose again.')
  residual, book = tokenizer.last_level(params, codebook, np.asarray(x))
  output = tokenizer.encode(params, codebook, x, item=jnp.arange(V))
  np.testing.assert_allclose(residual, output.residuals[:, -1], atol=1e-5)
  assert book.shape == (tokenizer.codebook_sizes[-1], residual.shape[1])
  dist = np.square(residual[:, None] - book[None]).sum(-1)
  np.testing.assert_allclose(-output.logits[:, -1], dist, atol=1e-4)
