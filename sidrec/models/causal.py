"""A causal transformer: the trunk of SASRec and of the decoder.

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
  weight = block['out']
  return attention.project(
      x.reshape(*x.shape[:2], -1), weight.reshape(-1, weight.shape[-1]))


def _feed(block: types.PyTree, x: jax.Array) -> jax.Array:
  hidden = attention.project(
      attention.rms_norm(block['norm_hidden'], x), block['up'])
  return attention.project(jax.nn.relu(hidden), block['down'])


def run(params: types.PyTree, sizes: Sizes, x: jax.Array, mask: jax.Array,
        *, key: jax.Array | None = None, row: jax.Array | None = None
        ) -> jax.Array:
  """Runs all positions at once.

  Args:
    params: of `init`.
    sizes: of the trunk.
    x: [B, N, D] inputs.
    mask: [B, N, N], positive where position n may read position m.
    key: of dropout; None = none.
    row: [B] int32 global rows, for dropout.

  Returns:
    [B, N, D] outputs.
  """
  position = jnp.arange(x.shape[1], dtype=jnp.int32)
  bias = attention.mask_bias(mask)[:, None]
  drop = lambda x, name, layer: attention.dropout(
      None if key is None else rng.stream(key, name, layer), sizes.dropout, x,
      row)
  x = drop(x, 'input', 0)
  for layer, block in enumerate(params['blocks']):
    query, keys, values = _qkv(block, x, position)
    read = _merge(block, attention.attend(query, keys, values, bias))
    x = x + drop(read, 'attention', layer)
    x = x + drop(_feed(block, x), 'hidden', layer)
  return attention.rms_norm(params['norm'], x)
