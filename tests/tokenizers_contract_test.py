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
from sidrec.tokenizers import walk

V, D, B, L = 40, 6, 24, 3
SIZES = (4, 3, 5)  # Unequal: one K for all levels would show.
NAMES = tokenizers.names()
ITEM, KEY = jnp.arange(B), jax.random.key(3)


def _spec(num_items=V):
  field = lambda name, at, size: types.Field(
      name, types.Role.ITEM_STATIC, 'category', at, at + 1, size)
  items = types.FeatureSpec(
      fields=(field('leaf', 0, 3), field('top', 1, 2)), vocabulary=6,
      num_slots=2)
  return types.DataSpec(
      num_items=num_items, num_users=1, items=items,
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1, vector_dim=D)


def _items(tokenizer=None, params=None, seed=5):
  row = np.arange(V)  # Categories 0 (missing) to 3, and 0 to 2.
  ids = np.stack([row % 4, np.where(row % 3, row % 3 + 3, 0)], 1)
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(V, D)).astype(np.float32)
  items = base.Items(
      ids=row, vectors=x, popularity=np.ones(V, np.float32),
      features=types.FeatureTable(ids=ids.astype(np.int32)),
      collaborative=rng.normal(size=(V, D)).astype(np.float32))
  if params is not None:
    items = items._replace(latents=np.asarray(tokenizer.latent(params, x)))
  return items


def _config(name, **settings):
  # Settings of all variants together: each reads those it knows.
  config = dict(
      name=name, num_levels=L,
      codebook_size=SIZES[-1] if name == 'category' else SIZES,
      hidden=(8,), latent_dim=D, commitment=.25, next_residual='sg',
      reduction='mean', sinkhorn_epsilon=.003, sinkhorn_steps=50, start_rows=0,
      kmeans_steps=10, revive=True, contrast_weight=.1,
      reconstruction_weight=1., alignment_weight=.1, diversity_weight=.1,
      num_clusters=1, balance='none', fields=(), assignment='gumbel_st',
      forward_code='mixed', tau=.5, usage_ratio=1., usage_momentum=.99,
      ema_decay=.99, commit_weight=.25, book_weight=1., slack=1.25, margin=.5,
      ste_recall=False, cut_path=False)
  return ml_collections.ConfigDict({**config, **settings})


def _make(name, num_items=V, **settings):
  return tokenizers.make(_config(name, **settings), _spec(num_items))


KINDS = {name: type(_make(name)) for name in NAMES}
TABLES = [name for name in NAMES if KINDS[name] is base.Table]
TRAVELLERS = [name for name in NAMES if KINDS[name] is base.Tokenizer]


class World:
  """A started tokenizer, jitted, and codes of its catalog."""

  def __init__(self, name):
    self.plain = tokenizer = _make(name)
    first = jax.jit(tokenizer.init, static_argnums=1)(jax.random.key(0), D)
    self.first = first
    params, variables, codes = tokenizer.start(
        0, *first, _items(tokenizer, first[0]))
    self.given = params, variables
    self.params, self.variables = jax.tree.map(jnp.asarray, self.given)
    self.items = _items(tokenizer, self.params)
    if codes is None:
      codes, _ = tokenizer.assign(*self.given, self.items, None)
    self.codes = codes
    self.x = jnp.asarray(self.items.vectors)
    self.z = jnp.asarray(self.items.latents)
    self.tok = tokenizer._replace(
        quantize=jax.jit(
            tokenizer.quantize, static_argnames=('train', 'axis_name')),
        loss=tokenizer.loss and jax.jit(
            tokenizer.loss, static_argnames='axis_name'),
        read=jax.jit(tokenizer.read, static_argnames='live'))


@pytest.fixture(name='world', params=TRAVELLERS, scope='module')
def _world(request):
  return World(request.param)


def _shapes(tree):
  return jax.tree.map(lambda a: (np.shape(a), np.asarray(a).dtype.name), tree)


def _explore(item=ITEM, sigma=1.):
  return base.Explore(item, KEY, jnp.float32(sigma))


def _check_codes(codes, sizes, num=V):
  assert isinstance(codes, np.ndarray) and codes.dtype == np.int32
  assert codes.shape == (num, len(sizes))
  assert (codes >= 0).all() and (codes < np.array(sizes)).all()


def test_every_module_with_make_is_found():
  modules = {m.name for m in pkgutil.iter_modules(tokenizers.__path__)}
  assert set(NAMES) <= modules
  assert {'dig', 'rqvae', 'cost', 'letter', 'rqkmeans'} <= set(TRAVELLERS)
  assert {'random', 'category', 'pq'} <= set(TABLES)
  assert {'base', 'checks', 'walk', 'transport', 'tree', 'residual',
          'kmeans'}.isdisjoint(NAMES)


def test_get_lists_what_there_is():
  with pytest.raises(types.InputError, match='dig') as error:
    tokenizers.get('digg')
  assert 'tokenizer.name' in str(error.value)
  assert '\n' not in str(error.value)
  with pytest.raises(types.InputError):
    tokenizers.get('base')


def test_a_setting_that_is_not_there_is_named():
  config = _config('rqvae')
  del config.latent_dim
  with pytest.raises(types.InputError, match='rqvae.*latent_dim') as error:
    tokenizers.make(config, _spec())
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', NAMES)
def test_sizes_that_cannot_be_are_refused(name):
  capacity = int(np.prod(_make(name).sizes))
  _make(name, capacity)
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    _make(name, capacity + 1)
  with pytest.raises(types.InputError, match='tokenizer.num_levels'):
    _make(name, num_levels=0)
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    _make(name, codebook_size=1)
  with pytest.raises(types.InputError, match='tokenizer.codebook_size'):
    _make(name, codebook_size=(8, 8))  # Of three levels.


def test_one_number_is_the_size_of_all_levels():
  for name in set(NAMES) - {'category'}:
    assert _make(name, codebook_size=7).sizes == (7, 7, 7)
    assert _make(name).sizes == SIZES


@pytest.mark.parametrize('name', TABLES)
def test_tables_are_deterministic(name):
  table = _make(name)
  codes = table.fit(3, _items())
  _check_codes(codes, table.sizes)
  np.testing.assert_array_equal(codes, table.fit(3, _items()))


def test_signatures_are_those_of_the_contract(world):
  tokenizer = world.plain
  assert tokenizer.sizes == SIZES
  for field, contract in (
      ('quantize', base.QuantizeFn), ('loss', base.LossFn),
      ('read', base.ReadFn), ('update', base.UpdateFn),
      ('assign', base.AssignFn)):
    fn = getattr(tokenizer, field)
    if fn is not None:
      want = list(inspect.signature(contract.__call__).parameters)[1:]
      assert list(inspect.signature(fn).parameters) == want, field


def test_init_and_start_agree_on_shapes(world):
  assert _shapes(world.first) == _shapes(world.given)
  _check_codes(world.codes, SIZES)


def test_start_is_deterministic(world):
  first, second = (
      world.plain.start(3, *world.first, world.items) for _ in range(2))
  chex.assert_trees_all_equal(first, second)


def test_a_vector_that_is_no_items(world):
  z = jax.random.normal(jax.random.key(9), (7, world.z.shape[1]))
  path = world.tok.quantize(world.params, world.variables, z)
  chex.assert_shape(path.codes, (7, L))
  assert path.codes.dtype == jnp.int32
  assert [d.shape for d in path.distances] == [(7, k) for k in SIZES]
  chex.assert_shape([path.residuals, path.words], (7, L, z.shape[1]))
  np.testing.assert_allclose(path.residuals[:, 0], z)
  for level in range(L):
    np.testing.assert_array_equal(
        path.codes[:, level], np.argmin(path.distances[level], 1))
    np.testing.assert_allclose(
        path.distances[level][jnp.arange(7), path.codes[:, level]],
        np.square(path.residuals[:, level] - path.words[:, level]).sum(-1),
        atol=1e-4)
    if level:
      np.testing.assert_allclose(
          path.residuals[:, level],
          path.residuals[:, level - 1] - path.words[:, level - 1], atol=1e-6)


def test_jit_or_not_is_the_same(world):
  given = world.params, world.variables, world.z[:B]
  settings = dict(stored=jnp.asarray(world.codes[:B]), explore=_explore())
  chex.assert_trees_all_close(
      world.tok.quantize(*given, **settings),
      world.plain.quantize(*given, **settings), atol=1e-4)


def test_stored_codes_are_read_back(world):
  stored = jnp.asarray((world.codes[:B] + 1) % np.array(SIZES))
  for settings in (dict(explore=_explore(sigma=0.)), dict(train=True)):
    path = world.tok.quantize(
        world.params, world.variables, world.z[:B], stored=stored, **settings)
    np.testing.assert_array_equal(path.codes, stored)


def test_assign_is_quantize(world):
  """On the items and on new ones; a capacity tree gives each its own."""
  codes, metrics = world.plain.assign(*world.given, world.items, world.codes)
  _check_codes(codes, SIZES)
  assert 0 <= metrics['tokenizer/churn'] <= 1
  again, silent = world.plain.assign(*world.given, world.items, None)
  assert 'tokenizer/churn' not in silent
  if world.plain.update is not None:
    assert len(np.unique(codes, axis=0)) == V
    return
  np.testing.assert_array_equal(codes, again)
  np.testing.assert_array_equal(codes, world.tok.quantize(
      world.params, world.variables, world.z).codes)
  assert metrics['tokenizer/churn'] == np.mean((codes != world.codes).any(1))
  few = base.Items(
      *(x[:9] for x in world.items[:2]), types.FeatureTable(), np.ones(9),
      latents=world.items.latents[:9])
  np.testing.assert_array_equal(
      world.plain.assign(*world.given, few, None)[0], codes[:9])


def test_read_is_the_sum_of_the_books(world):
  path = world.tok.quantize(
      world.params, world.variables, world.z[:B],
      stored=jnp.asarray(world.codes[:B]), explore=_explore())
  books = world.plain.books(world.params)
  assert [b.shape for b in books] == [(k, world.z.shape[1]) for k in SIZES]
  for settings in (dict(), dict(explore=_explore()), dict(live=False)):
    total = world.tok.read(
        world.params, world.variables, path, world.z[:B], **settings)
    for level in range(L):
      np.testing.assert_allclose(
          total[:, level], walk.prefix(books, path.codes[:, :level + 1]),
          atol=1e-5)


def test_probabilities_have_gradients_at_every_level(world):
  """Of the vector, and of the codebook that the level walks."""
  def value(params, z, level):
    path = world.plain.quantize(params, world.variables, z)
    soft, hard = walk.probabilities(path, 1.), walk.weights(path, 1.)
    pick = jnp.cos(jnp.arange(SIZES[level]))[None]
    return jnp.sum(soft[level] * pick), jnp.sum(hard[level] * pick)

  every = jax.jit(lambda params, z: [
      jax.jacrev(value, argnums=(0, 1))(params, z, level)
      for level in range(L)])(world.params, world.z[:B])
  name = 'address' if 'address' in world.params else 'books'
  for level, (soft, hard) in enumerate(every):
    chex.assert_trees_all_close(soft, hard, atol=1e-5)
    assert (np.abs(soft[1]).max(1) > 0).all()
    assert np.any(soft[0][name][level])
    assert not any(np.any(g) for g in soft[0][name][level + 1:])


def test_weights_are_the_codes(world):
  path = world.tok.quantize(world.params, world.variables, world.z[:B])
  for level, weight in enumerate(walk.weights(path, .5)):
    np.testing.assert_allclose(
        weight, np.eye(SIZES[level])[path.codes[:, level]], atol=1e-6)


def test_decode_is_what_the_codes_say(world):
  if world.plain.decode is None:
    pytest.skip('The codes of this variant do not say what the vector was.')
  zhat = walk.prefix(world.plain.books(world.given[0]), world.codes)
  decoded = world.plain.decode(world.params, zhat)
  assert decoded.shape == (V, D)
  np.testing.assert_allclose(
      world.plain.decode(world.params, zhat[jnp.array([3, 3, 5])]),
      decoded[jnp.array([3, 3, 5])], atol=1e-5)


def test_between_keeps_shapes_and_is_deterministic(world):
  if world.plain.between is None:
    pytest.skip('This variant has no work between epochs.')
  *new, metrics = world.plain.between(0, 1, *world.given, world.items)
  assert _shapes(tuple(new)) == _shapes(world.given)
  assert all(np.isfinite(value) for value in metrics.values())
  again = world.plain.between(0, 1, *world.given, world.items)
  chex.assert_trees_all_equal(again[:2], tuple(new))


def _trained(world):
  if world.plain.loss is None:
    pytest.skip('This variant is fitted, not trained.')
  return world


def test_loss_is_per_example_and_finite(world):
  tok = _trained(world).tok
  path = tok.quantize(
      world.params, world.variables, world.z[:B], train=True)
  per_example, metrics = tok.loss(
      world.params, world.variables, world.x[:B], path, item=ITEM, key=KEY)
  for value in (per_example, *metrics.values()):
    assert value.shape == (B,) and np.isfinite(value).all()


def test_loss_on_one_device_and_on_four(world):
  tokenizer, variables = _trained(world).plain, world.variables
  item = ITEM % 20  # Some items twice, on different devices.
  reads = tokenizer.update is not None  # It learns from codes that stand.
  stored = jnp.asarray(world.codes) if reads else None

  def loss(params, item, axis_name):
    own = dict(stored=None if stored is None else stored[item],
               explore=_explore(item), axis_name=axis_name)
    path = tokenizer.quantize(
        params, variables, tokenizer.latent(params, world.x[item]),
        train=True, **own)
    per_example, _ = tokenizer.loss(
        params, variables, world.x[item], path, item=item, key=KEY, **own)
    return jnp.sum(per_example), per_example

  @jax.jit
  def both():  # One program, or most of the time goes into compiling two.
    grad = jax.grad(loss, has_aux=True)
    return grad(world.params, item, None), jax.vmap(
        lambda i: grad(world.params, i, 'device'), axis_name='device')(
            item.reshape(4, -1))

  (one, want), (four, got) = both()
  np.testing.assert_allclose(got.reshape(-1), want, rtol=1e-4, atol=1e-5)
  total = jax.tree.map(lambda g: g.sum(0), four)
  for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(one)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  assert any(np.any(g) for g in jax.tree.leaves(one))


def test_same_key_same_codes_on_one_device_and_on_four(world):
  tokenizer, item, mask = world.plain, ITEM % 9, jnp.ones(B)

  def step(item, mask, axis_name):
    path = tokenizer.quantize(
        world.params, world.variables, world.z[item],
        stored=jnp.asarray(world.codes)[item], explore=_explore(item))
    new = world.variables
    if tokenizer.update is not None:
      new = tokenizer.update(new, path, mask=mask, axis_name=axis_name)
    return path.codes, new

  @jax.jit
  def both():
    return step(item, mask, None), jax.vmap(
        lambda i, m: step(i, m, 'device'), axis_name='device')(
            item.reshape(4, -1), mask.reshape(4, -1))

  (codes, one), (split, four) = both()
  for i in range(9):  # One item, one code.
    assert len(np.unique(np.asarray(codes)[np.asarray(item) == i], axis=0)) == 1
  assert _shapes(one) == _shapes(world.variables)
  np.testing.assert_array_equal(split.reshape(codes.shape), codes)
  for got, want in zip(jax.tree.leaves(four), jax.tree.leaves(one)):
    assert (got == got[:1]).all()
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_placeholders_are_distinct_where_they_fit():
  for num, sizes in ((60, SIZES), (50, (300,)), (7, (2, 2, 2))):
    codes = base.placeholder(num, sizes)
    _check_codes(codes, sizes, num)
    assert len(np.unique(codes, axis=0)) == num
    np.testing.assert_array_equal(codes, base.placeholder(num, sizes))
    assert (codes != base.placeholder(num, sizes, 1)).any()
  _check_codes(base.placeholder(61, SIZES), SIZES, 61)
