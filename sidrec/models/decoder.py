"""A causal generator of codes: all positions of a sequence learn at once.

An item is one position: the sum of its codes' vectors. A causal transformer
reads the items, and a small network per level writes the next item's codes,
each from what was read and the codes before it (as the spatial and the depth
part of arXiv 2203.01941, the depth part without attention). T times fewer
positions than one a code; several users' sequences share a row.
"""

from typing import Any, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from sidrec import types
from sidrec.config import ranges
from sidrec.models import attention
from sidrec.models import generator
from sidrec.models import trunks


LAYOUT = 'packed'
RANGES: ranges.Table = {
    **generator.RANGES,
    'head_dim': ranges.WIDTH.that(  # Positions turn pairs of numbers.
        'an even one', lambda own, _: own['head_dim'] % 2 == 0)}


def make(config: Any, sizes: Sequence[int]) -> generator.Generator:
  """Builds the generator.

  Args:
    config: dim, num_layers, num_heads, head_dim, hidden, dropout and dtype
      ('float32' or 'bfloat16', of activations).
    sizes: K_1, ..., K_T.
  """
  trunk = trunks.Sasrec(config.dim, config.num_layers, config.num_heads,
                        config.head_dim, config.hidden, config.dropout)
  module = Decoder(trunk, config.dim, config.hidden, jnp.dtype(config.dtype),
                   tuple(sizes))
  return generator.bind(LAYOUT, module, len(sizes))


class _Depth(nn.Module):
  """Turns what is known [..., D] before a level is written."""
  dim: int
  hidden: int

  def setup(self):
    normal, ones = nn.initializers.normal, nn.initializers.ones
    self.level = self.param('level', normal(self.dim ** -.5), (self.dim,))
    self.norm = self.param('norm', ones, (self.dim,))
    self.up = self.param('up', normal(self.dim ** -.5), (self.dim, self.hidden))
    self.down = self.param(
        'down', normal(self.hidden ** -.5), (self.hidden, self.dim))

  def __call__(self, known: jax.Array) -> jax.Array:
    shape = (1,) * (known.ndim - 1) + (-1,)
    x = known + self.level.reshape(shape).astype(known.dtype)
    hidden = attention.project(attention.rms_norm(self.norm, x), self.up)
    return x + attention.project(jax.nn.relu(hidden), self.down)


class Decoder(nn.Module):
  """See `generator.Generator` (packed).

  Vectors of `embed` are two halves: of a code that is read as a part of an
  item, and of one that was written.

  trunk: reads the items.
  dim, hidden: D, width of the hidden layers of the depth part.
  dtype: of activations.
  sizes: K_1, ..., K_T.
  """
  trunk: nn.Module
  dim: int
  hidden: int
  dtype: Any
  sizes: tuple[int, ...]

  def setup(self):
    normal, ones = nn.initializers.normal, nn.initializers.ones
    rows = sum(self.sizes)
    self.code = self.param(
        'code', normal(len(self.sizes) ** -.5), (rows, 2 * self.dim))
    self.depth = [_Depth(self.dim, self.hidden) for _ in self.sizes]
    self.norm = self.param('norm', ones, (self.dim,))
    self.head = self.param('head', normal(self.dim ** -.5), (rows, self.dim))

  def embed(self, codes: generator.Codes) -> jax.Array:
    """Returns [..., T, 2 D]."""
    return generator.embed(self.code, self.sizes, codes)

  def read(self, x: jax.Array, sequence: types.Sequence, *,
           key: jax.Array | None = None) -> generator.Read:
    """What was read up to an item is asked for the next one."""
    after = self._after(x, sequence, key)
    first = attention.places(sequence.segment) == 0
    before = jnp.pad(after[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return generator.Read((), jnp.where(first[..., None], 0., before))

  def write(self, read: generator.Read, x: jax.Array, *,
            key: jax.Array | None = None) -> generator.Written:
    """Nothing is dropped here: `key` is of the trunk."""
    del key
    # Split, not sliced: gradients of slices are padded and added up.
    wrote = jnp.split(jnp.split(x, 2, -1)[1], len(self.sizes), -2)
    known, states, logits = read.pooled, [], []
    for level in range(len(self.sizes)):
      if level:
        known = known + wrote[level - 1].squeeze(-2).astype(known.dtype)
      state, out = self._level(known, level)
      states.append(state)
      logits.append(out)
    return generator.Written(tuple(logits), jnp.stack(states, -2))

  def start(self, x: jax.Array, sequence: types.Sequence
            ) -> tuple[types.PyTree, types.PyTree]:
    """The history becomes one vector: the state is what is known."""
    return (), self._after(x, sequence, None)[:, -1:]

  def step(self, context: types.PyTree, prefix: jax.Array, state: types.PyTree
           ) -> tuple[jax.Array, types.PyTree]:
    """Writes a level of each beam."""
    del context
    level = prefix.shape[-1]
    if level:
      own = generator.embed(self.code, self.sizes, prefix[..., -1:],
                            level - 1)[..., 0, self.dim:]
      state = state + own.astype(state.dtype)
    return self._level(state, level)[1], state

  def _after(self, x: jax.Array, sequence: types.Sequence,
             key: jax.Array | None) -> jax.Array:
    """Returns what has been read after each place, [B, S, D]."""
    segment = sequence.segment
    chex.assert_rank([x, segment], [4, 2])
    x = jnp.sum(jnp.split(x, 2, -1)[0], -2)
    x = jnp.where((segment > 0)[..., None], x, 0.).astype(self.dtype)
    return self.trunk.run(
        x, attention.visible(segment), attention.places(segment),
        sequence.time, key=key, row=sequence.row)

  def _level(self, known: jax.Array, level: int
             ) -> tuple[jax.Array, jax.Array]:
    """Returns the state [..., D] and logits [..., K_l] of what is known."""
    state = attention.rms_norm(self.norm, self.depth[level](known))
    return state, generator.head(self.head, self.sizes, state, level)
