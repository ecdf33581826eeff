"""The static sizes of a trie: what shapes the program that searches it."""

from typing import NamedTuple, Sequence

import jax
import numpy as np

from sidrec import types
from sidrec.trie import construct


class Bounds(NamedTuple):
  """How many children a search may meet; static and hashable.

  widest: L ints, most children of one node of the level above.
  total: L ints, most children of `beam_size` nodes of the level above.
  mean: L floats, mean number of children of such a node, rounded up.
  """
  widest: tuple[int, ...]
  total: tuple[int, ...]
  mean: tuple[float, ...]


def _counts(offsets: types.Array) -> np.ndarray:
  if isinstance(offsets, jax.core.Tracer):
    raise types.InputError(
        'trie: its arrays are traced, so sizes that shape the program are not '
        'known; compute trie.bounds(t, beam_size) outside of jit and pass it')
  return np.diff(np.asarray(offsets))


def bounds(t: types.Trie, beam_size: int) -> Bounds:
  """Returns how many children `beam_size` nodes of each level have at most.

  Args:
    t: a trie with concrete arrays (host or device).
    beam_size: W, prefixes kept a user.

  Raises:
    InputError: the arrays are traced.
  """
  widest, total, mean = [], [], []
  for offsets in t.first_child:
    counts = _counts(offsets)
    top = counts
    if beam_size < counts.size:
      top = np.partition(counts, counts.size - beam_size)[-beam_size:]
    widest.append(int(counts.max()))
    total.append(int(top.sum(dtype=np.int64)))
    parents = max(int(np.count_nonzero(counts)), 1)
    mean.append(float(-(-int(counts.sum(dtype=np.int64)) * 8 // parents)) / 8)
  return Bounds(tuple(widest), tuple(total), tuple(mean))


def max_items_per_code(t: types.Trie) -> int:
  """Returns how many items share the fullest code (1 = no collision).

  Args:
    t: a trie with concrete arrays.

  Raises:
    InputError: the arrays are traced.
  """
  _counts(t.first_child[-1])
  first, code = np.asarray(t.first_child[-1]), np.asarray(t.code[-1])
  new = np.ones(code.size, bool)
  new[1:] = code[1:] != code[:-1]
  new[first[:-1][first[:-1] < code.size]] = True
  return int(np.diff(np.flatnonzero(new), append=code.size).max())


def pad(t: types.Trie, codebook_sizes: Sequence[int], beam_size: int
        ) -> tuple[types.Trie, Bounds]:
  """Pads a trie to sizes that depend on the catalog's size alone.

  Codes move while a tokenizer trains; padded, the decoder compiles once.

  Args:
    t: of V items, NumPy leaves.
    codebook_sizes: L sizes.
    beam_size: W, prefixes kept a user.

  Returns:
    (trie, bounds): levels of min(V, K_1 ... K_l) nodes, those added have no
    parent and no child, codes as wide as the codebook needs; bounds rounded
    up so that they seldom change.
  """
  num_items = t.items.shape[0]
  wide = lambda x, size, fill: np.concatenate(
      [x, np.full(max(size - x.shape[0], 0), fill, x.dtype)])
  first_child, code, room = [], [], 1
  for first, codes, size in zip(t.first_child, t.code, codebook_sizes):
    first_child.append(wide(first, room + 1, first[-1]))
    last = len(code) + 1 == len(t.code)
    room = num_items if last else min(room * size, num_items)
    code.append(wide(codes.astype(construct.code_dtype(size)), room, 0))
  allowed = t.allowed
  if allowed is not None:
    allowed = tuple(wide(a, c.shape[0], False) for a, c in zip(allowed, code))
  padded = types.Trie(first_child=tuple(first_child), code=tuple(code),
                      items=t.items, allowed=allowed)
  found = bounds(t, beam_size)
  widest = tuple(min(-(-b // 4) * 4, k) if level + 1 < len(t.code)
                 else -(-b // 4) * 4
                 for level, (b, k) in enumerate(
                     zip(found.widest, codebook_sizes)))
  total = tuple(
      min(1 << (n - 1).bit_length(), beam_size * w, c.shape[0])
      for n, w, c in zip(found.total, widest, code))
  mean = tuple(2. ** (np.ceil(4 * np.log2(m)) / 4) for m in found.mean)
  return padded, Bounds(widest, total, mean)
