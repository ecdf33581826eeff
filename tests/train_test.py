"""Whole runs of the trainer: files, equal seeds, stops and resumption."""

import functools
import itertools
import json
import os
import signal

import numpy as np
import pytest

from sidrec import evaluate
from sidrec import train
from sidrec import types
from sidrec.data import pipeline
from sidrec.methods import base
from tests import data_tables
from tests import tiny_run

KEYS = {'method', 'dataset', 'protocol', 'seeds', 'steps', 'wall_seconds',
        'device', 'metrics', 'versions', 'data', 'remove_seen', 'alpha'}
RANKING = {f'ranking/{k}' for k in ('auc', 'gauc', 'logloss', 'ece')}
RETRIEVAL = {f'{path}/{kind}@{k}' for path in ('retrieval', 'unified')
             for kind in ('recall', 'ndcg') for k in (5, 10, 50)}
CODES = {'tokenizer/collision_rate', *(
    f'tokenizer/{k}@{level}' for k in ('usage', 'perplexity', 'gini')
    for level in (1, 2, 3))}
ORACLE = {'oracle/ranking/auc', *(
    f'oracle/retrieval/{kind}@{k}' for kind in ('recall', 'ndcg')
    for k in (5, 10, 50))}


@pytest.fixture(name='dig', scope='module')
def _dig(tmp_path_factory):
  """A DIG run that nothing disturbed: (workdir, what it returned)."""
  workdir = tmp_path_factory.mktemp('dig')
  return workdir, train.train_and_evaluate(tiny_run.config(), str(workdir))


def test_files_of_the_contract(dig):
  workdir, returned = dig
  with open(workdir / 'results.json') as f:
    results = json.load(f)
  assert results == json.loads(json.dumps(returned))
  assert set(results) == KEYS
  assert results['method'] == 'dig' and results['dataset'] == 'planted'
  assert results['seeds'] == [0] and results['steps'] in (5, 9, 12)
  assert results['wall_seconds'] > 0
  want = RANKING | RETRIEVAL | CODES | ORACLE | {
      'unified/alpha', 'unified/auc_gap', 'speed/retrieve_users_per_s'}
  assert want == set(results['metrics']['valid'])
  assert want | {'speed/train_examples_per_s'} == set(
      results['metrics']['test'])
  for value in results['metrics']['test'].values():
    assert set(value) == {'mean', 'std', 'per_seed'}
    assert value['per_seed'] == [value['mean']]
    assert np.isfinite(value['mean'])
  assert results['metrics']['test']['tokenizer/collision_rate']['mean'] == 0
  with np.load(workdir / 'codes.npz') as codes:
    assert codes['item_id'].shape == (60,)
    assert codes['codes'].dtype == np.int32
    assert len(np.unique(codes['codes'], axis=0)) == 60
  saved = json.loads((workdir / 'config.json').read_text())
  assert saved == json.loads(json.dumps(tiny_run.config().to_dict()))
  assert (workdir / 'checkpoints').is_dir()
  assert list(workdir.rglob('events.out.tfevents*'))


def test_metrics_lines(dig):
  lines = tiny_run.lines(dig[0])
  steps = {split: [line['step'] for line in lines if line['split'] == split]
           for split in ('train', 'valid', 'test')}
  # One step of warm-up, then every four of the section that is watched.
  assert steps['valid'] == [5, 9, 12]
  assert {3, 6, 9, 12} <= set(steps['train'])
  assert steps['test'] == [dig[1]['steps']]
  best = max((line for line in lines if line['split'] == 'valid'),
             key=lambda line: line['monitor'])
  assert best['step'] == dig[1]['steps']
  for name, value in tiny_run.results(dig[0])['metrics']['valid'].items():
    assert value['mean'] == best[name], name
  assert all(np.isfinite(list(line.values())[2:]).all() for line in lines)
  # The codes are learned: at the tree, and whenever they are reassigned.
  assert any('tokenizer/churn' in line for line in lines)


def _change(monkeypatch, step, change):
  """Passes the batch of a step through `change` on its way to the trainer."""
  whole = pipeline.Pipeline.iterate

  seen = itertools.count()  # Batches of all programs since the start.
  def iterate(self, starts, num):
    for batch in whole(self, starts, num):
      yield change(batch) if next(seen) == step else batch
  monkeypatch.setattr(pipeline.Pipeline, 'iterate', iterate)


def _fail(batch):
  raise RuntimeError('the power is off')


def _send(number, batch):
  os.kill(os.getpid(), number)
  return batch


def _poison(batch):
  return {k: v.replace(cross=v.cross * np.nan) for k, v in batch.items()}


def test_a_run_stopped_again_and_again_equals_one_that_was_not(
    dig, tmp_path, monkeypatch):
  workdir, handler = str(tmp_path), signal.getsignal(signal.SIGTERM)
  def run():
    return train.train_and_evaluate(tiny_run.config(), workdir)
  with monkeypatch.context() as patch:
    _change(patch, 6, _fail)  # Step 6 is lost, and done again.
    with pytest.raises(RuntimeError, match='power'):
      run()
  # Before the codes are reassigned; at a validation. Host work counts as an
  # event: the tree, and the codes twice.
  for done, more, event, number in (
      (6, 1, 8, signal.SIGTERM), (9, 3, 12, signal.SIGHUP)):
    with monkeypatch.context() as patch:
      _change(patch, more - 1, functools.partial(_send, number))
      with pytest.raises(train.Terminated, match=f'step {done}') as error:
        run()
    assert error.value.status == 128 + number
    assert signal.getsignal(signal.SIGTERM) == handler
    assert (tmp_path / 'checkpoints' / str(event)).is_dir()
    assert not (tmp_path / 'results.json').exists()
  run()
  assert tiny_run.lines(workdir) == tiny_run.lines(dig[0])
  assert tiny_run.results(workdir) == tiny_run.results(dig[0])
  with np.load(tmp_path / 'codes.npz') as a, np.load(
      dig[0] / 'codes.npz') as b:
    np.testing.assert_array_equal(a['codes'], b['codes'])
  run()  # A finished run only reports again.
  assert tiny_run.lines(workdir) == tiny_run.lines(dig[0])
  assert tiny_run.results(workdir) == tiny_run.results(dig[0])


def test_a_checkpoint_of_another_config_is_refused(dig):
  before = (dig[0] / 'results.json').read_bytes()
  with pytest.raises(types.InputError, match='train.learning_rate'):
    train.train_and_evaluate(
        tiny_run.config(train__learning_rate=.5), str(dig[0]))
  assert (dig[0] / 'results.json').read_bytes() == before


def test_load_gives_what_was_reported(dig):
  run = evaluate.load(str(dig[0]))
  np.testing.assert_array_equal(
      run.codes[run.dataset.file_order],
      np.load(dig[0] / 'codes.npz')['codes'])
  assert run.metrics == json.loads(
      (dig[0] / 'results.json').read_text())['metrics']
  values = run.evaluate('test')
  for name, value in tiny_run.results(dig[0])['metrics']['test'].items():
    np.testing.assert_allclose(values[name], value['mean'], rtol=1e-6)
  users = run.dataset.user_ids[:3].tolist()
  beams, ranking = run.retrieve(users + [None], [None] * 3 + [
      run.dataset.item_ids[:2].tolist()])
  assert beams.item.shape == ranking.shape == (4, 8)
  score = beams.score + run.alpha * ranking
  assert (np.diff(score) <= 1e-5).all()
  with pytest.raises(types.InputError, match='train first'):
    evaluate.load(str(dig[0] / 'checkpoints'))


def test_seeds_are_runs_of_their_own(tmp_path):
  config = lambda **more: tiny_run.config('ranker', **more)
  both = train.train_and_evaluate(config(num_seeds=2), str(tmp_path / 'both'))
  one = train.train_and_evaluate(config(seed=1), str(tmp_path / 'one'))
  assert both['seeds'] == [0, 1]
  for split, metrics in one['metrics'].items():
    for name, value in metrics.items():
      got = both['metrics'][split][name]['per_seed']
      if not name.startswith('speed/'):
        assert got[1] == value['mean'], (split, name)
        if not name.startswith('oracle/'):
          assert got[0] != got[1], (split, name)
      assert both['metrics'][split][name]['mean'] == pytest.approx(
          np.mean(got))
  assert tiny_run.lines(tmp_path / 'both' / 'seed_1') == tiny_run.lines(
      tmp_path / 'one')
  assert set(one['metrics']['test']) == RANKING | {
      'oracle/ranking/auc', 'speed/train_examples_per_s'}
  assert not (tmp_path / 'one' / 'codes.npz').exists()


def test_early_stopping_keeps_the_best_state(tmp_path, monkeypatch):
  values = iter([.1, .9, .2, .3, .4, .5])
  monkeypatch.setattr(evaluate, 'monitor', lambda *_: next(values))
  config = tiny_run.config('ranker', eval__patience=2, eval__every=2)
  results = train.train_and_evaluate(config, str(tmp_path))
  lines = tiny_run.lines(tmp_path)
  assert [x['step'] for x in lines if x['split'] == 'valid'] == [2, 4, 6, 8]
  assert results['steps'] == 4
  best, = (x for x in lines if x['split'] == 'valid' and x['step'] == 4)
  assert results['metrics']['valid']['ranking/auc']['mean'] == best[
      'ranking/auc']
  monkeypatch.undo()
  # The same command again does not go on after an early stop.
  again = train.train_and_evaluate(config, str(tmp_path))
  assert again['steps'] == 4
  assert tiny_run.lines(tmp_path) == lines


@pytest.mark.parametrize('steps, every, count, want', [
    (52, 0, 3, 18), (10, 0, 1, 10), (10, 4, 1, 4), (2, 0, 10, 1),
    (0, 0, 4, 1)])
def test_validations_are_spread_evenly(steps, every, count, want):
  config = tiny_run.config(eval__every=every, eval__validations=count)
  assert base.watch(config, steps).every == want


def test_popularity_needs_no_training(tmp_path):
  results = train.train_and_evaluate(
      tiny_run.config('popularity'), str(tmp_path))
  assert results['steps'] == 0
  test = results['metrics']['test']
  assert 0 < test['retrieval/recall@50']['mean'] <= 1
  assert test['unified/recall@10'] == test['retrieval/recall@10']
  assert [x['split'] for x in tiny_run.lines(tmp_path)] == ['test']


@pytest.mark.parametrize('method, cross', [
    ('ranker', 'none'),
    *(pytest.param('dig', cross, marks=pytest.mark.slow)
      for cross in ('none', 'all'))])
def test_two_tables_without_any_feature_are_enough(tmp_path, method, cross):
  draw = np.random.default_rng(0)
  user, item = draw.integers(0, 20, 400), draw.integers(0, 30, 400)
  data_tables.write(tmp_path, dict(
      events={'user_id': user, 'item_id': item,
              'timestamp': np.arange(400) * 3_600_000,
              'click': draw.integers(0, 2, 400)},
      items={'item_id': np.arange(30)}))
  results = train.train_and_evaluate(tiny_run.config(
      method, data__dir=str(tmp_path), data__cross=cross),
      str(tmp_path / 'run'))
  for name, value in results['metrics']['test'].items():
    assert np.isfinite(value['mean']), name
  lines = tiny_run.lines(tmp_path / 'run')
  assert all(np.isfinite(line['loss']) for line in lines if 'loss' in line)


def test_untrained_state_is_evaluated(tmp_path):
  results = train.train_and_evaluate(
      tiny_run.config('ranker', train__num_steps=0), str(tmp_path))
  assert results['steps'] == 0
  assert 0 < results['metrics']['test']['ranking/auc']['mean'] < 1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
  config = tiny_run.config('ranker')
  with monkeypatch.context() as patch:
    _change(patch, 4, _poison)
    with pytest.raises(FloatingPointError, match='between steps 3 and 6'):
      train.train_and_evaluate(config, str(tmp_path))
  assert (tmp_path / 'checkpoints' / '4').is_dir()
  assert train.train_and_evaluate(config, str(tmp_path))['steps'] > 0
  assert all(None not in line.values() for line in tiny_run.lines(tmp_path))
