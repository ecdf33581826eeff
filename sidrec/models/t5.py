"""T5 encoder-decoder that writes the codes of the next item, as TIGER has it.

Papers: arXiv 1910.10683 (T5, version 1: RMS norms before each block, no
biases, ReLU, relative position biases that a stack shares, attention that is
not scaled because its initialization is), arXiv 2305.05065 (TIGER: a user
token, then the codes of the history).
"""

import functools
import math
from typing import Any, NamedTuple, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import rng
from sidrec import types
from sidrec.models import attention
from sidrec.models import generator

_BUCKETS = 32
_MAX_DISTANCE = 128


class Sizes(NamedTuple):
  """Of both stacks; num_heads * head_dim need not be dim."""
  dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  hidden: int
  dropout: float
  num_user_tokens: int
  dtype: Any
  codebook_sizes: tuple[int, ...]


def make(config: Any, codebook_sizes: Sequence[int]) -> generator.Generator:
  """Builds the generator.

  Args:
    config: dim, num_layers (of each stack), num_heads, head_dim, hidden,
      dropout, num_user_tokens (user ids are hashed to so many; 0 = no user
      token) and dtype ('float32' or 'bfloat16', of activations).
    codebook_sizes: K_1, ..., K_T.

  Raises:
    types.InputError: as `attention.check`.
  """
  attention.check(config)
  sizes = Sizes(
      config.dim, config.num_layers, config.num_heads, config.head_dim,
      config.hidden, config.dropout, config.num_user_tokens,
      jnp.dtype(config.dtype), tuple(codebook_sizes))
  bind = lambda fn: functools.partial(fn, sizes)
  return generator.Generator(
      init=bind(init), train_logits=bind(train_logits), start=bind(start),
      step=bind(step), packed=False)


def init(sizes: Sizes, key: jax.Array) -> types.PyTree:
  """Returns fresh params; consumes `key`."""
  inner = (sizes.num_heads, sizes.head_dim)
  joined = math.prod(inner)

  def draw(name: str, index: int, shape: Sequence[int], std: float):
    return attention.kernel(rng.stream(key, name, index), shape, std)

  def attend(name: str, layer: int) -> types.PyTree:
    # Queries are drawn smaller by sqrt(d): that is T5's scaling.
    query_std = (sizes.dim * sizes.head_dim) ** -.5
    return {
        'norm': jnp.ones(sizes.dim),
        'query': draw(f'{name}/query', layer, (sizes.dim, *inner), query_std),
        'key': draw(f'{name}/key', layer, (sizes.dim, *inner),
                    sizes.dim ** -.5),
        'value': draw(f'{name}/value', layer, (sizes.dim, *inner),
                      sizes.dim ** -.5),
        'out': draw(f'{name}/out', layer, (*inner, sizes.dim),
                    joined ** -.5)}

  def feed(name: str, layer: int) -> types.PyTree:
    return {
        'norm': jnp.ones(sizes.dim),
        'up': draw(f'{name}/up', layer, (sizes.dim, sizes.hidden),
                   sizes.dim ** -.5),
        'down': draw(f'{name}/down', layer, (sizes.hidden, sizes.dim),
                     sizes.hidden ** -.5)}

  rows = sum(sizes.codebook_sizes)
  layers = range(sizes.num_layers)
  return {
      'code': draw('code', 0, (rows, sizes.dim), 1.),
      'user': draw('user', 0, (max(sizes.num_user_tokens, 1), sizes.dim), 1.),
      'begin': draw('begin', 0, (sizes.dim,), 1.),
      'head': draw('head', 0, (rows, sizes.dim), sizes.dim ** -.5),
      'encoder': {
          'blocks': [{'self': attend('encoder/self', i),
                      'feed': feed('encoder/feed', i)} for i in layers],
          'bias': draw('encoder/bias', 0, (_BUCKETS, sizes.num_heads),
                       sizes.dim ** -.5),
          'norm': jnp.ones(sizes.dim)},
      'decoder': {
          'blocks': [{'self': attend('decoder/self', i),
                      'cross': attend('decoder/cross', i),
                      'feed': feed('decoder/feed', i)} for i in layers],
          'bias': draw('decoder/bias', 0, (_BUCKETS, sizes.num_heads),
                       sizes.dim ** -.5),
          'norm': jnp.ones(sizes.dim)}}


def bucket(distance: np.ndarray, bidirectional: bool) -> np.ndarray:
  """Returns the bias row of each distance (memory minus query position).

  Half of the buckets are exact, the others grow logarithmically up to 128;
  where both directions are seen each has half of the buckets.

  Args:
    distance: integers of any shape.
    bidirectional: the encoder's form.

  Returns:
    int32 in [0, 32).
  """
  buckets, first = _BUCKETS, np.zeros(distance.shape, np.int64)
  if bidirectional:
    buckets //= 2
    first = np.where(distance > 0, buckets, 0)
    distance = np.abs(distance)
  else:
    distance = np.maximum(-distance, 0)
  exact = buckets // 2
  far = exact + (np.log(np.maximum(distance, 1) / exact)
                 / np.log(_MAX_DISTANCE / exact) * (buckets - exact)).astype(int)
  far = np.minimum(far, buckets - 1)
  return (first + np.where(distance < exact, distance, far)).astype(np.int32)


def _bias(table: jax.Array, queries: np.ndarray, memory: np.ndarray,
          bidirectional: bool) -> jax.Array:
  """Returns relative biases [1, H, Q, N] for positions [Q] and [N]."""
  rows = bucket(memory[None] - queries[:, None], bidirectional)
  return jnp.moveaxis(table[rows], -1, 0)[None]


class _Dropout:
  """Draws with a key of its own at every place; does nothing without one."""

  def __init__(self, sizes: Sizes, key: jax.Array | None,
               row: jax.Array | None):
    self._sizes, self._key, self._row = sizes, key, row

  def __call__(self, x: jax.Array, name: str, layer: int = 0) -> jax.Array:
    key = None if self._key is None else rng.stream(self._key, name, layer)
    return attention.dropout(key, self._sizes.dropout, x, self._row)


def _memory(block: types.PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns keys and values [B, N, H, d] of [B, N, D]."""
  return (attention.project(x, block['key']),
          attention.project(x, block['value']))


def _read(block: types.PyTree, x: jax.Array, keys: jax.Array,
          values: jax.Array, bias: jax.Array) -> jax.Array:
  """Attention of normalized x [B, Q, D] to a memory; [B, Q, D]."""
  heads = attention.attend(
      attention.project(x, block['query']), keys, values, bias)
  out = block['out']
  return attention.project(
      heads.reshape(*heads.shape[:2], -1), out.reshape(-1, out.shape[-1]))


def _feed(block: types.PyTree, x: jax.Array) -> jax.Array:
  hidden = attention.project(attention.rms_norm(block['norm'], x), block['up'])
  return attention.project(jax.nn.relu(hidden), block['down'])


def encode(sizes: Sizes, params: types.PyTree, history: jax.Array,
           history_mask: jax.Array, user: jax.Array, drop: Any
           ) -> tuple[jax.Array, jax.Array]:
  """Encodes histories.

  Args:
    sizes: of the model.
    params: of `init`.
    history: [B, H, T] int32.
    history_mask: [B, H].
    user: [B] int32.
    drop: of `_Dropout`.

  Returns:
    (memory [B, N, D], mask [B, N]): N = H * T tokens, behind a user token
    where there is one.
  """
  chex.assert_rank([history, history_mask, user], [3, 2, 1])
  batch, items, levels = history.shape
  valid = jnp.repeat(history_mask, levels, 1)
  x = generator.embed(params['code'], sizes.codebook_sizes, history)
  x = jnp.where((history_mask > 0)[..., None, None], x, 0.)
  x = x.reshape(batch, items * levels, -1)
  if sizes.num_user_tokens:
    token = params['user'][user % sizes.num_user_tokens][:, None]
    x = jnp.concatenate([token, x], 1)
    valid = jnp.concatenate([jnp.ones((batch, 1), valid.dtype), valid], 1)
  x = drop(x.astype(sizes.dtype), 'encoder')
  place = np.arange(x.shape[1])
  if sizes.num_user_tokens:
    # Far from everything, however many places the history has.
    place[0] = -_MAX_DISTANCE
  stack = params['encoder']
  bias = _bias(stack['bias'], place, place, True) + attention.mask_bias(
      valid)[:, None, None]
  for layer, block in enumerate(stack['blocks']):
    own = attention.rms_norm(block['self']['norm'], x)
    x = x + drop(_read(block['self'], own, *_memory(block['self'], own), bias),
                 'encoder/self', layer)
    x = x + drop(_feed(block['feed'], x), 'encoder/feed', layer)
  return drop(attention.rms_norm(stack['norm'], x), 'encoder/out'), valid


def train_logits(
    sizes: Sizes, params: types.PyTree, history: jax.Array,
    history_mask: jax.Array, user: jax.Array, target: jax.Array, *,
    key: jax.Array | None = None, row: jax.Array | None = None
) -> tuple[jax.Array, ...]:
  """See `generator.Generator.train_logits` (not packed)."""
  drop = _Dropout(sizes, key, row)
  memory, valid = encode(sizes, params, history, history_mask, user, drop)
  begin = jnp.broadcast_to(
      params['begin'][None, None], (target.shape[0], 1, sizes.dim))
  x = jnp.concatenate([begin, generator.embed(
      params['code'], sizes.codebook_sizes, target[:, :-1])], 1)
  x = drop(x.astype(sizes.dtype), 'decoder')
  place = np.arange(target.shape[1])
  stack = params['decoder']
  bias = _bias(stack['bias'], place, place, False) + attention.mask_bias(
      place[:, None] >= place[None])[None, None]
  far = attention.mask_bias(valid)[:, None, None]
  for layer, block in enumerate(stack['blocks']):
    own = attention.rms_norm(block['self']['norm'], x)
    x = x + drop(_read(block['self'], own, *_memory(block['self'], own), bias),
                 'decoder/self', layer)
    own = attention.rms_norm(block['cross']['norm'], x)
    x = x + drop(
        _read(block['cross'], own, *_memory(block['cross'], memory), far),
        'decoder/cross', layer)
    x = x + drop(_feed(block['feed'], x), 'decoder/feed', layer)
  x = drop(attention.rms_norm(stack['norm'], x), 'decoder/out')
  return tuple(generator.head(
      params['head'], sizes.codebook_sizes, x[:, level], level)
               for level in range(target.shape[1]))


def start(sizes: Sizes, params: types.PyTree, history: jax.Array,
          history_mask: jax.Array, user: jax.Array
          ) -> tuple[types.PyTree, types.PyTree]:
  """See `generator.Generator.start`: keys and values of the memory, once."""
  memory, valid = encode(
      sizes, params, history, history_mask, user, _Dropout(sizes, None, None))
  kept = [_memory(block['cross'], memory)
          for block in params['decoder']['blocks']]
  empty = jnp.zeros((history.shape[0], 1, 0, sizes.num_heads, sizes.head_dim),
                    sizes.dtype)
  return (kept, valid), [(empty, empty) for _ in kept]


def step(sizes: Sizes, params: types.PyTree, context: types.PyTree,
         prefix: jax.Array, state: types.PyTree
         ) -> tuple[jax.Array, types.PyTree]:
  """See `generator.Generator.step`: one new position of each beam.

  Beams stand in the query axis of the cross-attention: the memory is one a
  user, whatever the beam.
  """
  kept, valid = context
  batch, beams, level = prefix.shape
  if level:
    x = generator.embed(params['code'], sizes.codebook_sizes, prefix[..., -1:],
                        level - 1)[..., 0, :]
  else:
    x = jnp.broadcast_to(params['begin'][None, None], (batch, beams, sizes.dim))
  x = x.astype(sizes.dtype)
  stack, caches = params['decoder'], []
  bias = _bias(stack['bias'], np.array([level]), np.arange(level + 1), False)
  far = attention.mask_bias(valid)[:, None, None]
  for block, (keys, values), (old_keys, old_values) in zip(
      stack['blocks'], kept, state):
    own = attention.rms_norm(block['self']['norm'], x)
    new_keys, new_values = (
        jnp.concatenate([old, new[:, :, None]], 2) for old, new in zip(
            (old_keys, old_values), _memory(block['self'], own)))
    caches.append((new_keys, new_values))
    each = lambda y: y.reshape(batch * beams, *y.shape[2:])
    read = _read(block['self'], each(own[:, :, None]), each(new_keys),
                 each(new_values), bias)
    x = x + read.reshape(x.shape)
    own = attention.rms_norm(block['cross']['norm'], x)
    x = x + _read(block['cross'], own, keys, values, far)
    x = x + _feed(block['feed'], x)
  x = attention.rms_norm(stack['norm'], x)
  return generator.head(
      params['head'], sizes.codebook_sizes, x, level), caches
