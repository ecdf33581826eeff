"""Tests attention and trunks against plain NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sidrec import models
from sidrec import types
from sidrec.models import attention
from sidrec.models import trunks


def _visible(segment, causal):
  rows, num = segment.shape
  out = np.zeros((rows, num, num), bool)
  for row in range(rows):
    for n in range(num):
      for m in range(num):
        same = segment[row, n] == segment[row, m] > 0
        out[row, n, m] = same and (m <= n or not causal)
  return out


@pytest.mark.parametrize('causal', [True, False])
def test_visible(causal):
  segment = np.array([[1, 1, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1], [0] * 6])
  np.testing.assert_array_equal(
      attention.visible(segment, causal), _visible(segment, causal))


def test_places_count_within_a_segment():
  segment = np.array([[1, 1, 2, 2, 2, 0], [0, 0, 1, 1, 1, 1], [3] * 6])
  assert attention.places(segment).tolist() == [
      [0, 1, 0, 1, 2, 0], [0, 1, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_attention_is_the_double_loop():
  rng = np.random.default_rng(0)
  query, keys, values = rng.normal(size=(3, 2, 5, 2, 3)).astype(np.float32)
  segment = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 1]])
  want = np.zeros(query.shape)
  for row in range(2):
    for n in range(5):
      seen = _visible(segment, True)[row, n]
      for head in range(2):
        weight = np.exp(keys[row, seen, head] @ query[row, n, head])
        want[row, n, head] = weight @ values[row, seen, head] / weight.sum()
  bias = attention.mask_bias(attention.visible(segment))[:, None]
  np.testing.assert_allclose(
      attention.attend(query, keys, values, bias), want, atol=1e-5)


def test_rotation_turns_pairs_by_their_distance():
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(2, 1, 6, 1, 4)).astype(np.float32)
  place = np.array([[0, 1, 2, 0, 1, 2]])
  turn = attention.turns(place, 4)
  # By complex numbers: i-th of d / 2 pairs turns by 10^(-4 i / (d / 2)).
  rate = np.array([1., 1e-2])
  pairs = (x[..., :2] + 1j * x[..., 2:]) * np.exp(
      1j * place[0][None, :, None, None] * rate)
  np.testing.assert_allclose(attention.rotate(x, turn), np.concatenate(
      [pairs.real, pairs.imag], -1), atol=1e-5)
  # The product knows distances alone.
  products = [float(jnp.sum(attention.rotate(x[:, :1].repeat(6, 1), turn)[0, a]
                            * attention.rotate(y[:, :1].repeat(6, 1), turn)[
                                0, b])) for a, b in ((1, 0), (2, 1), (5, 4))]
  np.testing.assert_allclose(products, products[0], atol=1e-5)


def test_projection_and_its_gradient():
  rng = np.random.default_rng(2)
  x = rng.normal(size=(2, 3, 5)).astype(np.float32)
  for shape in ((5, 2, 2), (5, 9)):  # Both orders of the backward product.
    weight = rng.normal(size=shape).astype(np.float32)
    fn = lambda x, w: jnp.sum(jnp.sin(attention.project(x, w)))
    plain = lambda x, w: jnp.sum(jnp.sin(jnp.tensordot(x, w, 1)))
    for a, b in zip(jax.grad(fn, (0, 1))(x, weight),
                    jax.grad(plain, (0, 1))(x, weight)):
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_dropout_keeps_the_mean():
  x = jnp.ones((4, 20_000))
  row = jnp.arange(4)
  y = attention.dropout(jax.random.key(0), .3, x, row)
  assert abs(float(jnp.mean(y)) - 1) < .01
  assert abs(float(jnp.mean(y == 0)) - .3) < .01
  assert attention.dropout(None, .3, x, row) is x


def test_bind_makes_pure_functions():
  class Scaled(nn.Module):
    def setup(self):
      self.scale = self.param('scale', nn.initializers.constant(3.), ())

    def times(self, x, *, plus=0.):
      return self.scale * x + plus

    def own(self):
      return self.scale

  bound = models.bind(Scaled(), ['times', 'own'], lambda own: own.times(1.))
  params = bound['init'](jax.random.key(0))
  assert params == {'scale': 3.}
  assert bound['times'](params, 2., plus=1.) == 7.
  assert bound['own']({'scale': 5.}) == 5.
  assert jax.grad(lambda params: bound['times'](params, 2.))(params) == {
      'scale': 2.}


def _trunk_by_hand(params, x, mask, place, heads):
  """The trunk in NumPy, for one row [N, D]."""
  norm = lambda scale, x: scale * x / np.sqrt(
      np.mean(x ** 2, -1, keepdims=True) + 1e-6)
  for layer in range(sum('block' in name for name in params)):
    block = params[f'blocks_{layer}']
    query, keys, values = np.moveaxis(np.einsum(
        'nd,dkhe->nkhe', norm(block['norm_attention'], x), block['qkv']), 1, 0)
    half = query.shape[-1] // 2
    turn = np.exp(1j * place[:, None, None] * 1e4 ** (-np.arange(half) / half))
    turned = lambda y: (y[..., :half] + 1j * y[..., half:]) * turn
    score = np.einsum('nhe,mhe->hnm', turned(query), np.conj(
        turned(keys))).real / np.sqrt(2 * half)
    weight = np.exp(np.where(mask[None], score, -np.inf))
    weight = weight / weight.sum(-1, keepdims=True)
    read = np.einsum('hnm,mhe->nhe', weight, values)
    x = x + read.reshape(len(x), -1) @ block['out']
    x = x + np.maximum(
        norm(block['norm_hidden'], x) @ block['up'], 0) @ block['down']
  return norm(params['norm'], x)


def test_the_trunk_is_what_it_says():
  trunk = trunks.make(ml_collections.ConfigDict(dict(
      trunk='sasrec', dim=12, num_layers=2, num_heads=3, dropout=.5)))
  params = trunk.init(jax.random.key(0))
  x = np.random.default_rng(0).normal(size=(1, 6, 12)).astype(np.float32)
  segment = np.array([[1, 1, 1, 2, 2, 2]])
  place = attention.places(segment)
  out = trunk.run(params, x, attention.visible(segment), place, None)
  np.testing.assert_allclose(out[0], _trunk_by_hand(
      jax.tree.map(np.asarray, params), x[0], _visible(segment, True)[0],
      np.asarray(place)[0], 3), atol=1e-4)


def test_unknown_trunks_are_refused():
  config = ml_collections.ConfigDict(dict(
      trunk='lstm', dim=12, num_layers=2, num_heads=3, dropout=.5))
  with pytest.raises(types.InputError, match="config.model.trunk='lstm'"):
    trunks.make(config)
