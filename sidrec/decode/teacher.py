"""Scores given items exactly, along their own codes ("teacher forcing")."""

import chex
import jax
import jax.numpy as jnp

from sidrec import types
from sidrec.decode import children as children_lib
from sidrec.decode import search


def score_items(
    logits_fn: search.LogitsFn,
    t: types.Trie,
    codes: types.Array,
    *,
    state: types.PyTree = None,
    score: str = 'sum',
    normalize: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Computes the scores that a search would give to the items of given codes.

  Args:
    logits_fn: as for `decode.beam_search`; it sees C prefixes a user.
    t: trie with NumPy or (traced) device arrays.
    codes: [B, C, L] int32 semantic IDs.
    state: None, or a pytree of arrays [B, C, ...].
    score: 'sum' or 'level', as for `decode.beam_search`.
    normalize: as for `decode.beam_search`.

  Returns:
    (scores [B, C] float32, mask [B, C]): mask is False, and the score -inf,
    where the trie holds no such code (or allows none of its items).

  Raises:
    InputError: an unknown score rule, or codes of another depth.
  """
  if score not in search.SCORES:
    raise types.InputError(f'score: {score!r} must be one of {search.SCORES}')
  codes = jnp.asarray(codes)
  chex.assert_rank(codes, 3)
  batch, num, levels = codes.shape
  if levels != len(t.code):
    raise types.InputError(
        f'codes: {levels} levels, but the trie has {len(t.code)}')
  t = jax.tree.map(jnp.asarray, t)
  node = jnp.zeros((batch, num), jnp.int32)
  mask = jnp.ones((batch, num), bool)
  total = jnp.zeros((batch, num), jnp.float32)
  for level in range(levels):
    answer, state = logits_fn(codes[..., :level], state)
    wanted = codes[..., level].astype(jnp.int32)
    node, mask = _find(t, level, node, mask, wanted)
    normalizer = None
    if normalize and not callable(answer):
      normalizer = jax.nn.logsumexp(answer.astype(jnp.float32), -1)
    given = children_lib.score(answer, children_lib.Children(
        beam=None, first=node, code=jnp.where(mask, wanted, 0), node=node,
        mask=mask))
    start = search.offset(total, normalizer, score)
    total = given if start is None else start + given
  return jnp.where(mask, total, -jnp.inf), mask


def _find(t: types.Trie, level: int, node: jax.Array, mask: jax.Array,
          wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Finds the first allowed child of each node with the wanted code."""
  first, code = t.first_child[level], t.code[level]
  low, stop = first[node], first[node + 1]
  high = stop
  for _ in range(max(code.shape[0], 1).bit_length()):
    middle = (low + high) // 2
    here = code[jnp.minimum(middle, code.shape[0] - 1)].astype(jnp.int32)
    active = low < high
    low = jnp.where(active & (here < wanted), middle + 1, low)
    high = jnp.where(active & (here >= wanted), middle, high)
  if t.allowed is not None and level + 1 == len(t.code):
    # Items that share the code are siblings: any allowed one will do.
    seen = jnp.cumsum(t.allowed[level], dtype=jnp.int32)
    before = jnp.where(low > 0, seen[jnp.maximum(low - 1, 0)], 0)
    low = jnp.minimum(
        jnp.searchsorted(seen, before + 1).astype(jnp.int32), stop)
  inside = jnp.minimum(low, code.shape[0] - 1)
  mask = mask & (low < stop) & (code[inside].astype(jnp.int32) == wanted)
  if t.allowed is not None:
    mask = mask & t.allowed[level][inside]
  return jnp.where(mask, inside, 0), mask
