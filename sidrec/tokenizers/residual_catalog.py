"""Work on the whole catalog of a trained residual quantizer (host, NumPy)."""

import functools
from typing import Any, Callable

import jax
import numpy as np

from sidrec import metrics as metrics_lib
from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import residual

# (level, residuals [n, d]) -> codewords [K, d].
BookFn = Callable[[int, np.ndarray], np.ndarray]


def latents(params: types.PyTree, vectors: np.ndarray) -> np.ndarray:
  """Encodes item vectors [V, D] float32 to latents [V, d], in chunks."""
  encoder = jax.tree.map(np.asarray, params['encoder'])
  return np.concatenate([
      residual.mlp(encoder, vectors[start:start + kmeans.CHUNK])
      for start in range(0, len(vectors), kmeans.CHUNK)])


def nearest_codes(
    books: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Quantizes by nearest codewords, level by level.

  Args:
    books: [L, K, d].
    vectors: [V, d] float32; left as they are.

  Returns:
    (codes [V, L] int32, residuals [V, d] before the last level).
  """
  left, codes = np.array(vectors, np.float32), []
  for level, book in enumerate(books):
    if level:
      kmeans.subtract(left, codes[-1], books[level - 1])
    codes.append(kmeans.nearest(left, book)[0])
  return np.stack(codes, 1), left


def start_books(
    s: residual.Settings, seed: int, vectors: np.ndarray,
    book_fn: BookFn | None = None
) -> np.ndarray:
  """Finds codewords level by level on what earlier levels left.

  Args:
    s: settings.
    seed: of the draws.
    vectors: [V, d] latents.
    book_fn: clusters one level; default plain k-means.

  Returns:
    [L, K, d] float32.
  """
  left = np.array(vectors, np.float32)
  if 0 < s.start_rows < len(left):
    rng = np.random.default_rng([seed, 2])
    left = left[np.sort(rng.choice(len(left), s.start_rows, replace=False))]
  books = []
  for level in range(s.num_levels):
    if book_fn is None:
      labels, book = kmeans.lloyd(
          seed + level, left, s.codebook_size, num_steps=s.kmeans_steps)
    else:
      book = book_fn(level, left)
      labels, _ = kmeans.nearest(left, book)
    kmeans.subtract(left, labels, book)
    books.append(book)
  return np.stack(books)


def fit(
    s: residual.Settings, seed: int, params: types.PyTree,
    codebook: types.PyTree, vectors: types.Array, *,
    features: types.FeatureTable | None = None,
    collaborative: types.Array | None = None, book_fn: BookFn | None = None
) -> tuple[types.PyTree, types.PyTree]:
  """Starts the codewords by k-means on the latents, see `base.FitFn`.

  Args:
    s, seed, params, codebook, vectors: as `base.FitFn`.
    features, collaborative: not read.
    book_fn: as `start_books`.

  Raises:
    types.InputError: the vectors are not standardized.
  """
  del features, collaborative
  vectors = base.host_vectors(vectors, s.num_items)
  base.check_scale(vectors)
  latent = latents(params, vectors)
  books = start_books(s, seed, latent, book_fn)
  return (dict(params, books=books),
          dict(codebook, codes=nearest_codes(books, latent)[0]))


def refresh(
    s: residual.Settings, params: types.PyTree, codebook: types.PyTree,
    vectors: types.Array
) -> tuple[types.PyTree, dict[str, float]]:
  """Gives all items the nearest codes of today, see `base.RefreshFn`."""
  latent = latents(params, base.host_vectors(vectors, s.num_items))
  codes, _ = nearest_codes(np.asarray(params['books']), latent)
  found = metrics_lib.code_statistics(
      codes, (s.codebook_size,) * s.num_levels)
  found |= base.churn(codes, codebook['codes'])
  return dict(jax.tree.map(np.asarray, codebook), codes=codes), found


def revive(
    s: residual.Settings, seed: int, epoch: int, params: types.PyTree,
    codebook: types.PyTree, vectors: types.Array
) -> tuple[types.PyTree, types.PyTree, dict[str, float]]:
  """Moves codewords without an item onto items' residuals.

  Level by level: a later level sees what the revived ones leave. The items
  are drawn from those that quantize worst, a codeword each.

  Args:
    s, seed, epoch, params, codebook, vectors: as `base.TendFn`.

  Returns:
    (params, codebook, 'tokenizer/revived@l' codewords that moved).
  """
  vectors = base.host_vectors(vectors, s.num_items)
  books = np.array(params['books'], np.float32)
  left, found = latents(params, vectors), {}
  for level, book in enumerate(books):
    labels, dist = kmeans.nearest(left, book)
    dead = np.flatnonzero(
        np.bincount(labels, minlength=s.codebook_size) == 0)
    dead = dead[:np.count_nonzero(dist > 0)]
    if dead.size:
      rng = np.random.default_rng([seed, epoch, level])
      rows = rng.choice(
          len(left), dead.size, replace=False,
          p=dist / np.sum(dist, dtype=np.float64))
      book[dead] = left[rows]
      labels, _ = kmeans.nearest(left, book)
    kmeans.subtract(left, labels, book)
    found[f'tokenizer/revived@{level + 1}'] = float(dead.size)
  return dict(params, books=books), codebook, found


def last_level(
    s: residual.Settings, params: types.PyTree, codebook: types.PyTree,
    vectors: types.Array
) -> tuple[np.ndarray, np.ndarray]:
  """Returns residuals below the stored prefixes, see `base.LastLevelFn`."""
  left = latents(params, base.host_vectors(vectors, s.num_items))
  books, codes = np.asarray(params['books']), np.asarray(codebook['codes'])
  for level in range(s.num_levels - 1):
    kmeans.subtract(left, codes[:, level], books[level])
  return left, books[-1]


def reconstruct(params: types.PyTree, codes: types.Array) -> np.ndarray:
  """Decodes sums of codewords, in chunks; see `base.ReconstructFn`."""
  books, decoder = jax.tree.map(
      np.asarray, (params['books'], params['decoder']))
  return np.concatenate([
      residual.mlp(decoder, residual.prefix(
          {'books': books}, codes[start:start + kmeans.CHUNK]))
      for start in range(0, len(codes), kmeans.CHUNK)])


def assemble(
    s: residual.Settings, loss_fn: Callable[..., Any], **parts: Any
) -> base.Tokenizer:
  """Makes the tokenizer of a trained residual quantizer.

  Args:
    s: settings.
    loss_fn: the variant's loss, with the arguments of `base.LossFn`.
    **parts: fields of `base.Tokenizer` to set otherwise than here.

  Returns:
    The tokenizer.
  """
  bind = lambda fn: functools.partial(fn, s)
  fields = dict(
      num_levels=s.num_levels,
      codebook_sizes=(s.codebook_size,) * s.num_levels,
      init=bind(residual.init), encode=bind(residual.encode), loss=loss_fn,
      update=base.keep, prefix=residual.prefix, fit=bind(fit),
      refresh=bind(refresh), codes=base.stored_codes,
      tend=bind(revive) if s.revive else None, last_level=bind(last_level),
      reconstruct=reconstruct)
  return base.Tokenizer(**(fields | parts))
