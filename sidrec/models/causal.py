"""A causal transformer: the trunk of SASRec and of the code decoder.

Pre-norm blocks with RMS norms and rotary positions. Rotary, because only
distances enter: a sequence reads the same wherever it stands in a packed row,
and behind whatever padding it is served with.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sidrec import rng
from sidrec import types
from sidrec.models import attention


class Sizes(NamedTuple):
  """Of a trunk. hidden: width of the feed-forward layer."""
  dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  hidden: int
  dropout: float


def init(key: jax.Array, sizes: Sizes) -> types.PyTree:
  """Draws the trunk; consumes `key`."""
  inner = (sizes.num_heads, sizes.head_dim)
  out = 1 / math.sqrt(2 * sizes.num_layers)  # Residual branches add up.
  blocks = []
  for layer in range(sizes.num_layers):
    draw = lambda name, shape, std, layer=layer: attention.kernel(
        rng.stream(key, name, layer), shape, std)
    blocks.append({
        'norm_attention': jnp.ones(sizes.dim),
        'qkv': draw('qkv', (sizes.dim, 3, *inner), sizes.dim ** -.5),
        'out': draw('out', (*inner, sizes.dim),
                    out / math.sqrt(inner[0] * inner[1])),
        'norm_hidden': jnp.ones(sizes.dim),
        'up': draw('up', (sizes.dim, sizes.hidden), sizes.dim ** -.5),
        'down': draw('down', (sizes.hidden, sizes.dim),
                     out * sizes.hidden ** -.5)})
  return {'blocks': blocks, 'norm': jnp.ones(sizes.dim)}


def _qkv(block: types.PyTree, x: jax.Array, position: jax.Array
         ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns scaled queries, keys and values [B, N, H, d]."""
  qkv = attention.project(
      attention.rms_norm(block['norm_attention'], x), block['qkv'])
  query, keys, values = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
  scale = query.shape[-1] ** -.5
  return (attention.rotate(query, position) * scale,
          attention.rotate(keys, position), values)


def _merge(block: types.PyTree, x: jax.Array) -> jax.Array:
  """Joins heads [B, N, H, d] to [B, N, D]."""
  return jnp.einsum('bnhd,hde->bne', x, block['out'].astype(x.dtype))


def _feed(block: types.PyTree, x: jax.Array) -> jax.Array:
  hidden = attention.project(
      attention.rms_norm(block['norm_hidden'], x), block['up'])
  return attention.project(jax.nn.gelu(hidden), block['down'])


def run(params: types.PyTree, sizes: Sizes, x: jax.Array, mask: jax.Array,
        *, key: jax.Array | None = None, row: jax.Array | None = None
        ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
  """Runs all positions at once.

  Args:
    params: of `init`.
    sizes: of the trunk.
    x: [B, N, D] inputs.
    mask: [B, N, N], positive where position n may read position m.
    key: of dropout; None = none.
    row: [B] int32 global rows, for dropout.

  Returns:
    (outputs [B, N, D], keys and values [B, N, H, d] of each layer).
  """
  position = jnp.arange(x.shape[1], dtype=jnp.int32)
  bias = attention.mask_bias(mask)[:, None]
  kept = []
  drop = lambda x, name, layer: attention.dropout(
      None if key is None else rng.stream(key, name, layer), sizes.dropout, x,
      row)
  x = drop(x, 'input', 0)
  for layer, block in enumerate(params['blocks']):
    query, keys, values = _qkv(block, x, position)
    kept.append((keys, values))
    read = _merge(block, attention.attend(query, keys, values, bias))
    x = x + drop(read, 'attention', layer)
    x = x + drop(_feed(block, x), 'hidden', layer)
  return attention.rms_norm(params['norm'], x), kept


def step(params: types.PyTree, x: jax.Array, position: int,
         context: list[tuple[jax.Array, jax.Array]], context_mask: jax.Array,
         own: list[tuple[jax.Array, jax.Array]]
         ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
  """Runs one more position of W continuations of each of B sequences.

  Args:
    params: of `init`.
    x: [B, W, D] inputs.
    position: of all of them.
    context: of `run`, [B, N, H, d]: read by all continuations, which stand in
      the query axis; nothing of it is repeated.
    context_mask: [B, N], positive = valid.
    own: keys and values of what each continuation has behind the context, [B,
      W, n, H, d] of each layer.

  Returns:
    (outputs [B, W, D], own with one more position).
  """
  place = jnp.full((x.shape[1],), position, jnp.int32)
  bias = attention.mask_bias(context_mask)[:, None, None]
  kept = []
  for block, (keys, values), (old_keys, old_values) in zip(
      params['blocks'], context, own):
    query, key, value = _qkv(block, x, place)
    old_keys = jnp.concatenate([old_keys, key[:, :, None]], 2)
    old_values = jnp.concatenate([old_values, value[:, :, None]], 2)
    kept.append((old_keys, old_values))
    read = _two_sided(query, keys, values, bias, old_keys, old_values)
    x = x + _merge(block, read)
    x = x + _feed(block, x)
  return attention.rms_norm(params['norm'], x), kept


def _two_sided(query: jax.Array, keys: jax.Array, values: jax.Array,
               bias: jax.Array, own_keys: jax.Array, own_values: jax.Array
               ) -> jax.Array:
  """Attends to shared [B, N, H, d] and own [B, W, n, H, d] places at once."""
  shared = jnp.einsum('bwhd,bnhd->bhwn', query, keys).astype(jnp.float32)
  own = jnp.einsum('bwhd,bwnhd->bhwn', query, own_keys).astype(jnp.float32)
  weight = jax.nn.softmax(jnp.concatenate([shared + bias, own], -1), -1)
  weight = weight.astype(values.dtype)
  cut = shared.shape[-1]
  return (jnp.einsum('bhwn,bnhd->bwhd', weight[..., :cut], values)
          + jnp.einsum('bhwn,bwnhd->bwhd', weight[..., cut:], own_values))
