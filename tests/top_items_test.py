"""Tests retrieval by inner products against sorting all scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec import decode
from sidrec import types

_V, _D, _B = 23, 4, 3


def _world():
  rng = np.random.default_rng(0)
  # Whole numbers: sums are exact, and many scores tie.
  return (rng.integers(-2, 3, (_B, _D)).astype(np.float32),
          rng.integers(-2, 3, (_V, _D)).astype(np.float32))


def _sorted(score, k):
  item = np.argsort(-score, axis=1, kind='stable')[:, :k]
  return item, np.take_along_axis(score, item, 1)


@pytest.mark.parametrize('k', [1, 7, _V])
@pytest.mark.parametrize('block', [1, 5, 8, _V, 100])
def test_every_block_and_length_gives_the_sorted_scores(k, block):
  query, table = _world()
  item, score = _sorted(query @ table.T, k)
  beams = jax.jit(decode.top_items, static_argnums=(2, 3))(
      query, table, k, block)
  np.testing.assert_array_equal(beams.item, item)
  np.testing.assert_array_equal(beams.score, score)
  assert beams.code.shape == (_B, k, 0) and np.asarray(beams.mask).all()


@pytest.mark.parametrize('value', [2., -3., -np.inf])
def test_a_bias_counts_once_an_item(value):
  query, table = _world()
  seen = np.array([[4, 9, 4, 0], [0, 22, 22, 22], [0, 0, 0, 0]], np.int32)
  valid = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
  score = query @ table.T
  for row in range(_B):
    score[row, np.unique(seen[row, valid[row]])] += value
  item, score = _sorted(score, 20)
  beams = decode.top_items(
      query, table, 20, 6, (seen, np.where(valid, value, 0.)))
  np.testing.assert_array_equal(beams.item, item)
  np.testing.assert_array_equal(beams.score, score)


def test_long_blocks_and_real_scores():
  rng = np.random.default_rng(1)
  query, table = rng.normal(size=(2, 8)), rng.normal(size=(3000, 8))
  item, score = _sorted(query @ table.T, 10)
  beams = decode.top_items(
      jnp.float32(query), jnp.float32(table), 10, 1024)
  np.testing.assert_array_equal(beams.item, item)
  np.testing.assert_allclose(beams.score, score, rtol=1e-5)


@pytest.mark.parametrize('k, block', [(0, 4), (_V + 1, 4), (3, 0)])
def test_what_cannot_be_is_refused(k, block):
  with pytest.raises(types.InputError, match='must'):
    decode.top_items(*_world(), k, block)
