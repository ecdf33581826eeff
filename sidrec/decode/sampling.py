"""Draws items without replacement: stochastic beam search on the trie."""

import functools
import chex
import jax
import jax.numpy as jnp

from sidrec import rng
from sidrec import trie
from sidrec import types
from sidrec.decode import children as children_lib
from sidrec.decode import search
from sidrec.decode import selection


def sample(
    key: jax.Array,
    logits_fn: search.LogitsFn,
    t: types.Trie,
    *,
    num_samples: int,
    batch_size: int = 1,
    state: types.PyTree = None,
    bounds: trie.Bounds | None = None,
) -> types.Beams:
  """Samples items without replacement (arXiv 1903.06059, algorithm 1).

  An item's probability is the product over levels of the softmax of the
  scores of the *allowed* children: it sums to one over the catalog, and the
  first draw, the second, ... are exact draws from it. Items that share a code
  are equally likely. With as many samples as items it is a random order.

  Args:
    key: [] typed key; consumed. One stream a user and level, so that a user's
      draw does not depend on who else is in the batch.
    logits_fn: as for `decode.beam_search`; scores are logits in nats.
    t: trie with NumPy or (traced) device arrays.
    num_samples: W, items drawn a user; more than the catalog is clipped.
    batch_size: B, users.
    state: None, or a pytree of arrays [B, W, ...] (first [B, 1, ...]).
    bounds: `trie.bounds(t, num_samples)`, static; needed where `t` is traced.

  Returns:
    Beams in the order of drawing; `score` is the item's log-probability.

  Raises:
    InputError: arguments out of range, or bounds smaller than the trie's.
  """
  num_levels = len(t.code)
  search.check(t, num_levels, num_samples=num_samples, batch_size=batch_size)
  chex.assert_tree_shape_prefix(state, (batch_size, 1))
  bounds = search.check_bounds(t, bounds, num_samples)
  t = jax.tree.map(jnp.asarray, t)
  # `value` is the perturbed log-probability; the root's is of no matter.
  live = children_lib.root(batch_size)
  for level in range(num_levels):
    answer, state = logits_fn(live.code, state)
    rank = functools.partial(
        _perturb, rng.stream(key, 'sample', jnp.int32(level)))
    live, parent = search.advance(
        answer, live, t, level, bounds, rank, normalize=False,
        width=num_samples, last=level + 1 == num_levels, num_rungs=1)
    if level + 1 < num_levels:
      state = search.reorder(state, parent)
  return search.expand(live, t, num_levels, num_samples)


def _perturb(key: jax.Array, live: children_lib.Live,
             found: children_lib.Children, scores: jax.Array, normalizer: None
             ) -> tuple[jax.Array, jax.Array]:
  """Returns (key of the perturbed log-probability, log-probability) [B, C]."""
  del normalizer  # Scores are normalized over what the trie allows.
  num = live.node.shape[1]
  scores = jnp.where(found.mask, scores, -jnp.inf)
  parent = found.parent(num)
  over = lambda reduce, x: jax.vmap(
      lambda x, p: reduce(x, p, num))(x, parent)
  most = over(jax.ops.segment_max, scores)
  most = jnp.where(jnp.isfinite(most), most, 0.)
  total = over(jax.ops.segment_sum, jnp.exp(scores - found.take(most)))
  log_p = found.take(live.score) + scores - found.take(most + jnp.log(total))
  log_p = jnp.where(found.mask, log_p, -jnp.inf)
  keys = rng.per_row(key, jnp.arange(scores.shape[0], dtype=jnp.int32))
  noise = jax.vmap(
      lambda key: jax.random.gumbel(key, scores.shape[1:]))(keys)
  noisy = log_p + noise
  top = found.take(over(jax.ops.segment_max, noisy))
  # The children's maximum is made to equal the parent's value; the form
  # that does not overflow is from appendix B.3 of the paper.
  value = found.take(live.value)
  v = value - noisy + _log1mexp(noisy - top)
  noisy = value - jax.nn.relu(v) - jnp.log1p(jnp.exp(-jnp.abs(v)))
  noisy = jnp.where(found.mask, noisy, -jnp.inf)
  return selection.rank_key(noisy, found.mask), log_p


def _log1mexp(x: jax.Array) -> jax.Array:
  """Computes log(1 - exp(x)) for x <= 0."""
  return jnp.where(x > -.693, jnp.log(-jnp.expm1(x)), jnp.log1p(-jnp.exp(x)))
