"""Losses and host work of CoST and LETTER against NumPy and by hand."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from scipy import special

from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import cost
from sidrec.tokenizers import letter
from sidrec.tokenizers import noise
from sidrec.tokenizers import residual

V, D, WIDTH = 48, 8, 4
SIZES = (12, 9)
# Compiled whole: op by op takes longer than all else here.
_in_batch = jax.jit(cost.contrast, static_argnames='tau')
_gumbel = jax.jit(noise.gumbel, static_argnums=2)
_decoded = jax.jit(residual.decoded)
_diversity = jax.jit(letter._diversity)
KEY, ITEM = jax.random.key(3), jnp.arange(V)


_SPEC = types.DataSpec(
    num_items=V, num_users=1, items=types.FeatureSpec(),
    request=types.FeatureSpec(), cross_names=(), num_actions=1,
    history_length=1)


def _config(name, **settings):
  return ml_collections.ConfigDict({**dict(
      name=name, hidden=(6,), latent_dim=WIDTH, num_levels=2,
      codebook_size=SIZES, commitment=.25, next_residual='code_family',
      reduction='mean', sinkhorn_epsilon=0., sinkhorn_steps=50, start_rows=0,
      kmeans_steps=10, revive=False, contrast_weight=.1, tau=.1,
      reconstruction_weight=0., alignment_weight=.1, diversity_weight=.01,
      num_clusters=3), **settings})


@functools.lru_cache(None)
def _fitted(name, **settings):
  """Returns (tokenizer, params, variables, vectors, items)."""
  tokenizer = tokenizers.make(_config(name, **settings), _SPEC)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(V, D)).astype(np.float32)
  h = rng.normal(size=(V, WIDTH)).astype(np.float32)
  params, variables = jax.jit(
      tokenizer.init, static_argnums=1)(jax.random.key(0), D)
  items = base.Items(
      np.arange(V), x, types.FeatureTable(), np.ones(V), h,
      np.asarray(jax.jit(tokenizer.latent)(params, x)))
  params, variables, _ = tokenizer.start(0, params, variables, items)
  params, variables = jax.tree.map(jnp.asarray, (params, variables))
  return tokenizer._replace(
      quantize=jax.jit(
          tokenizer.quantize, static_argnames=('train', 'axis_name')),
      loss=jax.jit(tokenizer.loss)), params, variables, jnp.asarray(x), items


def _quantized(tokenizer, params, variables, x):
  return tokenizer.quantize(
      params, variables, tokenizer.latent(params, x), train=True)


def _log_softmax(logits):
  return logits - special.logsumexp(logits, 1, keepdims=True)


def test_contrast_is_log_b_for_identical_candidates():
  anchor = jnp.asarray(np.random.default_rng(0).normal(
      size=(16, D)), jnp.float32)
  loss = _in_batch(anchor, jnp.ones((16, D)), tau=.1)
  np.testing.assert_allclose(loss, np.log(16), rtol=1e-5)


def test_contrast_has_a_direction():
  rng = np.random.default_rng(1)
  a, b = (rng.normal(size=(9, D)) for _ in range(2))
  forward, back = (
      _in_batch(*(jnp.asarray(v, jnp.float32) for v in pair), tau=.5)
      for pair in ((a, b), (b, a)))
  np.testing.assert_allclose(
      forward, -np.diag(_log_softmax(a @ b.T / .5)), rtol=1e-4)
  np.testing.assert_allclose(
      back, -np.diag(_log_softmax(b @ a.T / .5)), rtol=1e-4)
  assert np.abs(np.mean(forward) - np.mean(back)) > .01


def test_contrast_keeps_an_item_from_being_its_own_negative():
  rng = np.random.default_rng(2)
  a = jnp.asarray(rng.normal(size=(5, D)), jnp.float32)
  twice = jnp.concatenate([a, a])
  want = _in_batch(a, a, tau=1.)
  got = _in_batch(twice, twice, tau=1., item=jnp.arange(10) % 5)
  plain = _in_batch(twice, twice, tau=1.)
  # Negatives stand twice, the positive once.
  logits = np.asarray(a @ a.T, np.float64)
  own = np.diag(logits)
  rest = np.where(np.eye(5), -np.inf, logits)
  hand = np.logaddexp(
      own, np.log(2) + special.logsumexp(rest, 1)) - own
  np.testing.assert_allclose(got[:5], hand, rtol=1e-4, atol=1e-5)
  assert (plain[:5] > got[:5]).all() and (got[:5] > want).all()


def test_unit_of_zeros_has_a_finite_gradient():
  grad = jax.grad(lambda v: cost.unit(v).sum())(jnp.zeros((2, 3)))
  assert np.isfinite(grad).all()


@pytest.mark.parametrize('reconstruction_weight', [0., 1.])
def test_cost_loss_equals_numpy(reconstruction_weight):
  tokenizer, params, variables, x, _ = _fitted(
      'cost', reconstruction_weight=reconstruction_weight)
  path = _quantized(tokenizer, params, variables, x)
  got, metrics = tokenizer.loss(params, variables, x, path)
  decoded = np.asarray(_decoded(params, path), np.float64)
  length = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
  cosine = length(np.asarray(x, np.float64)) @ length(decoded).T
  own = -np.diag(_log_softmax(cosine / .1))
  np.testing.assert_allclose(metrics['contrast'], own, rtol=1e-3)
  error = np.square(decoded - np.asarray(x)).mean(1)
  np.testing.assert_allclose(
      got, .1 * own + reconstruction_weight * error + metrics['quantization'],
      rtol=1e-4)


def test_letter_loss_equals_numpy():
  tokenizer, params, variables, x, items = _fitted('letter')
  path = _quantized(tokenizer, params, variables, x)
  got, metrics = tokenizer.loss(
      params, variables, x, path, item=ITEM, key=KEY)
  codes = np.asarray(path.codes)
  books = [np.asarray(book, np.float64) for book in params['books']]
  total = sum(book[codes[:, level]] for level, book in enumerate(books))
  h = items.collaborative.astype(np.float64)
  alignment = -np.diag(_log_softmax(total @ h.T))
  np.testing.assert_allclose(metrics['alignment'], alignment, rtol=1e-3)
  gumbel = [np.asarray(g) for g in _gumbel(KEY, ITEM, SIZES)]
  diversity = np.zeros((V, len(SIZES)))
  for i in range(V):
    for level, book in enumerate(books):
      c, cluster = codes[i, level], np.asarray(variables['cluster'][level])
      same = [k for k in range(SIZES[level])
              if k != c and cluster[k] == cluster[c]]
      other = same[np.argmax(gumbel[level][i, same])]
      logits = book @ book[c]
      diversity[i, level] = special.logsumexp(
          np.delete(logits, c)) - logits[other]
  np.testing.assert_allclose(
      metrics['diversity'], diversity.mean(1), rtol=1e-3)
  want = (metrics['reconstruction'] + metrics['quantization']
          + .1 * alignment + .01 * diversity.mean(1))
  np.testing.assert_allclose(got, want, rtol=1e-3)


def test_letter_needs_collaborative_vectors_that_fit():
  tokenizer, params, variables, x, items = _fitted('letter')
  with pytest.raises(types.InputError, match='collaborative'):
    tokenizer.start(
        0, params, variables, items._replace(collaborative=None))
  with pytest.raises(types.InputError, match='tokenizer.latent_dim: 4'):
    tokenizer.start(0, params, variables, items._replace(
        collaborative=items.collaborative[:, :3]))
  path = _quantized(tokenizer, params, variables, x)
  with pytest.raises(ValueError, match='item ids and a key'):
    tokenizer.loss(params, variables, x, path, item=ITEM)
  with pytest.raises(types.InputError, match='tokenizer.num_clusters'):
    tokenizers.make(_config('letter', num_clusters=5), _SPEC)  # 9 // 2 < 5.


def test_letter_gradients_reach_whom_they_should():
  """L_cf moves the encoder and no codeword; L_div codewords, not latents."""
  tokenizer, params, variables, x, _ = _fitted('letter')
  s = residual.settings(_config('letter'), _SPEC)

  @jax.jit
  def grad(alignment, diversity):
    def loss(params):
      path = _quantized(tokenizer, params, variables, x)
      weights = letter._Weights(alignment, diversity, 3)
      return letter._loss(
          s, weights, params, variables, x, path, item=ITEM, key=KEY
          )[0].mean()
    return jax.grad(loss)(params)

  grads = dict(both=grad(.1, .01), no_cf=grad(0., .01), no_div=grad(.1, 0.))
  gap = lambda name, part: max(jax.tree.leaves(jax.tree.map(
      lambda a, b: float(np.abs(a - b).max()),
      grads['both'][part], grads[name][part])))
  assert gap('no_cf', 'encoder') > 1e-4 and gap('no_cf', 'books') == 0
  assert gap('no_div', 'encoder') == 0 and gap('no_div', 'books') > 1e-5


def test_diversity_never_draws_the_code_itself():
  """A cluster of two has one candidate; a cluster of one has none."""
  books = jnp.asarray(np.random.default_rng(0).normal(
      size=(1, 5, WIDTH)), jnp.float32)
  clusters = jnp.asarray([[0, 0, 1, 1, 2]], jnp.int32)
  codes = jnp.arange(5, dtype=jnp.int32)[:, None]
  logits = np.asarray(books[0] @ books[0].T, np.float64)
  for draw in range(20):
    gumbel = _gumbel(jax.random.key(draw), jnp.arange(5), (5,))
    got = _diversity(books, clusters, codes, gumbel)
    for c, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
      want = special.logsumexp(np.delete(logits[c], c)) - logits[c, other]
      np.testing.assert_allclose(got[c, 0], want, rtol=1e-4)
    assert got[4, 0] == 0


def test_bounds_are_those_of_the_published_code():
  assert letter.word_bounds(256, 10) == (10, 60)
  for num_items, low in ((12101, 23), (9922, 19), (20033, 39), (100000, 50)):
    assert letter.item_bounds(num_items, 256)[0] == low
    assert letter.item_bounds(num_items, 256)[1] >= 4 * low
  for num_items in (100, 1000, 12101, 10**6):  # Always enough room.
    low, high = letter.item_bounds(num_items, 256)
    assert 256 * low <= num_items <= 256 * high
  for num_codes in (4, 12, 64, 256, 1024):
    low, high = letter.word_bounds(num_codes, 2)
    assert 2 <= low and 2 * low <= num_codes <= 2 * high


def test_clusters_of_codewords_are_within_bounds_and_found_again():
  tokenizer, params, variables, _, items = _fitted('letter')
  moved = dict(params, books=tuple(
      book[::-1] * 2. for book in params['books']))
  _, new, found = tokenizer.between(0, 1, moved, variables, items)
  for level, size in enumerate(SIZES):
    low, high = letter.word_bounds(size, 3)
    for clusters in (variables['cluster'], new['cluster']):
      count = np.bincount(clusters[level], minlength=3)
      assert low <= count.min() and count.max() <= high
  assert any(np.any(a != b)
             for a, b in zip(new['cluster'], variables['cluster']))
  assert found['tokenizer/largest_cluster'] <= letter.word_bounds(12, 3)[1]
