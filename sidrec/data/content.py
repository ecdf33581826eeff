"""What content tokenizers read of an item: one standardized vector.

Sentence embeddings where the catalog has them, else its static fields by a
fixed random projection. Standardized a dimension: raw unit-norm vectors let
the commitment of an RQ-VAE outweigh its reconstruction by the dimension.
"""

from typing import Any, Mapping

from absl import logging
import jax
import numpy as np

from sidrec import rng
from sidrec import types
from sidrec.data import features

FIELD_DIM = 64  # Of a categorical field's projection.


def vectors(
    spec: types.FeatureSpec, table: types.FeatureTable) -> np.ndarray | None:
  """Returns content vectors [V, D] float32, mean 0 and deviation 1 a dimension.

  Args:
    spec: of item-static features.
    table: the features, V rows.

  Returns:
    None where the catalog says nothing of its items.
  """
  if spec.num_dims:
    return _standardize(np.asarray(table.vectors))
  parts = []
  if spec.vocabulary > 1:
    # Fixed, so that every run and every process projects alike.
    rows = np.array(jax.random.normal(
        rng.stream(0, 'field projection'), (spec.vocabulary, FIELD_DIM)))
    rows[0] = 0.  # Missing.
    parts = [_mean(rows, table.ids[:, field.start:field.stop])
             for field in spec.fields if field.kind == 'category']
  if spec.num_values:
    parts.append(table.values)
  return _standardize(np.concatenate(parts, 1)) if parts else None


def _mean(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """Returns [V, d], the mean of the rows of ids [V, S] that are not missing."""
  # A slot at a time: [V, S, d] of a large catalog is many times its vectors.
  total = np.zeros((len(ids), rows.shape[1]), np.float32)
  for slot in ids.T:
    total += rows[slot]
  return total / np.maximum((ids > 0).sum(1, keepdims=True), 1)


def _standardize(x: np.ndarray) -> np.ndarray:
  """Returns (x - mean) / deviation [V, D] float32; constants become 0."""
  mean = x.mean(0, dtype=np.float64)
  scale = x.std(0, dtype=np.float64)
  scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, 1.)
  return ((x - mean.astype(np.float32)) / scale.astype(np.float32)).astype(
      np.float32)


def warn_of_hashed_words(columns: Mapping[str, Any], where: str) -> None:
  """Says that texts become hashed words, for a catalog without embeddings.

  Args:
    columns: declarations of the items' columns, as in dataset.json.
    where: folder or name, for the message.
  """
  kept = {name: column['type'] for name, column in columns.items()
          if column['role'] != types.Role.NEVER.value}
  texts = [name for name, kind in kept.items() if kind in ('text', 'text_list')]
  if texts:
    rest = [name for name in kept if name not in texts]
    logging.warning(
        '%s: no embeddings of texts: of %s items keep the first %d words, '
        'hashed to %d buckets; content vectors are their means in %d random '
        'dimensions%s. For sentence embeddings put item_embeddings.npy beside '
        'the tables or set config.data.text_encoder', where, ', '.join(texts),
        features.MAX_WORDS, features.NUM_BUCKETS, FIELD_DIM,
        f' beside {", ".join(rest)}' if rest else '')


def dim(found: np.ndarray | None) -> int:
  """Returns D of `vectors` [V, D]; 0 where there are none."""
  return 0 if found is None else found.shape[1]
