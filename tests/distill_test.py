"""Tests of `sidrec.distill` against NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec import distill


def _data(num_rows=48, num_levels=3, num_codes=3, width=2, seed=0):
  rng = np.random.default_rng(seed)
  values = rng.normal(size=(num_rows, width)).astype(np.float32)
  codes = rng.integers(num_codes, size=(num_rows, num_levels)).astype(np.int32)
  mask = (rng.random(num_rows) < .7).astype(np.float32)
  return values, codes, mask


def _bucket_mean_loop(values, codes, mask):
  out = np.zeros((*codes.shape, values.shape[1]))
  for i in range(len(codes)):
    for level in range(codes.shape[1]):
      rows = [j for j in range(len(codes)) if mask[j] and
              tuple(codes[j, :level + 1]) == tuple(codes[i, :level + 1])]
      if rows:
        out[i, level] = np.mean([values[j] for j in rows], axis=0)
  return out


def test_bucket_mean_equals_double_loop():
  values, codes, mask = _data()
  got = jax.jit(distill.bucket_mean, static_argnums=3)(
      values, codes, mask, None)
  np.testing.assert_allclose(
      got, _bucket_mean_loop(values, codes, mask), atol=1e-6)


def test_bucket_mean_ignores_what_masked_rows_hold():
  values, codes, mask = _data()
  broken = np.where(mask[:, None] > 0, values, np.nan).astype(np.float32)
  got = distill.bucket_mean(broken, codes, mask, None)
  np.testing.assert_allclose(
      got, _bucket_mean_loop(values, codes, mask), atol=1e-6)


def test_bucket_mean_has_no_limit_of_codes_and_levels():
  rng = np.random.default_rng(1)
  values, _, mask = _data()
  # K ** L is far beyond int64; the rows share prefixes of several lengths.
  codes = rng.integers(2**31 - 1, size=(48, 8)).astype(np.int32)
  codes[10:20, :4] = codes[10, :4]
  codes[15:30, :7] = codes[10, :7]
  np.testing.assert_allclose(
      distill.bucket_mean(values, codes, mask, None),
      _bucket_mean_loop(values, codes, mask), atol=1e-6)


def test_bucket_mean_runs_over_all_devices():
  values, codes, mask = _data()
  one = distill.bucket_mean(values, codes, mask, None)
  split = lambda v: v.reshape(4, -1, *v.shape[1:])
  four = jax.vmap(
      lambda *a: distill.bucket_mean(*a, 'device'), axis_name='device')(
          split(values), split(codes), split(mask))
  np.testing.assert_allclose(four.reshape(one.shape), one, atol=1e-6)


def test_bucket_mean_passes_no_gradient():
  values, codes, mask = _data()
  grad = jax.grad(
      lambda v: jnp.sum(distill.bucket_mean(v, codes, mask, None)))(values)
  np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize('p_mix', [0., .3, 1.])
def test_mix_takes_predictions_at_the_rate(p_mix):
  keys = jax.random.split(jax.random.key(0), 2000)
  u2t, predicted = jnp.zeros((2000, 3, 2)), jnp.ones((2000, 3, 2))
  got = np.asarray(jax.jit(distill.mix)(keys, u2t, predicted, p_mix))
  assert (got[..., 0] == got[..., 1]).all()  # A vector is taken as a whole.
  assert abs(got.mean() - p_mix) < .02
  if 0 < p_mix < 1:
    assert len(np.unique(got[..., 0], axis=0)) == 8  # Levels draw on their own.


def test_mix_depends_on_the_row_key_only():
  keys = jax.random.split(jax.random.key(0), 8)
  u2t, predicted = jnp.zeros((8, 3, 2)), jnp.ones((8, 3, 2))
  both = distill.mix(keys, u2t, predicted, .5)
  half = distill.mix(keys[4:], u2t[4:], predicted[4:], .5)
  np.testing.assert_array_equal(both[4:], half)
  grad = jax.grad(lambda p: jnp.sum(distill.mix(keys, u2t, p, .5)))(predicted)
  np.testing.assert_array_equal(grad, 0)


def test_u2t_loss_is_a_mean_square_per_example():
  predicted = jnp.array([[[1., 2.], [0., 0.]]])
  target = jnp.array([[[0., 0.], [3., 1.]]])
  np.testing.assert_allclose(
      distill.u2t_loss(predicted, target), [[2.5, 5.]])
  grad = jax.grad(
      lambda t: jnp.sum(distill.u2t_loss(predicted, t)))(target)
  np.testing.assert_array_equal(grad, 0)


def test_prefix_negative_mask_equals_loop():
  rng = np.random.default_rng(0)
  codes = rng.integers(2, size=(6, 5, 3)).astype(np.int32)
  label = np.zeros((6, 5), np.float32)
  label[:, 0] = 1
  label[1, 3] = 1  # A second positive is always kept.
  label[2, 0] = 0  # A row with no positive loses nothing.
  want = np.ones((6, 5, 3))
  for b in range(6):
    for c in range(5):
      for level in range(3):
        same = (codes[b, c, :level + 1] == codes[b, 0, :level + 1]).all()
        if label[b, 0] == 1 and label[b, c] == 0 and same:
          want[b, c, level] = 0
  got = np.asarray(distill.prefix_negative_mask(codes, label))
  np.testing.assert_array_equal(got, want)
  assert 0 < got[3:, 1:].mean() < 1 and (got[3:, 0] == 1).all()


def test_masked_negatives_have_no_gradient():
  codes = jnp.array([[[1, 0], [1, 2], [0, 0]]])
  label = jnp.array([[1., 0., 0.]])
  keep = distill.prefix_negative_mask(codes, label)
  grad = jax.grad(lambda y: jnp.sum(keep * jax.nn.softplus(y)))(
      jnp.zeros((1, 3, 2)))
  np.testing.assert_array_equal(np.asarray(grad) != 0, [
      [[True, True], [False, True], [True, True]]])
