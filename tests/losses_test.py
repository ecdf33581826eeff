"""Tests the losses against literal values, under every chex variant."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import losses
from sidrec import types


def setUpModule():
  jax.config.update('jax_numpy_rank_promotion', 'raise')


def tearDownModule():
  jax.config.update('jax_numpy_rank_promotion', 'allow')


class LossesTest(chex.TestCase):

  @chex.all_variants()
  def test_sigmoid_bce(self):
    logits = jnp.array([[0., 2., -2.], [20., 1000., -1000.]])
    labels = jnp.array([[1., 0., .25], [1., 1., 1.]])
    got = self.variant(losses.sigmoid_bce)(logits, labels)
    # log 2; log(1 + e^2); .25 log(1 + e^2) + .75 log(1 + e^-2).
    want = np.array([[0.6931472, 2.126928, 0.626928],
                     [2.0611537e-9, 0., 1000.]])
    np.testing.assert_allclose(got, want, rtol=1e-5)

  @chex.all_variants()
  def test_sigmoid_bce_gradient(self):
    grad = self.variant(jax.grad(
        lambda x, y: jnp.sum(losses.sigmoid_bce(x, y))))
    got = grad(jnp.array([0., 1000., -1000.]), jnp.array([1., 0., 0.]))
    np.testing.assert_allclose(got, [-.5, 1., 0.], atol=1e-7)

  @chex.all_variants()
  def test_softmax_cross_entropy(self):
    logits = jnp.log(jnp.array([[1., 2., 5.], [1., 1., 2.]])) + 300.
    got = self.variant(losses.softmax_cross_entropy)(
        logits, jnp.array([2, 0]))
    np.testing.assert_allclose(got, np.log([8 / 5, 4]), rtol=1e-4)

  @chex.all_variants()
  def test_softmax_cross_entropy_of_some_classes(self):
    logits = jnp.log(jnp.array([[1., 2., 5.], [1., 1., 2.]]))
    mask = jnp.array([[0., 1., 1.], [0., 0., 1.]])  # The last drops its label.
    got = self.variant(losses.softmax_cross_entropy)(
        logits, jnp.array([2, 0]), mask)
    np.testing.assert_allclose(got, np.log([7 / 5, 3]), rtol=1e-5)

  @chex.all_variants()
  def test_masked_class_gets_no_gradient_and_wrong_label_is_nan(self):
    def loss(logits):
      return jnp.sum(losses.softmax_cross_entropy(
          logits, jnp.array([1]), jnp.array([[1, 1, 0]])))
    got = self.variant(jax.grad(loss))(jnp.zeros((1, 3)))
    np.testing.assert_allclose(got, [[.5, -.5, 0.]], atol=1e-7)
    wrong = self.variant(losses.softmax_cross_entropy)(
        jnp.zeros((2, 3)), jnp.array([3, -1]))
    self.assertTrue(bool(jnp.isnan(wrong).all()))

  @chex.all_variants()
  def test_mse_per_example(self):
    got = self.variant(losses.mse_per_example)(
        jnp.array([[1., 2.], [0., 0.]]), jnp.array([[1., 4.], [3., 1.]]))
    np.testing.assert_allclose(got, [2., 5.])

  @chex.all_variants()
  def test_commitment(self):
    x, q = jnp.array([[1., 2.]]), jnp.array([[0., 4.]])
    np.testing.assert_allclose(self.variant(losses.commitment)(x, q), [2.5])
    grads = self.variant(jax.grad(
        lambda x, q: jnp.sum(losses.commitment(x, q)), argnums=(0, 1)))(x, q)
    np.testing.assert_allclose(grads[0], [[1., -2.]])
    np.testing.assert_allclose(grads[1], [[0., 0.]])

  @chex.all_variants()
  def test_reduce_on_one_device(self):
    reduce = self.variant(losses.reduce)
    x = jnp.array([1., 3., jnp.nan])
    np.testing.assert_allclose(reduce(x[:2]), 2.)
    np.testing.assert_allclose(reduce(x, jnp.array([1., 1., 0.])), 2.)
    np.testing.assert_allclose(reduce(x, jnp.array([.5, 0., 0.])), 1.)
    np.testing.assert_allclose(reduce(x, jnp.zeros(3)), 0.)

  def test_shapes_are_checked(self):
    for call in (
        lambda: losses.sigmoid_bce(jnp.zeros((2, 1)), jnp.zeros(2)),
        lambda: losses.mse_per_example(jnp.zeros((2, 1)), jnp.zeros((2, 3))),
        lambda: losses.reduce(jnp.zeros((2, 1)), jnp.zeros(2)),
        lambda: losses.softmax_cross_entropy(
            jnp.zeros((2, 3)), jnp.zeros(3, int)),
        lambda: losses.softmax_cross_entropy(
            jnp.zeros((2, 3)), jnp.zeros(2))):
      self.assertRaises(AssertionError, call)


class ReduceTest(parameterized.TestCase):

  def test_psum_of_gradients_is_the_gradient_of_the_global_mean(self):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 6, 3)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 2, (4, 6)), jnp.float32)
    # Unevenly filled devices, one of them empty.
    mask = jnp.asarray(np.arange(6)[None] < np.array([[6], [1], [0], [3]]),
                       jnp.float32)
    w = jnp.asarray(rng.normal(size=3), jnp.float32)

    def share(w, x, y, mask, axis_name):
      return losses.reduce(losses.sigmoid_bce(x @ w, y), mask, axis_name)

    def step(w, x, y, mask):
      value, grad = jax.value_and_grad(share)(w, x, y, mask, types.AXIS)
      return jax.lax.psum((value, grad), types.AXIS)

    got = jax.vmap(step, in_axes=(None, 0, 0, 0), axis_name=types.AXIS)(
        w, x, y, mask)
    keep = np.asarray(mask) > 0
    want = jax.value_and_grad(share)(w, x[keep], y[keep], None, None)
    for i in range(4):
      chex.assert_trees_all_close(
          jax.tree.map(lambda leaf: leaf[i], got), want, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
