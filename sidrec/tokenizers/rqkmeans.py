"""RQ-KMeans: residual k-means on the item vectors themselves (OneRec).

Papers: arXiv 2502.18965 (balanced, algorithm 1), 2506.13695. No encoder and no
loss: `fit` is the whole training.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import metrics as metrics_lib
from sidrec import types
from sidrec.tokenizers import balance
from sidrec.tokenizers import base
from sidrec.tokenizers import distances
from sidrec.tokenizers import kmeans


class _Settings(NamedTuple):
  """Checked settings, see `make`."""
  num_items: int
  num_levels: int
  codebook_size: int
  balance: str
  kmeans_steps: int
  start_rows: int


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer:
  """Makes an RQ-KMeans tokenizer.

  Args:
    config: the `tokenizer` sub-tree: num_levels, codebook_size, balance
      ('none'; 'greedy', OneRec's filling of one cluster after the other;
      'prices', the same sizes near the least cost), kmeans_steps (rounds a
      level) and start_rows (items that move the centers where balance is
      'none'; 0 = all).
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer. params: 'books' [L, K, D], not to be trained. codebook:
    'codes' [V, L] int32; balanced codes of a level have floor(V / K) or
    ceil(V / K) items each.

  Raises:
    types.InputError: a setting out of range, or V > K ** L.
  """
  base.check_capacity(config, spec)
  base.check_choice(config, 'balance', ('none', 'greedy', 'prices'))
  base.check_range(config, 'kmeans_steps', 1)
  base.check_range(config, 'start_rows', 0)
  s = _Settings(spec.num_items, config.num_levels, config.codebook_size,
                config.balance, config.kmeans_steps, config.start_rows)
  bind = lambda fn: functools.partial(fn, s)
  return base.Tokenizer(
      num_levels=s.num_levels,
      codebook_sizes=(s.codebook_size,) * s.num_levels,
      init=bind(_init), encode=bind(_encode), loss=None, update=base.keep,
      prefix=_prefix, fit=bind(_fit), refresh=bind(_refresh),
      codes=base.stored_codes, last_level=bind(_last_level),
      reconstruct=_reconstruct)


def _init(
    s: _Settings, key: jax.Array, sample: jax.Array
) -> tuple[types.PyTree, types.PyTree]:
  """Codewords at the sample's scale, placeholder codes."""
  chex.assert_rank(sample, 2)
  books = jnp.std(sample) * jax.random.normal(
      key, (s.num_levels, s.codebook_size, sample.shape[1]))
  return {'books': books}, {'codes': jnp.asarray(
      base.counting_codes(s.num_items, s.num_levels, s.codebook_size))}


def _encode(
    s: _Settings, params: types.PyTree, codebook: types.PyTree, x: jax.Array,
    *, key: jax.Array | None = None, item: jax.Array | None = None,
    noise: jax.Array | float = 0., live: jax.Array | float = 1.,
    train: bool = False, axis_name: str | None = None
) -> types.TokenizerOutput:
  """Reads the stored codes, or takes the nearest of an unknown item."""
  del key, noise, live, train, axis_name
  books = jax.lax.stop_gradient(params['books'])  # Fitted, never trained.
  chex.assert_shape(x, (None, books.shape[-1]))
  left = jnp.asarray(x, jnp.float32)
  total, levels = jnp.zeros_like(left), []
  for level in range(s.num_levels):
    dist = distances.squared(left, books[level])
    code = (jnp.argmin(dist, -1).astype(jnp.int32) if item is None
            else codebook['codes'][item, level])
    word = books[level][code]
    total = total + word
    levels.append((code, total, left, -dist))
    left = left - word
  codes, quantized, residuals, logits = (
      jnp.stack(leaf, 1) for leaf in zip(*levels))
  return types.TokenizerOutput(
      codes=codes, quantized=quantized, residuals=residuals, logits=logits,
      aux={})


def _prefix(params: types.PyTree, codes: types.Array) -> types.Array:
  """Sums the codewords of a prefix: [..., l] int32 -> [..., D]."""
  return sum(params['books'][level][codes[..., level]]
             for level in range(codes.shape[-1]))


def _reconstruct(params: types.PyTree, codes: types.Array) -> np.ndarray:
  """Sums codewords on the host, see `base.ReconstructFn`."""
  return _prefix({'books': np.asarray(params['books'])}, np.asarray(codes))


def _cluster(
    s: _Settings, seed: int, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Clusters one level: (labels [V], centers [K, D])."""
  if s.balance == 'greedy':
    return kmeans.greedy_even(
        seed, left, s.codebook_size, num_steps=s.kmeans_steps)
  if s.balance == 'prices':
    return balance.balanced_kmeans(
        seed, left, s.codebook_size, num_steps=s.kmeans_steps)
  return kmeans.lloyd(seed, left, s.codebook_size, num_steps=s.kmeans_steps,
                      sample=s.start_rows)


def _fit(
    s: _Settings, seed: int, params: types.PyTree, codebook: types.PyTree,
    vectors: types.Array, *, features: types.FeatureTable | None = None,
    collaborative: types.Array | None = None
) -> tuple[types.PyTree, types.PyTree]:
  """Clusters residuals level by level; memory is that of two copies."""
  del params, codebook, features, collaborative
  left = np.array(base.host_vectors(vectors, s.num_items))
  codes = np.empty((s.num_items, s.num_levels), np.int32)
  books = []
  for level in range(s.num_levels):
    codes[:, level], book = _cluster(s, seed + level, left)
    kmeans.subtract(left, codes[:, level], book)
    books.append(book)
  return {'books': np.stack(books)}, {'codes': codes}


def _refresh(
    s: _Settings, params: types.PyTree, codebook: types.PyTree,
    vectors: types.Array
) -> tuple[types.PyTree, dict[str, float]]:
  """Assigns (new) item vectors to the fitted codewords."""
  left = np.array(base.host_vectors(vectors, s.num_items))
  books, codes = np.asarray(params['books']), []
  for book in books:
    if s.balance == 'none':
      label, _ = kmeans.nearest(left, book)
    else:
      low, extra = divmod(s.num_items, s.codebook_size)
      label = kmeans.bounded_assign(
          balance.squared_distances(left, book), low, low + bool(extra))
    kmeans.subtract(left, label, book)
    codes.append(label.astype(np.int32))
  codes = np.stack(codes, 1)
  found = metrics_lib.code_statistics(
      codes, (s.codebook_size,) * s.num_levels)
  return {'codes': codes}, found | base.churn(codes, codebook['codes'])


def _last_level(
    s: _Settings, params: types.PyTree, codebook: types.PyTree,
    vectors: types.Array
) -> tuple[np.ndarray, np.ndarray]:
  """Returns residuals below the stored prefixes, see `base.LastLevelFn`."""
  left = np.array(base.host_vectors(vectors, s.num_items))
  books, codes = np.asarray(params['books']), np.asarray(codebook['codes'])
  for level in range(s.num_levels - 1):
    kmeans.subtract(left, codes[:, level], books[level])
  return left, books[-1]
