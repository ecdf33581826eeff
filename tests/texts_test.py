"""Tests that titles are encoded where the items have no vectors."""

import sys
import types as python_types

import numpy as np
import pytest

from sidrec import data
from sidrec import types
from sidrec.data import texts
from tests import data_tables
from tests import tiny_run


def _config(folder):
  return tiny_run.config('popularity', data__dir=str(folder),
                         data__text_encoder='tiny').data


@pytest.fixture(name='folder')
def _folder(tmp_path, monkeypatch):
  monkeypatch.setattr(texts, '_CACHE', str(tmp_path / 'cache'))
  draw = np.random.default_rng(0)
  data_tables.write(tmp_path, dict(
      events={'user_id': draw.integers(0, 9, 90),
              'item_id': draw.integers(0, 5, 90),
              'timestamp': np.arange(90) * 3_600_000},
      items={'item_id': np.arange(5),
             'title': ['red hat', None, 'blue hat', 'sock', 'a']},
      info={'columns': {'items': {
          'title': {'role': 'item_static', 'type': 'text'}}}}))
  return tmp_path


def _encoder(monkeypatch, calls):
  class SentenceTransformer:
    """Counts letters."""

    def __init__(self, name):
      if name == 'broken':
        raise OSError('no such model')

    def encode(self, lines, **_):
      calls.append(list(lines))
      return np.array([[len(line), line.count('h')] for line in lines], float)
  monkeypatch.setitem(
      sys.modules, 'sentence_transformers', python_types.SimpleNamespace(
          SentenceTransformer=SentenceTransformer))


def test_titles_become_vectors_once(folder, monkeypatch):
  calls = []
  _encoder(monkeypatch, calls)
  for _ in range(2):
    dataset = data.load(_config(folder), 0)
    assert dataset.spec.items.num_dims == 2
  assert calls == [['red hat', '', 'blue hat', 'sock', 'a']]
  vectors = dataset.catalog.features.vectors[dataset.file_order]
  assert np.argmax(vectors[:, 0]) == 2 and np.argmin(vectors[:, 0]) == 1


def test_what_is_missing_is_named(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'sentence_transformers', None)
  with pytest.raises(types.InputError, match='pip install sentence-transf'):
    data.load(_config(folder), 0)
  _encoder(monkeypatch, [])
  with pytest.raises(types.InputError, match='broken: cannot be opened'):
    texts.encode(['a'], 'broken')
