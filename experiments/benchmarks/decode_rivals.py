"""Other ways to decode the same model: what sidrec is measured against."""

import functools
import importlib
import sys
from typing import Any, Callable, Iterator, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sidrec import trie
from sidrec import types
from sidrec.decode import children


class Context(NamedTuple):
  """What a rival is given: the catalog, the sizes and the model."""
  codes: np.ndarray
  t: types.Trie
  bounds: trie.Bounds
  codebook: int
  batch: int
  beam: int
  model: Any
  normalize: bool
  static: str


Rival = Iterator[tuple[str, Callable[[], Any]]]


def _dense_search(c: Context, mask_fn: Callable[..., Any] | None) -> Any:
  """Beam search over the whole codebook.

  mask_fn: (trie, level, prefix, nodes) -> (mask [B, W, K], nodes of all
  children, or None); None = no constraint.
  """
  def run(table, t):
    prefix = jnp.zeros((c.batch, 1, 0), jnp.int32)
    score = jnp.zeros((c.batch, 1), jnp.float32)
    carry = children.root(c.batch).node
    for level in range(c.codes.shape[1]):
      logits, _ = c.model.dense(table, prefix, None)
      logp = jax.nn.log_softmax(logits) if c.normalize else logits
      if mask_fn is not None:
        mask, nodes = mask_fn(t, level, prefix, carry)
        logp = jnp.where(mask, logp, -jnp.inf)
      total = (score[..., None] + logp).reshape(c.batch, -1)
      width = min(c.beam, total.shape[1])
      score, index = jax.lax.top_k(total, width)
      parent, code = index // c.codebook, index % c.codebook
      prefix = jnp.concatenate([
          jnp.take_along_axis(prefix, parent[..., None], 1),
          code[..., None]], -1)
      if mask_fn is not None and nodes is not None:
        carry = jnp.take_along_axis(nodes.reshape(c.batch, -1), index, 1)
    return prefix, score
  run = jax.jit(run)
  return lambda: run(c.model.table, c.t)


def unconstrained(c: Context) -> Rival:
  """The same model and beam with no constraint: most codes have no item."""
  yield 'unconstrained', _dense_search(c, None)


def dense_mask(c: Context) -> Rival:
  """A mask [B, W, K] over the codebook, made from the trie's nodes."""
  def mask_fn(t, level, prefix, node):
    del prefix
    low = t.first_child[level][node]
    count = t.first_child[level][node + 1] - low
    found = children.padded(
        low, count, c.bounds.widest[level], t, level)
    parent = found.parent(node.shape[1])
    slot = jnp.where(found.mask, parent * c.codebook + found.code,
                     node.shape[1] * c.codebook)
    shape = (node.shape[1] * c.codebook + 1,)
    nodes = jax.vmap(lambda s, n: jnp.zeros(shape, jnp.int32).at[s].set(n))(
        slot, found.node)[:, :-1]
    mask = jax.vmap(lambda s: jnp.zeros(shape, bool).at[s].set(True))(
        slot)[:, :-1]
    full = (*node.shape, c.codebook)
    return mask.reshape(full), nodes.reshape(full)
  yield 'dense mask', _dense_search(c, mask_fn)


def callback(c: Context) -> Rival:
  """A Python dictionary of prefixes behind a host callback."""
  if len(c.codes) > 1_000_000:
    raise ValueError('more than a million items: not built')
  allowed: dict[tuple[int, ...], set[int]] = {}
  for row in c.codes.tolist():
    for level, code in enumerate(row):
      allowed.setdefault(tuple(row[:level]), set()).add(code)
  lists = {k: np.fromiter(v, np.int64) for k, v in allowed.items()}

  def host(prefix):
    prefix = np.asarray(prefix)
    mask = np.zeros((*prefix.shape[:2], c.codebook), bool)
    for b, w in np.ndindex(*prefix.shape[:2]):
      mask[b, w, lists.get(tuple(prefix[b, w].tolist()), [])] = True
    return mask

  def mask_fn(t, level, prefix, node):
    del t, level, node
    shape = jax.ShapeDtypeStruct((*prefix.shape[:2], c.codebook), bool)
    return jax.pure_callback(host, shape, prefix), None
  yield 'Python trie callback', _dense_search(c, mask_fn)


def static(c: Context) -> Rival:
  """STATIC from a checkout, with the 30 tokens a beam of its own benchmark, and
  with as many as a search needs to be exact."""
  if c.static not in sys.path:
    sys.path.insert(0, c.static)
  build = importlib.import_module(
      'static_decoding.csr_utils').build_static_index
  jax_part = importlib.import_module('static_decoding.decoding_jax')
  index = build(c.codes, c.codebook, dense_lookup_layers=2)
  arrays = [jnp.asarray(x) for x in (*index[:2], *index[3:])]
  model = jax_part.RandomModel(c.codebook)
  if not c.normalize:
    model = _Lookup(c.model.logits)
  wide = min(c.bounds.widest[1], c.beam, c.codebook)
  for label, tokens in (('STATIC, exact', wide),
                        ('STATIC, 30 tokens a beam', min(30, c.codebook))):
    yield label, functools.partial(
        jax_part.sparse_transition_jax, model, jax.random.key(0), c.batch,
        c.beam, tokens, 0, c.codes.shape[1], c.codebook, index[2], *arrays,
        d_dense=2)


class _Lookup:
  """The look-up model in the form that STATIC calls."""

  def __init__(self, table: jax.Array):
    self._table = table

  def __call__(self, ids: jax.Array, key: jax.Array):
    return self._table[ids[:, 0]][:, None], key


RIVALS = dict(
    unconstrained=unconstrained, dense_mask=dense_mask, callback=callback,
    static=static)
