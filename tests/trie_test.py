"""Tests the trie against dictionaries of prefixes, and edits against builds."""

import collections

import chex
import jax
import numpy as np
import pytest

from sidrec import trie
from sidrec import types


def _random_codes(rng):
  """Ragged branching, collisions and unequal codebook sizes."""
  num_items = rng.integers(2, 60)
  sizes = rng.choice([1, 2, 3, 5, 9, 300], rng.integers(1, 5))
  return np.stack([rng.integers(0, k, num_items) for k in sizes], 1)


def _leaves(t):
  """Walks the trie node by node: {code: items}."""
  leaves = collections.defaultdict(list)

  def walk(level, node, prefix):
    if level == len(t.code):
      leaves[prefix].append(int(t.items[node]))
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


def _assert_same(a, b):
  chex.assert_trees_all_equal(a, b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype


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
    assert got == want  # Items of one code are ascending.
    assert trie.max_items_per_code(t) == max(map(len, want.values()))
    bounds = trie.bounds(t, 3)
    for level in range(trie.depth(t)):
      children = collections.Counter()
      nodes = {c[:level + 1] for c in want}
      last = level + 1 == trie.depth(t)
      for code in nodes:
        children[code[:level]] += len(want[code]) if last else 1
      assert bounds.widest[level] == max(children.values())
      assert bounds.total[level] == sum(
          n for _, n in children.most_common(3))
      assert len(t.code[level]) == (len(ids) if last else len(nodes))
    assert {x.dtype for x in t.first_child} == {np.dtype(np.int32)}


@pytest.mark.parametrize('most, dtype', [
    (255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32)])
def test_codes_are_as_narrow_as_they_can_be(most, dtype):
  t = trie.build(np.array([[0, most], [1, most - 1], [1, most]]))
  assert [x.dtype for x in t.code] == [np.uint8, dtype]
  assert t.code[1].tolist() == [most, most - 1, most]


@pytest.mark.parametrize('seed', range(10))
def test_lookup(seed):
  rng = np.random.default_rng(seed)
  codes = _random_codes(rng)
  t = trie.build(codes)
  want = _expected(codes, range(len(codes)))
  others = rng.integers(-1, 10, (200, codes.shape[1]))
  asked = np.concatenate([codes, others])
  first, count = trie.lookup(t, asked)
  for code, start, number in zip(asked.tolist(), first, count):
    assert t.items[start:start + number].tolist() == want.get(tuple(code), [])


@pytest.mark.parametrize('seed', range(60))
def test_edits_equal_a_build(seed):
  rng = np.random.default_rng(seed)
  codes = _random_codes(rng)
  part = rng.random(len(codes)) < rng.random()
  part[rng.integers(len(codes))] = True
  keep, rest = np.flatnonzero(part), rng.permutation(np.flatnonzero(~part))
  whole, few = trie.build(codes), trie.build(codes, keep)
  _assert_same(trie.add(few, codes[rest], rest), whole)
  _assert_same(trie.remove(whole, rest), few)
  _assert_same(trie.add(whole, codes[:0], rest[:0]), whole)


@pytest.mark.parametrize('seed', range(20))
def test_restrict_allows_what_leads_to_an_item(seed):
  rng = np.random.default_rng(seed)
  codes = _random_codes(rng)
  mask = rng.random(len(codes)) < rng.random()
  t = trie.build(codes)
  got = trie.restrict(t, mask)
  _assert_same(got, trie.restrict(t, np.flatnonzero(mask)))
  _assert_same(jax.device_get(jax.jit(trie.restrict)(t, mask)), got)
  assert got.allowed[-1].tolist() == mask[t.items].tolist()
  wanted = {tuple(c[:1]) for c in codes[mask].tolist()}
  assert wanted == set(zip(got.code[0][got.allowed[0]].tolist()))
  assert got.items is t.items  # Nothing is copied.


@pytest.mark.parametrize('restricted', [False, True])
def test_save_and_load(tmp_path, restricted):
  t = trie.build(_random_codes(np.random.default_rng(0)))
  if restricted:
    t = trie.restrict(t, t.items[:1])
  path = str(tmp_path / 'trie.npz')
  trie.save(path, t)
  _assert_same(trie.load(path), t)
  assert [p.name for p in tmp_path.iterdir()] == ['trie.npz']
  (tmp_path / 'trie.npz').write_bytes(b'PK no')
  with pytest.raises(types.InputError, match='trie.npz: cannot read'):
    trie.load(path)
  with pytest.raises(types.InputError, match='nowhere.npz'):
    trie.load(str(tmp_path / 'nowhere.npz'))
  np.savez(path, items=np.arange(3))
  with pytest.raises(types.InputError, match='not a trie'):
    trie.load(path)


@pytest.mark.parametrize('seed', range(10))
def test_padding_depends_on_the_catalog_alone(seed):
  rng = np.random.default_rng(seed)
  sizes, shapes = (4, 300, 5), set()
  for _ in range(3):
    codes = np.stack([rng.integers(0, k, 40) for k in sizes], 1)
    t = trie.build(codes)
    padded, bounds = trie.pad(t, sizes, 8)
    shapes.add(tuple((x.shape, x.dtype) for x in jax.tree.leaves(padded)))
    need = trie.bounds(t, 8)
    assert all(a >= b for x, y in zip(bounds, need) for a, b in zip(x, y))
    assert _leaves(padded) == _leaves(t)
  assert len(shapes) == 1


def test_by_hand():
  t = trie.build(np.array([[1, 5], [0, 2], [1, 0], [0, 2]]))
  assert [x.tolist() for x in t.first_child] == [[0, 2], [0, 2, 4]]
  assert [x.tolist() for x in t.code] == [[0, 1], [2, 2, 0, 5]]
  assert t.items.tolist() == [1, 3, 2, 0]
  assert trie.bounds(t, 1) == trie.Bounds((2, 2), (2, 2), (2, 2))
  assert trie.max_items_per_code(t) == 2
  assert trie.depth(t) == 2
  assert trie.nbytes(t) == 4 * (2 + 3) + 2 + 4 + 4 * 4


def test_large_random_catalog_takes_few_bytes_an_item():
  # As many items a pair of codes as 100 million at 4,096 codes a level.
  codes = np.random.default_rng(0).integers(0, 300, (540_000, 4))
  assert trie.nbytes(trie.build(codes)) <= 16 * len(codes)


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


@pytest.mark.parametrize('call, words', [
    (lambda t: trie.add(t, np.array([[0, 1]]), np.array([0])), 'already'),
    (lambda t: trie.add(t, np.array([[0]]), np.array([9])), '1 levels'),
    (lambda t: trie.add(t, np.array([[0, 1]] * 2), np.array([9, 9])),
     'distinct'),
    (lambda t: trie.add(trie.restrict(t, [0]), np.array([[0, 1]]), [9]),
     'restricted'),
    (lambda t: trie.remove(t, np.array([7])), 'id 7 is not'),
    (lambda t: trie.remove(t, t.items), 'nothing'),
    (lambda t: trie.remove(trie.pad(t, (9, 9), 2)[0], [0]), 'padded'),
    (lambda t: trie.restrict(t, np.ones(1, bool)), 'one row for each'),
    (lambda t: trie.restrict(t, np.ones(2)), 'bool mask'),
    (lambda t: trie.lookup(t, np.zeros((1, 3), int)), '3 levels'),
    (lambda t: jax.jit(lambda t: trie.bounds(t, 1).widest[0])(t), 'traced'),
])
def test_bad_calls(call, words):
  with pytest.raises(types.InputError, match=words):
    call(trie.build(np.array([[0, 1], [2, 3], [0, 1]])))
