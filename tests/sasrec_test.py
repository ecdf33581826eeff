"""Tests SASRec: what is served is what was trained, and it learns."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from sidrec import config as config_lib
from sidrec import types
from sidrec.methods import next_item
from sidrec.models import item_model

_ITEMS = 12


def _model(**kwargs):
  return item_model.make(ml_collections.ConfigDict(dict(
      trunk='sasrec', dim=16, num_layers=1, num_heads=2, dropout=.2,
      seen_bias=True) | kwargs), _ITEMS)


def _sequence(item, segment):
  """Packed rows: all but the first of a segment are to be predicted."""
  item, segment = np.asarray(item, np.int32), np.asarray(segment, np.int32)
  first = np.diff(segment, axis=1, prepend=0) != 0
  zero = np.zeros(item.shape, np.int32)
  return types.Sequence(
      row=np.arange(len(item), dtype=np.int32), user=zero, item=item,
      action=zero, time=zero, segment=segment, label=zero * 1.,
      target=((segment > 0) & ~first).astype(np.float32))


def _state(params):
  return types.TrainState(
      params=params, variables={}, opt_state={}, clock={}, seed=0)


def _loss(model, negatives, params, item, segment, key):
  part = next_item.part('sasrec', model, config_lib.stage(
      '100 steps', 4, .01, negatives=negatives, row_items=8), 100)
  return part.programs['sasrec'].loss_fn(
      {'sasrec': params}, _state({}), None,
      {'sequences': _sequence(item, segment)}, key=key, axis_name=None)[0]


def _by_hand(model, params, item, segment):
  """Cross entropy over the whole catalog, place by place."""
  sequence = _sequence(item, segment)
  hidden = np.asarray(model.hidden(params, sequence))
  table, bias = np.asarray(model.table(params)), float(model.seen(params))
  found = []
  for row in range(len(item)):
    for place in range(1, item.shape[1]):
      if not sequence.target[row, place]:
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
  loss = _loss(model, 0, params, item, segment, jax.random.key(0))
  np.testing.assert_allclose(
      loss, _by_hand(model, params, item, segment), rtol=1e-5)


def test_a_sample_estimates_the_same_sum():
  model = _model(dropout=0.)
  params = model.init(jax.random.key(0)) | {'seen': jnp.float32(-.7)}
  item, segment = _random_rows()
  near = _loss(model, 4000, params, item, segment, jax.random.key(1))
  np.testing.assert_allclose(
      near, _by_hand(model, params, item, segment), rtol=.02)


def test_retrieval_scores_the_history_as_training_does():
  model = _model(dropout=0.)
  params = model.init(jax.random.key(0)) | {'seen': jnp.float32(-50.)}
  history = np.array([[0, 3, 5, 3], [0, 0, 0, 0], [0, 0, 0, 0]], np.int32)
  segment = np.array([[0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
  batch = types.Batch(
      row=np.arange(3), user=np.zeros(3, np.int32), item=None, label=None,
      mask=None, history=_sequence(history, segment), request=None, cross=None)
  popularity = jnp.asarray(np.random.default_rng(0).permutation(_ITEMS), float)
  catalog = types.Catalog(features=None, popularity=popularity, vectors=None)
  beams = next_item.retrieve(
      'sasrec', model, _state({'sasrec': params}), catalog, batch, None,
      _ITEMS, None)
  assert set(np.asarray(beams.item[0, -2:])) == {3, 5}  # Item 0 was padding.
  assert int(beams.item[1, -1]) == 0
  # Of whom nothing is known gets what most take.
  np.testing.assert_array_equal(beams.item[2], jnp.argsort(-popularity))
  assert np.asarray(beams.score[0, -2:] < -150).all()
  plain = model.hidden(params, batch.history)[:, -1] @ model.table(params).T
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
  segment = np.ones(item.shape, np.int32)
  optimizer = optax.adam(.03)
  loss = functools.partial(_loss, model, negatives)

  @jax.jit
  def update(params, slots, key):
    value, grad = jax.value_and_grad(loss)(
        params, item, segment, key)
    change, slots = optimizer.update(grad, slots, params)
    return optax.apply_updates(params, change), slots, value

  slots = optimizer.init(params)
  for i in range(60):
    params, slots, value = update(params, slots, jax.random.key(i))
  assert float(value) < .1
  vector = model.hidden(
      params, _sequence(item[:, :3], segment[:, :3]))[:, -1]
  np.testing.assert_array_equal(
      jnp.argmax(vector @ model.table(params).T, -1), item[:, 3])
