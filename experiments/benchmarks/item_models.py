"""Retrieves with popularity, item neighbors and EASE, all in closed form.

U users, V items, B requests, W places. Nothing here knows of data sets.
"""

from typing import Iterator, NamedTuple

import numpy as np
from scipy import linalg
from scipy import sparse


class Ranked(NamedTuple):
  """Lists of some b of the B requests, best first.

  Items of one score stand by item number, which says nothing: whoever counts
  hits has to share them out. So no list ends within a tie.

  row: [b] which of the requests.
  item: [b, W] int64. score: [b, W] float64, what it was ranked by.
  mask: [b, W] bool.
  """
  row: np.ndarray
  item: np.ndarray
  score: np.ndarray
  mask: np.ndarray


def interactions(
    users: np.ndarray, items: np.ndarray, num_users: int, num_items: int
) -> sparse.csr_matrix:
  """Builds the binary matrix of who took what.

  Args:
    users, items: [N] indices; a pair may come more than once.
    num_users, num_items: U, V.

  Returns:
    [U, V] float32, 0 or 1.
  """
  result = sparse.csr_matrix(
      (np.ones(len(users), np.float32), (users, items)),
      shape=(num_users, num_items))
  result.sum_duplicates()
  result.data[:] = 1.
  return result


def neighbors(
    matrix: sparse.csr_matrix, alpha: float, shrink: float
) -> sparse.csr_matrix:
  """Computes asymmetric cosine similarities with shrinkage.

  s_ij = n_ij / (n_i^alpha n_j^(1 - alpha) + shrink), with n_i the users of item
  i and n_ij those of both; s_ii = 0. alpha = 1/2 and shrink = 0 is the plain
  cosine. A larger alpha divides less by the popularity of j, the item that is
  scored: it ranks popular items higher.

  Args:
    matrix: [U, V] binary.
    alpha: in [0, 1].
    shrink: >= 0 users.

  Returns:
    [V, V] float32: row i (in the history) to column j (scored).
  """
  pairs = (matrix.T @ matrix).tocoo()
  count = np.maximum(np.asarray(matrix.sum(axis=0)).ravel(), 1.)
  keep = pairs.row != pairs.col
  row, col = pairs.row[keep], pairs.col[keep]
  scale = count[row] ** alpha * count[col] ** (1. - alpha) + shrink
  return sparse.csr_matrix(
      ((pairs.data[keep] / scale).astype(np.float32), (row, col)),
      shape=pairs.shape)


def ease(matrix: sparse.csr_matrix, l2: float) -> np.ndarray:
  """Solves the embarrassingly shallow autoencoder (arXiv 1905.03375, eq. 8).

  With P = (X'X + l2 I)^-1: b_ij = -p_ij / p_jj, b_jj = 0.

  Args:
    matrix: [U, V] X, binary.
    l2: > 0.

  Returns:
    [V, V] float32: row i (in the history) to column j (scored).
  """
  gram = np.asfortranarray((matrix.T @ matrix).toarray(), np.float32)
  gram[np.diag_indices_from(gram)] += l2
  # Positive definite: Cholesky takes a third of a general inverse, in place.
  factor, info = linalg.lapack.spotrf(gram, lower=1, overwrite_a=1)
  if not info:
    inverse, info = linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
  if info:
    raise ValueError(f'EASE with l2 = {l2:g} is singular; take a larger one')
  inverse = np.tril(inverse)
  inverse += np.tril(inverse, -1).T
  weights = inverse / -np.diag(inverse)
  np.fill_diagonal(weights, 0.)
  return weights


def profiles(
    history: np.ndarray, weight: np.ndarray, num_items: int,
    decay: float = 1.,
) -> sparse.csr_matrix:
  """Sums up each history as one vector over items.

  Args:
    history: [B, T] items, newest last.
    weight: [B, T] >= 0; 0 where the entry does not count.
    num_items: V.
    decay: in (0, 1]: factor a step back among the entries that count.

  Returns:
    [B, V] float32; of an item that comes twice the sum, at most 1.
  """
  counts = weight > 0
  later = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1] - counts
  row, place = np.nonzero(counts)
  value = weight[row, place] * decay ** later[row, place]
  result = sparse.csr_matrix(
      (value.astype(np.float32), (row, history[row, place])),
      shape=(len(history), num_items))
  result.sum_duplicates()
  np.minimum(result.data, 1., out=result.data)
  return result


def best(scores: np.ndarray, k: int, row: np.ndarray | None = None) -> Ranked:
  """Ranks the k items of the largest scores, and what ties with the last.

  Args:
    scores: [b, V].
    k: number of places, at least.
    row: [b] which requests; default the first.
  """
  k = min(k, scores.shape[1])
  # A partition leaves open which of equal scores it keeps: take all that reach
  # the k-th score, by their index.
  cut = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
  reached = scores >= cut[:, None]
  width = int(reached.sum(1).max(initial=k))
  result = Ranked(
      np.arange(len(scores)) if row is None else row,
      np.zeros((len(scores), width), np.int64),
      np.full((len(scores), width), -np.inf),
      np.zeros((len(scores), width), bool))
  for place, (values, is_in) in enumerate(zip(scores, reached)):
    found = np.flatnonzero(is_in)
    found = found[np.argsort(-values[found], kind='stable')]
    result.item[place, :len(found)] = found
    result.score[place, :len(found)] = values[found]
    result.mask[place, :len(found)] = True
  return result


def recommend(
    profile: sparse.csr_matrix, weights: sparse.csr_matrix | np.ndarray,
    prior: np.ndarray, k: int, seen: sparse.csr_matrix | None = None,
    rows: int = 512,
) -> Iterator[Ranked]:
  """Ranks the catalog by profile times item-to-item weights.

  Args:
    profile: [B, V] of `profiles`.
    weights: [V, V] of `neighbors` or `ease`.
    prior: [V] popularity: orders equal scores, so a user without a history
      gets popular items.
    k: number of places, see `best`.
    seen: None, or [B, V]: where it is not 0 the item goes to the end.
    rows: requests at a time.

  Yields:
    Lists of all requests.
  """
  tie = (prior / max(prior.max(), 1.)).astype(np.float64) * 1e-7
  for start in range(0, profile.shape[0], rows):
    part = profile[start:start + rows] @ weights
    part = part.toarray() if sparse.issparse(part) else np.asarray(part)
    part = part.astype(np.float64) + tie
    row = np.arange(start, start + len(part))
    _drop(part, seen, row)
    yield best(part, k, row)


def popular(
    prior: np.ndarray, num: int, k: int,
    seen: sparse.csr_matrix | None = None, rows: int = 512,
) -> Iterator[Ranked]:
  """Ranks by one count of each item [V]; yields lists of `num` requests."""
  for start in range(0, num, rows):
    row = np.arange(start, min(start + rows, num))
    part = np.repeat(prior[None].astype(np.float64), len(row), axis=0)
    _drop(part, seen, row)
    yield best(part, k, row)


def popular_now(
    item: np.ndarray, time: np.ndarray, request_time: np.ndarray,
    num_items: int, k: int, half_life: float,
    seen: sparse.csr_matrix | None = None, rows: int = 512,
) -> Iterator[Ranked]:
  """Ranks by how often an item was taken up to now, old events fading.

  score_v(t) = sum over events of v with time s < t of 2^((s - t) / half_life).

  Args:
    item, time: [N] the positive events, sorted by time.
    request_time: [B] in any order.
    num_items: V.
    k: number of places, see `best`.
    half_life: in the unit of time; inf counts all the same.
    seen: as `recommend`.
    rows: requests at a time.

  Yields:
    Lists of all requests, by their times.
  """
  order = np.argsort(request_time, kind='stable')
  scores = _running(item, time, request_time[order], num_items, half_life)
  for start in range(0, len(order), rows):
    row = order[start:start + rows]
    part = np.stack([next(scores) for _ in row])
    _drop(part, seen, row)
    yield best(part, k, row)


def _running(
    item: np.ndarray, time: np.ndarray, request_time: np.ndarray,
    num_items: int, half_life: float,
) -> Iterator[np.ndarray]:
  """Yields the faded counts [V] at each of the sorted request times."""
  count, now, done = np.zeros(num_items), None, 0
  for moment in request_time:
    stop = int(np.searchsorted(time, moment))
    if now is not None:
      count *= 2. ** ((now - moment) / half_life)
    np.add.at(count, item[done:stop],
              2. ** ((time[done:stop] - moment) / half_life))
    now, done = moment, stop
    yield count.copy()


def _drop(
    scores: np.ndarray, seen: sparse.csr_matrix | None, rows: np.ndarray
) -> None:
  """Sets scores [b, V] of what requests `rows` saw to -inf, in place."""
  if seen is not None:
    row, item = seen[rows].nonzero()
    scores[row, item] = -np.inf
