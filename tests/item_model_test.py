"""Tests models of item ids: what is served is what was trained."""

import jax
import ml_collections
import numpy as np
import pytest

from sidrec import types
from sidrec.models import item_model

_ITEMS = 12


def _model(**kwargs):
  return item_model.make(ml_collections.ConfigDict(dict(
      trunk='sasrec', dim=16, num_layers=1, num_heads=2, dropout=.2,
      seen_bias=True) | kwargs), _ITEMS)


def _sequence(item, segment):
  nothing = np.zeros(item.shape, np.int32)
  return types.Sequence(
      row=np.arange(len(item)), user=nothing, item=item, action=nothing,
      time=nothing, segment=segment, label=nothing, target=nothing)


def test_a_request_reads_like_a_packed_sequence():
  model = _model()
  params = model.init(jax.random.key(0))
  item = np.random.default_rng(0).integers(0, _ITEMS, (1, 9))
  segment = np.array([[1, 1, 1, 2, 2, 2, 2, 2, 0]])
  run = jax.jit(model.hidden)
  hidden = run(params, _sequence(item, segment))
  history = np.zeros((1, 7), np.int32)
  history[0, 2:] = item[0, 3:8]  # Padding in front.
  mask = np.array([[0, 0, 1, 1, 1, 1, 1]])
  for padding in (0, 5):
    history[0, :2] = padding
    out = run(params, _sequence(history.copy(), mask))
    np.testing.assert_allclose(out[0, -1], hidden[0, 7], atol=1e-5)


def test_later_items_are_not_read():
  model = _model()
  params = model.init(jax.random.key(0))
  item, segment = np.arange(6)[None], np.ones((1, 6), np.int32)
  other = item.copy()
  other[0, 3] = 9
  run = jax.jit(model.hidden)
  same = np.isclose(*(run(params, _sequence(x, segment))
                      for x in (item, other)), atol=1e-6).all(-1)[0]
  assert same.tolist() == [True] * 3 + [False] * 3


def test_the_bias_of_what_was_seen():
  model = _model()
  params = model.init(jax.random.key(0))
  assert float(model.seen(params)) == 0.
  assert float(model.seen(params | {'seen': np.float32(2.)})) == 8.  # sqrt(16)
  plain = _model(seen_bias=False)
  params = plain.init(jax.random.key(0))
  assert 'seen' not in params and float(plain.seen(params)) == 0.
  assert plain.table(params).shape == (_ITEMS, 16)
  np.testing.assert_allclose(np.std(plain.table(params)), .02, rtol=.2)


def test_dropout_is_by_row():
  model = _model()
  params = model.init(jax.random.key(0))
  both = _sequence(np.arange(8).reshape(2, 4), np.ones((2, 4), np.int32))
  key = jax.random.key(1)
  run = jax.jit(model.hidden)
  dropped = run(params, both, key=key)
  assert not np.allclose(dropped, run(params, both))
  second = jax.tree.map(lambda x: x[1:], both)
  np.testing.assert_allclose(
      dropped[1:], run(params, second, key=key), atol=1e-5)


@pytest.mark.parametrize('wrong', [
    dict(num_heads=3), dict(dropout=1.), dict(trunk='gru')])
def test_wrong_settings_are_named(wrong):
  (name, value), = wrong.items()
  with pytest.raises(types.InputError, match=f'config.model.{name}={value!r}'):
    _model(**wrong)
