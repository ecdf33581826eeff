"""One suite over every tokenizer variant that the package holds."""

import inspect
import pkgutil

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
  return types.DataSpec(
      num_items=num_items, num_users=1, items=types.FeatureSpec(),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)


def _config():
  # Settings of all variants together: each reads those it knows.
  return ml_collections.ConfigDict(dict(
      dim=D, num_levels=L, codebook_size=K, assignment='gumbel_st',
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
    params, codebook = tokenizer.fit(0, params, codebook, np.asarray(x))
  params, codebook = jax.tree.map(jnp.asarray, (params, codebook))
  tokenizer = tokenizer._replace(
      init=jax.jit(tokenizer.init), encode=jax.jit(tokenizer.encode),
      update=jax.jit(tokenizer.update, static_argnames='axis_name'))
  return tokenizer, params, codebook, x


def _shapes(tree):
  return jax.tree.map(lambda a: (np.shape(a), np.asarray(a).dtype.name), tree)


def test_every_module_with_make_is_found():
  modules = {m.name for m in pkgutil.iter_modules(tokenizers.__path__)}
  assert 'dig' in NAMES and set(NAMES) <= modules
  assert {'base', 'balance', 'noise'}.isdisjoint(NAMES)


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
  assert {'key', 'item', 'noise', 'live'} <= set(parameters)


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
  output = tokenizer.encode(
      params, codebook, x[:B], key=jax.random.key(1), item=item, noise=.5)
  num_levels = tokenizer.num_levels
  assert output.codes.shape == (B, num_levels)
  assert output.codes.dtype == jnp.int32
  assert output.quantized.shape == (B, num_levels, D)
  assert output.residuals.shape[:2] == (B, num_levels)
  assert output.logits.shape[:2] == (B, num_levels)
  assert output.quantized.dtype == jnp.float32
  for leaf in jax.tree.leaves(output.aux):
    assert leaf.shape[0] == B
  for level in range(num_levels):
    np.testing.assert_allclose(
        tokenizer.prefix(params, output.codes[:, :level + 1]),
        output.quantized[:, level], atol=1e-6)


def test_loss_is_per_example_and_finite(world):
  tokenizer, params, codebook, x = world
  output = tokenizer.encode(params, codebook, x[:B], item=jnp.arange(B))
  per_example, metrics = tokenizer.loss(params, codebook, x[:B], output)
  for value in (per_example, *metrics.values()):
    assert value.shape == (B,) and np.isfinite(value).all()


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
