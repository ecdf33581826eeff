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
from sidrec.methods import sasrec as sasrec_method
from sidrec.models import sasrec

_ITEMS = 12


def _model(**kwargs):
  return sasrec.make(ml_collections.ConfigDict(dict(
      dim=16, num_layers=1, num_heads=2, dropout=.2,
      seen_bias=True) | kwargs), _ITEMS)


def _loss(model, negatives, params, item, segment, key, popularity):
  batch = types.SequenceBatch(
      row=np.arange(len(item)), item=item, segment=segment,
      target=(np.arange(item.shape[1]) > 0)[None] * (segment > 0) * 1.)
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


def _by_hand(model, params, item, segment):
  """Cross entropy over the whole catalog, place by place."""
  hidden = np.asarray(model.train_hidden(params, item, segment))
  table, bias = np.asarray(model.table(params)), float(model.seen(params))
  found = []
  for row in range(len(item)):
    for place in range(1, item.shape[1]):
      if segment[row, place] == 0:
        continue
      scores = table @ hidden[row, place - 1]
      before = [item[row, t] for t in range(place)
                if segment[row, t] == segment[row, place - 1]]
      scores[np.unique(before)] += bias
      found.append(np.log(np.exp(scores).sum()) - scores[item[row, place]])
  return np.mean(found)


def _random_rows():
  item = np.random.default_rng(4).integers(0, _ITEMS, (3, 9))  # Some twice.
  return item, np.array([[1] * 4 + [2] * 5, [1] * 9, [1] * 6 + [0] * 3])


@pytest.mark.parametrize('seen_bias', [True, False])
def test_the_loss_is_the_cross_entropy_over_the_catalog(seen_bias):
  model = _model(dropout=0., seen_bias=seen_bias)
  params = model.init(jax.random.key(0)) | {'seen': jnp.float32(-.7)}
  item, segment = _random_rows()
  loss = _loss(model, 0, params, item, segment, jax.random.key(0),
               np.ones(_ITEMS))
  np.testing.assert_allclose(
      loss, _by_hand(model, params, item, segment), rtol=1e-5)


def test_a_sample_estimates_the_same_sum():
  model = _model(dropout=0.)
  params = model.init(jax.random.key(0)) | {'seen': jnp.float32(-.7)}
  item, segment = _random_rows()
  loss = jax.jit(functools.partial(_loss, model, 4000))
  near = loss(params, item, segment, jax.random.key(1), np.ones(_ITEMS))
  np.testing.assert_allclose(
      near, _by_hand(model, params, item, segment), rtol=.02)


def test_retrieval_scores_the_history_as_training_does():
  model = _model(dropout=0.)
  params = model.init(jax.random.key(0)) | {'seen': jnp.float32(-50.)}
  history = np.array([[0, 3, 5, 3], [0, 0, 0, 0]], np.int32)
  mask = np.array([[0., 1, 1, 1], [0, 0, 0, 1]])
  batch = types.Batch(
      row=np.arange(2), user=np.zeros(2, np.int32), item=None, label=None,
      mask=None, history=history, history_action=None, history_mask=mask,
      request=None, cross=None)
  state = types.TrainState(
      params={'sasrec': params}, codebook={}, batch_stats={}, opt_state={},
      step=jnp.int32(0))
  beams = sasrec_method.retrieve(model, state, None, batch, None, _ITEMS, None)
  assert set(np.asarray(beams.item[0, -2:])) == {3, 5}  # Item 0 was padding.
  assert int(beams.item[1, -1]) == 0
  assert np.asarray(beams.score[0, -2:] < -150).all()
  plain = model.encode(params, history, mask) @ model.table(params).T
  np.testing.assert_allclose(
      beams.score[0, 0], jnp.max(jnp.delete(plain[0], np.array([3, 5]))),
      rtol=1e-6)


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
