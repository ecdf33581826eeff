"""Checks the encoding of columns."""

import zlib

import numpy as np
import pytest
from sklearn import preprocessing

from sidrec import types
from sidrec.data import features

ROLE = types.Role.ITEM_STATIC


def _column(kind, role='item_static'):
  return dict(role=role, type=kind, separator=None)


def _objects(*values):
  result = np.empty(len(values), object)
  result[:] = values
  return result


def test_category_and_lists_share_one_vocabulary():
  table = {
      'brand': _objects('b', None, 'a', 'b'),
      'tags': _objects(np.array([3, 1, 3]), None, np.array([], int),
                       np.array([1])),
      'secret': np.arange(4)}
  spec, out = features.encode(
      table, {'brand': _column('category'), 'tags': _column('categories'),
              'secret': _column(None, 'never')}, 4, ROLE, 'items')
  assert [f.name for f in spec.fields] == ['brand', 'tags']
  assert (spec.vocabulary, spec.num_slots) == (1 + 2 + 2, 3)
  np.testing.assert_array_equal(
      out.ids, [[2, 4, 3], [0, 0, 0], [1, 0, 0], [2, 3, 0]])
  assert out.ids.dtype == np.int32


def test_only_fit_rows_make_the_vocabulary():
  table = {'tab': np.array([5, 7, 9, 5])}
  spec, out = features.encode(
      table, {'tab': _column('category')}, 4, ROLE, 'events',
      fit_rows=np.array([True, False, True, True]))
  assert spec.vocabulary == 3
  np.testing.assert_array_equal(out.ids[:, 0], [1, 0, 2, 1])


def test_numbers_are_standardized_and_missing_ones_marked():
  values = np.array([1., 2., np.nan, 4., 3.])
  out = features.standardize(values, np.ones(5, bool))
  want = preprocessing.scale(values[[0, 1, 3, 4]])
  np.testing.assert_allclose(out[[0, 1, 3, 4], 0], want, rtol=1e-5)
  np.testing.assert_array_equal(out[:, 1], [0, 0, 1, 0, 0])
  assert out[2, 0] == 0. and out.dtype == np.float32


def test_heavy_tails_are_compressed_constants_are_zero():
  values = np.r_[np.zeros(50), 1e6, -1.]
  out = features.standardize(values, np.ones(52, bool))
  want = preprocessing.scale(np.sign(values) * np.log1p(np.abs(values)))
  np.testing.assert_allclose(out[:, 0], want, rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(
      features.standardize(np.full(4, .1), np.ones(4, bool))[:, 0], 0.)


def test_dates_become_days():
  table = {'day': _objects('2022-01-01', '2022-01-03', None)}
  spec, out = features.encode(
      table, {'day': _column('date')}, 3, ROLE, 'items')
  np.testing.assert_allclose(out.values, [[-1, 0], [1, 0], [0, 1]], atol=1e-6)
  assert spec.fields[0].kind == 'number'
  with pytest.raises(types.InputError, match='row 0, column day'):
    features.encode({'day': _objects('soon')}, {'day': _column('date')}, 1,
                    ROLE, 'items')


def test_text_is_hashed_unless_there_are_embeddings():
  table = {'title': _objects('Red SHOE red', None)}
  columns = {'title': _column('text')}
  spec, out = features.encode(table, columns, 2, ROLE, 'items')
  want = [1 + zlib.crc32(w) % features.NUM_BUCKETS for w in (b'red', b'shoe')]
  np.testing.assert_array_equal(out.ids, [want, [0, 0]])
  vectors = np.random.default_rng(0).normal(
      2., 3., (2, 8)).astype(np.float16)
  spec, out = features.encode(
      table, columns, 2, ROLE, 'items', embeddings=vectors)
  assert [f.kind for f in spec.fields] == ['vector'] and spec.num_slots == 0
  np.testing.assert_allclose(out.vectors.mean(0), 0., atol=1e-6)
  np.testing.assert_allclose(np.square(out.vectors).mean(), 1., rtol=1e-5)


def test_merge_matches_joined_rows():
  a = features.encode({'x': np.array([1, 2]), 'n': np.array([0., 1.])},
                      {'x': _column('category'), 'n': _column('number')}, 2,
                      ROLE, 'a')
  b = features.encode({'y': np.array([7, 8]), 'm': np.array([np.nan, 1.])},
                      {'y': _column('category'), 'm': _column('number')}, 2,
                      ROLE, 'b')
  spec = features.merge(a[0], b[0])
  table = features.join_rows(
      a[1], features.shift_ids(b[1], a[0].vocabulary - 1))
  assert spec.vocabulary == 5 and spec.num_values == 4
  np.testing.assert_array_equal(table.ids, [[1, 3], [2, 4]])
  last = features.with_missing_row(table, spec)
  np.testing.assert_array_equal(last.ids[-1], 0)
  np.testing.assert_array_equal(last.values[-1], [0, 1, 0, 1])
