"""A causal generator of codes: all positions of a sequence learn at once.

An item is one position: the sum of its codes' vectors. A causal transformer
reads the items, and a small network per level writes the next item's codes,
each from what was read and the codes before it (as the spatial and the depth
part of arXiv 2203.01941, the depth part without attention). T times fewer
positions than one a code; several users' sequences share a row.
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

  Raises:
    types.InputError: as `attention.check`, or an odd width of the heads.
  """
  attention.check(config)
  if config.head_dim % 2:
    raise types.InputError(
        f'config.model.head_dim={config.head_dim}: must be even, positions '
        'turn pairs of numbers')
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
  rows, levels, dim = sum(codebook_sizes), len(codebook_sizes), sizes.dim
  draw = lambda name, shape, fan: attention.kernel(
      rng.stream(key, name), shape, fan ** -.5)
  return {
      'trunk': causal.init(rng.stream(key, 'trunk'), sizes),
      # Of items that are read, and of codes that are written.
      'code': draw('code', (rows, dim), levels),
      'prefix': draw('prefix', (rows, dim), levels),
      'level': draw('level', (levels, dim), dim),
      'depth': [{
          'norm': jnp.ones(dim),
          'up': draw(f'up {level}', (dim, sizes.hidden), dim),
          'down': draw(f'down {level}', (sizes.hidden, dim), sizes.hidden)}
                for level in range(levels)],
      'norm': jnp.ones(dim),
      'head': draw('head', (rows, dim), dim)}


def _read(sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
          params: types.PyTree, codes: jax.Array, valid: jax.Array,
          mask: jax.Array, **dropout: Any) -> jax.Array:
  """Reads items [B, S, T] in order; [B, S, D] after each of them."""
  x = jnp.sum(generator.embed(params['code'], codebook_sizes, codes), -2)
  x = jnp.where((valid > 0)[..., None], x, 0.).astype(dtype)
  return causal.run(params['trunk'], sizes, x, mask, **dropout)


def _write(codebook_sizes: tuple[int, ...], params: types.PyTree,
           known: jax.Array, level: int) -> jax.Array:
  """Logits [..., K_l] from what is known [..., D]: the read and the written."""
  place = params['level'][level].reshape((1,) * (known.ndim - 1) + (-1,))
  x, block = known + place.astype(known.dtype), params['depth'][level]
  hidden = attention.project(
      attention.rms_norm(block['norm'], x), block['up'])
  x = x + attention.project(jax.nn.relu(hidden), block['down'])
  return generator.head(params['head'], codebook_sizes,
                        attention.rms_norm(params['norm'], x), level)


def _wrote(codebook_sizes: tuple[int, ...], params: types.PyTree,
           known: jax.Array, code: jax.Array, level: int) -> jax.Array:
  """Adds a written code [...] of a level to what is known [..., D]."""
  own = generator.embed(
      params['prefix'], codebook_sizes, code[..., None], level)[..., 0, :]
  return known + own.astype(known.dtype)


def train_logits(
    sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
    params: types.PyTree, codes: jax.Array, segment: jax.Array, *,
    key: jax.Array | None = None, row: jax.Array | None = None
) -> tuple[jax.Array, ...]:
  """See `generator.Generator.train_logits` (packed)."""
  chex.assert_rank([codes, segment], [3, 2])
  num = codes.shape[1]
  mask = jnp.tril(jnp.ones((num, num), bool))[None] & (
      segment[:, :, None] == segment[:, None]) & (segment > 0)[:, None]
  read = _read(sizes, codebook_sizes, dtype, params, codes, segment, mask,
               key=key, row=row)
  # What was read up to an item is asked for the next one.
  known = jnp.pad(read[:, :-1], ((0, 0), (1, 0), (0, 0)))
  logits = []
  for level in range(codes.shape[-1]):
    if level:
      known = _wrote(
          codebook_sizes, params, known, codes[..., level - 1], level - 1)
    logits.append(_write(codebook_sizes, params, known, level))
  return tuple(logits)


def start(sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
          params: types.PyTree, history: jax.Array, history_mask: jax.Array,
          user: jax.Array) -> tuple[types.PyTree, types.PyTree]:
  """See `generator.Generator.start`: the history becomes one vector."""
  del user
  num = history.shape[1]
  mask = jnp.tril(jnp.ones((num, num), bool))[None] & (
      history_mask > 0)[:, None]
  read = _read(
      sizes, codebook_sizes, dtype, params, history, history_mask, mask)
  return (), read[:, -1:]


def step(sizes: causal.Sizes, codebook_sizes: tuple[int, ...], dtype: Any,
         params: types.PyTree, context: types.PyTree, prefix: jax.Array,
         state: types.PyTree) -> tuple[jax.Array, types.PyTree]:
  """See `generator.Generator.step`: the state is what is known."""
  del sizes, dtype, context
  level = prefix.shape[-1]
  if level:
    state = _wrote(codebook_sizes, params, state, prefix[..., -1], level - 1)
  return _write(codebook_sizes, params, state, level), state
