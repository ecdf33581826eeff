"""Trunks: what reads the places of a row, for item models and generators."""

from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sidrec import config as config_lib
from sidrec import types
from sidrec.config import ranges
from sidrec.models import attention
from sidrec.models import binding


class Trunk(NamedTuple):
  """Pure functions; widths in and out are the same.

  init: (key) -> params.
  run: (params, x [B, N, D], mask [B, N, N], position [B, N], time, *,
    key=None, row=None) -> [B, N, D] outputs at all places at once. mask: True
    where place n may read place m (`attention.visible`). position: int32
    within its segment (`attention.places`). time: [B, N] int32 seconds, or
    None; not every trunk reads it. key: of dropout, None = none. row: [B]
    int32 global rows, for dropout.
  """
  init: Callable[..., types.PyTree]
  run: Callable[..., jax.Array]


class _Block(nn.Module):
  """Attention and a feed-forward layer, norms before them.

  dim, num_heads, head_dim, hidden: widths.
  scale: of fresh outputs: residual branches add up.
  """
  dim: int
  num_heads: int
  head_dim: int
  hidden: int
  scale: float

  def setup(self):
    normal, ones = nn.initializers.normal, nn.initializers.ones
    dim, inner = self.dim, (self.num_heads, self.head_dim)
    joined = self.num_heads * self.head_dim
    self.norm_attention = self.param('norm_attention', ones, (dim,))
    self.qkv = self.param('qkv', normal(dim ** -.5), (dim, 3, *inner))
    self.out = self.param(
        'out', normal(self.scale * joined ** -.5), (joined, dim))
    self.norm_hidden = self.param('norm_hidden', ones, (dim,))
    self.up = self.param('up', normal(dim ** -.5), (dim, self.hidden))
    self.down = self.param(
        'down', normal(self.scale * self.hidden ** -.5), (self.hidden, dim))

  def attend(self, x: jax.Array, turn: tuple[jax.Array, jax.Array],
             bias: jax.Array) -> jax.Array:
    """Reads the row: [B, N, D]."""
    qkv = attention.project(
        attention.rms_norm(self.norm_attention, x), self.qkv)
    query, keys, values = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    heads = attention.attend(
        attention.rotate(query, turn) * self.head_dim ** -.5,
        attention.rotate(keys, turn), values, bias)
    return attention.project(heads.reshape(*heads.shape[:2], -1), self.out)

  def feed(self, x: jax.Array) -> jax.Array:
    """Each place by itself: [B, N, D]."""
    return attention.feed_forward(self.norm_hidden, self.up, self.down, x)


class Sasrec(nn.Module):
  """A transformer with rotary positions, RMS norms before its layers.

  Rotary, because only distances enter: a sequence reads the same wherever it
  stands in a packed row, and behind whatever padding it is served with.

  dim, num_layers, num_heads, head_dim: of the stack; head_dim is even.
  hidden: width of the feed-forward layers.
  dropout: share that is dropped.
  """
  dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  hidden: int
  dropout: float

  def setup(self):
    self.blocks = [
        _Block(self.dim, self.num_heads, self.head_dim, self.hidden,
               (2 * self.num_layers) ** -.5) for _ in range(self.num_layers)]
    self.norm = self.param('norm', nn.initializers.ones, (self.dim,))

  def run(self, x: jax.Array, mask: jax.Array, position: jax.Array,
          time: jax.Array | None = None, *, key: jax.Array | None = None,
          row: jax.Array | None = None) -> jax.Array:
    """See `Trunk.run`."""
    del time
    drop = attention.dropping(key, self.dropout, row)
    bias = attention.mask_bias(mask)[:, None]
    turn = attention.turns(position, self.head_dim)
    x = drop(x, 'input')
    for layer, block in enumerate(self.blocks):
      x = x + drop(block.attend(x, turn, bias), 'attention', layer)
      x = x + drop(block.feed(x), 'hidden', layer)
    return attention.rms_norm(self.norm, x)


TRUNKS = {'sasrec': Sasrec}
RANGES: ranges.Table = {
    'trunk': ranges.choice(*TRUNKS),
    'dim': ranges.WIDTH, 'num_layers': ranges.DEPTH,
    'num_heads': ranges.DEPTH.that(
        'dim a multiple of twice as many',
        lambda own, _: own['dim'] % (2 * own['num_heads']) == 0),
    'dropout': attention.DROPOUT}


def module(config: Any, prefix: str) -> nn.Module:
  """Builds a trunk as a linen module, to be a part of another one.

  Args:
    config: trunk (a name), dim, num_layers, num_heads, of dim / num_heads
      each, and dropout; feed-forward layers are four times as wide.
    prefix: what the configuration calls it, such as 'collaborative.model'.

  Raises:
    types.InputError: unknown trunk, or settings out of range.
  """
  config_lib.check_part(config, RANGES, prefix)
  return TRUNKS[config.trunk](
      config.dim, config.num_layers, config.num_heads,
      config.dim // config.num_heads, 4 * config.dim, config.dropout)


def make(config: Any, prefix: str = 'model') -> Trunk:
  """Builds a trunk as pure functions; arguments and errors as of `module`."""
  def example(own: nn.Module) -> jax.Array:
    return own.run(jnp.zeros((1, 1, config.dim)), jnp.ones((1, 1, 1), bool),
                   jnp.zeros((1, 1), jnp.int32))
  return Trunk(**binding.bind(module(config, prefix), ['run'], example))
