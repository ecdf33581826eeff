"""What methods that write codes are given: data, settings, fitted codes."""

import json

import numpy as np
import pytest

from sidrec import data
from sidrec import methods
from sidrec import tokenizers
from sidrec import types
from sidrec.data import content
from sidrec.methods import base
from sidrec.tokenizers import base as tokenizers_base
from tests import data_tables
from tests import method_worlds
from tests import tiny_run


def _method(config, dataset):
  return methods.get(config.method).make(config, dataset)


@pytest.fixture(name='dataset', scope='module')
def _dataset():
  config = tiny_run.config('tiger')
  return data.load(config.data, config.data.seed)


@pytest.mark.parametrize('name, changes, message', [
    ('tiger', {'generator__dtype': 'float99'}, 'generator.dtype'),
    ('tiger', {'generator__dropout': 1.}, 'generator.dropout'),
    ('tiger', {'tokenizer__name': 'letter'}, 'tokenizer.name=letter'),
    ('rqkmeans', {'tokenizer__name': 'rqvae'}, 'tokenizer.name=rqvae'),
    ('tiger', {'codes__collisions': 'sufix'}, 'codes.collisions'),
    ('tiger', {'codes__suffix_size': 0}, 'codes.suffix_size'),
    ('pq', {'codes__collisions': 'capacity'}, 'choose suffix'),
    ('sasrec', {'model__dropout': 1.5}, 'model.dropout'),
])
def test_bad_settings_are_refused_before_training(
    dataset, name, changes, message):
  config = tiny_run.config(name, **changes)
  with pytest.raises(types.InputError, match=message) as error:
    _method(config, dataset)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('key', ['num_levels', 'codebook_size'])
@pytest.mark.parametrize('name', [
    'tiger', 'cost', 'letter', 'rqkmeans', 'pq', 'random_codes',
    'category_codes'])
def test_codes_without_levels_or_entries_are_refused(dataset, name, key):
  config = tiny_run.config(name, **{f'tokenizer__{key}': 0})
  with pytest.raises(types.InputError, match=f'tokenizer.{key}') as error:
    _method(config, dataset)
  assert '\n' not in str(error.value)


def test_an_odd_head_of_the_decoder_is_refused(dataset):
  config = tiny_run.config('tiger', 'decoder', generator__head_dim=5)
  with pytest.raises(types.InputError, match='generator.head_dim=5'):
    _method(config, dataset)


@pytest.mark.parametrize('name', ['sasrec', 'tiger'])
def test_served_histories_are_what_was_trained_on(name):
  config = tiny_run.config(name)
  dataset = data.load(config.data, config.data.seed)
  assert dataset.has_negatives
  events = dataset.examples('test', 'targets')
  none = np.zeros((len(events), 0), np.float32)
  batch = dataset.assemble(events, none.astype(np.int32), none)
  found = 0
  for row, event in enumerate(events):
    own = np.flatnonzero(
        (dataset.event_user == dataset.event_user[event])
        & (dataset.event_time < dataset.event_time[event])
        & (dataset.event_label > 0))
    got = batch.history.item[row][batch.history.segment[row] > 0]
    want = dataset.event_item[own][-config.data.history_length:]
    np.testing.assert_array_equal(got, want)
    found += len(want)
  assert found > 50


def test_a_log_with_histories_is_coded_by_what_items_are(tmp_path):
  data_tables.write(tmp_path, data_tables.small())
  config = tiny_run.config('rqkmeans', data__dir=str(tmp_path))
  dataset = data.load(config.data, config.data.seed)
  spec = dataset.spec.items
  assert not spec.num_dims and spec.num_values
  assert dataset.spec.vector_dim == 2 * content.FIELD_DIM + spec.num_values


@pytest.mark.parametrize('balance', ['none', 'greedy', 'prices'])
def test_fitted_codes_are_those_that_are_used(dataset, balance):
  config = tiny_run.config(
      'rqkmeans', tokenizer__balance=balance, codes__collisions='none',
      codes__least_entropy=0.)
  method = _method(config, dataset)
  state = base.init_state(method, 0, dataset.catalog)
  host, = method.sections[0].items
  changes = host.fn(method_worlds.Bench(dataset, 0), state)
  items = tokenizers_base.Items(
      dataset.item_ids, np.asarray(dataset.catalog.vectors),
      dataset.catalog.features, dataset.catalog.popularity)
  tokenizer = tokenizers.make(config.tokenizer, dataset.spec)
  params, variables, codes = tokenizer.start(
      0, state.params['tokenizer'], state.variables['tokenizer'], items)
  if codes is None:
    codes, _ = tokenizer.assign(params, variables, items, None)
  np.testing.assert_array_equal(changes.variables['codes'], codes)
  assert 0 < changes.metrics['tokenizer/reconstruction'] < 1
  json.dumps(changes.metrics)
