"""Models of item ids: a trunk over vectors of items, the same in and out.

With the trunk 'sasrec' it is SASRec (arXiv 1808.09781), with rotary positions
instead of learned ones and RMS norms. Vectors shared between input and output
put what was just bought on top: an item is nearest to itself. Where nobody buys
twice that costs the first place (on Amazon Beauty at 78 % of the users), so one
learned number is added to the scores of all items of the history (`seen_bias`,
ours).
"""

from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sidrec import types
from sidrec.config import ranges
from sidrec.models import attention
from sidrec.models import binding
from sidrec.models import trunks

RANGES: ranges.Table = {**trunks.RANGES, 'seen_bias': ranges.FLAG}
_STD = .02  # Of new item vectors: an item never trained on scores about 0.


class ItemModel(NamedTuple):
  """Pure functions.

  init: (key) -> params.
  hidden: (params, sequence, *, key=None) -> [B, S, D] outputs that have read
    item s and what stands before it in its segment: a history's, newest last,
    is the last. key: of dropout, None = none.
  table: (params) -> [V, D] item vectors; a score is an inner product.
  seen: (params) -> [] float32, added to the scores of items of the history.
  """
  init: Callable[..., types.PyTree]
  hidden: Callable[..., jax.Array]
  table: Callable[..., jax.Array]
  seen: Callable[..., jax.Array]


class _Module(nn.Module):
  """See `ItemModel`. seen_bias: whether `seen` is learned, or 0."""
  trunk: nn.Module
  num_items: int
  dim: int
  seen_bias: bool

  def setup(self):
    self.item = self.param(
        'item', nn.initializers.normal(_STD), (self.num_items, self.dim))
    self.bias = (self.param('seen', nn.initializers.zeros, ())
                 if self.seen_bias else jnp.zeros(()))

  def hidden(self, sequence: types.Sequence, *, key: jax.Array | None = None
             ) -> jax.Array:
    segment = sequence.segment
    x = self.item[sequence.item] * jnp.sqrt(self.dim)
    x = jnp.where((segment > 0)[..., None], x, 0.)
    return self.trunk.run(
        x, attention.visible(segment), attention.places(segment),
        sequence.time, key=key, row=sequence.row)

  def table(self) -> jax.Array:
    return self.item

  def seen(self) -> jax.Array:
    return self.bias * jnp.sqrt(self.dim)  # At the pace of the inputs.


def make(config: Any, num_items: int, prefix: str = 'model'
         ) -> ItemModel:
  """Builds the model.

  Args:
    config: as of `trunks.module`, and seen_bias (False: the paper's scores).
    num_items: V.
    prefix: what the configuration calls it, for messages.

  Raises:
    types.InputError: as `trunks.module`.
  """
  module = _Module(trunks.module(config, prefix), num_items,
                   config.dim, config.seen_bias)
  example = lambda own: own.hidden(binding.sequence(1))
  return ItemModel(
      **binding.bind(module, ['hidden', 'table', 'seen'], example))
