"""DIG: a residual quantizer trained inside a discriminative ranker.

Paper: arXiv 2605.14853. The noise gate and the soft gradient path follow DIGER
(arXiv 2601.19711). Two tables: `address` decides the codes, `semantic` is what
the ranker reads. The stored code table is the only truth for trie, evaluation
and export; it changes only in `fit` and `refresh`.

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

from sidrec import types
from sidrec.tokenizers import balance
from sidrec.tokenizers import base
from sidrec.tokenizers import distances
from sidrec.tokenizers import noise as noise_lib

_GAP_FLOOR = 1e-6
_COUNT_FLOOR = 1e-8  # Below it a codeword has no recent items: keep it.


class _Settings(NamedTuple):
  """Checked settings, see `make`."""
  num_items: int
  dim: int
  num_levels: int
  codebook_size: int
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
      dim: D, width of the item vectors.
      num_levels, codebook_size: L and K.
      assignment: 'gumbel_st' or 'ema'.
      forward_code: whose code the forward pass uses while noise is on
        (gumbel_st): 'mixed' (noisy for over-used items, stored for others),
        'stored' or 'sampled' (the best logit for all).
      tau: temperature of the soft assignment, in units of the top-two gap.
      usage_ratio: an item explores where the share of its nearest first code
        exceeds usage_ratio / K.
      usage_momentum: of the running code use and top-two gaps.
      ema_decay: of the running means (ema).
      commit_weight, book_weight: weights of the two quantization losses; the
        second has no effect with ema.
      slack: how much fuller than even a code may get in `refresh`.
      margin: advantage of an unchanged code in `refresh`, in gaps.
      ste_recall: straight-through gradient to the item vector (ema).
      cut_path: stop the gradient through p (control arm).
    spec: of the data set; only the number of items is read.

  Returns:
    The tokenizer. params: 'semantic' [L, K, D] and, for gumbel_st, 'address'
    [L, K, D]. codebook: 'sid' [V, L] int32, 'usage' [K], 'gap' [L] and, for
    ema, 'address' [L, K, D], 'count' [L, K], 'sum' [L, K, D].

  Raises:
    types.InputError: a setting out of range, or V > K ** L.
  """
  base.check_capacity(config, spec)
  base.check_choice(config, 'assignment', ('gumbel_st', 'ema'))
  base.check_choice(config, 'forward_code', ('mixed', 'stored', 'sampled'))
  for name, low, high in (
      ('dim', 1, np.inf), ('tau', 1e-6, np.inf), ('slack', 1, np.inf),
      ('margin', 0, np.inf), ('usage_ratio', 0, np.inf),
      ('usage_momentum', 0, 1), ('ema_decay', 0, 1)):
    base.check_range(config, name, low, high)
  names = _Settings._fields[1:]
  settings = _Settings(spec.num_items, *(config[name] for name in names))
  bind = lambda fn: functools.partial(fn, settings)
  return base.Tokenizer(
      num_levels=settings.num_levels,
      codebook_sizes=(settings.codebook_size,) * settings.num_levels,
      init=bind(_init), encode=bind(_encode), loss=bind(_loss),
      update=bind(_update), prefix=_prefix, fit=bind(_fit),
      refresh=bind(_refresh), codes=_codes)


def _init(
    s: _Settings, key: jax.Array, sample: jax.Array
) -> tuple[types.PyTree, types.PyTree]:
  """Random tables at the sample's scale, codes by counting up in base K."""
  chex.assert_shape(sample, (None, s.dim))
  sample = jnp.asarray(sample, jnp.float32)
  address = jnp.std(sample) * jax.random.normal(
      key, (s.num_levels, s.codebook_size, s.dim))
  rest, digits = jnp.arange(s.num_items, dtype=jnp.int32), []
  for _ in range(s.num_levels):
    digits.append(rest % s.codebook_size)
    rest = rest // s.codebook_size
  residual, gaps = sample, []
  for book in address:
    dist = distances.squared(residual, book)
    gaps.append(jnp.mean(distances.top_two_gap(dist)))
    residual = residual - book[jnp.argmin(dist, -1)]
  even = jnp.full((s.num_levels, s.codebook_size), 1 / s.codebook_size)
  return _pack(s, address, jnp.stack(digits[::-1], -1), jnp.stack(gaps), even)


def _pack(
    s: _Settings, address: types.Array, sid: types.Array, gap: types.Array,
    count: types.Array
) -> tuple[types.PyTree, types.PyTree]:
  """Builds (params, codebook) around tables; NumPy in, NumPy out."""
  params = {'semantic': address.copy()}  # Two buffers: both may be donated.
  codebook = {
      'sid': sid,
      'usage': np.full((s.codebook_size,), 1 / s.codebook_size, np.float32),
      'gap': gap.clip(min=_GAP_FLOOR),
  }
  if s.trained:
    params['address'] = address
  else:
    codebook.update(
        address=address, count=count, sum=address * count[..., None])
  return params, codebook


def _address(s: _Settings, params: types.PyTree, codebook: types.PyTree
             ) -> jax.Array:
  if s.trained:
    return params['address']
  return jax.lax.stop_gradient(codebook['address'])


def _encode(
    s: _Settings,
    params: types.PyTree,
    codebook: types.PyTree,
    x: jax.Array,
    *,
    key: jax.Array | None = None, item: jax.Array | None = None,
    noise: jax.Array | float = 0., live: jax.Array | float = 1.,
    train: bool = False, axis_name: str | None = None
) -> types.TokenizerOutput:
  """Quantizes, see `base.EncodeFn`; with live = 0 noise is off as well.

  Items outside the catalog (item None) get no noise. `aux` holds per-example
  'commit', 'book' (0 for exploring items), 'near' (nearest first code), 'hot'
  (1 = explores), 'flip' (a code differs from the stored one), 'entropy' [B, L]
  of p in nats, 'gaps' [B, L] and 'live'.
  """
  del train, axis_name
  chex.assert_shape(x, (None, s.dim))
  x = jnp.asarray(x, jnp.float32)
  live = jnp.asarray(live, jnp.float32)
  sigma = jnp.asarray(noise, jnp.float32) * live
  sg = jax.lax.stop_gradient
  address = _address(s, params, codebook)
  address = jnp.where(live > 0, address, sg(address))
  near = jnp.argmin(distances.squared(x, address[0]), -1)
  hot, gumbel = _explore(s, codebook, near, sigma, key, item)
  residual, total, levels = x, jnp.zeros_like(x), []
  if s.ste_recall and not s.trained:
    total = x - sg(x)
  for level in range(s.num_levels):
    dist = distances.squared(residual, address[level])
    logits = -dist / jnp.maximum(sg(codebook['gap'][level]), _GAP_FLOOR)
    stored = (jnp.argmin(dist, -1) if item is None
              else codebook['sid'][item, level])
    code = stored
    if gumbel is not None:
      logits += gumbel[:, level]
      code = _forward_code(s, stored, jnp.argmax(logits, -1), hot, sigma)
    step, entropy = _read(s, params['semantic'][level], code, logits, live)
    total = total + step
    word = address[level][code]
    levels.append(dict(
        codes=code.astype(jnp.int32), quantized=total, residuals=residual,
        logits=logits, entropy=entropy, gaps=distances.top_two_gap(dist),
        flip=code != stored,
        commit=jnp.mean(jnp.square(sg(word) - residual), -1),
        book=jnp.mean(jnp.square(word - sg(residual)), -1)))
    residual = residual - sg(word)
  out = jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *levels)
  cold = 1. - hot
  aux = dict(
      commit=cold * jnp.sum(out.pop('commit'), 1),
      book=cold * jnp.sum(out.pop('book'), 1) * s.trained,
      **sg(dict(
          near=near.astype(jnp.int32), hot=hot.astype(jnp.float32),
          flip=jnp.any(out.pop('flip'), 1).astype(jnp.float32),
          entropy=out.pop('entropy'), gaps=out.pop('gaps'),
          live=jnp.broadcast_to(live, near.shape))))
  return types.TokenizerOutput(**out, aux=aux)


def _explore(
    s: _Settings, codebook: types.PyTree, near: jax.Array, sigma: jax.Array,
    key: jax.Array | None, item: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """Says which items explore [B], and their noise [B, L, K] or None."""
  if not s.trained or key is None or item is None:
    return jnp.zeros(near.shape, bool), None
  share = codebook['usage'][near]
  hot = (share > s.usage_ratio / s.codebook_size) & (sigma > 0)
  return hot, sigma * hot[:, None, None] * noise_lib.gumbel(
      key, item, (s.num_levels, s.codebook_size))


def _read(
    s: _Settings, semantic: jax.Array, code: jax.Array, logits: jax.Array,
    live: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Reads [B, D] from a level's table; also the entropy [B] of p.

  The value is that of the code; the gradient goes to it and, through the soft
  assignment p, to whatever the logits depend on.
  """
  sg = jax.lax.stop_gradient
  log_p = jax.nn.log_softmax(logits / s.tau, -1)
  soft = jnp.exp(log_p)
  entropy = -jnp.sum(jnp.where(soft > 0, soft * log_p, 0.), -1)
  value = semantic[code]
  if s.trained and not s.cut_path:
    soft = jnp.where(live > 0, soft, sg(soft))
    value = value + (soft - sg(soft)) @ sg(semantic)
  return value, entropy


def _forward_code(
    s: _Settings, stored: jax.Array, sampled: jax.Array, hot: jax.Array,
    sigma: jax.Array
) -> jax.Array:
  if s.forward_code == 'stored':
    return stored
  if s.forward_code == 'mixed':
    return jnp.where(hot, sampled, stored)
  return jnp.where(sigma > 0, sampled, stored)


def _loss(
    s: _Settings, params: types.PyTree, codebook: types.PyTree, x: jax.Array,
    output: types.TokenizerOutput, *, item: jax.Array | None = None,
    key: jax.Array | None = None, axis_name: str | None = None
) -> tuple[jax.Array, types.Metrics]:
  """Commitment and codebook losses, summed over levels, mean over D."""
  del params, x, item, key, axis_name
  aux = output.aux
  per_example = s.commit_weight * aux['commit'] + s.book_weight * aux['book']
  metrics = {
      'commit': aux['commit'],
      'book': aux['book'],
      'hot': aux['hot'],
      'flip': aux['flip'],
      'near_agreement':
          (aux['near'] == output.codes[:, 0]).astype(jnp.float32),
  }
  for level in range(s.num_levels):
    metrics[f'soft_perplexity@{level + 1}'] = jnp.exp(
        aux['entropy'][:, level])
    metrics[f'gap@{level + 1}'] = jnp.broadcast_to(
        codebook['gap'][level], aux['commit'].shape)
  return per_example, jax.lax.stop_gradient(metrics)


def _update(
    s: _Settings, codebook: types.PyTree, output: types.TokenizerOutput, *,
    mask: jax.Array, axis_name: str | None
) -> types.PyTree:
  """Running code use, gaps and (ema) means; rows are traffic, not items.

  Batch counts and sums are divided by the number of rows, so that a running
  count is a share of traffic whatever the batch size. Frozen rows (live = 0)
  change nothing.
  """
  aux = output.aux
  chex.assert_equal_shape((mask, aux['near']))
  weight = mask.astype(jnp.float32) * aux['live']
  psum = lambda v: v if axis_name is None else jax.lax.psum(v, axis_name)
  num_rows = psum(jnp.sum(weight))
  # A where, and not weight * value: a masked row may hold anything.
  mean = lambda v: psum(v) / jnp.maximum(num_rows, 1.)

  def decay(old, new, momentum):
    return jnp.where(num_rows > 0, momentum * old + (1 - momentum) * new, old)

  usage = jax.ops.segment_sum(weight, aux['near'], s.codebook_size)
  gaps = jnp.sum(
      jnp.where(weight[:, None] > 0, weight[:, None] * aux['gaps'], 0.), 0)
  codebook = dict(codebook)
  codebook['usage'] = decay(codebook['usage'], mean(usage), s.usage_momentum)
  codebook['gap'] = jnp.maximum(
      decay(codebook['gap'], mean(gaps), s.usage_momentum), _GAP_FLOOR)
  if s.trained:
    return codebook
  rows = jnp.where(
      weight[:, None, None] > 0, weight[:, None, None] * output.residuals, 0.)
  level_sum = jax.vmap(
      lambda v, code: jax.ops.segment_sum(v, code, s.codebook_size),
      in_axes=(1, 1))
  count = level_sum(
      jnp.broadcast_to(weight[:, None], output.codes.shape), output.codes)
  total = level_sum(rows, output.codes)
  count = decay(codebook['count'], mean(count), s.ema_decay)
  total = decay(codebook['sum'], mean(total), s.ema_decay)
  enough = (count > _COUNT_FLOOR)[..., None]
  address = total / jnp.maximum(count, _COUNT_FLOOR)[..., None]
  codebook.update(
      count=count, sum=total,
      address=jnp.where(enough, address, codebook['address']))
  return codebook


def _prefix(params: types.PyTree, codes: jax.Array) -> jax.Array:
  """Sums the semantic embeddings of a prefix: [..., l] -> [..., D]."""
  return sum(params['semantic'][level][codes[..., level]]
             for level in range(codes.shape[-1]))


def _codes(codebook: types.PyTree) -> jax.Array:
  """Returns the stored codes [V, L] int32."""
  return codebook['sid']


def _fit(
    s: _Settings, seed: int, params: types.PyTree, codebook: types.PyTree,
    vectors: types.Array, *, features: types.FeatureTable | None = None,
    collaborative: types.Array | None = None
) -> tuple[types.PyTree, types.PyTree]:
  """Starts with a balanced k-means tree; both tables get its codewords."""
  del params, codebook, features, collaborative
  tree = balance.tree(
      base.host_vectors(vectors, s.num_items, s.dim), s.num_levels,
      s.codebook_size,
      lambda level, residual: balance.balanced_kmeans(
          seed + level, residual, s.codebook_size)[1])
  count = np.stack([
      np.bincount(codes, minlength=s.codebook_size) for codes in tree.codes.T])
  return _pack(s, tree.books, tree.codes, tree.gaps,
               (count / s.num_items).astype(np.float32))


def _refresh(
    s: _Settings, params: types.PyTree, codebook: types.PyTree,
    vectors: types.Array
) -> tuple[types.PyTree, dict[str, float]]:
  """Re-assigns all items, with a bonus for codes that do not change."""
  vectors = base.host_vectors(vectors, s.num_items, s.dim)
  address = np.asarray(_address(s, params, codebook))
  old = np.asarray(codebook['sid'])
  tree = balance.tree(
      vectors, s.num_levels, s.codebook_size, lambda level, _: address[level],
      slack=s.slack, old=old, bonus=s.margin * np.asarray(codebook['gap']))
  nearest, residual = [], vectors
  for book in address:
    nearest.append(np.argmin(balance.squared_distances(residual, book), 1))
    residual = residual - book[nearest[-1]]
  agree = np.stack(nearest, 1) == tree.codes
  codebook = dict(jax.tree.map(np.asarray, codebook), sid=tree.codes)
  return codebook, {
      **base.churn(tree.codes, old),
      'tokenizer/nearest_agreement': float(np.mean(agree.all(1))),
      'tokenizer/nearest_agreement@1': float(np.mean(agree[:, 0])),
  }
