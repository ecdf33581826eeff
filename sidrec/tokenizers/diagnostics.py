"""What the codes of a whole catalog look like, and when they have collapsed.

The hourglass of residual quantizers (arXiv 2407.21488) shows as a middle level
of low entropy and high Gini; `prune_top_tokens` is that paper's cure.
"""

from typing import Mapping, NamedTuple, Sequence

import numpy as np
from scipy import sparse
from scipy import special

from sidrec import metrics
from sidrec import types
from sidrec.tokenizers import collisions

_SAMPLE = 2000  # Items whose embedding neighbours are looked up.
_CHUNK = 256  # Of them at a time.
_NUM_NEIGHBOURS = 10
_APART = .01  # Share of the variance beyond which items are told apart.
_DRAWS = 20  # Of categories, for what purity is by chance; fewer of many items.


class Pruned(NamedTuple):
  """Codes of variable length.

  codes: [V, L] int32, moved to the left, -1 where an item has no more.
  length: [V] int32 tokens of each item.
  tokens: [n] the tokens that were removed.
  """
  codes: np.ndarray
  length: np.ndarray
  tokens: np.ndarray


def report(
    codes: types.Array, sizes: Sequence[int], *,
    vectors: types.Array | None = None,
    neighbours: types.Array | None = None,
    category: types.Array | None = None,
    previous: types.Array | None = None,
    reconstruction: types.Array | None = None, seed: int = 0
) -> dict[str, float]:
  """Describes the codes of a whole catalog.

  Args:
    codes: [V, L] int32.
    sizes: codes of each level.
    vectors: [V, D] item vectors.
    neighbours: [V, k] int32 items that users take together with each item,
      -1 = none.
    category: [V] integer category of each item, -1 = unknown.
    previous: [V, L] codes to compare with.
    reconstruction: [V, D] vectors decoded from the codes; needs `vectors`.
    seed: of the sample of items whose embedding neighbours are looked up.

  Returns:
    `metrics.code_statistics`, and over levels l = 1..L: 'entropy@l' in nats,
    'dead@l' codes without an item, 'spread@l' standard deviation of the items
    a code, 'alone@l' share of items that have their prefix of length l for
    themselves; 'paths' distinct tuples over possible ones, 'largest_group'
    items of one tuple. With `vectors`: 'near_prefix@l', the share of pairs of
    an item and one of its 10 nearest by cosine that share a prefix of length
    l; 'unexplained@l', 'predicted@l', 'apart@l': see `_variance`. With
    `neighbours`: 'taken_prefix@l', as near. With `category`: 'purity@l' share
    of items in the largest category of their prefix, 'purity_chance@l' the
    mean of random groups of the same sizes. With `previous`: 'churn',
    'churn@l'. With `reconstruction`: 'reconstruction', squared error over the
    variance. All begin with 'tokenizer/'; what is undefined is NaN.

  Raises:
    types.InputError: as `metrics.code_statistics`.
    ValueError: arrays of another number of items.
  """
  codes = np.asarray(codes)
  found = metrics.code_statistics(codes, sizes)
  _check_rows(len(codes), vectors=vectors, neighbours=neighbours,
              category=category, previous=previous,
              reconstruction=reconstruction)
  extra = _levels(codes, sizes)
  if vectors is not None:
    items, near = embedding_neighbours(vectors, seed=seed)
    extra |= _shared(codes, items, near, 'near_prefix')
    extra |= _variance(codes, np.asarray(vectors, np.float32))
  if neighbours is not None:
    extra |= _shared(
        codes, np.arange(len(codes)), np.asarray(neighbours), 'taken_prefix')
  if category is not None:
    extra |= _purity(codes, np.asarray(category), seed)
  if previous is not None:
    extra |= _churn(codes, np.asarray(previous))
  if reconstruction is not None:
    extra['reconstruction'] = _error(vectors, reconstruction)
  return found | {f'tokenizer/{name}': x for name, x in extra.items()}


def _check_rows(num: int, **given: types.Array | None) -> None:
  """Raises ValueError where an array is not of `num` items."""
  for name, value in given.items():
    if value is not None and len(value) != num:
      raise ValueError(f'{name} has {len(value)} rows, not {num}.')


def chance(
    codes: types.Array, sizes: Sequence[int], *,
    vectors: types.Array | None = None,
    neighbours: types.Array | None = None,
    category: types.Array | None = None, seed: int = 0) -> dict[str, float]:
  """Describes the same tuples handed out to the items at random.

  What `report` has of codes that know nothing of the items: what it must be
  compared with.

  Args:
    codes, sizes, vectors, neighbours, category: as `report`.
    seed: of the permutation, and as `report`.
  """
  codes = np.asarray(codes)
  order = np.random.default_rng([seed, 1]).permutation(len(codes))
  return report(codes[order], sizes, vectors=vectors, neighbours=neighbours,
                category=category, seed=seed)


def _levels(codes: np.ndarray, sizes: Sequence[int]) -> dict[str, float]:
  """Counts codes and prefixes of each level."""
  found = {}
  for level, size in enumerate(sizes, 1):
    count = np.bincount(codes[:, level - 1], minlength=size)
    share = count[count > 0] / len(codes)
    found[f'entropy@{level}'] = float(-np.sum(share * np.log(share)))
    found[f'dead@{level}'] = float(np.sum(count == 0))
    found[f'spread@{level}'] = float(np.std(count))
    group, items = collisions.groups(codes[:, :level])
    found[f'alone@{level}'] = float(np.mean(items[group] == 1))
  found['paths'] = items.size / float(np.prod(sizes, dtype=np.float64))
  found['largest_group'] = float(items.max())
  return found


def embedding_neighbours(
    vectors: types.Array, *, num_neighbours: int = _NUM_NEIGHBOURS,
    sample: int = _SAMPLE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Finds the nearest items by cosine, exactly, for a sample of items.

  Args:
    vectors: [V, D].
    num_neighbours: k; fewer where the catalog is smaller.
    sample: items to look up; all where the catalog is no larger.
    seed: of the sample.

  Returns:
    (items [n] int64 ascending, neighbours [n, k] int64, the item left out).
  """
  x = np.asarray(vectors, np.float32)
  length = np.sqrt(np.einsum('vd,vd->v', x, x))
  num, k = len(x), min(num_neighbours, len(x) - 1)
  items = np.arange(num)
  if num > sample:
    items = np.sort(np.random.default_rng(seed).choice(
        num, sample, replace=False))
  near = np.empty((len(items), k), np.int64)
  for start in range(0, len(items), _CHUNK):
    rows = items[start:start + _CHUNK]
    # The item's own length scales its whole row and changes no order.
    cosine = (x[rows] @ x.T) / np.maximum(length, 1e-12)[None]
    cosine[np.arange(len(rows)), rows] = -np.inf
    near[start:start + _CHUNK] = np.argpartition(-cosine, k - 1, 1)[:, :k]
  return items, near


def taken_together(user: types.Array, item: types.Array, num_items: int,
                   num_neighbours: int = _NUM_NEIGHBOURS) -> np.ndarray:
  """Finds the items that most users took together with each item.

  Args:
    user: [N] whose event it is.
    item: [N] int32.
    num_items: V.
    num_neighbours: k.

  Returns:
    [V, k] int32, most users first (then by item), -1 where there is none.
  """
  matrix = sparse.csr_matrix(
      (np.ones(len(item), np.float32), (user, item)),
      shape=(int(np.max(user, initial=0)) + 1, num_items))
  matrix.sum_duplicates()
  matrix.data[:] = 1.
  users = matrix.T.tocsr()
  near = np.full((num_items, num_neighbours), -1, np.int32)
  for start in range(0, num_items, _CHUNK):
    rows = (users[start:start + _CHUNK] @ matrix).tocoo()
    own = rows.col == rows.row + start
    row, other, count = (x[~own] for x in (rows.row, rows.col, rows.data))
    order = np.lexsort((other, -count, row))
    row, other = row[order], other[order]
    place = np.arange(row.size) - np.searchsorted(row, row)
    keep = place < num_neighbours
    near[start + row[keep], place[keep]] = other[keep]
  return near


def _shared(
    codes: np.ndarray, items: np.ndarray, others: np.ndarray, name: str
) -> dict[str, float]:
  """Returns the share of pairs with a common prefix, of each length."""
  known = others >= 0
  same = np.ones(others.shape, bool)
  found = {}
  for level in range(codes.shape[1]):
    column = codes[:, level]
    same &= column[items][:, None] == column[np.maximum(others, 0)]
    found[f'{name}@{level + 1}'] = (
        float(same[known].mean()) if known.any() else float('nan'))
  return found


def _purity(codes: np.ndarray, category: np.ndarray, seed: int
            ) -> dict[str, float]:
  """Returns the share of items in their prefix's largest category, and by lot.

  By lot: the mean over draws of which item has which category.
  """
  known = category >= 0
  codes, num = codes[known], int(known.sum())
  _, category = np.unique(category[known], return_inverse=True)
  draw = np.random.default_rng([seed, 2])
  draws = max(1, min(_DRAWS, 2_000_000 // max(num, 1)))
  found = {}
  for level in range(1, codes.shape[1] + 1):
    if not num:
      found[f'purity@{level}'] = found[f'purity_chance@{level}'] = float('nan')
      continue
    group, _ = collisions.groups(codes[:, :level])
    found[f'purity@{level}'] = _largest(group, category) / num
    found[f'purity_chance@{level}'] = float(np.mean([
        _largest(group, draw.permutation(category)) for _ in range(draws)])
                                            ) / num
  return found


def _largest(group: np.ndarray, category: np.ndarray) -> int:
  """Returns the items [N] that are in the largest category of their group."""
  width = int(category.max()) + 1
  pairs, num = np.unique(group * width + category, return_counts=True)
  most = np.zeros(int(group.max()) + 1, np.int64)
  np.maximum.at(most, pairs // width, num)
  return int(most.sum())


def _variance(codes: np.ndarray, x: np.ndarray) -> dict[str, float]:
  """Returns how much of the variance the prefixes of each length leave.

  Of V items in G groups: 'unexplained@l', the variance around the means of
  the groups over all of it, (within / (V - G)) / (total / (V - 1)): each mean
  costs a degree of freedom, else many small groups seem to explain what they
  only repeat; NaN for V = G. 'predicted@l', the squared error of each item's
  guess over that of the mean of all others; its guess is the mean of the
  others of its group, an item alone has the mean of all others. Both are about
  1 or more for random groups. 'apart@l', the share of items that are more than
  a hundredth of the variance away from their group's mean: what is left to
  code.

  Args:
    codes: [V, L].
    x: [V, D] float32.
  """
  num, found = len(x), {}
  total = _squares(x, np.zeros(num, np.int64), np.array([num]))
  for level in range(1, codes.shape[1] + 1):
    group, count = collisions.groups(codes[:, :level])
    within, own = _squares(x, group, count), count[group]
    free, whole = num - count.size, total.sum()
    found[f'unexplained@{level}'] = (
        float(within.sum() / free / max(whole / (num - 1), 1e-12))
        if free else float('nan'))
    # The mean without an item is farther from it by n / (n - 1).
    error = np.where(own > 1, within * _without(own), total * _without(num))
    found[f'predicted@{level}'] = float(
        error.sum() / max(whole * _without(num), 1e-12))
    found[f'apart@{level}'] = float(np.mean(within > _APART * whole / num))
  return found


def _without(count: types.Array) -> np.ndarray:
  """Returns (n / (n - 1)) ** 2, 1 for n = 1."""
  return np.square(count / np.maximum(np.asarray(count) - 1., 1.))


def _squares(x: np.ndarray, group: np.ndarray, count: np.ndarray
             ) -> np.ndarray:
  """Returns each item's squared distance [V] float64 to its group's mean."""
  order = np.argsort(group, kind='stable')
  starts = np.concatenate([[0], np.cumsum(count)[:-1]])
  found = np.zeros(len(x))
  for part in np.array_split(np.arange(x.shape[1]), -(-x.shape[1] // 64)):
    values = x[:, part][order].astype(np.float64)
    values -= np.repeat(
        np.add.reduceat(values, starts) / count[:, None], count, 0)
    found[order] += np.einsum('vd,vd->v', values, values)
  return found


def _churn(codes: np.ndarray, previous: np.ndarray) -> dict[str, float]:
  """Returns shares of items whose tuple, or whose code of a level, changed."""
  changed = codes != previous
  found = {'churn': float(changed.any(1).mean())}
  for level in range(codes.shape[1]):
    found[f'churn@{level + 1}'] = float(changed[:, level].mean())
  return found


def _error(
    vectors: types.Array | None, reconstruction: types.Array) -> float:
  """Returns the squared error over the variance of the vectors."""
  if vectors is None:
    raise ValueError('reconstruction needs vectors to compare with.')
  x = np.asarray(vectors, np.float32)
  error = np.sum(np.square(x - np.asarray(reconstruction)), dtype=np.float64)
  return float(error / max(_scatter(x), 1e-12))


def _scatter(x: np.ndarray) -> float:
  """Returns the squared distances of [V, D] to their mean, added up."""
  mean = x.mean(0, dtype=np.float64).astype(np.float32)
  return float(np.sum(np.square(x - mean[None]), dtype=np.float64))


def check_collapse(
    found: Mapping[str, float], sizes: Sequence[int], limit: float) -> None:
  """Refuses codes that have collapsed onto a few.

  A level can only tell apart what the levels before it have left: in a small
  catalog the first ones name every item.

  Args:
    found: of `report`; without vectors, items that share a prefix count as
      left to be told apart.
    sizes: codes of each level.
    limit: the least entropy of a level that is allowed, in nats; but not more
      than half of what a level can have for what is left.

  Raises:
    types.InputError: naming the first level below the limit.
  """
  left = 1.
  for level, size in enumerate(sizes, 1):
    entropy = found[f'tokenizer/entropy@{level}']
    # One code for what is done, all codes evenly for what is left.
    most = left * np.log(size) - special.xlogy(left, left) - special.xlogy(
        1 - left, 1 - left)
    least = min(limit, .5 * min(most, np.log(size)))
    if not entropy >= least:  # NaN is no entropy either.
      raise types.InputError(
          f'tokenizer: level {level} has collapsed: {entropy:.3g} nats, about '
          f'{np.exp(entropy):.3g} codes in use, at least {least:.3g} nats are '
          'asked for (codes.least_entropy); items too much alike, or a '
          'quantizer gone wrong: try a smaller tokenizer.codebook_size, a '
          'lower tokenizer.commitment, tokenizer.revive.')
    apart, alone = (
        f'tokenizer/{name}@{level}' for name in ('apart', 'alone'))
    left = found[apart] if apart in found else 1 - found[alone]


def prune_top_tokens(codes: types.Array, level: int, num: int) -> Pruned:
  """Removes the most frequent tokens of a level (arXiv 2407.21488).

  With num = 1 distinct tuples stay distinct; with more, items may meet that
  differed in a removed token alone.

  Args:
    codes: [V, L] int32.
    level: 1 to L.
    num: tokens to remove; ties go to the lower token.

  Returns:
    The codes of variable length.
  """
  codes = np.asarray(codes, np.int32)
  count = np.bincount(codes[:, level - 1])
  tokens = np.argsort(-count, kind='stable')[:num]
  tokens = tokens[count[tokens] > 0]
  gone = np.isin(codes[:, level - 1], tokens)
  pruned = codes.copy()
  pruned[gone, level - 1:-1] = codes[gone, level:]
  pruned[gone, -1] = -1
  length = np.where(gone, codes.shape[1] - 1, codes.shape[1])
  return Pruned(pruned, length.astype(np.int32), tokens)
