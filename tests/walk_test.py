"""The residual recursion against one written out example by example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec.tokenizers import kmeans
from sidrec.tokenizers import walk

N, D, SIZES = 24, 4, (5, 3, 7)
L = len(SIZES)


def _world(seed=0):
  rng = np.random.default_rng(seed)
  books = tuple(
      (rng.normal(size=(size, D)) * .6**level).astype(np.float32)
      for level, size in enumerate(SIZES))
  return books, rng.normal(size=(N, D)).astype(np.float32)


def _one(books, x, mode):
  """One vector, in plain steps: (codes, residuals, words, distances)."""
  sg, residual, out = jax.lax.stop_gradient, x, []
  for book in books:
    dist = jnp.sum((residual[None] - book)**2, 1)
    code = jnp.argmin(dist)
    word = book[code]
    out.append((code, residual, word, dist))
    residual = {
        'code_family': residual - (residual + sg(word - residual)),
        'paper': residual - word, 'sg': residual - sg(word)}[mode]
  codes, residuals, words, dists = zip(*out)
  return jnp.stack(codes), jnp.stack(residuals), jnp.stack(words), dists


def _readout(residuals, words, dists):
  """A number that depends on all of them, not evenly."""
  return (jnp.sum(jnp.sin(residuals) * jnp.arange(1., L + 1)[:, None])
          + jnp.sum(jnp.cos(words + .3)) + sum(
              jnp.sum(jax.nn.softmax(-d) * jnp.arange(float(d.size)))
              for d in dists))


@pytest.mark.parametrize('mode', tuple(walk.LEFT))
def test_walk_equals_the_plain_recursion_values_and_gradients(mode):
  books, x = jax.tree.map(jnp.asarray, _world())

  @jax.jit
  def ours(books, x):
    path = walk.walk(books, x, left=walk.LEFT[mode])
    return jnp.sum(jax.vmap(_readout)(
        path.residuals, path.words, path.distances)), path

  @jax.jit
  def plain(books, x):
    found = jax.vmap(functools.partial(_one, books, mode=mode))(x)
    return jnp.sum(jax.vmap(_readout)(*found[1:])), found

  (got, path), got_grad = jax.value_and_grad(ours, (0, 1), True)(books, x)
  (want, found), grad = jax.value_and_grad(plain, (0, 1), True)(books, x)
  np.testing.assert_array_equal(path.codes, found[0])
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(got_grad), jax.tree.leaves(grad)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_walk_and_descend_are_one_recursion(monkeypatch):
  monkeypatch.setattr(kmeans, 'CHUNK', 7)
  books, x = _world()
  path = jax.jit(walk.walk)(books, x)
  codes, same, rest = walk.descend(walk.to_nearest(books), x, L)
  np.testing.assert_array_equal(codes, path.codes)
  assert same == tuple(same) and all(
      a is b or (a == b).all() for a, b in zip(same, books))
  np.testing.assert_allclose(
      rest, path.residuals[:, -1] - path.words[:, -1], atol=1e-6)
  _, _, before = walk.descend(walk.along(books, codes), x, L - 1)
  np.testing.assert_allclose(before, path.residuals[:, -1], atol=1e-6)
  np.testing.assert_array_equal(x, _world()[1])  # Left as it was.


def test_descend_fits_as_it_goes():
  """Each level sees what the earlier ones left."""
  books, x = _world()
  seen = []

  def level_fn(level, rest):
    seen.append(rest.copy())
    book = rest[:SIZES[level]] * .5
    return kmeans.nearest(rest, book)[0], book

  codes, found, rest = walk.descend(level_fn, x, L)
  for level in range(L - 1):
    np.testing.assert_allclose(
        seen[level + 1], seen[level] - found[level][codes[:, level]])
  np.testing.assert_allclose(x - rest, walk.prefix(found, codes), atol=1e-6)


def test_choose_may_read_or_decide():
  books, x = _world()
  stored = np.random.default_rng(1).integers(0, SIZES, (N, L))
  path = walk.walk(books, x, walk.reading(jnp.asarray(stored)))
  np.testing.assert_array_equal(path.codes, stored)
  farthest = walk.walk(books, x, lambda level, dist: jnp.argmax(dist, -1))
  np.testing.assert_array_equal(
      farthest.codes[:, 0], np.argmax(kmeans.squared(x, books[0]), 1))


def test_sums_of_words_and_their_gradient():
  books, x = _world()
  path = walk.walk(books, x)
  for codes in (path.codes, np.asarray(path.codes).reshape(4, 6, L)):
    for length in range(1, L + 1):
      want = np.zeros((*codes.shape[:-1], D))
      for place in np.ndindex(codes.shape[:-1]):
        for level in range(length):
          want[place] += books[level][codes[place][level]]
      np.testing.assert_allclose(
          walk.prefix(books, codes[..., :length]), want, atol=1e-6)
  assert isinstance(walk.prefix(books, np.asarray(path.codes)), np.ndarray)
  total = walk.straight_through(path, x)
  for level in range(L):
    np.testing.assert_allclose(
        total[:, level], walk.prefix(books, path.codes[:, :level + 1]),
        atol=1e-6)

  def value(books, z):
    return jnp.sum(walk.straight_through(walk.walk(books, z), z), 0)[-1]

  to_books, to_z = jax.jit(jax.jacobian(value, (0, 1)))(books, x)
  assert not any(np.any(g) for g in to_books)
  for row in np.asarray(to_z).transpose(1, 0, 2):
    np.testing.assert_allclose(row, np.eye(D))


def test_probabilities_and_weights_by_hand():
  books, x = _world()
  path = walk.walk(books, x)
  for level, p in enumerate(walk.probabilities(path, .5)):
    dist = np.square(np.asarray(path.residuals)[:, level, None]
                     - books[level][None]).sum(-1)
    want = np.exp(-dist / .5)
    np.testing.assert_allclose(
        p, want / want.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        walk.weights(path, .5)[level],
        np.eye(SIZES[level])[np.asarray(path.codes)[:, level]], atol=1e-6)
