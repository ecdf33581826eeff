"""LETTER: RQ-VAE with collaborative alignment and diverse codewords.

Paper: arXiv 2405.07314. To reconstruction and quantization come, in batch
means of

    L_cf  = -log softmax_j(<zhat_i, h_j>)_i          h: collaborative vectors
    L_div = -log(exp<q_i, e_+> / sum_{k != c_i} exp<q_i, e_k>)   on each level

e_+ is another codeword, drawn from the cluster of q_i; clusters of codewords
are found again between epochs, of bounded size. zhat is straight through, so
L_cf moves the encoder and no codeword. The weights are those of the authors'
code, which takes means where the paper has sums. Other than there, to save
time: the clusters are found again every so many epochs (there every one), the
k-means start is one (there the best of ten), and the learning rate falls and
gradients are clipped as everywhere here.
"""

import functools
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import checks
from sidrec.tokenizers import cost
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import noise
from sidrec.tokenizers import residual
from sidrec.tokenizers import walk

TREES = (*residual.TREES, 'collaborative')
RANGES: ranges.Table = {
    **residual.RANGES,
    'alignment_weight': ranges.WEIGHT, 'diversity_weight': ranges.WEIGHT,
    'num_clusters': ranges.CODES.that(
        'at most half of the smallest codebook_size',
        lambda own, _: own['num_clusters'] <= np.min(
            own['codebook_size']) // 2)}
_MAX_LOW = 50  # Of the smallest cluster of items in the k-means start.
_MAX_WORDS = 10  # Of the smallest cluster of codewords.


class _Weights(NamedTuple):
  """Checked settings of LETTER's own terms, see `make`."""
  alignment: float
  diversity: float
  num_clusters: int


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer:
  """Makes LETTER's tokenizer.

  Args:
    config: the `tokenizer` sub-tree, with what `residual.settings` reads
      (commitment is the code's mu, start_rows 0 its whole catalog; latent_dim
      must be the width of the collaborative vectors), and alignment_weight
      (alpha), diversity_weight (the code's beta) and num_clusters (of the
      codewords of a level).
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer. params as `residual.init`; variables: 'collaborative' [V, d]
    and 'cluster', L of [K_l] int32.

  Raises:
    types.InputError: as `residual.settings`.
  """
  s = residual.settings(config, spec, RANGES)
  w = _Weights(config.alignment_weight, config.diversity_weight,
               config.num_clusters)
  bind = lambda fn: functools.partial(fn, s, w)
  return residual.assemble(
      s, bind(_loss), init=bind(_init), start=bind(_start),
      between=bind(_between))


def item_bounds(num_items: int, num_codes: int) -> tuple[int, int]:
  """Returns (least, most) items a codeword of the k-means start may have.

  min(V / 2K, 50) and four times that, as the authors' code with K = 256; the
  most is at least twice the mean, or large catalogs would not fit.
  """
  low = min(num_items // (2 * num_codes), _MAX_LOW)
  return low, max(4 * low, -(-2 * num_items // num_codes))


def word_bounds(num_codes: int, num_clusters: int) -> tuple[int, int]:
  """Returns (least, most) codewords a cluster may have, two at least.

  min(K / 2M, 10) and six times that for M clusters: 10 and 60 of 256 in 10.
  """
  low = max(min(num_codes // (2 * num_clusters), _MAX_WORDS),
            min(2, num_codes // num_clusters))
  return low, max(6 * low, -(-2 * num_codes // num_clusters))


def _init(
    s: residual.Settings, w: _Weights, key: jax.Array, dim: int
) -> tuple[types.PyTree, types.PyTree]:
  """As `residual.init`; variables hold nothing of use until `_start`."""
  params, _ = residual.init(s, key, dim)
  return params, dict(
      collaborative=jnp.zeros((s.num_items, s.latent_dim), jnp.float32),
      cluster=tuple(jnp.arange(size, dtype=jnp.int32) % w.num_clusters
                    for size in s.sizes))


def _diversity(
    books: Sequence[jax.Array], clusters: Sequence[jax.Array],
    codes: jax.Array, gumbel: Sequence[jax.Array]
) -> jax.Array:
  """Returns L_div [N, L]; 0 where a codeword is alone in its cluster."""
  per_level = []
  for level, (book, cluster) in enumerate(zip(books, clusters)):
    code = codes[:, level]
    own = jax.nn.one_hot(code, len(book), dtype=bool)
    same = (cluster[code][:, None] == cluster[None]) & ~own
    other = jnp.argmax(jnp.where(same, gumbel[level], -jnp.inf), -1)
    logits = jnp.matmul(
        book[code], book.T, precision=jax.lax.Precision.HIGHEST)
    log_all = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), -1)
    value = log_all - jnp.take_along_axis(logits, other[:, None], 1)[:, 0]
    per_level.append(jnp.where(jnp.any(same, -1), value, 0.))
  return jnp.stack(per_level, 1)


def _loss(
    s: residual.Settings, w: _Weights, params: types.PyTree,
    variables: types.PyTree, x: jax.Array, path: walk.Path, *,
    item: jax.Array | None = None, stored: jax.Array | None = None,
    explore: base.Explore | None = None, key: jax.Array | None = None,
    axis_name: str | None = None
) -> tuple[jax.Array, types.Metrics]:
  """All four terms; reads the items' collaborative vectors, draws e_+."""
  del stored, explore
  if item is None or key is None:
    raise ValueError('LETTER\'s loss needs item ids and a key.')
  reconstruction = residual.reconstruction_loss(s, params, x, path)
  quantization, metrics = residual.quantization_loss(s, path)
  zhat = walk.straight_through(path, path.residuals[:, 0])[:, -1]
  alignment = cost.contrast(
      zhat, variables['collaborative'][item], tau=1., item=item,
      axis_name=axis_name)
  diversity = _diversity(
      params['books'], variables['cluster'], path.codes,
      noise.gumbel(key, item, s.sizes))
  over_levels = jnp.mean if s.reduction == 'mean' else jnp.sum
  diversity = over_levels(diversity, 1)
  metrics |= jax.lax.stop_gradient(dict(
      reconstruction=reconstruction, quantization=quantization,
      alignment=alignment, diversity=diversity))
  return (reconstruction + quantization + w.alignment * alignment
          + w.diversity * diversity), metrics


def _start(
    s: residual.Settings, w: _Weights, seed: int, params: types.PyTree,
    variables: types.PyTree, items: base.Items
) -> tuple[types.PyTree, types.PyTree, None]:
  """Bounded k-means on the latents; keeps the collaborative vectors."""
  if items.collaborative is None:
    raise types.InputError(
        'tokenizer.name: letter needs collaborative item vectors; train them '
        'first, or choose rqvae.')
  collaborative = checks.rows(items.collaborative, items)
  if collaborative.shape[1] != s.latent_dim:
    raise types.InputError(
        f'tokenizer.latent_dim: {s.latent_dim}, but the collaborative vectors '
        f'have width {collaborative.shape[1]}; make them equal.')

  def level_fn(level: int, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = item_bounds(len(rest), s.sizes[level])
    _, book = kmeans.lloyd(
        seed + level, rest, s.sizes[level],
        functools.partial(kmeans.bounded, low=low, high=high),
        num_steps=s.kmeans_steps)
    return kmeans.nearest(rest, book)[0], book  # As items are quantized.

  params, variables, _ = residual.start(
      s, seed, params, variables, items, level_fn)
  return params, dict(
      variables, collaborative=collaborative,
      cluster=_clusters(w, seed, params['books'])), None


def _clusters(
    w: _Weights, seed: int, books: Sequence[types.Array]
) -> tuple[np.ndarray, ...]:
  """Clusters the codewords of each level: L of [K_l, d] -> L of [K_l] int32."""
  found = []
  for level, book in enumerate(books):
    low, high = word_bounds(len(book), w.num_clusters)
    labels, _ = kmeans.lloyd(
        seed + level, np.asarray(book), w.num_clusters,
        functools.partial(kmeans.bounded, low=low, high=high), num_steps=10,
        num_starts=10)
    found.append(labels.astype(np.int32))
  return tuple(found)


def _between(
    s: residual.Settings, w: _Weights, seed: int, count: int,
    params: types.PyTree, variables: types.PyTree, items: base.Items
) -> tuple[types.PyTree, types.PyTree, dict[str, float]]:
  """Finds the clusters of codewords again, after any revival."""
  found = {}
  if s.revive:
    params, variables, found = residual.revive(
        seed, count, params, variables, items)
  cluster = _clusters(w, seed + count, params['books'])
  found['tokenizer/largest_cluster'] = float(max(
      np.bincount(row).max() for row in cluster))
  return params, dict(variables, cluster=cluster), found
