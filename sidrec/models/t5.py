"""T5 encoder-decoder that writes the codes of the next item, as TIGER has it.

Papers: arXiv 1910.10683 (T5, version 1: RMS norms before each block, no
biases, ReLU, relative position biases that a stack shares, attention that is
not scaled because its initialization is), arXiv 2305.05065 (TIGER: a user
token, then the codes of the history).
"""

from typing import Any, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.config import ranges
from sidrec.models import attention
from sidrec.models import generator

LAYOUT = 'last'
RANGES: ranges.Table = {
    **generator.RANGES, 'num_user_tokens': ranges.whole(0, 1 << 24)}
_BUCKETS = 32
_MAX_DISTANCE = 128


def make(config: Any, sizes: Sequence[int]) -> generator.Generator:
  """Builds the generator.

  Args:
    config: dim, num_layers (of each stack), num_heads, head_dim, hidden,
      dropout, num_user_tokens (user ids are hashed to so many; 0 = no user
      token) and dtype ('float32' or 'bfloat16', of activations).
    sizes: K_1, ..., K_T.
  """
  module = T5(
      config.dim, config.num_layers, config.num_heads, config.head_dim,
      config.hidden, config.dropout, config.num_user_tokens,
      jnp.dtype(config.dtype), tuple(sizes))
  return generator.bind(LAYOUT, module, len(sizes))


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


class _Attention(nn.Module):
  """Attention with a norm before it.

  dim: D. num_heads, head_dim: H * d need not be D.
  """
  dim: int
  num_heads: int
  head_dim: int

  def setup(self):
    normal, ones = nn.initializers.normal, nn.initializers.ones
    joined = self.num_heads * self.head_dim
    shape = (self.dim, self.num_heads, self.head_dim)
    self.norm = self.param('norm', ones, (self.dim,))
    # Queries are drawn smaller by sqrt(d): that is T5's scaling.
    self.query = self.param(
        'query', normal((self.dim * self.head_dim) ** -.5), shape)
    self.key = self.param('key', normal(self.dim ** -.5), shape)
    self.value = self.param('value', normal(self.dim ** -.5), shape)
    self.out = self.param('out', normal(joined ** -.5), (joined, self.dim))

  def normed(self, x: jax.Array) -> jax.Array:
    """Returns normalized x [..., D], what `memory` and `read` take."""
    return attention.rms_norm(self.norm, x)

  def memory(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values [B, N, H, d] of [B, N, D]."""
    return attention.project(x, self.key), attention.project(x, self.value)

  def read(self, x: jax.Array, keys: jax.Array, values: jax.Array,
           bias: jax.Array) -> jax.Array:
    """Reads a memory from x [B, Q, D]: [B, Q, D]."""
    heads = attention.attend(
        attention.project(x, self.query), keys, values, bias)
    return attention.project(heads.reshape(*heads.shape[:2], -1), self.out)


class _Feed(nn.Module):
  """A feed-forward layer with a norm before it."""
  dim: int
  hidden: int

  def setup(self):
    normal, ones = nn.initializers.normal, nn.initializers.ones
    self.norm = self.param('norm', ones, (self.dim,))
    self.up = self.param('up', normal(self.dim ** -.5), (self.dim, self.hidden))
    self.down = self.param(
        'down', normal(self.hidden ** -.5), (self.hidden, self.dim))

  def __call__(self, x: jax.Array) -> jax.Array:
    return attention.feed_forward(self.norm, self.up, self.down, x)


class _Block(nn.Module):
  """A block; `cross`, which reads the other stack, is the decoder's."""
  dim: int
  num_heads: int
  head_dim: int
  hidden: int
  is_decoder: bool

  def setup(self):
    sizes = self.dim, self.num_heads, self.head_dim
    self.own = _Attention(*sizes)
    if self.is_decoder:
      self.cross = _Attention(*sizes)
    self.feed = _Feed(self.dim, self.hidden)


class _Stack(nn.Module):
  """Blocks, and what they share: relative biases and the last norm."""
  dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  hidden: int
  is_decoder: bool

  def setup(self):
    self.blocks = [
        _Block(self.dim, self.num_heads, self.head_dim, self.hidden,
               self.is_decoder) for _ in range(self.num_layers)]
    self.bias = self.param('bias', nn.initializers.normal(self.dim ** -.5),
                           (_BUCKETS, self.num_heads))
    self.norm = self.param('norm', nn.initializers.ones, (self.dim,))

  def biases(self, queries: np.ndarray, memory: np.ndarray) -> jax.Array:
    """Returns relative biases [1, H, Q, N] for positions [Q] and [N]."""
    rows = bucket(memory[None] - queries[:, None], not self.is_decoder)
    return jnp.moveaxis(self.bias[rows], -1, 0)[None]

  def last(self, x: jax.Array) -> jax.Array:
    """Returns normalized outputs."""
    return attention.rms_norm(self.norm, x)

  def run(self, x: jax.Array, bias: jax.Array, drop: Any, *,
          memory: jax.Array | None = None, far: jax.Array | None = None
          ) -> jax.Array:
    """Runs all positions at once.

    Args:
      x: [B, N, D].
      bias: broadcasts to [B, H, N, N].
      drop: of `attention.dropping`.
      memory: [B, M, D] that the decoder reads.
      far: broadcasts to [B, H, N, M], of the memory.

    Returns:
      [B, N, D].
    """
    name = 'decoder' if self.is_decoder else 'encoder'
    x = drop(x, name)
    for layer, block in enumerate(self.blocks):
      own = block.own.normed(x)
      x = x + drop(block.own.read(own, *block.own.memory(own), bias),
                   f'{name}/self', layer)
      if self.is_decoder:
        own = block.cross.normed(x)
        x = x + drop(block.cross.read(own, *block.cross.memory(memory), far),
                     f'{name}/cross', layer)
      x = x + drop(block.feed(x), f'{name}/feed', layer)
    return drop(self.last(x), f'{name}/out')


class T5(nn.Module):
  """See `generator.Generator` (last).

  dim, num_layers (of each stack), num_heads, head_dim, hidden, dropout: of
    both stacks.
  num_user_tokens: user ids are hashed to so many; 0 = no user token.
  dtype: of activations.
  sizes: K_1, ..., K_T.
  """
  dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  hidden: int
  dropout: float
  num_user_tokens: int
  dtype: Any
  sizes: tuple[int, ...]

  def setup(self):
    normal = nn.initializers.normal
    shape = (sum(self.sizes), self.dim)
    stack = (self.dim, self.num_layers, self.num_heads, self.head_dim,
             self.hidden)
    self.code = self.param('code', normal(1.), shape)
    if self.num_user_tokens:
      self.user = self.param(
          'user', normal(1.), (self.num_user_tokens, self.dim))
    self.begin = self.param('begin', normal(1.), (self.dim,))
    self.head = self.param('head', normal(self.dim ** -.5), shape)
    self.encoder = _Stack(*stack, is_decoder=False)
    self.decoder = _Stack(*stack, is_decoder=True)

  def embed(self, codes: generator.Codes) -> jax.Array:
    """Returns [..., T, D]: the same of what is read and what is written."""
    return generator.embed(self.code, self.sizes, codes)

  def read(self, x: jax.Array, sequence: types.Sequence, *,
           key: jax.Array | None = None) -> generator.Read:
    """Encodes histories; `pooled` is the mean over their tokens."""
    memory, valid = self._encode(x, sequence, key)
    weight = valid.astype(memory.dtype)[..., None]
    pooled = jnp.sum(memory * weight, 1, keepdims=True) / jnp.maximum(
        jnp.sum(weight, 1, keepdims=True), 1)
    return generator.Read((memory, valid, sequence.row), pooled)

  def write(self, read: generator.Read, x: jax.Array, *,
            key: jax.Array | None = None) -> generator.Written:
    """All levels at once, each behind the vector of the one before it."""
    chex.assert_axis_dimension(x, 1, 1)
    memory, valid, row = read.memory
    x = jnp.concatenate([self._begin(x.shape[0]), x[:, 0, :-1]], 1)
    place = np.arange(len(self.sizes))
    bias = self.decoder.biases(place, place) + attention.mask_bias(
        attention.visible(np.ones((1, len(place)), np.int32)))[:, None]
    x = self.decoder.run(
        x.astype(self.dtype), bias, attention.dropping(key, self.dropout, row),
        memory=memory, far=attention.mask_bias(valid)[:, None, None])
    logits = tuple(generator.head(self.head, self.sizes, x[:, level], level)
                   for level in range(len(place)))
    return generator.Written(
        tuple(z[:, None] for z in logits), x[:, None])

  def start(self, x: jax.Array, sequence: types.Sequence
            ) -> tuple[types.PyTree, types.PyTree]:
    """Keys and values of the memory, once."""
    memory, valid = self._encode(x, sequence, None)
    kept = [block.cross.memory(memory) for block in self.decoder.blocks]
    empty = jnp.zeros(
        (x.shape[0], 1, 0, self.num_heads, self.head_dim), self.dtype)
    return (kept, valid), [(empty, empty) for _ in kept]

  def step(self, context: types.PyTree, prefix: jax.Array, state: types.PyTree
           ) -> tuple[jax.Array, types.PyTree]:
    """One new position of each beam.

    Beams stand in the query axis of the cross-attention: the memory is one a
    user, whatever the beam.
    """
    kept, valid = context
    batch, beams, level = prefix.shape
    if level:
      x = generator.embed(
          self.code, self.sizes, prefix[..., -1:], level - 1)[..., 0, :]
    else:
      x = jnp.broadcast_to(self._begin(batch), (batch, beams, self.dim))
    x, caches = x.astype(self.dtype), []
    bias = self.decoder.biases(np.array([level]), np.arange(level + 1))
    far = attention.mask_bias(valid)[:, None, None]
    each = lambda y: y.reshape(batch * beams, *y.shape[2:])
    for block, (keys, values), old in zip(self.decoder.blocks, kept, state):
      own = block.own.normed(x)
      cache = tuple(jnp.concatenate([before, new[:, :, None]], 2)
                    for before, new in zip(old, block.own.memory(own)))
      caches.append(cache)
      read = block.own.read(
          each(own[:, :, None]), *(each(y) for y in cache), bias)
      x = x + read.reshape(x.shape)
      x = x + block.cross.read(block.cross.normed(x), keys, values, far)
      x = x + block.feed(x)
    return generator.head(
        self.head, self.sizes, self.decoder.last(x), level), caches

  def _begin(self, batch: int) -> jax.Array:
    """Returns what stands before the first code: [B, 1, D]."""
    return jnp.broadcast_to(
        self.begin[None, None], (batch, 1, self.dim))

  def _encode(self, x: jax.Array, sequence: types.Sequence,
              key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Returns (memory [B, N, D], valid [B, N] bool).

    N = S * T tokens, behind a user token where there is one.
    """
    chex.assert_rank([x, sequence.segment], [4, 2])
    batch, items, levels, _ = x.shape
    valid = sequence.segment > 0
    x = jnp.where(valid[..., None, None], x, 0.)
    x = x.reshape(batch, items * levels, -1)
    valid = jnp.repeat(valid, levels, 1)
    if self.num_user_tokens:
      user = sequence.user[:, -1] % self.num_user_tokens
      x = jnp.concatenate([self.user[user][:, None], x], 1)
      valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
    place = np.arange(x.shape[1])
    if self.num_user_tokens:
      # Far from everything, however many places the history has.
      place[0] = -_MAX_DISTANCE
    bias = self.encoder.biases(place, place) + attention.mask_bias(
        valid)[:, None, None]
    drop = attention.dropping(key, self.dropout, sequence.row)
    return self.encoder.run(x.astype(self.dtype), bias, drop), valid
