"""DIG: a residual quantizer trained inside a discriminative ranker.

Paper: arXiv 2605.14853. The noise gate and the soft gradient path follow DIGER
(arXiv 2601.19711). Two tables: `address` decides the codes, `semantic` is what
the ranker reads. The catalog's stored codes are the only truth for trie,
evaluation and export; they change only by `start` and `assign`.

Two assignment rules:
  gumbel_st: codes of over-used items explore under Gumbel noise; the gradient
    of the recommendation loss reaches `address` and the item vectors through
    the soft assignment p.
  ema: codes are always the stored ones; `address` follows the item vectors as
    a running mean and is no parameter.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import losses
from sidrec import rng
from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import checks
from sidrec.tokenizers import kmeans
from sidrec.tokenizers import noise
from sidrec.tokenizers import tree
from sidrec.tokenizers import walk

RANGES: ranges.Table = {
    **base.RANGES,
    'assignment': ranges.choice('gumbel_st', 'ema'),
    'forward_code': ranges.choice('mixed', 'stored', 'sampled'),
    'tau': ranges.number(1e-6), 'usage_ratio': ranges.WEIGHT,
    'usage_momentum': ranges.SHARE, 'ema_decay': ranges.SHARE,
    'commit_weight': ranges.WEIGHT, 'book_weight': ranges.WEIGHT,
    'slack': ranges.number(1), 'margin': ranges.WEIGHT,
    'ste_recall': ranges.FLAG, 'cut_path': ranges.FLAG}
_GAP_FLOOR = 1e-6
_COUNT_FLOOR = 1e-8  # Below it a codeword has no recent items: keep it.


class _Settings(NamedTuple):
  """Checked settings, see `make`."""
  sizes: tuple[int, ...]
  assignment: str
  forward_code: str
  tau: float
  usage_ratio: float
  usage_momentum: float
  ema_decay: float
  commit_weight: float
  book_weight: float
  slack: float
  margin: float
  ste_recall: bool
  cut_path: bool

  @property
  def trained(self) -> bool:
    """Whether `address` is a parameter."""
    return self.assignment == 'gumbel_st'


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer:
  """Makes a DIG tokenizer.

  Args:
    config: settings:
      num_levels, codebook_size: L and K, or one K a level.
      assignment: 'gumbel_st' or 'ema'.
      forward_code: whose code the forward pass uses while noise is on
        (gumbel_st): 'mixed' (noisy for over-used items, stored for others),
        'stored' or 'sampled' (the best logit for all).
      tau: temperature of the soft assignment, in units of the top-two gap.
      usage_ratio: an item explores where the share of its nearest first code
        exceeds usage_ratio / K_1.
      usage_momentum: of the running code use and top-two gaps.
      ema_decay: of the running means (ema).
      commit_weight, book_weight: weights of the two quantization losses; the
        second has no effect with ema.
      slack: how much fuller than even a code may get in `assign`.
      margin: advantage of an unchanged code in `assign`, in gaps.
      ste_recall: straight-through gradient to the item vector (ema).
      cut_path: stop the gradient through p (control arm).
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer. params: 'semantic', L of [K_l, d] and, for gumbel_st,
    'address' likewise. variables: 'usage' [K_1], 'gap' [L] and, for ema,
    'address' and 'sum', L of [K_l, d], and 'count', L of [K_l].

  Raises:
    types.InputError: a setting out of range, or fewer tuples than items.
  """
  sizes = checks.check_capacity(config, spec, RANGES)
  s = _Settings(sizes, *(config[name] for name in _Settings._fields[1:]))
  bind = lambda fn: functools.partial(fn, s)
  return base.Tokenizer(
      sizes=sizes, init=bind(_init), latent=lambda params, x: x,
      quantize=bind(_quantize), books=lambda params: tuple(params['semantic']),
      decode=None, loss=bind(_loss), start=bind(_start), assign=bind(_assign),
      read=bind(_read), update=bind(_update))


def _init(
    s: _Settings, key: jax.Array, dim: int
) -> tuple[types.PyTree, types.PyTree]:
  """Random tables of unit scale; gaps and counts say nothing yet."""
  address = tuple(
      jax.random.normal(rng.stream(key, 'address', level), (size, dim))
      for level, size in enumerate(s.sizes))
  count = tuple(jnp.full((size,), 1 / size) for size in s.sizes)
  return _pack(s, address, jnp.ones(len(s.sizes)), count)


def _pack(
    s: _Settings, address: tuple[types.Array, ...], gap: types.Array,
    count: tuple[types.Array, ...]
) -> tuple[types.PyTree, types.PyTree]:
  """Builds (params, variables) around tables; NumPy in, NumPy out."""
  # Two buffers: both may be donated.
  params = {'semantic': tuple(book.copy() for book in address)}
  variables = {
      'usage': np.full((s.sizes[0],), 1 / s.sizes[0], np.float32),
      'gap': gap.clip(min=_GAP_FLOOR),
  }
  if s.trained:
    params['address'] = address
  else:
    variables.update(address=address, count=count, sum=tuple(
        book * n[:, None] for book, n in zip(address, count)))
  return params, variables


def _address(
    s: _Settings, params: types.PyTree, variables: types.PyTree
) -> tuple[types.Array, ...]:
  return (params if s.trained else variables)['address']


def _top_two_gap(dist: jax.Array) -> jax.Array:
  """Returns second smallest minus smallest of each row: [N, K] -> [N]."""
  first = jnp.argmin(dist, -1)
  others = jnp.where(
      jnp.arange(dist.shape[-1])[None] == first[:, None], jnp.inf, dist)
  return jnp.min(others, -1) - jnp.min(dist, -1)


def _exploring(
    s: _Settings, variables: types.PyTree, first: jax.Array,
    explore: base.Explore | None
) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
  """Says which rows explore [N], and their noise, L of [N, K_l], or None.

  `quantize`, `loss` and `read` each ask: XLA draws the noise once.

  Args:
    s: settings.
    variables: with 'usage'.
    first: [N, K_1] distances of the first level.
    explore: of the call.
  """
  near = jnp.argmin(first, -1)
  if not s.trained or explore is None:
    return jnp.zeros(near.shape, bool), None
  share = variables['usage'][near]
  hot = (share > s.usage_ratio / s.sizes[0]) & (explore.sigma > 0)
  scale = explore.sigma * hot[:, None]
  return hot, tuple(
      scale * gumbel
      for gumbel in noise.gumbel(explore.key, explore.item, s.sizes))


def _logits(
    variables: types.PyTree, level: int, dist: jax.Array,
    gumbel: tuple[jax.Array, ...] | None
) -> jax.Array:
  """Returns [N, K] in units of the gap, with noise."""
  gap = jax.lax.stop_gradient(variables['gap'][level])
  logits = -dist / jnp.maximum(gap, _GAP_FLOOR)
  return logits if gumbel is None else logits + gumbel[level]


def _quantize(
    s: _Settings, params: types.PyTree, variables: types.PyTree,
    z: types.Array, *, stored: types.Array | None = None,
    explore: base.Explore | None = None, train: bool = False,
    axis_name: str | None = None
) -> walk.Path:
  """Walks the address tables, see `base.QuantizeFn`."""
  del train, axis_name
  address = tuple(_address(s, params, variables))
  if not s.trained:
    address = jax.lax.stop_gradient(address)
  z = jnp.asarray(z, jnp.float32)
  hot, gumbel = _exploring(s, variables, walk.squared(z, address[0]), explore)
  plain = walk.reading(stored)

  def choose(level: int, dist: jax.Array) -> jax.Array:
    own = plain(level, dist)
    if gumbel is None or s.forward_code == 'stored':
      return own
    sampled = jnp.argmax(_logits(variables, level, dist, gumbel), -1)
    where = hot if s.forward_code == 'mixed' else explore.sigma > 0
    return jnp.where(where, sampled, own)

  return walk.walk(address, z, choose)


def _soft(
    s: _Settings, variables: types.PyTree, level: int, path: walk.Path,
    gumbel: tuple[jax.Array, ...] | None
) -> tuple[jax.Array, jax.Array]:
  """Returns the soft assignment p [N, K] of a level and its entropy [N]."""
  log_p = jax.nn.log_softmax(
      _logits(variables, level, path.distances[level], gumbel) / s.tau, -1)
  p = jnp.exp(log_p)
  return p, -jnp.sum(jnp.where(p > 0, p * log_p, 0.), -1)


def _read(
    s: _Settings, params: types.PyTree, variables: types.PyTree,
    path: walk.Path, z: types.Array, *, explore: base.Explore | None = None,
    live: bool = True
) -> jax.Array:
  """Sums semantic rows [N, L, d], see `base.ReadFn`.

  The value is that of the codes; the gradient goes to it and, while the codes
  explore, through the soft assignment p to whatever the distances depend on.
  """
  sg = jax.lax.stop_gradient
  soft = s.trained and live and explore is not None and not s.cut_path
  _, gumbel = _exploring(s, variables, path.distances[0], explore)
  rows = []
  for level, book in enumerate(params['semantic']):
    row = book[path.codes[:, level]]
    if soft:
      p, _ = _soft(s, variables, level, path, gumbel)
      row = row + (p - sg(p)) @ sg(book)
    rows.append(row)
  total = jnp.cumsum(jnp.stack(rows, 1), 1)
  if s.ste_recall and not s.trained:
    total = total + (z - sg(z))[:, None]
  return total


def _loss(
    s: _Settings, params: types.PyTree, variables: types.PyTree,
    x: jax.Array, path: walk.Path, *, item: jax.Array | None = None,
    stored: jax.Array | None = None, explore: base.Explore | None = None,
    key: jax.Array | None = None, axis_name: str | None = None
) -> tuple[jax.Array, types.Metrics]:
  """Commitment and codebook losses, summed over levels, mean over d.

  Both are 0 for exploring rows. Metrics, beside the two: 'hot' (1 = explores),
  'flip' (a code differs from the stored one), 'near_agreement' (the first code
  is the nearest) and, for each level, 'soft_perplexity@l' of p in codes and
  'gap@l'.
  """
  del params, x, item, key, axis_name
  hot, gumbel = _exploring(s, variables, path.distances[0], explore)
  cold = 1. - hot
  commit = cold * jnp.sum(losses.commitment(path.residuals, path.words), 1)
  book = cold * jnp.sum(
      losses.commitment(path.words, path.residuals), 1) * s.trained
  near = jnp.argmin(path.distances[0], -1)
  same = path.codes == (path.codes if stored is None else stored)
  metrics = {
      'commit': commit,
      'book': book,
      'hot': hot,
      'flip': ~jnp.all(same, 1),
      'near_agreement': near == path.codes[:, 0],
  }
  for level in range(len(s.sizes)):
    _, entropy = _soft(s, variables, level, path, gumbel)
    metrics[f'soft_perplexity@{level + 1}'] = jnp.exp(entropy)
    metrics[f'gap@{level + 1}'] = jnp.broadcast_to(
        variables['gap'][level], commit.shape)
  metrics = {name: value.astype(jnp.float32)
             for name, value in metrics.items()}
  return (s.commit_weight * commit + s.book_weight * book,
          jax.lax.stop_gradient(metrics))


def _update(
    s: _Settings, variables: types.PyTree, path: walk.Path, *,
    mask: jax.Array, axis_name: str | None
) -> types.PyTree:
  """Running code use, gaps and (ema) means; rows are traffic, not items.

  Batch counts and sums are divided by the number of rows, so that a running
  count is a share of traffic whatever the batch size.
  """
  path = jax.lax.stop_gradient(path)
  near = jnp.argmin(path.distances[0], -1)
  chex.assert_equal_shape((mask, near))
  weight = mask.astype(jnp.float32)
  psum = lambda v: v if axis_name is None else jax.lax.psum(v, axis_name)
  num_rows = psum(jnp.sum(weight))
  mean = lambda v: psum(v) / jnp.maximum(num_rows, 1.)
  # A where, and not weight * value: a masked row may hold anything.
  masked = lambda v: jnp.where(weight[:, None] > 0, weight[:, None] * v, 0.)

  def decay(old, new, momentum):
    return jnp.where(
        num_rows > 0, momentum * old + (1 - momentum) * mean(new), old)

  gaps = masked(jnp.stack([_top_two_gap(d) for d in path.distances], 1))
  variables = dict(
      variables,
      usage=decay(
          variables['usage'],
          jax.ops.segment_sum(weight, near, s.sizes[0]), s.usage_momentum),
      gap=jnp.maximum(decay(
          variables['gap'], jnp.sum(gaps, 0), s.usage_momentum), _GAP_FLOOR))
  if s.trained:
    return variables
  levels = []
  for level, size in enumerate(s.sizes):
    code = path.codes[:, level]
    count = decay(variables['count'][level],
                  jax.ops.segment_sum(weight, code, size), s.ema_decay)
    total = decay(variables['sum'][level], jax.ops.segment_sum(
        masked(path.residuals[:, level]), code, size), s.ema_decay)
    mean_word = total / jnp.maximum(count, _COUNT_FLOOR)[:, None]
    levels.append((count, total, jnp.where(
        (count > _COUNT_FLOOR)[:, None], mean_word,
        variables['address'][level])))
  return dict(variables, **dict(zip(
      ('count', 'sum', 'address'), zip(*levels))))


def _start(
    s: _Settings, seed: int, params: types.PyTree, variables: types.PyTree,
    items: base.Items
) -> tuple[types.PyTree, types.PyTree, np.ndarray]:
  """Starts with a balanced k-means tree; both tables get its codewords."""
  del params, variables
  grown = tree.grow(
      checks.latents(items), s.sizes,
      lambda level, rest: kmeans.lloyd(
          seed + level, rest, s.sizes[level], kmeans.Even(), start_rows=0)[1])
  count = tuple(
      (np.bincount(codes, minlength=size) / len(codes)).astype(np.float32)
      for codes, size in zip(grown.codes.T, s.sizes))
  return *_pack(s, grown.books, grown.gaps, count), grown.codes


def _assign(
    s: _Settings, params: types.PyTree, variables: types.PyTree,
    items: base.Items, old: np.ndarray | None
) -> tuple[np.ndarray, dict[str, float]]:
  """Re-assigns all items, with a bonus for codes that do not change."""
  address = [np.asarray(book) for book in _address(s, params, variables)]
  z = checks.latents(items, address[0].shape[1])
  grown = tree.grow(
      z, s.sizes, lambda level, _: address[level], slack=s.slack, old=old,
      bonus=s.margin * np.asarray(variables['gap']))
  nearest, _, _ = walk.descend(walk.to_nearest(address), z, len(address))
  agree = nearest == grown.codes
  return grown.codes, {
      **base.churn(grown.codes, old),
      'tokenizer/nearest_agreement': float(np.mean(agree.all(1))),
      'tokenizer/nearest_agreement@1': float(np.mean(agree[:, 0])),
  }
