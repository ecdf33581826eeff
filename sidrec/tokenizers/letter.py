"""LETTER: RQ-VAE with collaborative alignment and diverse codewords.

Paper: arXiv 2405.07314. To reconstruction and quantization come, in batch
means of

    L_cf  = -log softmax_j(<zhat_i, h_j>)_i          h: collaborative vectors
    L_div = -log(exp<q_i, e_+> / sum_{k != c_i} exp<q_i, e_k>)   on each level

e_+ is another codeword, drawn from the cluster of q_i; clusters of codewords
are found again between epochs, of bounded size. zhat is straight through, so
L_cf moves the encoder and no codeword. The weights are those of the authors'
code, which takes means where the paper has sums. Other than there, to save
time: the clusters are found again every `tokenizer_train.tend_epochs` epochs
(there every one), the k-means start is one (there the best of ten), and the
learning rate falls and gradients are clipped as everywhere here.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import contrast
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import noise
from sidrec.tokenizers import residual
from sidrec.tokenizers import residual_catalog

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
    The tokenizer. params as `residual.init`; codebook: 'codes' [V, L],
    'collaborative' [V, d] and 'cluster' [L, K] int32.

  Raises:
    types.InputError: as `residual.settings`; a setting out of range.
  """
  s = residual.settings(config, spec)
  base.check_range(config, 'alignment_weight', 0)
  base.check_range(config, 'diversity_weight', 0)
  base.check_range(config, 'num_clusters', 1, s.codebook_size // 2)
  w = _Weights(config.alignment_weight, config.diversity_weight,
               config.num_clusters)
  return residual_catalog.assemble(
      s, functools.partial(_loss, s, w), init=functools.partial(_init, s, w),
      fit=functools.partial(_fit, s, w), tend=functools.partial(_tend, s, w))


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
    s: residual.Settings, w: _Weights, key: jax.Array, sample: jax.Array
) -> tuple[types.PyTree, types.PyTree]:
  """As `residual.init`, with placeholders until `_fit`."""
  params, codebook = residual.init(s, key, sample)
  cluster = jnp.arange(s.codebook_size, dtype=jnp.int32) % w.num_clusters
  return params, dict(
      codebook,
      collaborative=jnp.zeros((s.num_items, s.latent_dim), jnp.float32),
      cluster=jnp.tile(cluster[None], (s.num_levels, 1)))


def _diversity(
    params: types.PyTree, codebook: types.PyTree, codes: jax.Array,
    gumbel: jax.Array
) -> jax.Array:
  """Returns L_div [B, L]; 0 where a codeword is alone in its cluster."""
  per_level = []
  for level in range(codes.shape[1]):
    book, code = params['books'][level], codes[:, level]
    cluster = codebook['cluster'][level]
    own = jax.nn.one_hot(code, len(book), dtype=bool)
    same = (cluster[code][:, None] == cluster[None]) & ~own
    other = jnp.argmax(jnp.where(same, gumbel[:, level], -jnp.inf), -1)
    logits = jnp.matmul(
        book[code], book.T, precision=jax.lax.Precision.HIGHEST)
    log_all = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), -1)
    value = log_all - jnp.take_along_axis(logits, other[:, None], 1)[:, 0]
    per_level.append(jnp.where(jnp.any(same, -1), value, 0.))
  return jnp.stack(per_level, 1)


def _loss(
    s: residual.Settings, w: _Weights, params: types.PyTree,
    codebook: types.PyTree, x: jax.Array, output: types.TokenizerOutput, *,
    item: jax.Array | None = None, key: jax.Array | None = None,
    axis_name: str | None = None
) -> tuple[jax.Array, types.Metrics]:
  """All four terms; reads the items' collaborative vectors, draws e_+."""
  if item is None or key is None:
    raise ValueError('LETTER\'s loss needs item ids and a key.')
  reconstruction = residual.reconstruction_loss(s, params, x, output)
  quantization, metrics = residual.quantization_loss(s, params, output)
  alignment = contrast.in_batch(
      output.quantized[:, -1], codebook['collaborative'][item], tau=1.,
      item=item, axis_name=axis_name)
  diversity = _diversity(params, codebook, output.codes, noise.gumbel(
      key, item, (s.num_levels, s.codebook_size)))
  over_levels = jnp.mean if s.reduction == 'mean' else jnp.sum
  diversity = over_levels(diversity, 1)
  metrics |= jax.lax.stop_gradient(dict(
      reconstruction=reconstruction, quantization=quantization,
      alignment=alignment, diversity=diversity))
  return (reconstruction + quantization + w.alignment * alignment
          + w.diversity * diversity), metrics


def _fit(
    s: residual.Settings, w: _Weights, seed: int, params: types.PyTree,
    codebook: types.PyTree, vectors: types.Array, *,
    features: types.FeatureTable | None = None,
    collaborative: types.Array | None = None
) -> tuple[types.PyTree, types.PyTree]:
  """Bounded k-means on the latents; keeps the collaborative vectors."""
  if collaborative is None:
    raise types.InputError(
        'tokenizer.name: letter needs collaborative item vectors; train them '
        'first, or choose rqvae.')
  collaborative = base.host_vectors(collaborative, s.num_items)
  if collaborative.shape[1] != s.latent_dim:
    raise types.InputError(
        f'tokenizer.latent_dim: {s.latent_dim}, but the collaborative vectors '
        f'have width {collaborative.shape[1]}; make them equal.')

  def book_fn(level: int, left: np.ndarray) -> np.ndarray:
    bounds = item_bounds(len(left), s.codebook_size)
    return kmeans.constrained(
        seed + level, left, s.codebook_size, *bounds,
        num_steps=s.kmeans_steps)[1]

  params, codebook = residual_catalog.fit(
      s, seed, params, codebook, vectors, features=features, book_fn=book_fn)
  return params, dict(
      codebook, collaborative=collaborative,
      cluster=_clusters(s, w, seed, params['books']))


def _clusters(
    s: residual.Settings, w: _Weights, seed: int, books: np.ndarray
) -> np.ndarray:
  """Clusters the codewords of each level: [L, K, d] -> [L, K] int32."""
  bounds = word_bounds(s.codebook_size, w.num_clusters)
  return np.stack([
      kmeans.constrained(seed + level, np.asarray(book), w.num_clusters,
                         *bounds, num_starts=10)[0]
      for level, book in enumerate(books)]).astype(np.int32)


def _tend(
    s: residual.Settings, w: _Weights, seed: int, epoch: int,
    params: types.PyTree, codebook: types.PyTree, vectors: types.Array
) -> tuple[types.PyTree, types.PyTree, dict[str, float]]:
  """Finds the clusters of codewords again, after any revival."""
  found = {}
  if s.revive:
    params, codebook, found = residual_catalog.revive(
        s, seed, epoch, params, codebook, vectors)
  cluster = _clusters(s, w, seed + epoch, params['books'])
  found['tokenizer/largest_cluster'] = float(max(
      np.bincount(row).max() for row in cluster))
  return params, dict(codebook, cluster=cluster), found
