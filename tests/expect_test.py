"""What methods read of a data set, and what a run is expected to take."""

import json
import os
import pathlib

import data_tables
import pytest
import tiny_run

from sidrec import config as config_lib
from sidrec import data
from sidrec import methods
from sidrec import types
from sidrec.data import __main__ as command
from sidrec.data import expect
from sidrec.data import reads
from sidrec.methods import base

_TOWER = ('ids', 'columns', 'requests', 'cross', 'exposures', 'sequences')
READS = {
    'category_codes': ('taxonomy', 'described', 'sequences'),
    'cost': ('content', 'sequences'), 'dig': _TOWER,
    'letter': ('content', 'collaborative', 'sequences'),
    'popularity': ('popularity',), 'pq': ('content', 'sequences'),
    'random_codes': ('described', 'sequences'), 'ranker': _TOWER,
    'rqkmeans': ('content', 'sequences'), 'sasrec': ('ids', 'sequences'),
    'tiger': ('content', 'sequences')}
_SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / 'shared/data'
_ROOT = pathlib.Path(os.environ.get('SIDREC_DATA', _SHARED))
CORE = expect.Speed(8e10, 8e9)  # Of the core that minutes were taken on.


def _checked(capsys, tmp_path, where):
  """Returns what `check` says of a data set, and what it prints."""
  target = tmp_path / 'facts.json'
  assert command.main(['check', str(where), f'--json={target}']) == 0
  return json.loads(target.read_text()), capsys.readouterr().out


def test_every_experiment_says_what_it_reads():
  assert {name: config_lib.load_reads(name)
          for name in config_lib.names()} == READS


@pytest.mark.parametrize('line', [
    '', "READS = ('contents',)", "READS = 'content'"])
def test_what_a_file_reads_is_of_known_words(tmp_path, line):
  path = tmp_path / 'own.py'
  path.write_text(f'{line}\n')
  with pytest.raises(types.InputError, match='READS.*content, described'):
    config_lib.load_reads(str(path))


def _world(**changes):
  """Returns a small log with two users' worth of each split."""
  out = data_tables.small()
  out['info'] = {**out['info'], **changes.pop('info', {})}
  for name, value in changes.items():
    out[name] = value
  return out


def test_columns_taxonomy_and_statistics_are_named(tmp_path, capsys):
  data_tables.write(tmp_path, _world())
  found, shown = _checked(capsys, tmp_path, tmp_path)
  said = found['reads']
  assert set(said) == set(READS)
  assert said['ranker'] == said['dig'] == (
      'item ids, 3 item columns + histories (32-d), 2 request columns, u2i of '
      'item_id, brand, tags, labels of exposures, 30 newest exposures')
  assert said['category_codes'].startswith('brand (2), tags (2), 20 newest')
  assert said['tiger'].startswith('3 item columns projected at random (')
  assert said['popularity'] == 'counts of the training split'
  assert said['random_codes'] == (
      'nothing of items but numbers, 20 newest positives')
  assert 'reads                      dig, ranker: item ids' in shown
  assert set(found['expected']) == {
      name for name in READS if 'cannot run' not in said[name]}
  for own in found['expected'].values():
    assert set(own) == {'words', 'steps', 'minutes', 'gib'}
    assert own['minutes'] > 0 and own['gib'] > 0


def test_a_log_of_positives_without_content(tmp_path, capsys):
  world = _world(info={'label': None, 'cross': ['item_id'], 'columns': {
      'events': {}, 'users': {}, 'items': {}}}, users=None, histories=None)
  del world['events']['click']
  world['items'] = {'item_id': world['items']['item_id']}
  data_tables.write(tmp_path, world)
  found, shown = _checked(capsys, tmp_path, tmp_path)
  said = found['reads']
  for name in ('tiger', 'letter', 'random_codes', 'category_codes'):
    assert 'cannot run: no embeddings and no columns of items; add ' in said[
        name]
    assert name not in found['expected']
  assert '4 drawn items against each positive' in said['ranker']
  assert '30 newest positives' in said['dig']
  assert 'sasrec: ' in shown and 'sasrec' in found['expected']


def test_labels_of_one_class_and_columns_that_are_missing(tmp_path, capsys):
  world = _world()
  world['events']['click'] = [1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
  world['items'] = {name: world['items'][name] for name in ('item_id', 'price')}
  world['info']['columns'] = {
      **world['info']['columns'],
      'items': {'price': {'role': 'item_static', 'type': 'number'}}}
  world['info']['cross'] = ['item_id']
  data_tables.write(tmp_path, world)
  said = _checked(capsys, tmp_path, tmp_path)[0]['reads']
  for name in ('dig', 'ranker'):
    assert said[name].endswith(
        'cannot run: the valid split has labels of one class; move the cut '
        '(split in dataset.json, or config.data.split)')
  assert 'cannot run: 0 of 2 category columns' in said['category_codes']
  assert 'cannot run' not in said['sasrec']


@pytest.mark.parametrize('name, method, text', [
    ('amazon23-mini', 'tiger', '384-d embedding of items, 20 newest positives'),
    ('amazon23-mini', 'category_codes', 'category (6), brand (6,731)'),
    ('kuairand-pure-14d', 'dig', '10 item columns + histories (32-d), 31 req')])
def test_shared_data_sets(name, method, text):
  if not (_ROOT / name).is_dir():
    pytest.skip(f'no {name} in {_ROOT}')
  config = config_lib.base_config().data
  config.update(dict(
      dir=str(_ROOT / name), cross='none', item_stats=False))
  place, tables = data.read(config, 0)
  dataset = data.build(tables, config, 0, place)
  assert text in reads.text(reads.load(method), tables, dataset)


@pytest.mark.parametrize('name', sorted(set(READS) - {'popularity'}))
def test_steps_are_those_of_the_method(name, monkeypatch):
  said = []
  plain = base.main_steps
  monkeypatch.setattr(
      base, 'main_steps', lambda *a: said.append(plain(*a)) or said[-1])
  words = reads.load(name).words
  for world in ({}, {'data__planted__num_users': 150}):
    config = tiny_run.config(name, words, train__num_steps=-1, **world)
    dataset = data.load(config.data, 0)
    methods.get(config.method).make(config, dataset)
    found = expect.expect(
        reads.Experiment(words, READS[name], config), expect.Rows(dataset), 2,
        .5, CORE)
    assert found['steps'] == said[-1] > 0
  assert len(set(said)) == 2


def test_minutes_of_the_main_job_are_those_that_were_measured():
  experiment = reads.load('dig')
  config = experiment.config.data
  config.update(dict(cross='none', item_stats=False))
  dataset = data.load(config, 0)
  config.update(dict(cross='all', item_stats=True))
  found = expect.expect(experiment, expect.Rows(dataset), 4, .35, CORE)
  assert found['steps'] == 477
  assert 3.7 / 2 < found['minutes'] < 3.7 * 2
  assert 1.6 / 2 < found['gib'] < 1.6 * 2
  twice = expect.expect(
      experiment, expect.Rows(dataset), 4, .35, expect.Speed(4e10, 4e9))
  assert found['minutes'] * 1.2 < twice['minutes'] < found['minutes'] * 2


def test_a_line_is_of_those_that_take_the_same():
  speed = expect.measure_speed()
  assert min(speed) > 1e6
  assert expect.lines({
      'a': dict(words='', steps=1000, minutes=2.04, gib=.91),
      'b': dict(words='decoder', steps=1000, minutes=2.01, gib=.9),
      'c': dict(words='', steps=3, minutes=.5, gib=.4)}) == [
          'c: 3 steps, 0.5 min, 0.4 GiB',
          'b:decoder, a: 1,000 steps, 2 min, 0.9 GiB']
