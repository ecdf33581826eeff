"""What DIG knows of token prefixes: their items, what is known of those.

Tables of the stored codes, made anew whenever those change. A prefix is called
by its node: its place among the distinct prefixes of its length, in order; the
same numbers as in the trie of these codes.
"""

from typing import Any, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types


# Of L levels of codes of V items; P_l nodes at most have l + 1 codes.
#   order: [V] items in order of their codes.
#   first, count: [V, L] where the items that share the first l + 1 codes of an
#     item begin in `order`, and how many they are.
#   node: [V, L] the prefixes of each item.
#   size: L - 1 of [P_l] float32 items below a node.
#   known: L - 1 of [G, P_l, F] means of `Catalog.known` below it, or None.
Tables = Mapping[str, Any]


def widths(sizes: Sequence[int], num_items: int) -> list[int]:
  """Returns P_l, the most nodes of the levels but the last."""
  out, nodes = [], 1
  for size in sizes[:-1]:
    nodes = min(nodes * size, num_items)
    out.append(nodes)
  return out


def empty(sizes: Sequence[int], catalog: types.Catalog) -> Tables:
  """Returns tables of no codes, for the shapes."""
  num_items = catalog.popularity.shape[0]
  nodes, known = widths(sizes, num_items), catalog.known
  each = jnp.zeros((num_items, len(sizes)), jnp.int32)
  return dict(
      order=jnp.arange(num_items, dtype=jnp.int32), first=each,
      count=each + 1, node=each, size=tuple(jnp.ones(n) for n in nodes),
      known=None if known is None else tuple(
          jnp.zeros((known.values.shape[0], n, known.values.shape[2]))
          for n in nodes))


def build(codes: np.ndarray, sizes: Sequence[int],
          known: types.Known | None) -> Tables:
  """Makes the tables on the host.

  Args:
    codes: [V, L].
    sizes: K_1, ..., K_L.
    known: of the items.
  """
  num_items, num_levels = codes.shape
  order = np.lexsort(codes.T[::-1])
  ordered = codes[order]
  new = np.ones((num_items, num_levels), bool)
  new[1:] = np.cumsum(ordered[1:] != ordered[:-1], 1) > 0
  number = np.cumsum(new, 0) - 1
  first, count, node = (np.empty(codes.shape, np.int32) for _ in range(3))
  size, means = [], []
  for level in range(num_levels):
    begin = np.flatnonzero(new[:, level])
    below = np.diff(begin, append=num_items)
    own = number[:, level]
    first[order, level], count[order, level] = begin[own], below[own]
    node[order, level] = own
  for level, most in enumerate(widths(sizes, num_items)):
    begin = np.flatnonzero(new[:, level])
    below = np.diff(begin, append=num_items).astype(np.float32)
    size.append(np.pad(below, (0, most - len(begin)), constant_values=1))
    if known is not None:
      means.append(_mean(known, order, begin, most))
  return dict(
      order=order.astype(np.int32), first=first, count=count, node=node,
      size=tuple(size), known=None if known is None else tuple(means))


def _mean(known: types.Known, order: np.ndarray, begin: np.ndarray, most: int
          ) -> np.ndarray:
  """Weighted means [G, most, F] of runs of `order` that begin at `begin`."""
  values, weight = np.asarray(known.values), np.asarray(known.weight)
  out = np.zeros((len(values), most, values.shape[2]), np.float32)
  for own, w, target in zip(values, weight, out):
    w = w[order, None]
    target[:len(begin)] = np.add.reduceat(own[order] * w, begin) / (
        np.add.reduceat(w, begin))
  return out


def known_of(catalog: types.Catalog, batch: types.Batch, item: types.Array
             ) -> jax.Array | None:
  """Returns what is known of items [B, C]: [B, C, F], or None."""
  if catalog.known is None:
    return None
  return jnp.asarray(catalog.known.values)[batch.moment[:, None], item]


def of_nodes(tables: Tables, catalog: types.Catalog, batch: types.Batch,
             level: int, node: jax.Array) -> tuple[jax.Array | None, jax.Array]:
  """Returns what is known of prefixes, and log of the items below them.

  Args:
    tables: of the stored codes.
    catalog: of the items.
    batch: B requests.
    level: of the nodes, from 0.
    node: [B, C]; of the last level items.

  Returns:
    ([B, C, F] or None, [B, C]).
  """
  if level == len(tables['size']):
    return known_of(catalog, batch, node), jnp.zeros(node.shape)
  known = None
  if tables['known'] is not None:
    known = tables['known'][level][batch.moment[:, None], node]
  return known, jnp.log(tables['size'][level][node])


def siblings(tables: Tables, item: jax.Array, draw: jax.Array) -> jax.Array:
  """Draws items that share a prefix with others.

  Args:
    tables: of the stored codes.
    item: [B].
    draw: [B, N, 2] uniform in [0, 1): which level, which item below it.

  Returns:
    [B, N] int32: below the first l + 1 codes of the item, l uniform in
    [0, L - 1); may be the item itself.
  """
  num_levels = tables['count'].shape[1]
  level = jnp.minimum(
      (draw[..., 0] * (num_levels - 1)).astype(jnp.int32), num_levels - 2)
  first, count = (x[item[:, None], level]
                  for x in (tables['first'], tables['count']))
  place = first + jnp.minimum(
      (draw[..., 1] * count).astype(jnp.int32), count - 1)
  return tables['order'][place]


def offsets(
    tables: Tables, item: jax.Array, seen: jax.Array, length: jax.Array,
    uniform: int, sibling: int, from_seen: int) -> jax.Array:
  """Corrects logits of prefixes for how their negatives were drawn.

  Cross-entropy learns the log of a density over that of the negatives. Were all
  drawn uniformly, a prefix of n items would be drawn in proportion to n; below
  it siblings of the positive and items that were seen are drawn more often.
  This is the log of how much more (logQ correction, as in arXiv 1412.2007).

  Args:
    tables: of the stored codes.
    item: [B, C] candidates, the first is the positive.
    seen: [B, C, L] how many seen items share the first l + 1 codes.
    length: [B] how many items were seen.
    uniform, sibling, from_seen: draws a row.

  Returns:
    [B, C, L], to be subtracted from the logits that enter the loss.
  """
  num_items, num_levels = tables['count'].shape
  count = tables['count'][item].astype(jnp.float32)              # [B, C, L]
  rate = num_items / uniform
  more = from_seen * seen / jnp.maximum(length, 1.)[:, None, None] * (
      rate / count)
  if sibling:
    node = tables['node'][item]
    shared = (node == node[:, :1]).astype(jnp.float32)        # [B, C, L]
    # Level l is reached from each prefix of the positive that is shorter.
    each = shared / count[:, :1] * (rate * sibling / (num_levels - 1))
    more = more + jnp.pad(
        jnp.cumsum(each, -1)[..., :-1], ((0, 0), (0, 0), (1, 0)))
  return jnp.log1p(more)
