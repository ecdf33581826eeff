"""The description of codes, of a fake run on a fake log."""

import json
import types as python_types

import ml_collections
import numpy as np
import pytest

from sidrec import types
from sidrec.evaluate import code_report

V, U = 60, 20


def _run(sizes=(4, 5), fields=(('flag', 1), ('color', 3), ('brand', 9))):
  rng = np.random.default_rng(0)
  codes = np.stack([rng.integers(0, k, V) for k in sizes], 1).astype(np.int32)
  # Columns: one a field; row 0 of the joint vocabulary is 'missing'.
  ids, spec, start = [], [], 1
  for place, (name, size) in enumerate(fields):
    ids.append(start + rng.integers(0, size, V))
    spec.append(types.Field(name, types.Role.ITEM_STATIC, 'category', place,
                            place + 1, size))
    start += size
  ids = np.stack(ids, 1).astype(np.int32)
  ids[:5] = 0
  # The color is the first code, as far as it goes.
  known = ids[:, 1] > 0
  ids[known, 1] = 2 + np.minimum(codes[known, 0], 2)
  catalog = types.Catalog(
      features=types.FeatureTable(ids=ids), popularity=np.ones(V, np.float32),
      vectors=rng.normal(size=(V, 6)).astype(np.float32))
  dataset = python_types.SimpleNamespace(
      spec=python_types.SimpleNamespace(
          num_items=V, items=types.FeatureSpec(fields=tuple(spec))),
      catalog=catalog, examples=lambda split, kind: np.arange(200),
      event_user=rng.integers(0, U, 200), event_item=rng.integers(0, V, 200))
  return python_types.SimpleNamespace(
      codes=codes, sizes=sizes, dataset=dataset,
      config=ml_collections.ConfigDict({'method': 'fake'}))


def test_chance_stands_beside_every_diagnostic(tmp_path):
  found = code_report.write({'fake': _run()}, str(tmp_path))['fake']
  assert set(found.codes) == set(found.chance)
  for name in ('unexplained', 'predicted', 'near_prefix', 'taken_prefix',
               'purity', 'purity_chance', 'apart'):
    assert f'tokenizer/{name}@1' in found.codes, name
  # The coarsest field of at least two values: not the flag, not the brand.
  assert found.codes['tokenizer/purity@1'] == 1
  assert found.codes['tokenizer/purity_chance@1'] < .8
  assert found.chance['tokenizer/purity@1'] < .8
  assert found.codes['tokenizer/gini@2'] == found.chance['tokenizer/gini@2']
  written = json.loads((tmp_path / 'codes.json').read_text())
  assert written == {'fake': found._asdict()}


def test_what_the_data_do_not_say_is_left_out():
  run = _run(fields=(('flag', 1), ('flag2', 1)))
  run.dataset.catalog = run.dataset.catalog.replace(vectors=None)
  found = code_report.describe(run, previous=run.codes)
  assert not any('purity' in k or 'unexplained' in k for k in found.codes)
  assert found.codes['tokenizer/churn'] == 0
  run.codes = None
  with pytest.raises(types.InputError, match='fake: this run has no codes'):
    code_report.describe(run)
