"""Tests the trie against dictionaries of prefixes."""

import collections

import jax
import numpy as np
import pytest

from sidrec import trie
from sidrec import types


def _random_codes(rng):
  """Ragged branching, collisions and unequal codebook sizes."""
  num_items = rng.integers(1, 60)
  sizes = rng.integers(1, 9, rng.integers(1, 5))
  return np.stack([rng.integers(0, k, num_items) for k in sizes], 1)


def _leaves(t):
  """Walks the trie node by node: {code: items}."""
  leaves = {}

  def walk(level, node, prefix):
    if level == len(t.code):
      leaves[prefix] = t.items[t.first_item[node]:t.first_item[node + 1]]
      return
    first = t.first_child[level]
    for child in range(first[node], first[node + 1]):
      walk(level + 1, child, prefix + (int(t.code[level][child]),))

  walk(0, 0, ())
  return leaves


def _expected(codes, item):
  leaves = collections.defaultdict(list)
  for i in item:
    leaves[tuple(codes[i].tolist())].append(i)
  return leaves


@pytest.mark.parametrize('seed', range(30))
def test_holds_exactly_the_items(seed):
  rng = np.random.default_rng(seed)
  codes = _random_codes(rng)
  subset = rng.integers(0, len(codes), rng.integers(1, len(codes) + 1))
  for item in (None, subset):
    t = trie.build(codes, item)
    ids = range(len(codes)) if item is None else sorted(set(item.tolist()))
    want = _expected(codes, ids)
    got = _leaves(t)
    assert list(got) == sorted(want)  # Nodes are in lexicographic order.
    for code, items in want.items():
      assert got[code].tolist() == items  # Ascending within a leaf.
    assert trie.max_items_per_leaf(t) == max(map(len, want.values()))
    for level, width in enumerate(trie.branching(t)):
      children = collections.defaultdict(set)
      for code in want:
        children[code[:level]].add(code[level])
      assert width == max(map(len, children.values()))
      assert len(t.code[level]) == len({c[:level + 1] for c in want})
    assert all(x.dtype == np.int32 for x in jax.tree.leaves(t))


@pytest.mark.parametrize('seed', range(10))
def test_lookup(seed):
  rng = np.random.default_rng(seed)
  codes = _random_codes(rng)
  t = trie.build(codes)
  leaf = trie.lookup(t, codes)
  for i, node in enumerate(leaf):
    assert i in t.items[t.first_item[node]:t.first_item[node + 1]]
  known = set(map(tuple, codes.tolist()))
  others = rng.integers(-1, 10, (200, codes.shape[1]))
  found = trie.lookup(t, others) >= 0
  assert found.tolist() == [tuple(c) in known for c in others.tolist()]


def test_by_hand():
  t = trie.build(np.array([[1, 5], [0, 2], [1, 0], [0, 2]]))
  assert [x.tolist() for x in t.first_child] == [[0, 2], [0, 1, 3]]
  assert [x.tolist() for x in t.code] == [[0, 1], [2, 0, 5]]
  assert t.first_item.tolist() == [0, 2, 3, 4]
  assert t.items.tolist() == [1, 3, 2, 0]
  assert trie.branching(t) == (2, 2)
  assert trie.max_items_per_leaf(t) == 2


@pytest.mark.parametrize('codes, item, words', [
    ([[0, 1], [2, -3]], None, 'row 1, level 2: code -3'),
    ([[0, 2**31]], None, 'row 0, level 2'),
    ([0, 1], None, r'\[V, L\]'),
    (np.zeros((3, 0), int), None, r'\[V, L\]'),
    (np.zeros((0, 3), int), None, 'no items'),
    ([[0.5, 1]], None, 'integers'),
    ([[0, 1]], np.zeros(0, int), 'no items'),
    ([[0, 1]], [1], 'id 1 is not'),
    ([[0, 1]], [-1], 'id -1 is not'),
    ([[0, 1]], [True], 'flatnonzero'),
])
def test_bad_input(codes, item, words):
  with pytest.raises(types.InputError, match=words):
    trie.build(np.array(codes), item)


def test_lookup_of_other_depth_and_traced_sizes():
  t = trie.build(np.array([[0, 1]]))
  with pytest.raises(types.InputError, match='3 levels'):
    trie.lookup(t, np.zeros((1, 3), int))
  with pytest.raises(types.InputError, match='traced'):
    jax.jit(lambda t: trie.branching(t)[0])(t)
