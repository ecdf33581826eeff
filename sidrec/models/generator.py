"""What a generator of codes is: a NamedTuple of pure functions.

It knows code tuples and the sizes K_1, ..., K_T of their levels, and nothing
of how they were made. Every level has embedding rows and an output of its own.
"""

from typing import Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.models import attention


class Generator(NamedTuple):
  """Writes the codes of the next item.

  init: (key) -> params.
  train_logits: where `packed`, (params, codes [B, S, T], segment [B, S], *,
    key, row) -> T arrays [B, S, K_l]: of level l of item s, from the items
    before it in its segment and its own earlier codes (where there is no item
    before it, anything). Else (params, history [B, H, T], history_mask [B, H],
    user [B], target [B, T], *, key, row) -> T arrays [B, K_l]. key: of
    dropout, None = none; row: [B] int32 global rows.
  start: (params, history [B, H, T], history_mask [B, H], user [B]) ->
    (context, state): histories oldest first, padding in front. The context is
    the user's; the state [B, 1, ...] is the beams'.
  step: (params, context, prefix [B, W, l], state) -> (logits [B, W, K_{l+1}]
    float32, state): for l = 0, ..., T - 1 in turn, as `decode.beam_search`
    calls its model.
  """
  init: Callable[..., types.PyTree]
  train_logits: Callable[..., tuple[jax.Array, ...]]
  start: Callable[..., tuple[types.PyTree, types.PyTree]]
  step: Callable[..., tuple[jax.Array, types.PyTree]]
  packed: bool


def offsets(sizes: Sequence[int]) -> np.ndarray:
  """Returns the first embedding row of each level, [T]."""
  return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)


def embed(table: types.Array, sizes: Sequence[int], codes: types.Array,
          first: int = 0) -> jax.Array:
  """Looks up codes [..., n] of levels first, ..., first + n - 1.

  Args:
    table: [sum K, D].
    sizes: K_1, ..., K_T.
    codes: int32.
    first: 0-based level of the first of them.

  Returns:
    [..., n, D].
  """
  start = offsets(sizes)[first:first + codes.shape[-1]]
  return table[codes + start.reshape((1,) * (codes.ndim - 1) + (-1,))]


def head(table: types.Array, sizes: Sequence[int], x: types.Array, level: int
         ) -> jax.Array:
  """Returns logits [..., K_l] float32 of outputs x [..., D] at a level.

  Args:
    table: [sum K, D].
    sizes: K_1, ..., K_T.
    x: outputs.
    level: 0-based.
  """
  start = int(offsets(sizes)[level])
  rows = table[start:start + sizes[level]]
  return attention.project(x, rows.T).astype(jnp.float32)
