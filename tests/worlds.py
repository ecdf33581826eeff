"""Random catalogs and table models to search, and a plain search as oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import decode
from sidrec import trie

SLOTS = 13  # Rows of a score table: prefixes are hashed to them.
BATCH = 2
SIZES = (4, 6, 3)  # Codebooks of the small random worlds.
MOST = 40  # Items of the largest of them.


def dense(tables, prefix, state):
  """The model: scores of all codes, from the whole prefix."""
  level = prefix.shape[-1]
  weight = jnp.arange(3, 3 + level, dtype=jnp.int32)
  row = (7 + jnp.sum(prefix * weight[None, None], -1)) % SLOTS
  return jax.vmap(lambda t, r: t[r])(jnp.asarray(tables[level]), row), state


def sparse(tables, prefix, state):
  """The same model, asked for children only; junk where there is none."""
  scores, state = dense(tables, prefix, state)
  def score_fn(found):
    given = jax.vmap(lambda d, p, c: d[p, c])(
        scores, found.parent(scores.shape[1]), found.code)
    return jnp.where(found.mask, given, jnp.nan)
  return score_fn, state


@functools.partial(jax.jit, static_argnames=(
    'bounds', 'beam_size', 'score', 'top_k', 'per_prefix', 'num_rungs',
    'model', 'num_levels'))
def search(t, tables, *, model=dense, **kwargs):
  return decode.beam_search(
      functools.partial(model, tables), t, batch_size=tables[0].shape[0],
      **kwargs)


def widest_bounds(sizes, num_items, beam_size, mean=1):
  """Bounds that hold for any catalog of this size."""
  widest = (*sizes[:-1], num_items)
  return trie.Bounds(
      widest, tuple(min(beam_size * k, num_items) for k in widest),
      tuple(min(mean, k) for k in widest))


class World:
  """A random catalog and a random table model, for both kinds of search."""

  def __init__(self, codes, tables, allowed=None):
    self.codes, self.tables, self.trie = codes, tables, trie.build(codes)
    self.batch = tables[0].shape[0]
    self.allowed = np.ones(len(codes), bool) if allowed is None else allowed
    if allowed is not None:
      self.trie = trie.restrict(self.trie, allowed)

  def search(self, beam_size, sizes=None, **kwargs):
    t, bounds = self.trie, trie.bounds(self.trie, beam_size)
    if sizes is not None:
      # One program serves all worlds of these sizes.
      t, _ = trie.pad(t, sizes, beam_size)
      bounds = widest_bounds(sizes, len(self.codes), beam_size)
    return jax.device_get(search(
        t, self.tables, beam_size=beam_size, bounds=bounds, **kwargs))

  def score(self, user, prefix, code):
    row = (7 + sum((i + 3) * c for i, c in enumerate(prefix))) % SLOTS
    return self.tables[len(prefix)][user, row, code]

  def plain(self, user, beam_size, score='sum', top_k=None, per_prefix=None):
    """The oracle: beam search over tuples; never looks at the trie."""
    rows = {}  # prefix -> items, the allowed ones
    for i, code in enumerate(map(tuple, self.codes.tolist())):
      if self.allowed[i]:
        for level in range(len(code) + 1):
          rows.setdefault(code[:level], []).append(i)
    beams, num_levels = [((), np.float32(0))], self.codes.shape[1]
    if not self.allowed.any():
      return []
    for level in range(num_levels):
      grown = []
      for prefix, total in beams:
        for c in sorted({int(self.codes[i, level]) for i in rows[prefix]}):
          s = self.score(user, prefix, c)
          s = np.float32(total + s) if score == 'sum' else s
          here = prefix + (c,)
          last = level + 1 == num_levels
          grown += [(here, s, i) for i in (rows[here] if last else [0])]
      grown = sorted(grown, key=lambda x: (-x[1], x[0], x[2]))
      if per_prefix is not None and level >= per_prefix[0]:
        seen, kept = {}, []
        for row in grown:
          key = row[0][:per_prefix[0]]
          seen[key] = seen.get(key, 0) + 1
          kept += [row] * (seen[key] <= per_prefix[1])
        grown = kept
      beams = [(code, s) for code, s, _ in grown[:beam_size]]
    return [(i, code, s) for code, s, i in grown[:top_k or beam_size]]

  def enumerate(self, user, score='sum'):
    """All items by the score of their whole path."""
    rows = []
    for i, code in enumerate(map(tuple, self.codes.tolist())):
      total = np.float32(0)
      for level, c in enumerate(code):
        s = self.score(user, code[:level], c)
        total = np.float32(total + s) if score == 'sum' else s
      if self.allowed[i]:
        rows.append((i, code, total))
    return sorted(rows, key=lambda x: (-x[2], x[1], x[0]))


def make(seed, ties, sizes=SIZES, num_items=MOST, share=None):
  """Draws ragged codes with collisions, and scores with or without ties."""
  rng = np.random.default_rng(seed)
  # Skewed, so that branching is ragged.
  codes = np.stack([
      (k * rng.random(num_items) ** rng.integers(1, 5)).astype(int)
      for k in sizes], 1)
  tables = []
  for k in sizes:
    shape = (BATCH, SLOTS, k)
    # Small integers: many ties, and sums without rounding.
    tables.append((rng.integers(-2, 2, shape) if ties else
                   rng.normal(size=shape)).astype(np.float32))
  allowed = None if share is None else rng.random(num_items) < share
  return World(codes, tuple(tables), allowed)


def flat(codes):
  """A world whose scores all tie."""
  codes = np.array(codes)
  tables = (np.zeros((1, SLOTS, codes.max() + 1), np.float32),)
  return World(codes, tables * codes.shape[1])


def check(beams, user, rows):
  """Compares one user's beams with (item, code, score) rows."""
  n, width = len(rows), beams.mask.shape[1]
  assert np.asarray(beams.mask[user]).tolist() == [i < n for i in range(width)]
  assert np.asarray(beams.item[user, :n]).tolist() == [r[0] for r in rows]
  assert [tuple(c) for c in np.asarray(beams.code[user, :n]).tolist()] == [
      r[1] for r in rows]
  np.testing.assert_array_equal(beams.score[user, :n],
                                np.array([r[2] for r in rows], np.float32))
  assert not np.asarray(beams.item[user, n:]).any()
  assert not np.asarray(beams.code[user, n:]).any()
  assert np.isneginf(np.asarray(beams.score[user, n:])).all()
