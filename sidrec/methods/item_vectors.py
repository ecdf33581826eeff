"""What a content tokenizer reads of an item: one standardized vector.

Sentence embeddings where the catalog has them, else its static fields by a
fixed random projection. Standardized a dimension: raw unit-norm vectors let
the commitment of an RQ-VAE outweigh its reconstruction by the dimension.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sidrec import rng
from sidrec import types

FIELD_DIM = 64  # Of a categorical field's projection.


def width(spec: types.FeatureSpec) -> int:
  """Returns D, the width of `raw`.

  Raises:
    types.InputError: the catalog says nothing of its items.
  """
  if spec.num_dims:
    return spec.num_dims
  categories = sum(f.kind == 'category' for f in spec.fields)
  total = categories * FIELD_DIM + spec.num_values
  if not total:
    raise types.InputError(
        'items: no embeddings and no static fields, so there is nothing to '
        'make codes of; add item_embeddings.npy or columns to the items table')
  return total


def raw(catalog: types.Catalog, spec: types.FeatureSpec, item: types.Array
        ) -> jax.Array:
  """Returns vectors [B, D] float32 of items [B].

  Args:
    catalog: item features.
    spec: of them.
    item: [B] int32.
  """
  if spec.num_dims:
    return jnp.asarray(catalog.features.vectors)[item].astype(jnp.float32)
  ids = jnp.asarray(catalog.features.ids)[item]
  # Fixed, so that every run and every process projects alike.
  table = jax.random.normal(
      rng.stream(0, 'field projection'), (spec.vocabulary, FIELD_DIM))
  table = table.at[0].set(0.)  # Missing.
  parts = []
  for field in spec.fields:
    if field.kind == 'category':
      own = ids[:, field.start:field.stop]
      count = jnp.maximum(jnp.sum(own > 0, 1, keepdims=True), 1)
      parts.append(jnp.sum(table[own], 1) / count)
  if spec.num_values:
    parts.append(jnp.asarray(catalog.features.values)[item])
  return jnp.concatenate(parts, -1).astype(jnp.float32)


def scales(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation [D] of vectors [V, D]; constants: 1."""
  mean = vectors.mean(0, dtype=np.float64)
  scale = vectors.std(0, dtype=np.float64)
  scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, 1.)
  return mean.astype(np.float32), scale.astype(np.float32)


def standardized(
    catalog: types.Catalog, spec: types.FeatureSpec, item: types.Array,
    codebook: types.PyTree) -> jax.Array:
  """Returns (raw - mean) / scale [B, D], both [D] kept in `codebook`."""
  x = raw(catalog, spec, item)
  return (x - codebook['mean'][None]) / codebook['scale'][None]
