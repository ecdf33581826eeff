"""Residual quantization of an encoder's output: the core of RQ-VAE variants.

SoundStream's residual quantizer (arXiv 2107.03312) as TIGER (arXiv 2305.05065)
brought it to items, and as LC-Rec and LETTER train it: an MLP encoder and
decoder, one codebook a level, learned by gradient, started by k-means.

    z = E(x);  q_1, ..., q_L = walk(z);  zhat = sum_l q_l
    xhat = D(z + sg(zhat - z))

Reductions: 'mean' over dimensions and levels (LC-Rec, LETTER), or 'sum' (RQ-VAE
ports in the manner of VQ-VAE). Weights do not transfer from one to the other.
"""

import functools
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import losses
from sidrec import metrics as metrics_lib
from sidrec import rng
from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import checks
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import transport
from sidrec.tokenizers import walk

TREES = ('tokenizer_train',)  # What such a tokenizer has beside `tokenizer`.
RANGES: ranges.Table = {
    **base.RANGES,
    'hidden': ranges.several(ranges.WIDTH), 'latent_dim': ranges.WIDTH,
    'commitment': ranges.WEIGHT,
    'next_residual': ranges.choice(*walk.LEFT),
    'reduction': ranges.choice('mean', 'sum'),
    'sinkhorn_epsilon': ranges.WEIGHT, 'sinkhorn_steps': kmeans.STEPS,
    'start_rows': ranges.COUNT.that(
        '0 for all items, else at least the codewords of a level',
        lambda own, _: not 0 < own['start_rows'] < np.max(
            own['codebook_size'])),
    'kmeans_steps': kmeans.STEPS, 'revive': ranges.FLAG}


class Settings(NamedTuple):
  """Checked settings that all trained variants share, see `settings`."""
  num_items: int
  sizes: tuple[int, ...]
  hidden: tuple[int, ...]
  latent_dim: int
  commitment: float
  next_residual: str
  reduction: str
  sinkhorn_epsilon: float
  sinkhorn_steps: int
  start_rows: int
  kmeans_steps: int
  revive: bool


def settings(config: Any, spec: types.DataSpec,
             table: ranges.Table = RANGES) -> Settings:
  """Reads and checks the settings of a trained residual quantizer.

  Args:
    config: with num_levels and codebook_size (see `base.sizes`), hidden (widths
      between D and the latent width; the decoder mirrors them), latent_dim (d),
      commitment (beta), next_residual (one of `walk.LEFT`), reduction ('mean'
      or 'sum'), sinkhorn_epsilon (0 = nearest codes on the last level as
      well; .003 in published code), sinkhorn_steps, start_rows (items that the
      k-means start looks at; 0 = all), kmeans_steps and revive (whether
      codewords without an item move between epochs).
    spec: of the data set; only the number of items is read.
    table: of the variant, `RANGES` among it.

  Raises:
    types.InputError: a setting out of range, or fewer tuples than items.
  """
  sizes = checks.check_capacity(config, spec, table)
  return Settings(
      num_items=spec.num_items, sizes=sizes, hidden=tuple(config.hidden),
      **{name: config[name] for name in Settings._fields[3:]})


def init_mlp(key: jax.Array, widths: Sequence[int]) -> types.PyTree:
  """Draws Linear layers: Xavier-normal kernels, biases of zero.

  Args:
    key: PRNG key (consumed).
    widths: of the input and of each layer's output.

  Returns:
    {'layer_i': {'kernel': [in, out], 'bias': [out]}}.
  """
  draw = jax.nn.initializers.glorot_normal()
  return {
      f'layer_{i}': {
          'kernel': draw(rng.stream(key, 'layer', i), shape, jnp.float32),
          'bias': jnp.zeros((shape[1],), jnp.float32)}
      for i, shape in enumerate(zip(widths[:-1], widths[1:]))}


def mlp(params: types.PyTree, x: types.Array) -> jax.Array:
  """Applies layers with ReLU between them: [N, in] -> [N, out]."""
  x = jnp.asarray(x, jnp.float32)
  for i in range(len(params)):
    layer = params[f'layer_{i}']
    x = x @ layer['kernel'] + layer['bias'][None]
    if i + 1 < len(params):
      x = jax.nn.relu(x)
  return x


def init(
    s: Settings, key: jax.Array, dim: int
) -> tuple[types.PyTree, types.PyTree]:
  """Draws layers and codewords, which know nothing of the items yet.

  Args:
    s: settings.
    key: PRNG key (consumed).
    dim: D.

  Returns:
    (params: 'encoder' and 'decoder' (see `init_mlp`), 'books' L of [K_l, d];
    variables: {}).
  """
  widths = (dim, *s.hidden, s.latent_dim)
  return {
      'encoder': init_mlp(rng.stream(key, 'encoder'), widths),
      'decoder': init_mlp(rng.stream(key, 'decoder'), widths[::-1]),
      'books': tuple(
          jax.random.normal(
              rng.stream(key, 'books', level), (size, s.latent_dim))
          for level, size in enumerate(s.sizes)),
  }, {}


def latent(params: types.PyTree, x: types.Array) -> jax.Array:
  """Encodes item vectors: [N, D] -> [N, d]."""
  return mlp(params['encoder'], x)


def decode(params: types.PyTree, zhat: types.Array) -> jax.Array:
  """Decodes latents: [N, d] -> [N, D]."""
  return mlp(params['decoder'], zhat)


def books(params: types.PyTree) -> tuple[types.Array, ...]:
  """Returns the codewords, L of [K_l, d]."""
  return tuple(params['books'])


def quantize(
    s: Settings, params: types.PyTree, variables: types.PyTree,
    z: types.Array, *, stored: types.Array | None = None,
    explore: base.Explore | None = None, train: bool = False,
    axis_name: str | None = None
) -> walk.Path:
  """Quantizes latents, see `base.QuantizeFn`.

  In training, codes of the last level that are not read go by Sinkhorn over
  the batch where `s.sinkhorn_epsilon` is not 0.
  """
  del variables, explore

  def balanced(level: int, distances: jax.Array) -> jax.Array:
    if level + 1 < len(s.sizes):
      return walk.nearest(level, distances)
    return transport.spread(
        distances, epsilon=s.sinkhorn_epsilon, num_steps=s.sinkhorn_steps,
        axis_name=axis_name)

  choose = walk.reading(stored)
  if train and stored is None and s.sinkhorn_epsilon > 0:
    choose = balanced
  return walk.walk(params['books'], z, choose, walk.LEFT[s.next_residual])


def read(
    params: types.PyTree, variables: types.PyTree, path: walk.Path,
    z: types.Array, *, explore: base.Explore | None = None, live: bool = True
) -> jax.Array:
  """Sums codewords straight through, see `base.ReadFn`."""
  del params, variables, explore, live
  return walk.straight_through(path, z)


def decoded(params: types.PyTree, path: walk.Path) -> jax.Array:
  """Decodes the whole sum of codewords: [N, D], straight through."""
  return decode(
      params, walk.straight_through(path, path.residuals[:, 0])[:, -1])


def _over(reduction: str, value: jax.Array, axes: tuple[int, ...]
          ) -> jax.Array:
  return (jnp.mean if reduction == 'mean' else jnp.sum)(value, axes)


def reconstruction_loss(
    s: Settings, params: types.PyTree, x: types.Array, path: walk.Path
) -> jax.Array:
  """Returns squared errors [N] of xhat, reduced over D by `s.reduction`."""
  return _over(s.reduction, jnp.square(decoded(params, path) - x), (1,))


def quantization_loss(
    s: Settings, path: walk.Path) -> tuple[jax.Array, types.Metrics]:
  """Computes codebook and commitment loss of all levels.

  Args:
    s: settings.
    path: of `quantize`.

  Returns:
    ([N] red_l (|sg(r_l) - q_l|^2 + beta |r_l - sg(q_l)|^2), reduced over
    dimensions and levels by `s.reduction`; metrics [N] each: 'commitment' (the
    plain mean of |r_l - q_l|^2) and, for each level, 'residual@l' (the length
    of what is left after it)).
  """
  sg = jax.lax.stop_gradient
  book = jnp.square(sg(path.residuals) - path.words)
  commit = jnp.square(path.residuals - sg(path.words))
  per_example = _over(s.reduction, book + s.commitment * commit, (1, 2))
  metrics = {'commitment': jnp.mean(
      losses.commitment(path.residuals, path.words), 1)}
  left = jnp.linalg.norm(sg(path.residuals - path.words), axis=-1)
  for level in range(len(s.sizes)):
    metrics[f'residual@{level + 1}'] = left[:, level]
  return per_example, sg(metrics)


def start(
    s: Settings, seed: int, params: types.PyTree, variables: types.PyTree,
    items: base.Items, level_fn: walk.LevelFn | None = None
) -> tuple[types.PyTree, types.PyTree, None]:
  """Starts the codewords by k-means on the latents, see `base.StartFn`.

  Args:
    s: settings.
    seed, params, variables, items: as `base.StartFn`.
    level_fn: fits a level, default plain k-means; see `walk.descend`.

  Raises:
    types.InputError: the vectors are not standardized.
  """
  checks.check_scale(checks.rows(items.vectors, items))
  rows = checks.rows(items.latents, items, s.latent_dim)
  if 0 < s.start_rows < len(rows):
    draw = np.random.default_rng([seed, 2])
    rows = rows[np.sort(draw.choice(len(rows), s.start_rows, replace=False))]

  def plain(level: int, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return kmeans.lloyd(
        seed + level, rest, s.sizes[level], num_steps=s.kmeans_steps)

  _, found, _ = walk.descend(level_fn or plain, rows, len(s.sizes))
  return dict(params, books=found), variables, None


def assign_rows(
    codebooks: Sequence[types.Array], vectors: np.ndarray,
    old: np.ndarray | None, level_fn: walk.LevelFn | None = None
) -> tuple[np.ndarray, dict[str, float]]:
  """Gives vectors [V, d] codes of fixed codebooks, see `base.AssignFn`.

  Args:
    codebooks: L of [K_l, d].
    vectors: [V, d].
    old: [V, L] codes so far, or None.
    level_fn: chooses the codes of a level, default the nearest.
  """
  codes, _, _ = walk.descend(
      level_fn or walk.to_nearest(codebooks), vectors, len(codebooks))
  found = metrics_lib.code_statistics(codes, [len(b) for b in codebooks])
  return codes, found | base.churn(codes, old)


def assign(
    params: types.PyTree, variables: types.PyTree, items: base.Items,
    old: np.ndarray | None
) -> tuple[np.ndarray, dict[str, float]]:
  """Gives items the nearest codes of today, see `base.AssignFn`."""
  del variables
  return assign_rows(books(params), checks.rows(items.latents, items), old)


def revive(
    seed: int, count: int, params: types.PyTree, variables: types.PyTree,
    items: base.Items
) -> tuple[types.PyTree, types.PyTree, dict[str, float]]:
  """Moves codewords without an item onto items' residuals.

  Level by level: a later level sees what the revived ones leave. The items
  are drawn from those that quantize worst, a codeword each.

  Args:
    seed, count, params, variables, items: as `base.BetweenFn`.

  Returns:
    (params, variables, 'tokenizer/revived@l' codewords that moved).
  """
  moved = {}

  def level_fn(level: int, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    book = np.array(params['books'][level], np.float32)
    labels, dist = kmeans.nearest(rest, book)
    dead = np.flatnonzero(np.bincount(labels, minlength=len(book)) == 0)
    dead = dead[:np.count_nonzero(dist > 0)]
    if dead.size:
      draw = np.random.default_rng([seed, count, level])
      book[dead] = rest[draw.choice(
          len(rest), dead.size, replace=False,
          p=dist / np.sum(dist, dtype=np.float64))]
      labels, _ = kmeans.nearest(rest, book)
    moved[f'tokenizer/revived@{level + 1}'] = float(dead.size)
    return labels, book

  _, found, _ = walk.descend(
      level_fn, checks.rows(items.latents, items), len(params['books']))
  return dict(params, books=found), variables, moved


def assemble(
    s: Settings, loss_fn: base.LossFn, **parts: Any) -> base.Tokenizer:
  """Makes the tokenizer of a trained residual quantizer.

  Args:
    s: settings.
    loss_fn: the variant's loss.
    **parts: fields of `base.Tokenizer` to set otherwise than here.

  Returns:
    The tokenizer.
  """
  bind = lambda fn: functools.partial(fn, s)
  fields = dict(
      sizes=s.sizes, init=bind(init), latent=latent, quantize=bind(quantize),
      books=books, decode=decode, loss=loss_fn, start=bind(start),
      assign=assign, read=read, between=revive if s.revive else None)
  return base.Tokenizer(**(fields | parts))
