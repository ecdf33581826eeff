"""A causal generator of codes: all positions of a sequence learn at once.

A user's items stand as T code tokens each, one behind the other; the output at
a token is asked for the next one. Several users' sequences share a row.
"""

import functools
from typing import Any, Sequence

import chex
import jax
import jax.numpy as jnp

from sidrec import rng
from sidrec import types
from sidrec.models import attention
from sidrec.models import causal
from sidrec.models import generator


def make(config: Any, codebook_sizes: Sequence[int]) -> generator.Generator:
  """Builds the generator.

  Args:
    config: dim, num_layers, num_heads, head_dim, hidden, dropout and dtype
      ('float32' or 'bfloat16', of activations).
    codebook_sizes: K_1, ..., K_T.
  """
  sizes = causal.Sizes(config.dim, config.num_layers, config.num_heads,
                       config.head_dim, config.hidden, config.dropout)
  bind = lambda fn: functools.partial(
      fn, sizes, tuple(codebook_sizes), jnp.dtype(config.dtype))
  return generator.Generator(
      init=bind(init), train_logits=bind(train_logits), start=bind(start),
      step=bind(step), packed=True)


def init(sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
         key: jax.Array) -> types.PyTree:
  """Returns fresh params; consumes `key`."""
  del dtype
  rows = sum(codebook_sizes)
  return {
      'trunk': causal.init(rng.stream(key, 'trunk'), sizes),
      'code': attention.kernel(
          rng.stream(key, 'code'), (rows, sizes.dim), sizes.dim ** -.5),
      'level': attention.kernel(
          rng.stream(key, 'level'), (len(codebook_sizes), sizes.dim),
          sizes.dim ** -.5),
      'head': attention.kernel(
          rng.stream(key, 'head'), (rows, sizes.dim), sizes.dim ** -.5)}


def _tokens(params: types.PyTree, codebook_sizes: tuple[int, ...], dtype: Any,
            codes: jax.Array, valid: jax.Array) -> jax.Array:
  """Embeds items [B, S, T] as tokens [B, S * T, D]; 0 where not valid."""
  level = params['level'].reshape(1, 1, *params['level'].shape)
  x = generator.embed(params['code'], codebook_sizes, codes) + level
  x = jnp.where((valid > 0)[..., None, None], x, 0.)
  return x.reshape(x.shape[0], -1, x.shape[-1]).astype(dtype)


def train_logits(
    sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
    params: types.PyTree, codes: jax.Array, segment: jax.Array, *,
    key: jax.Array | None = None, row: jax.Array | None = None
) -> tuple[jax.Array, ...]:
  """See `generator.Generator.train_logits` (packed)."""
  chex.assert_rank([codes, segment], [3, 2])
  batch, items, levels = codes.shape
  own = jnp.repeat(segment, levels, 1)
  mask = jnp.tril(jnp.ones((items * levels,) * 2, bool))[None] & (
      own[:, :, None] == own[:, None]) & (own > 0)[:, None]
  out, _ = causal.run(
      params['trunk'], sizes, _tokens(
          params, codebook_sizes, dtype, codes, segment), mask, key=key,
      row=row)
  out = out.reshape(batch, items, levels, -1)
  # The last token of an item is asked for the next item's first code.
  before = jnp.pad(out[:, :-1, -1], ((0, 0), (1, 0), (0, 0)))
  asked = [before] + [out[:, :, level] for level in range(levels - 1)]
  return tuple(generator.head(params['head'], codebook_sizes, x, level)
               for level, x in enumerate(asked))


def start(sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
          params: types.PyTree, history: jax.Array, history_mask: jax.Array,
          user: jax.Array) -> tuple[types.PyTree, types.PyTree]:
  """See `generator.Generator.start`: the whole history, once."""
  del user
  valid = jnp.repeat(history_mask, history.shape[-1], 1)
  num = valid.shape[1]
  mask = jnp.tril(jnp.ones((num, num), bool))[None] & (valid > 0)[:, None]
  out, kept = causal.run(
      params['trunk'], sizes, _tokens(
          params, codebook_sizes, dtype, history, history_mask), mask)
  batch = history.shape[0]
  empty = jnp.zeros(
      (batch, 1, 0, sizes.num_heads, sizes.head_dim), out.dtype)
  own = [(empty, empty) for _ in kept]
  return (kept, valid), {'last': out[:, -1:], 'own': own}


def step(sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
         params: types.PyTree, context: types.PyTree, prefix: jax.Array,
         state: types.PyTree) -> tuple[jax.Array, types.PyTree]:
  """See `generator.Generator.step`."""
  del sizes
  kept, valid = context
  level = prefix.shape[-1]
  if level:
    x = generator.embed(params['code'], codebook_sizes, prefix[..., -1:],
                        level - 1)[..., 0, :]
    x = (x + params['level'][level - 1][None, None]).astype(dtype)
    last, own = causal.step(
        params['trunk'], x, valid.shape[1] + level - 1, kept, valid,
        state['own'])
    state = {'last': last, 'own': own}
  return generator.head(
      params['head'], codebook_sizes, state['last'], level), state
