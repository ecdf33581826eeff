"""Computes the metrics of a run exactly, on the host, in NumPy.

All in float64 and without loops over rows, users or items. A metric that is
undefined (no row, one class only) is `float('nan')`: the caller drops it.
"""

from typing import Sequence

import numpy as np

from sidrec import types

KS = (5, 10, 50)


def _labels_and_scores(labels: np.ndarray, scores: np.ndarray,
                       name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64 [R]; raises ValueError if they can't be ranked."""
  labels = np.asarray(labels, np.float64)
  scores = np.asarray(scores, np.float64)
  if labels.ndim != 1 or labels.shape != scores.shape:
    raise ValueError(f'labels {labels.shape} and {name} {scores.shape} must '
                     'be [R] of one length')
  if not np.isin(labels, (0, 1)).all():
    raise ValueError('labels must be 0 or 1')
  if np.isnan(scores).any():
    raise ValueError(f'{name}: {int(np.isnan(scores).sum())} of {scores.size} '
                     'are NaN')
  return labels, scores


def _probabilities(labels: np.ndarray,
                   values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64 [R]; raises ValueError outside of [0, 1]."""
  labels, values = _labels_and_scores(labels, values, 'probabilities')
  if ((values < 0) | (values > 1)).any():
    raise ValueError('probabilities must lie in [0, 1]; give no logits')
  return labels, values


def _wins(positive: np.ndarray, negative: np.ndarray, scores: np.ndarray,
          group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Weighs pairs (positive above negative) within groups; a tie is a half.

  Args:
    positive, negative: [R] weights of a row as either class.
    scores: [R].
    group: [R] integers in [0, G), each present.

  Returns:
    wins, total positive, total negative weight of each group, [G] each.
  """
  order = np.lexsort((scores, group))
  group, scores = group[order], scores[order]
  # One block a (group, score): rows that tie.
  new_group = np.append(True, group[1:] != group[:-1])
  new_block = new_group | np.append(True, scores[1:] != scores[:-1])
  start = np.flatnonzero(new_block)
  block_positive = np.add.reduceat(positive[order], start)
  block_negative = np.add.reduceat(negative[order], start)
  first = np.flatnonzero(new_group[start])  # First block of each group.
  below = np.cumsum(block_negative) - block_negative
  below -= np.repeat(below[first], np.diff(np.append(first, start.size)))
  wins = block_positive * (below + block_negative / 2)
  return tuple(np.add.reduceat(x, first)
               for x in (wins, block_positive, block_negative))


def auc(labels: np.ndarray, scores: np.ndarray,
        weights: np.ndarray | None = None) -> float:
  """Computes the area under the ROC curve, ties counted as a half.

  Args:
    labels: [R] 0 or 1.
    scores: [R], larger = more likely 1; any monotone unit.
    weights: None or [R] >= 0.

  Returns:
    The AUC in [0, 1]; NaN when a class has no weight.

  Raises:
    ValueError: shapes differ, labels not 0 or 1, NaN scores, bad weights.
  """
  labels, scores = _labels_and_scores(labels, scores, 'scores')
  weights = (np.ones_like(labels) if weights is None
             else np.asarray(weights, np.float64))
  if weights.shape != labels.shape or not (weights >= 0).all():
    raise ValueError(f'weights must be [{labels.size}] and >= 0')
  if not labels.size:
    return float('nan')
  wins, positive, negative = _wins(
      labels * weights, (1 - labels) * weights, scores,
      np.zeros(labels.size, np.int64))
  if positive[0] == 0 or negative[0] == 0:
    return float('nan')
  return float(wins[0] / (positive[0] * negative[0]))


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
  """Computes the mean AUC of the users, weighted by their rows.

  Users with one class are left out, with their rows (arXiv 1706.06978).

  Args:
    labels: [R] 0 or 1.
    scores: [R].
    users: [R] ids, in any order.

  Returns:
    The GAUC in [0, 1]; NaN when no user has both classes.

  Raises:
    ValueError: as `auc`.
  """
  labels, scores = _labels_and_scores(labels, scores, 'scores')
  users = np.asarray(users)
  if users.shape != labels.shape:
    raise ValueError(f'users {users.shape} must be [{labels.size}]')
  if not labels.size:
    return float('nan')
  _, group = np.unique(users, return_inverse=True)
  wins, positive, negative = _wins(labels, 1 - labels, scores, group)
  both = (positive > 0) & (negative > 0)
  if not both.any():
    return float('nan')
  wins, positive, negative = wins[both], positive[both], negative[both]
  return float(np.average(wins / (positive * negative),
                          weights=positive + negative))


def logloss(labels: np.ndarray, probabilities: np.ndarray,
            epsilon: float = 1e-7) -> float:
  """Computes the mean binary cross entropy in nats.

  Args:
    labels: [R] 0 or 1.
    probabilities: [R] in [0, 1], clipped to [epsilon, 1 - epsilon] (about the
      resolution of float32), so a certain error costs 16.1 nats.
    epsilon: the clip.

  Returns:
    Nats a row; NaN without rows.

  Raises:
    ValueError: as `auc`, or values outside of [0, 1].
  """
  labels, values = _probabilities(labels, probabilities)
  if not labels.size:
    return float('nan')
  values = np.clip(values, epsilon, 1 - epsilon)
  return float(-np.mean(np.where(labels == 1, np.log(values),
                                 np.log1p(-values))))


def ece(labels: np.ndarray, probabilities: np.ndarray,
        bins: int = 15) -> float:
  """Computes the expected calibration error (arXiv 1706.04599, equation 3).

  Args:
    labels: [R] 0 or 1.
    probabilities: [R] in [0, 1].
    bins: number of bins of equal width, [i / bins, (i + 1) / bins); the last
      one holds 1 as well.

  Returns:
    Mean over rows of |mean label - mean probability| of the row's bin, in [0,
    1]; NaN without rows.

  Raises:
    ValueError: as `logloss`.
  """
  labels, values = _probabilities(labels, probabilities)
  if not labels.size:
    return float('nan')
  # Against the edges themselves: floor(p * bins) rounds some edges down.
  which = np.searchsorted(np.arange(1, bins) / bins, values, side='right')
  gap = np.bincount(which, weights=labels - values, minlength=bins)
  return float(np.abs(gap).sum() / labels.size)


def ranking(labels: np.ndarray, probabilities: np.ndarray,
            users: np.ndarray) -> dict[str, float]:
  """Computes all metrics of the ranking path, arguments as `gauc`, `logloss`.

  Returns:
    'ranking/auc', 'ranking/gauc', 'ranking/logloss', 'ranking/ece'.
  """
  return {'ranking/auc': auc(labels, probabilities),
          'ranking/gauc': gauc(labels, probabilities, users),
          'ranking/logloss': logloss(labels, probabilities),
          'ranking/ece': ece(labels, probabilities)}


def _repeats(items: np.ndarray) -> np.ndarray:
  """Returns [B, W] True where an entry occurs earlier in its row."""
  order = np.argsort(items, axis=1, kind='stable')
  ordered = np.take_along_axis(items, order, axis=1)
  same = np.zeros(items.shape, bool)
  same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
  repeats = np.empty_like(same)
  np.put_along_axis(repeats, order, same, axis=1)
  return repeats


def _hits(
    ranked_items: np.ndarray, mask: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what counts and where the target stands, both [B, W] bool.

  An item counts at its first valid occurrence; the target, at most once.
  """
  items, target = np.asarray(ranked_items), np.asarray(target)
  valid = np.asarray(mask).astype(bool)
  if items.ndim != 2 or valid.shape != items.shape or (
      target.shape != items.shape[:1]):
    raise ValueError(f'ranked_items {items.shape}, mask {valid.shape} and '
                     f'target {target.shape} must be [B, W], [B, W] and [B]')
  # Of what is not valid nothing may count as a first occurrence: move all of
  # it to one value that no item has.
  if items.size:
    items = np.where(valid, items.astype(np.int64), items.min() - 1)
  counts = valid & ~_repeats(items)
  return counts, counts & (items == target[:, None])


def places(ranked_items: np.ndarray, mask: np.ndarray, target: np.ndarray,
           limit: int | None = None) -> np.ndarray:
  """Returns each row's place of its target in the order that is given.

  Args:
    ranked_items, mask, target, limit: as `recall_ndcg`.

  Returns:
    [B] int32: 1 = first, 0 = not among the first `limit`.
  """
  counts, hit = _hits(ranked_items, mask, target)
  place = np.sum(np.where(hit, np.cumsum(counts, axis=1), 0), axis=1)
  if limit is not None:
    place = np.where(place <= limit, place, 0)
  return place.astype(np.int32)


def _ties(counts: np.ndarray, hit: np.ndarray, scores: np.ndarray | None
          ) -> tuple[np.ndarray, np.ndarray]:
  """Returns how many stand before the target's tie, and how many are in it.

  Args:
    counts, hit: [B, W] of `_hits`.
    scores: [B, W], or None: nothing ties.

  Returns:
    before, size: [B] int64 each; of a row without its target: (any, 1).
  """
  tied = hit
  if scores is not None and hit.size:
    scores = np.asarray(scores)
    if scores.shape != hit.shape:
      raise ValueError(f'scores {scores.shape} must be {hit.shape}')
    own = np.take_along_axis(scores, hit.argmax(1)[:, None], 1)
    # Scores that are no numbers say nothing: they tie with one another.
    same = (scores == own) | (np.isnan(scores) & np.isnan(own))
    tied = counts & same & hit.any(1, keepdims=True)
  reached = np.cumsum(tied, axis=1) > 0
  return np.sum(counts & ~reached, axis=1), np.maximum(tied.sum(1), 1)


def recall_ndcg(
    ranked_items: np.ndarray, mask: np.ndarray, target: np.ndarray,
    ks: Sequence[int] = KS, *, scores: np.ndarray | None = None,
    limit: int | None = None) -> dict[str, np.ndarray]:
  """Computes Recall@K and NDCG@K of one target a row.

  An item takes the place of its first occurrence; later ones, and entries that
  are not valid, take none. Items of one score have no order among them: the
  target gets the mean of what it would get over all orders of its tie.

  Args:
    ranked_items: [B, W] integers, best first.
    mask: [B, W], 1 = valid.
    target: [B] the one relevant item.
    ks: cut-offs; one above W sees all W.
    scores: [B, W] what the items were ranked by, in any unit; those of valid
      entries do not ascend. None: no two tie.
    limit: places that the list has for the user, where more are given so that
      its last tie is whole; None = W.

  Returns:
    'recall@K' and 'ndcg@K', [B] float64 in [0, 1] each; where nothing ties,
    Recall is 0 or 1 and NDCG 1 / log2(1 + place).

  Raises:
    ValueError: shapes do not fit.
  """
  counts, hit = _hits(ranked_items, mask, target)
  before, size = _ties(counts, hit, scores)
  found, width = hit.any(axis=1), hit.shape[1]
  # gain[n]: of the first n places together.
  gain = np.append(0., np.cumsum(1 / np.log2(2. + np.arange(width))))
  result = {}
  for k in ks:
    stop = min(k, width, width if limit is None else limit)
    first, last = np.minimum(before, stop), np.minimum(before + size, stop)
    result[f'recall@{k}'] = np.where(found, (last - first) / size, 0.)
    result[f'ndcg@{k}'] = np.where(found, (gain[last] - gain[first]) / size, 0.)
  return result


def retrieval(
    ranked_items: np.ndarray, mask: np.ndarray, target: np.ndarray,
    ks: Sequence[int] = KS, prefix: str = 'retrieval', *,
    scores: np.ndarray | None = None, limit: int | None = None
) -> dict[str, float]:
  """Averages `recall_ndcg` over the rows.

  Args:
    ranked_items, mask, target, ks, scores, limit: as `recall_ndcg`.
    prefix: what the names begin with ('unified' after re-ranking).

  Returns:
    '<prefix>/recall@K' and '<prefix>/ndcg@K', each in [0, 1]; NaN without rows.
  """
  rows = recall_ndcg(
      ranked_items, mask, target, ks, scores=scores, limit=limit)
  return {f'{prefix}/{name}': float(x.mean()) if x.size else float('nan')
          for name, x in rows.items()}


def _gini(counts: np.ndarray) -> float:
  """Returns the Gini coefficient of counts: 0 = even, toward 1 = one code."""
  counts = np.sort(counts.astype(np.float64))
  rank = np.arange(1, counts.size + 1)
  return float(np.sum((2 * rank - counts.size - 1) * counts)
               / (counts.size * counts.sum()))


def _collision_rate(codes: np.ndarray) -> float:
  """Returns the share of rows that equal another row."""
  ordered = codes[np.lexsort(codes.T)]
  same = (ordered[1:] == ordered[:-1]).all(axis=1)
  return float(np.mean(np.append(False, same) | np.append(same, False)))


def code_statistics(codes: np.ndarray,
                    sizes: Sequence[int]) -> dict[str, float]:
  """Describes how a tokenizer uses its codebooks.

  Args:
    codes: [V, L] integers, V >= 1, level l in [0, sizes[l - 1]).
    sizes: L codebook sizes.

  Returns:
    'tokenizer/collision_rate': share of items whose full code is not unique;
    and for l = 1..L, over how many items each of the K codes has:
    'tokenizer/usage@l' share of codes with an item, 'tokenizer/perplexity@l'
    exp(entropy) in codes (1 to K), 'tokenizer/gini@l' in [0, 1).

  Raises:
    InputError: wrong shape, no items, or a code outside of its codebook.
  """
  codes = np.asarray(codes)
  if codes.ndim != 2 or codes.shape[1] != len(sizes) or not codes.size:
    raise types.InputError(f'codes: expected [V, {len(sizes)}] with V >= 1, '
                           f'got shape {codes.shape}')
  wrong = (codes < 0) | (codes >= np.asarray(sizes)[None, :])
  if wrong.any():
    row, level = np.argwhere(wrong)[0]
    raise types.InputError(
        f'codes: row {row}, level {level + 1}: code {codes[row, level]} is '
        f'outside of [0, {sizes[level]})')
  result = {'tokenizer/collision_rate': _collision_rate(codes)}
  for level, size in enumerate(sizes, 1):
    counts = np.bincount(codes[:, level - 1], minlength=size)
    share = counts[counts > 0] / codes.shape[0]
    result[f'tokenizer/usage@{level}'] = share.size / size
    result[f'tokenizer/perplexity@{level}'] = float(
        np.exp(-np.sum(share * np.log(share))))
    result[f'tokenizer/gini@{level}'] = _gini(counts)
  return result


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Returns mean and spread of a metric over S seeds.

  Args:
    values: [S] one number a seed.

  Returns:
    The mean and the sample standard deviation (divided by S - 1; 0 for one
    seed). NaN, both, without seeds.
  """
  values = np.asarray(values, np.float64)
  if not values.size:
    return float('nan'), float('nan')
  spread = values.std(ddof=1) if values.size > 1 else 0.
  return float(values.mean()), float(spread)
