"""Lays out batches as one flat matrix for gradient-boosted trees.

The trees get what the ranker of sidrec gets, point in time: the cross
statistics of `batch.cross` where there are any, what is known of items at the
time (`Catalog.known`), the request features and the item's own.
"""

import numpy as np

from sidrec import data
from sidrec import types

MAX_CATEGORIES = 64  # Above, a tree overfits the splits by category.
MAX_ORDERED = 2000  # Above, the number of a category says nothing.
MAX_VALUES = 2  # Of a field with several categories.
MAX_DIMS = 16  # Principal components of a vector.


class Layout:
  """Columns of the matrix: names, and which are categories."""

  def __init__(self, dataset: data.Dataset):
    """Chooses columns.

    Args:
      dataset: whose features to lay out.
    """
    self._dataset = dataset
    spec, items = dataset.spec, dataset.catalog.features
    self._request = _columns('request', spec.request)
    self._item = _columns('item', spec.items)
    vectors = np.zeros((spec.num_items, 0), np.float32)
    if spec.items.num_dims:
      vectors = _principal(np.asarray(items.vectors, np.float32))
    self._items = np.concatenate(
        [_gather(items, self._item, spec.num_items), vectors], axis=1)
    encoded = self._request + self._item
    self.names = [
        *(f'cross/{name}' for name in spec.cross_names),
        *(f'known/{name}' for name in spec.known_names),
        *(name for name, _, _, _ in encoded),
        *(f'item/vectors/{place}' for place in range(vectors.shape[1]))]
    self.categories = [name for name, _, _, is_category in encoded
                       if is_category]

  def matrix(self, events: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Returns [B * C, columns] float32 of events [B] with candidates [B, C]."""
    batch = self._dataset.assemble(
        events, items, np.zeros(items.shape, np.float32))
    num = items.shape[1]
    request = _gather(batch.request, self._request, len(events))
    parts = [np.repeat(request, num, axis=0), self._items[items.reshape(-1)]]
    known = self._dataset.catalog.known
    if known is not None:
      found = np.asarray(known.values)[batch.moment[:, None], items]
      parts.insert(0, found.reshape(items.size, -1))
    if batch.cross is not None:
      parts.insert(0, batch.cross.reshape(items.size, -1))
    return np.concatenate(parts, axis=1).astype(np.float32)

  def split(
      self, split: str, events: np.ndarray, rows: int = 8192
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lays out what is ranked for each event of a split.

    Args:
      split: 'train', 'valid' or 'test'.
      events: [B].
      rows: events at a time.

    Returns:
      matrix [R, columns] float32, label [R], user [R] and item [R].
    """
    matrix, label, item = [], [], []
    for start in range(0, len(events), rows):
      part = events[start:start + rows]
      items, labels = self._dataset.ranking_candidates(split, part)
      matrix.append(self.matrix(part, items))
      label.append(labels)
      item.append(items)
    label = np.concatenate(label)
    user = np.repeat(self._dataset.event_user[events], label.shape[1])
    return (np.concatenate(matrix), label.reshape(-1), user,
            np.concatenate(item).reshape(-1))


def _columns(
    prefix: str, spec: types.FeatureSpec
) -> list[tuple[str, str, int, bool]]:
  """Returns (name, leaf of the table, its column, is category) of a spec."""
  result = []
  for field in spec.fields:
    name = f'{prefix}/{field.name}'
    if field.kind == 'vector':
      continue
    if field.kind == 'number':
      leaf, stop, is_category = 'values', field.stop, False
    elif field.size > MAX_ORDERED:
      continue
    else:
      leaf, stop = 'ids', min(field.stop, field.start + MAX_VALUES)
      is_category = field.size <= MAX_CATEGORIES
    result += [(f'{name}/{place - field.start}', leaf, place, is_category)
               for place in range(field.start, stop)]
  return result


def _gather(
    table: types.FeatureTable, columns: list[tuple[str, str, int, bool]],
    num_rows: int) -> np.ndarray:
  """Returns [R, columns] float32 of a table, of which kinds may be None."""
  parts = [getattr(table, leaf)[:, place].astype(np.float32)
           for _, leaf, place, _ in columns]
  return np.stack(parts, axis=1) if parts else np.zeros(
      (num_rows, 0), np.float32)


def _principal(vectors: np.ndarray) -> np.ndarray:
  """Projects [V, E] on its first principal components."""
  centered = vectors - vectors.mean(axis=0)
  _, direction = np.linalg.eigh(centered.T @ centered)
  return centered @ direction[:, ::-1][:, :MAX_DIMS]
