"""Tests the generators of codes: what training saw is what decoding gives."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from sidrec import decode
from sidrec import trie
from sidrec import types
from sidrec.models import generator
from sidrec.models import t5

_SIZES = (4, 6, 3)
_ITEMS = 20
_H = 5
_B = 3
_BOTH = pytest.mark.parametrize('name', ['t5', 'decoder'])


def _config(name, **kwargs):
  return ml_collections.ConfigDict(dict(
      name=name, dim=16, num_layers=2, num_heads=3, head_dim=8, hidden=24,
      dropout=.1, num_user_tokens=7, dtype='float32') | kwargs)


def _sequence(item, segment, user=None, row=None):
  zeros = np.zeros(item.shape, np.int32)
  user = zeros if user is None else zeros + user[:, None]
  return types.Sequence(
      row=np.arange(len(item)) if row is None else row, user=user, item=item,
      action=zeros, time=zeros, segment=segment.astype(np.int32),
      label=np.ones(item.shape, np.float32),
      target=(segment > 0).astype(np.float32))


@functools.cache
def _world(name, **kwargs):
  model = generator.make(_config(name, **kwargs), _SIZES)
  params = jax.jit(model.init)(jax.random.key(0))
  # Away from the start, so that nothing is hidden by symmetry.
  leaves, tree = jax.tree.flatten(params)
  noise = np.random.default_rng(1)
  params = tree.unflatten([
      x + .3 * noise.normal(size=x.shape).astype(np.float32) for x in leaves])
  rng = np.random.default_rng(0)
  codes = np.stack([rng.integers(0, k, _ITEMS) for k in _SIZES], 1)
  item = rng.integers(0, _ITEMS, (_B, _H)).astype(np.int32)
  segment = np.arange(_H)[None] >= np.array([0, 2, 4])[:, None]
  history = _sequence(item, segment, np.arange(_B))
  return model, params, jnp.asarray(codes, jnp.int32), history


@functools.cache
def _trained(model):
  def run(params, sequence, codes, key):
    x = model.embed(params, codes)
    part = generator.split(model.layout, sequence, x, codes)
    read = model.read(params, part.x, part.sequence, key=key)
    return model.write(params, read, part.target, key=key), part.label
  return jax.jit(run)


def _written(model, params, sequence, codes, key=None):
  """What training sees of a batch: (Written, labels)."""
  return _trained(model)(params, sequence, codes, key)


def _logits(*args, **kwargs):
  return _written(*args, **kwargs)[0].logits


def _with_target(history, item):
  """Appends items [B] as the last places."""
  return _sequence(
      np.concatenate([history.item, item[:, None]], 1),
      np.pad(history.segment, ((0, 0), (0, 1)), constant_values=1),
      history.user[:, 0])


def _direct(name, item):
  """Log-probabilities of all codes of items [B, C], by training's form."""
  model, params, codes, history = _world(name)
  out = []
  for column in item.T:
    both = _with_target(history, column)
    written, label = _written(model, params, both, codes[both.item])
    out.append(sum(jnp.take_along_axis(
        jax.nn.log_softmax(z[:, -1]), label[:, -1, level, None], 1)[:, 0]
                   for level, z in enumerate(written.logits)))
  return np.stack(out, 1)


def _search(name, beam_size):
  model, params, codes, history = _world(name)
  @jax.jit
  def run(params, history):
    context, state = model.start(
        params, model.embed(params, codes[history.item]), history)
    return decode.beam_search(
        lambda prefix, state: model.step(params, context, prefix, state),
        trie.build(np.asarray(codes)), beam_size=beam_size, batch_size=_B,
        state=state, normalize=True, num_rungs=1)
  return run(params, history)


@_BOTH
def test_steps_along_given_codes_are_what_is_written(name):
  model, params, codes, history = _world(name)
  both = _with_target(history, np.array([3, 8, 11], np.int32))
  prefix = codes[both.item[:, -1]][:, None]
  @jax.jit
  def steps(params, history):
    context, state = model.start(
        params, model.embed(params, codes[history.item]), history)
    out = []
    for level in range(len(_SIZES)):
      logits, state = model.step(params, context, prefix[..., :level], state)
      out.append(logits)
    return out
  for got, want in zip(steps(params, history),
                       _logits(model, params, both, codes[both.item])):
    np.testing.assert_allclose(got[:, 0], want[:, -1], atol=1e-4)


@_BOTH
def test_wide_search_equals_scoring_every_item_as_in_training(name):
  beams = _search(name, _ITEMS)
  want = _direct(name, np.tile(np.arange(_ITEMS, dtype=np.int32), (_B, 1)))
  got = np.full(want.shape, np.nan)
  np.put_along_axis(got, np.asarray(beams.item), np.asarray(beams.score), 1)
  np.testing.assert_allclose(got, want, atol=2e-4)


@_BOTH
def test_narrow_search_follows_its_beams(name):
  beams = _search(name, 4)
  np.testing.assert_allclose(
      beams.score, _direct(name, np.asarray(beams.item)), atol=2e-4)


@_BOTH
def test_hard_codes_are_weights_of_one(name):
  model, params, codes, _ = _world(name)
  soft = tuple(jax.nn.one_hot(codes[:, level], size)
               for level, size in enumerate(_SIZES))
  np.testing.assert_allclose(
      model.embed(params, soft), model.embed(params, codes), atol=1e-6)
  # The loss reaches who made the weights, of every level.
  grads = jax.grad(lambda soft: jnp.sum(model.embed(params, soft) ** 2))(soft)
  assert all(np.abs(grad).min() > 0 for grad in grads)


@_BOTH
def test_padding_has_no_influence(name):
  model, params, codes, history = _world(name)
  other = history.replace(item=np.where(
      history.segment > 0, history.item, (history.item + 3) % _ITEMS))
  # A longer history with more padding in front reads the same.
  wide = _sequence(
      *(np.pad(x, ((0, 0), (3, 0))) for x in (history.item, history.segment)),
      history.user[:, 0])
  @jax.jit
  def run(params, history):
    context, state = model.start(
        params, model.embed(params, codes[history.item]), history)
    return model.step(
        params, context, jnp.zeros((_B, 1, 0), jnp.int32), state)[0]
  first = run(params, history)
  np.testing.assert_array_equal(first, run(params, other))
  np.testing.assert_allclose(first, run(params, wide), atol=1e-4)


def test_user_tokens_are_hashed_and_may_be_absent():
  model, params, codes, history = _world('t5')
  run = jax.jit(lambda user: model.read(
      params, model.embed(params, codes[history.item]),
      history.replace(user=user)).pooled)
  first = run(history.user)
  np.testing.assert_array_equal(first, run(history.user + 7))
  assert not np.allclose(first, run(history.user + 1))
  none = generator.make(_config('t5', num_user_tokens=0), _SIZES)
  params = jax.eval_shape(none.init, jax.random.key(0))
  assert 'user' not in params


def test_segments_of_a_row_do_not_see_each_other():
  model, params, codes, _ = _world('decoder')
  rng = np.random.default_rng(1)
  item = rng.integers(0, _ITEMS, (1, 9))
  segment = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
  other = item.copy()
  other[0, [0, 1, 2, 7, 8]] = rng.integers(0, _ITEMS, 5)
  base, moved, alone = (
      _logits(model, params, _sequence(item, segment), codes[item])
      for item, segment in ((item, segment), (other, segment),
                            (item[:, 3:7], np.ones((1, 4)))))
  for a, b, c in zip(base, moved, alone):
    np.testing.assert_allclose(a[:, 3:7], b[:, 3:7], atol=1e-5)
    np.testing.assert_allclose(a[:, 3:7], c, atol=1e-4)


def test_later_items_and_codes_are_not_seen():
  model, params, codes, _ = _world('decoder')
  item = np.arange(6)[None]
  sequence, tokens = _sequence(item, np.ones((1, 6))), codes[item]
  base = _logits(model, params, sequence, tokens)
  moved = _logits(model, params, sequence, tokens.at[0, 3, 1].set(
      (tokens[0, 3, 1] + 1) % _SIZES[1]))
  for level, (a, b) in enumerate(zip(base, moved)):
    same = np.isclose(a, b, atol=1e-6).all(-1)[0]
    assert same.tolist() == [True] * 3 + [level <= 1, False, False]


def test_t5_writes_a_code_from_those_before_it():
  model, params, codes, history = _world('t5')
  both = _with_target(history, np.array([3, 8, 11], np.int32))
  tokens = codes[both.item]
  other = tokens.at[:, -1, 1].set((tokens[:, -1, 1] + 1) % _SIZES[1])
  same = [np.allclose(*pair, atol=1e-6) for pair in zip(*(
      _logits(model, params, both, x) for x in (tokens, other)))]
  assert same == [True, True, False]


@_BOTH
def test_fresh_models_know_nothing(name):
  model = generator.make(
      _config(name, dim=64, num_heads=6, head_dim=64, hidden=128, dropout=0.),
      (256, 256, 256))
  params = jax.jit(model.init)(jax.random.key(1))
  rng = np.random.default_rng(2)
  tokens = rng.integers(0, 256, (64, 6, 3)).astype(np.int32)
  sequence = _sequence(np.zeros((64, 6), np.int32), np.ones((64, 6)))
  written, label = _written(model, params, sequence, tokens)
  # The first of a packed row has nothing before it.
  first = 1 if model.layout == 'packed' else 0
  for level, z in enumerate(written.logits):
    z = z[:, first:]
    loss = -jnp.take_along_axis(jax.nn.log_softmax(z), label[
        :, first:, level, None], -1).mean()
    # An untrained output has unit variance: half a nat above log K.
    assert abs(float(loss) - np.log(256) - .5) < .45
    assert .5 < float(jnp.std(z)) < 2


@_BOTH
def test_shapes_of_what_is_read_and_written(name):
  model, params, codes, history = _world(name)
  both = _with_target(history, history.item[:, 0])
  def run(params):
    part = generator.split(model.layout, both, model.embed(
        params, codes[both.item]), codes[both.item])
    read = model.read(params, part.x, part.sequence)
    states = model.write(params, read, part.target).states
    return read.pooled, states, part.label, part.weight
  num, levels = {'packed': _H + 1, 'last': 1}[model.layout], len(_SIZES)
  assert [x.shape for x in jax.eval_shape(run, params)] == [
      (_B, num, 16), (_B, num, levels, 16), (_B, num, levels), (_B, num)]
  assert model.heads is None and model.vector is None


def test_split_keeps_the_target_from_what_is_read():
  sequence = _sequence(np.arange(8).reshape(2, 4), np.ones((2, 4)))
  codes = np.arange(16).reshape(2, 4, 2)
  x = codes[..., None] * 1.
  part = generator.split('last', sequence, x, codes)
  assert part.sequence.item.tolist() == [[0, 1, 2], [4, 5, 6]]
  assert part.sequence.row.tolist() == [0, 1]
  np.testing.assert_array_equal(part.x, x[:, :3])
  np.testing.assert_array_equal(part.target, x[:, 3:])
  np.testing.assert_array_equal(part.label, codes[:, 3:])
  assert part.weight.tolist() == [[1.], [1.]]
  part = generator.split('packed', sequence, x, codes)
  assert part.sequence is sequence and part.x is x and part.label is codes


@_BOTH
def test_dropout_and_bfloat16(name):
  model, params, codes, history = _world(name)
  low = generator.make(_config(name, dtype='bfloat16'), _SIZES)
  call = lambda model, own, key=None: _logits(
      model, params, own, codes[own.item], key)[1]
  key = jax.random.key(3)
  plain, dropped = call(model, history), call(model, history, key)
  assert not np.allclose(plain, dropped)
  # What a row loses does not depend on the rows beside it.
  order = np.array([2, 0, 1])
  moved = jax.tree.map(lambda x: x[order], history)
  np.testing.assert_allclose(
      dropped[order], call(model, moved, key), atol=1e-4)
  near = call(low, history)
  assert near.dtype == jnp.float32
  assert np.abs(near - plain).mean() < .1 * np.abs(plain).mean()


@pytest.mark.parametrize('name, wrong', [
    ('t5', 'dropout=1.5'), ('decoder', "dtype='float16'"),
    ('decoder', 'head_dim=7'), ('rnn', "name='rnn'")])
def test_wrong_settings_are_named(name, wrong):
  key, value = wrong.split('=')
  config = _config(name)
  if key != 'name':
    config = _config(name, **{key: {'1.5': 1.5, '7': 7}.get(
        value, value.strip("'"))})
  with pytest.raises(types.InputError, match=f'config.generator.{wrong}'):
    generator.make(config, _SIZES)


def test_relative_buckets():
  # By hand from the rule: exact up to 7, then three octave-like steps a side.
  distance = np.array([0, 1, -1, 7, -7, 8, 127, 500, -500])
  assert t5.bucket(distance, True).tolist() == [
      0, 17, 1, 23, 7, 24, 31, 31, 15]
  assert t5.bucket(np.array([0, 3, -1, -15, -16, -500]), False).tolist() == [
      0, 0, 1, 15, 16, 31]
