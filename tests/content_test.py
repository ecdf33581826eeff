"""Checks content vectors against a loop over items and fields."""

from absl import logging
import data_tables
import jax
import numpy as np
import pytest

from sidrec import data
from sidrec import rng
from sidrec import types
from sidrec.data import content
from sidrec.data import features


def _columns(**kinds):
  return {name: dict(role='item_static', type=kind, separator=None)
          for name, kind in kinds.items()}


def test_fields_are_projected_item_by_item():
  lists = np.empty(4, object)
  lists[:] = [np.array(['s', 't']), None, np.array(['t']), np.array(['u'])]
  table = {'brand': np.array(['b', None, 'a', 'b'], object), 'tags': lists,
           'price': np.array([1., 2., np.nan, 5.])}
  spec, encoded = features.encode(
      table, _columns(brand='category', tags='categories', price='number'), 4,
      types.Role.ITEM_STATIC, 'items')
  rows = np.array(jax.random.normal(
      rng.stream(0, 'field projection'), (spec.vocabulary, 64)))
  want = []
  for v in range(4):
    parts = []
    for field in spec.fields[:2]:
      own = [i for i in encoded.ids[v, field.start:field.stop] if i]
      parts.append(np.mean([rows[i] for i in own], 0) if own else np.zeros(64))
    want.append(np.concatenate([*parts, encoded.values[v]]))
  want = np.array(want)
  want = (want - want.mean(0)) / want.std(0)
  got = content.vectors(spec, encoded)
  assert got.dtype == np.float32 and got.shape == (4, 130)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_constants_are_zero_and_nothing_is_none():
  spec, encoded = features.encode(
      {'same': np.full(3, 7.), 'other': np.array([1., 2., 3.])},
      _columns(same='number', other='number'), 3,
      types.Role.ITEM_STATIC, 'items')
  got = content.vectors(spec, encoded)
  np.testing.assert_array_equal(got[:, [0, 1, 3]], 0.)
  assert content.vectors(types.FeatureSpec(), types.FeatureTable()) is None


def test_a_catalog_that_says_nothing_has_none(tmp_path):
  world = data_tables.small()
  world['info']['columns'] = {'events': {}, 'items': {}, 'users': {}}
  world['info']['cross'] = ['item_id']
  data_tables.write(tmp_path, world)
  dataset = data.load(data_tables.config(tmp_path), 0)
  assert dataset.catalog.vectors is None and dataset.spec.vector_dim == 0


@pytest.mark.parametrize('embeddings', [False, True])
def test_one_line_says_that_titles_are_hashed(tmp_path, monkeypatch, embeddings):
  lines = []
  monkeypatch.setattr(logging, 'warning', lambda *a: lines.append(a[0] % a[1:]))
  world = data_tables.small()
  world['items']['title'] = ['red shoe', 'blue shoe', None, 'hat', 'red hat']
  world['info']['columns']['items'].update(
      title={'role': 'item_static', 'type': 'text'})
  data_tables.write(tmp_path, world)
  if embeddings:
    np.save(tmp_path / 'item_embeddings.npy', np.eye(5, dtype=np.float32))
  dataset = data.load(data_tables.config(tmp_path, history_vectors=2), 0)
  said = [line for line in lines if 'hashed' in line]
  assert len(said) == (0 if embeddings else 1)
  if not embeddings:
    assert 'title' in said[0] and 'brand, tags, price' in said[0]
  # Content alone: what histories say of items is in their features only.
  assert dataset.spec.vector_dim == (5 if embeddings else 3 * 64 + 2)
  assert dataset.catalog.vectors.shape == (5, dataset.spec.vector_dim)
  np.testing.assert_allclose(dataset.catalog.vectors.mean(0), 0., atol=1e-6)
