"""Item vectors from co-occurrence in the histories before the log."""

import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from sidrec import types
from sidrec.data import features
from sidrec.data import history


def item_vectors(entries: history.Before, num_items: int, dim: int,
                 first_rank: int) -> np.ndarray:
  """Factorizes who chose what before the log: the leading singular vectors.

  Rows (users) and columns (items) are scaled by the inverse root of their
  counts, so that inner products of the vectors approximate cosines. Only what
  was known before the log starts counts: no sample sees its own future.

  Args:
    entries: what users did before the log.
    num_items: V.
    dim: number of singular vectors.
    first_rank: rank of the log's first time.

  Returns:
    [V, dim] float32, zeros for items in no history.
  """
  keep = entries.positive & (entries.rank <= first_rank)
  user, item = entries.user[keep], entries.item[keep]
  if len(np.unique(user)) < 2 or num_items <= dim:
    return np.zeros((num_items, dim), np.float32)
  _, user = np.unique(user, return_inverse=True)
  scale = lambda x: 1. / np.sqrt(np.maximum(np.bincount(x), 1))
  value = scale(user)[user] * scale(item)[item]
  matrix = sparse.csr_matrix(
      (value, (user, item)), shape=(user.max() + 1, num_items))
  matrix.sum_duplicates()
  # A fixed start: ARPACK would draw one, and runs would differ.
  _, strength, right = linalg.svds(
      matrix, k=min(dim, min(matrix.shape) - 1),
      v0=np.ones(min(matrix.shape)) / np.sqrt(min(matrix.shape)))
  right = right * np.sign(right.sum(1, keepdims=True) + 1e-12)
  out = np.zeros((num_items, dim), np.float32)
  out[:, :len(strength)] = (right[::-1] * strength[::-1, None]).T
  return out


def append(spec: types.FeatureSpec, table: types.FeatureTable,
           vectors: np.ndarray) -> tuple[types.FeatureSpec, types.FeatureTable]:
  """Adds vectors [V, E] to the item-static features, in standard units."""
  start = spec.num_dims
  field = types.Field(
      name='histories', role=types.Role.ITEM_STATIC, kind='vector',
      start=start, stop=start + vectors.shape[1], size=vectors.shape[1])
  values = features.normalize(vectors)
  if table.vectors is not None:
    values = np.concatenate([table.vectors, values], 1)
  return (
      dataclasses.replace(
          spec, fields=(*spec.fields, field), num_dims=field.stop),
      table.replace(vectors=values))
