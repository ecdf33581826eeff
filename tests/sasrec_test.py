"""Tests SASRec: what is served is what was trained, and it learns."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from sidrec import types
from sidrec.methods import next_item
from sidrec.models import sasrec

_ITEMS = 12


def _model(**kwargs):
  return sasrec.make(ml_collections.ConfigDict(dict(
      dim=16, num_layers=1, num_heads=2, dropout=.2) | kwargs), _ITEMS)


def test_a_request_reads_like_a_packed_sequence():
  model = _model()
  params = model.init(jax.random.key(0))
  item = np.random.default_rng(0).integers(0, _ITEMS, (1, 9))
  segment = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0]])
  hidden = model.train_hidden(params, item, segment)
  history = np.zeros((1, 7), np.int32)
  history[0, 2:] = item[0, 3:8]  # Padding in front.
  mask = np.array([[0., 0, 1, 1, 1, 1, 1]])
  np.testing.assert_allclose(
      model.encode(params, history, mask)[0], hidden[0, 7], atol=1e-5)
  history[0, :2] = 5
  np.testing.assert_allclose(
      model.encode(params, history, mask)[0], hidden[0, 7], atol=1e-5)


def test_heads_must_divide_the_width():
  with pytest.raises(types.InputError, match='num_heads=3'):
    _model(num_heads=3)


def _loss(model, negatives, params, item, segment, key, popularity):
  batch = types.SequenceBatch(
      row=np.arange(len(item)), item=item, segment=segment,
      target=(np.arange(item.shape[1]) > 0) * (segment > 0) * 1.)
  phase = next_item.sasrec_phase(
      'sasrec', model, ml_collections.ConfigDict(dict(
          negatives=negatives, batch_size=4, row_items=8, learning_rate=.01,
          weight_decay=0., warmup_steps=1, clip_norm=1.)), 100)
  state = types.TrainState(
      params={}, codebook={}, batch_stats={}, opt_state={},
      step=jnp.int32(0))
  catalog = types.Catalog(features=None, popularity=popularity)
  return phase.loss_fn({'sasrec': params}, state, catalog,
                       {'sequences': batch}, key=key, axis_name=None)[0]


@pytest.mark.parametrize('negatives', [0, 40])
def test_it_learns_which_item_follows(negatives):
  model = _model(dropout=0.)
  params = model.init(jax.random.key(1))
  step = np.random.default_rng(2).permutation(_ITEMS)  # i -> step[i].
  item = np.random.default_rng(3).integers(0, _ITEMS, (8, 1))
  for _ in range(5):
    item = np.concatenate([item, step[item[:, -1:]]], 1)
  segment, popularity = np.ones(item.shape, np.int32), np.ones(_ITEMS)
  optimizer = optax.adam(.03)
  loss = functools.partial(_loss, model, negatives)

  @jax.jit
  def update(params, slots, key):
    value, grad = jax.value_and_grad(loss)(
        params, item, segment, key, popularity)
    change, slots = optimizer.update(grad, slots, params)
    return optax.apply_updates(params, change), slots, value

  slots = optimizer.init(params)
  for i in range(60):
    params, slots, value = update(params, slots, jax.random.key(i))
  assert float(value) < .1
  vector = model.encode(params, item[:, :3], np.ones((8, 3)))
  np.testing.assert_array_equal(
      jnp.argmax(vector @ model.table(params).T, -1), item[:, 3])
