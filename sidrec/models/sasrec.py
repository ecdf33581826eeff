"""SASRec: self-attention over a user's item ids.

Paper: arXiv 1808.09781; here with the trunk of `causal` (rotary positions
instead of learned ones, RMS norms) and items' vectors shared between input and
output, as there. Shared vectors put what was just bought on top: an item is
nearest to itself. Where nobody buys twice that costs the first place (on
Amazon Beauty at 78 % of the users), so one learned number is added to the
scores of all items of the history (`seen_bias`, ours).
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from sidrec import rng
from sidrec import types
from sidrec.models import attention
from sidrec.models import causal


_STD = .02  # Of new item vectors: an item never trained on scores about 0.


class Sasrec(NamedTuple):
  """Pure functions.

  init: (key) -> params.
  train_hidden: (params, item [B, S], segment [B, S], *, key, row) -> [B, S, D]
    outputs that have read item s and what stands before it in its segment.
  encode: (params, history [B, H], history_mask [B, H]) -> [B, D].
  table: (params) -> [V, D] item vectors; a score is an inner product.
  seen: (params) -> [] float32, added to the scores of items of the history.
  """
  init: Callable[..., types.PyTree]
  train_hidden: Callable[..., jax.Array]
  encode: Callable[..., jax.Array]
  table: Callable[..., jax.Array]
  seen: Callable[..., jax.Array]


def make(config: Any, num_items: int) -> Sasrec:
  """Builds the model.

  Args:
    config: dim, num_layers, num_heads (of dim / num_heads each), dropout and
      seen_bias (False: the paper's scores).
    num_items: V.

  Raises:
    types.InputError: heads that do not divide the width evenly; as
      `attention.check`.
  """
  attention.check(config)
  if config.dim % (2 * config.num_heads):
    raise types.InputError(
        f'config.model.num_heads={config.num_heads}: dim {config.dim} must be '
        'a multiple of twice as many')
  sizes = causal.Sizes(
      config.dim, config.num_layers, config.num_heads,
      config.dim // config.num_heads, 4 * config.dim, config.dropout)

  def init(key: jax.Array) -> types.PyTree:
    return {'trunk': causal.init(rng.stream(key, 'trunk'), sizes),
            'item': attention.kernel(
                rng.stream(key, 'item'), (num_items, sizes.dim), _STD),
            'seen': jnp.zeros(())}

  def inputs(params, item, valid):
    x = params['item'][item] * jnp.sqrt(sizes.dim)
    return jnp.where((valid > 0)[..., None], x, 0.)

  def train_hidden(params, item, segment, *, key=None, row=None):
    num = item.shape[1]
    mask = jnp.tril(jnp.ones((num, num), bool))[None] & (
        segment[:, :, None] == segment[:, None]) & (segment > 0)[:, None]
    return causal.run(
        params['trunk'], sizes, inputs(params, item, segment), mask, key=key,
        row=row)

  def encode(params, history, history_mask):
    num = history.shape[1]
    mask = jnp.tril(jnp.ones((num, num), bool))[None] & (
        history_mask > 0)[:, None]
    return causal.run(
        params['trunk'], sizes, inputs(params, history, history_mask),
        mask)[:, -1]

  def seen(params):
    if not config.seen_bias:
      return jnp.zeros(())
    return params['seen'] * jnp.sqrt(sizes.dim)  # At the pace of the inputs.

  return Sasrec(
      init, train_hidden, encode, lambda params: params['item'], seen)
