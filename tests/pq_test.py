"""Tests the product quantizer against scikit-learn and by its definition."""

import ml_collections
import numpy as np
import pytest
from sklearn import cluster
from sklearn import decomposition

from sidrec import tokenizers
from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import pq


def test_parts_are_a_rotation_of_like_variance():
  rng = np.random.default_rng(0)
  x = (rng.standard_normal((500, 8)) * 2. ** -np.arange(8)) @ np.linalg.qr(
      rng.standard_normal((8, 8)))[0] + 3
  parts = pq.parts(x.astype(np.float32), 2)
  assert [part.shape for part in parts] == [(500, 4), (500, 4)]
  rotated = np.concatenate(parts, 1)
  # Distances stay, axes do not correlate, variances are those of a PCA.
  np.testing.assert_allclose(
      np.linalg.norm(rotated[0] - rotated[1]), np.linalg.norm(x[0] - x[1]),
      rtol=1e-4)
  covariance = np.cov(rotated.T, bias=True)
  np.testing.assert_allclose(
      np.sort(np.diag(covariance))[::-1],
      decomposition.PCA().fit(x).explained_variance_ * 499 / 500, rtol=1e-3)
  assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-4
  product = [np.log(np.diag(np.cov(part.T))).sum() for part in parts]
  # The halves in order would differ by 16 log 2.
  assert abs(product[0] - product[1]) < 4 * np.log(2)


def test_more_levels_than_dimensions_are_refused():
  with pytest.raises(types.InputError, match='num_levels=3'):
    pq.parts(np.zeros((5, 2), np.float32), 3)


def test_each_level_clusters_its_part():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((400, 6)).astype(np.float32)
  spec = types.DataSpec(
      num_items=400, num_users=1, items=types.FeatureSpec(),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1)
  table = tokenizers.make(ml_collections.ConfigDict(dict(
      name='pq', num_levels=3, codebook_size=(16, 4, 9), kmeans_steps=30)),
      spec)
  codes = table.fit(0, base.Items(
      np.arange(400), x, types.FeatureTable(), np.ones(400)))
  for level, (part, size) in enumerate(zip(pq.parts(x, 3), (16, 4, 9))):
    assert len(np.unique(codes[:, level])) == size
    square = sum(
        np.square(part[own] - part[own].mean(0)).sum()
        for own in (codes[:, level] == k for k in range(size)))
    want = cluster.KMeans(size, n_init=3, random_state=0).fit(part).inertia_
    assert square <= 1.1 * want
