"""RQ-KMeans: residual k-means on the item vectors themselves (OneRec).

Papers: arXiv 2502.18965 (balanced, algorithm 1), 2506.13695. No encoder and no
loss: `start` is the whole training.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from sidrec import rng
from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import checks
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import residual
from sidrec.tokenizers import walk

RANGES: ranges.Table = {
    **base.RANGES, 'balance': ranges.choice('none', 'greedy', 'prices'),
    'kmeans_steps': kmeans.STEPS, 'start_rows': ranges.COUNT}


class _Settings(NamedTuple):
  """Checked settings, see `make`."""
  sizes: tuple[int, ...]
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
    The tokenizer. params: 'books' L of [K_l, D], not to be trained; no
    variables. Balanced codes of a level have floor(V / K_l) or ceil(V / K_l)
    items each; `start` returns them.

  Raises:
    types.InputError: a setting out of range, or fewer tuples than items.
  """
  sizes = checks.check_capacity(config, spec, RANGES)
  s = _Settings(sizes, config.balance, config.kmeans_steps, config.start_rows)
  bind = lambda fn: functools.partial(fn, s)
  return base.Tokenizer(
      sizes=sizes, init=bind(_init), latent=lambda params, x: x,
      quantize=_quantize, books=residual.books,
      decode=lambda params, zhat: zhat, loss=None, start=bind(_start),
      assign=bind(_assign), read=residual.read)


def _init(
    s: _Settings, key: jax.Array, dim: int
) -> tuple[types.PyTree, types.PyTree]:
  """Random codewords."""
  return {'books': tuple(
      jax.random.normal(rng.stream(key, 'books', level), (size, dim))
      for level, size in enumerate(s.sizes))}, {}


def _quantize(
    params: types.PyTree, variables: types.PyTree, z: types.Array, *,
    stored: types.Array | None = None, explore: base.Explore | None = None,
    train: bool = False, axis_name: str | None = None
) -> walk.Path:
  """Reads the stored codes, or takes the nearest."""
  del variables, explore, train, axis_name
  return walk.walk(params['books'], z, walk.reading(stored))


def _start(
    s: _Settings, seed: int, params: types.PyTree, variables: types.PyTree,
    items: base.Items
) -> tuple[types.PyTree, types.PyTree, np.ndarray | None]:
  """Clusters residuals level by level; memory is that of two copies."""
  def level_fn(level: int, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    fit = functools.partial(
        kmeans.lloyd, seed + level, rest, s.sizes[level],
        num_steps=s.kmeans_steps)
    if s.balance == 'greedy':
      # Filling in turn wanders: all rounds, and the best of them.
      return fit(kmeans.in_turn, tolerance=-np.inf)
    if s.balance == 'prices':
      return fit(kmeans.Even(), start_rows=0)
    return fit(sample=s.start_rows)

  codes, books, _ = walk.descend(
      level_fn, checks.latents(items), len(s.sizes))
  # Balanced codes are no function of the codewords alone.
  return dict(params, books=books), variables, (
      None if s.balance == 'none' else codes)


def _assign(
    s: _Settings, params: types.PyTree, variables: types.PyTree,
    items: base.Items, old: np.ndarray | None
) -> tuple[np.ndarray, dict[str, float]]:
  """Assigns (new) item vectors to the fitted codewords, see `base.AssignFn`."""
  del variables
  books = residual.books(params)

  def even(level: int, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    book = np.asarray(books[level])
    low, extra = divmod(len(rest), len(book))
    return kmeans.bounded(
        rest, book, low=low, high=low + bool(extra))[0], book

  return residual.assign_rows(
      books, checks.latents(items), old, None if s.balance == 'none' else even)
