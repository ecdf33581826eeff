"""Tests the generators of codes: what training saw is what decoding gives."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sidrec import decode
from sidrec import trie
from sidrec.models import attention
from sidrec.models import decoder
from sidrec.models import t5

_SIZES = (4, 6, 3)
_ITEMS = 20
_H = 5
_B = 3


def _config(**kwargs):
  return ml_collections.ConfigDict(dict(
      dim=16, num_layers=2, num_heads=3, head_dim=8, hidden=24, dropout=.1,
      num_user_tokens=7, dtype='float32') | kwargs)


@functools.cache
def _world(name, **kwargs):
  model = {'t5': t5, 'decoder': decoder}[name].make(_config(**kwargs), _SIZES)
  params = model.init(jax.random.key(0))
  # Away from the start, so that nothing is hidden by symmetry.
  leaves, tree = jax.tree.flatten(params)
  params = tree.unflatten([
      x + .3 * jax.random.normal(jax.random.key(i), x.shape)
      for i, x in enumerate(leaves)])
  rng = np.random.default_rng(0)
  codes = np.stack([rng.integers(0, k, _ITEMS) for k in _SIZES], 1)
  history = rng.integers(0, _ITEMS, (_B, _H)).astype(np.int32)
  mask = np.arange(_H)[None] >= np.array([0, 2, 4])[:, None]
  return model, params, codes.astype(np.int32), history, mask.astype(
      np.float32), np.arange(_B, dtype=np.int32)


def _direct(name, item):
  """Log-probabilities of all codes of items [B, C], by training's form."""
  model, params, codes, history, mask, user = _world(name)
  def one(item):  # [B]
    if model.packed:
      items = np.concatenate([history, item[:, None]], 1)
      segment = np.concatenate([mask, np.ones((_B, 1))], 1).astype(np.int32)
      logits = [z[:, -1] for z in model.train_logits(
          params, codes[items], segment)]
    else:
      logits = model.train_logits(
          params, codes[history], mask, user, codes[item])
    return sum(jnp.take_along_axis(
        jax.nn.log_softmax(z), codes[item][:, level, None], 1)[:, 0]
               for level, z in enumerate(logits))
  return np.stack([np.asarray(one(x)) for x in item.T], 1)


@pytest.mark.parametrize('name', ['t5', 'decoder'])
def test_wide_search_equals_scoring_every_item_as_in_training(name):
  model, params, codes, history, mask, user = _world(name)
  context, state = model.start(params, codes[history], mask, user)
  t = trie.build(codes)
  beams = decode.beam_search(
      lambda prefix, state: model.step(params, context, prefix, state), t,
      beam_size=_ITEMS, batch_size=_B, state=state, normalize=True)
  want = _direct(name, np.tile(np.arange(_ITEMS), (_B, 1)))
  got = np.full(want.shape, np.nan)
  np.put_along_axis(got, np.asarray(beams.item), np.asarray(beams.score), 1)
  np.testing.assert_allclose(got, want, atol=2e-4)


@pytest.mark.parametrize('name', ['t5', 'decoder'])
def test_narrow_search_follows_its_beams(name):
  model, params, codes, history, mask, user = _world(name)
  context, state = model.start(params, codes[history], mask, user)
  beams = decode.beam_search(
      lambda prefix, state: model.step(params, context, prefix, state),
      trie.build(codes), beam_size=4, batch_size=_B, state=state,
      normalize=True)
  np.testing.assert_allclose(
      beams.score, _direct(name, np.asarray(beams.item)), atol=2e-4)


@pytest.mark.parametrize('name', ['t5', 'decoder'])
def test_padding_has_no_influence(name):
  model, params, codes, history, mask, user = _world(name)
  other = np.where(mask > 0, history, (history + 3) % _ITEMS)
  for items in (history, other):
    context, state = model.start(params, codes[items], mask, user)
    logits, _ = model.step(
        params, context, jnp.zeros((_B, 1, 0), jnp.int32), state)
    first = logits if items is history else first
  np.testing.assert_array_equal(first, logits)
  # A longer history with more padding in front reads the same.
  wide = lambda x: np.pad(x, ((0, 0), (3, 0)))
  context, state = model.start(
      params, codes[wide(history)], wide(mask), user)
  logits, _ = model.step(
      params, context, jnp.zeros((_B, 1, 0), jnp.int32), state)
  np.testing.assert_allclose(first, logits, atol=1e-4)


def test_segments_of_a_row_do_not_see_each_other():
  model, params, codes, _, _, _ = _world('decoder')
  rng = np.random.default_rng(1)
  item = rng.integers(0, _ITEMS, (1, 9))
  segment = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]], np.int32)
  base = model.train_logits(params, codes[item], segment)
  other = item.copy()
  other[0, [0, 1, 2, 7, 8]] = rng.integers(0, _ITEMS, 5)
  moved = model.train_logits(params, codes[other], segment)
  alone = model.train_logits(
      params, codes[item[:, 3:7]], np.ones((1, 4), np.int32))
  for a, b, c in zip(base, moved, alone):
    np.testing.assert_allclose(a[:, 4:7], b[:, 4:7], atol=1e-5)
    np.testing.assert_allclose(a[:, 4:7], c[:, 1:], atol=1e-4)


def test_later_items_and_codes_are_not_seen():
  model, params, codes, _, _, _ = _world('decoder')
  item = np.arange(6)[None]
  segment = np.ones((1, 6), np.int32)
  tokens = codes[item].copy()
  base = model.train_logits(params, tokens, segment)
  tokens[0, 3, 1] = (tokens[0, 3, 1] + 1) % _SIZES[1]
  moved = model.train_logits(params, tokens, segment)
  for level, (a, b) in enumerate(zip(base, moved)):
    same = np.isclose(a, b, atol=1e-6).all(-1)[0]
    assert same.tolist() == [True] * 3 + [level <= 1, False, False]


@pytest.mark.parametrize('name', ['t5', 'decoder'])
def test_fresh_models_know_nothing(name):
  model = {'t5': t5, 'decoder': decoder}[name].make(
      _config(dim=64, num_heads=6, head_dim=64, hidden=128, dropout=0.),
      (256, 256, 256))
  params = model.init(jax.random.key(1))
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 256, (64, 6, 3)).astype(np.int32)
  if model.packed:
    logits = [z[:, 1:] for z in model.train_logits(
        params, tokens, np.ones((64, 6), np.int32))]
    label = tokens[:, 1:]
  else:
    logits = model.train_logits(
        params, tokens[:, :5], np.ones((64, 5)), np.arange(64), tokens[:, 5])
    label = tokens[:, 5]
  for level, z in enumerate(logits):
    loss = -jnp.take_along_axis(
        jax.nn.log_softmax(z), label[..., level, None], -1).mean()
    # An untrained output has unit variance: half a nat above log K.
    assert abs(float(loss) - np.log(256) - .5) < .45
    assert .5 < float(jnp.std(z)) < 2


@pytest.mark.parametrize('name', ['t5', 'decoder'])
def test_dropout_and_bfloat16(name):
  model, params, codes, history, mask, user = _world(name)
  low, _, *_ = _world(name, dtype='bfloat16')
  def call(model, rows, **kwargs):
    if model.packed:
      return model.train_logits(params, codes[history[rows]], mask[
          rows].astype(np.int32), row=user[rows], **kwargs)[1]
    return model.train_logits(
        params, codes[history[rows]], mask[rows], user[rows],
        codes[history[rows, -1]], row=user[rows], **kwargs)[1]
  every = np.arange(_B)
  key = jax.random.key(3)
  plain, dropped = call(model, every), call(model, every, key=key)
  assert not np.allclose(plain, dropped)
  # What a row loses does not depend on the rows beside it.
  np.testing.assert_allclose(
      dropped[1:], call(model, every[1:], key=key), atol=1e-4)
  near = call(low, every)
  assert near.dtype == jnp.float32
  assert np.abs(near - plain).mean() < .1 * np.abs(plain).mean()


def test_relative_buckets():
  # By hand from the rule: exact up to 7, then three octave-like steps a side.
  distance = np.array([0, 1, -1, 7, -7, 8, 127, 500, -500])
  assert t5.bucket(distance, True).tolist() == [
      0, 17, 1, 23, 7, 24, 31, 31, 15]
  assert t5.bucket(np.array([0, 3, -1, -15, -16, -500]), False).tolist() == [
      0, 0, 1, 15, 16, 31]


def test_dropout_keeps_the_mean():
  x = jnp.ones((4, 20_000))
  row = jnp.arange(4)
  y = attention.dropout(jax.random.key(0), .3, x, row)
  assert abs(float(jnp.mean(y)) - 1) < .01
  assert abs(float(jnp.mean(y == 0)) - .3) < .01
  assert attention.dropout(None, .3, x, row) is x
