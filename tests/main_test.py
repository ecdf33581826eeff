"""The command line: exit codes, signals, kills, and every mode."""

import json
import os
import signal
import subprocess
import sys
import time
import types as python_types

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest

from sidrec import main
from sidrec import types
from tests import tiny_run


def _start(arguments):
  """Starts a run on one device, as a stranger's shell does."""
  return subprocess.Popen(
      [sys.executable, '-m', 'sidrec.main', *arguments], cwd=tiny_run.ROOT,
      env={**os.environ, 'XLA_FLAGS': ' '.join(
          flag for flag in os.environ['XLA_FLAGS'].split()
          if 'device_count' not in flag)},
      text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _finish(arguments, expected=0):
  process = _start(arguments)
  output, errors = process.communicate(timeout=300)
  assert process.returncode == expected, errors
  return output, errors


def _wait_for(process, happened):
  """Waits until something is there that the run wrote."""
  deadline = time.monotonic() + 200
  while not happened():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(.02)


def _has_step(workdir, step):
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return False
  lines = path.read_text().split('\n')[:-1]
  return any(json.loads(line)['step'] >= step for line in lines)


@pytest.mark.parametrize('words, message', [
    (['--config.eval.beamsize=3'],
     "config.eval.beamsize: there is no key 'beamsize'; did you mean "
     "'beam_size'?"),
    (['--config.train.stepz=3'], "config.train.stepz: there is no key 'stepz'"),
    (['--config.eval.beam_size=many'], 'beam_size'),
    (['--config.data.name=nowhere'], "config.data.name: no folder 'nowhere'"),
    (['--workdir='], '--workdir'),
    (['--mode=fly'], 'fly'),
])
def test_bad_arguments_exit_with_two_and_one_line(words, message, tmp_path):
  output, errors = _finish(
      [f'--config={tiny_run.ROOT}/experiments/popularity.py',
       f'--workdir={tmp_path}/run', *words], expected=2)
  lines = errors.splitlines()
  assert len(lines) == 1 and lines[0].startswith('sidrec: '), errors
  assert message in lines[0]
  assert not output
  assert not (tmp_path / 'run' / 'results.json').exists()


@pytest.fixture(name='mode')
def _mode(monkeypatch):
  """Runs `main` in this process, as if flags had been given."""
  def run(workdir, mode, method='dig', **flags):
    values = {'config': tiny_run.config(method), 'workdir': str(workdir),
              'mode': mode, 'input': None, 'output': None, **flags}
    for name, value in values.items():
      monkeypatch.setattr(
          main, f'_{name.upper()}',
          python_types.SimpleNamespace(name=name, value=value))
    main.main(['main'])
  return run


def test_bad_input_without_a_process(mode, tmp_path):
  with pytest.raises(types.InputError, match='--config is missing'):
    mode(tmp_path, 'evaluate', config=None)
  with pytest.raises(types.InputError, match='--workdir is missing'):
    mode('', 'evaluate')
  with pytest.raises(types.InputError, match="argument 'x' is not known"):
    main.main(['main', 'x'])
  for name in ('evaluate', 'export', 'recommend'):
    with pytest.raises(types.InputError, match='train first'):
      mode(tmp_path, name)
  with pytest.raises(types.InputError, match='config.method'):
    config = tiny_run.config('popularity')
    config.method = 'nothing'
    mode(tmp_path, 'train_and_evaluate', config=config)


@pytest.fixture(name='trained', scope='module')
def _trained(tmp_path_factory):
  """A run that SIGTERM stopped and the same command finished."""
  workdir = tmp_path_factory.mktemp('run')
  arguments = tiny_run.arguments(
      'dig', workdir, train__num_steps=300, eval__every=100)
  process = _start(arguments)
  _wait_for(process, lambda: _has_step(workdir, 3))
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=100)
  assert process.returncode == 143, errors
  line = errors.splitlines()[-1]
  assert line.startswith('sidrec: stopped by SIGTERM at step '), errors
  stopped = int(line.split()[-1])
  assert (workdir / 'checkpoints' / str(stopped)).is_dir()
  assert not (workdir / 'results.json').exists()
  output, errors = _finish(arguments)
  assert f'resumed at step {stopped}' in errors
  return workdir, output


def _config():
  return tiny_run.config(train__num_steps=300, eval__every=100)


def test_sigterm_saves_and_the_same_command_goes_on(trained):
  workdir, output = trained
  assert 'ranking/auc' in output and 'oracle (test)' in output
  lines = [x for x in tiny_run.lines(workdir) if x['split'] == 'train']
  # Work between steps has lines of its own, without a loss.
  assert any('tokenizer/churn' in x for x in lines if 'loss' not in x)
  steps = [x['step'] for x in lines if 'loss' in x]
  assert steps == sorted(set(steps)) and steps[-1] == 300
  assert set(range(3, 301, 3)) <= set(steps)


def test_evaluate_and_export(trained, mode, capsys):
  workdir, _ = trained
  with np.load(workdir / 'codes.npz') as file:
    codes = dict(file)
  (workdir / 'codes.npz').unlink()
  mode(workdir, 'export', config=_config())
  with np.load(workdir / 'codes.npz') as file:
    for name, value in codes.items():
      np.testing.assert_array_equal(file[name], value)
  mode(workdir, 'evaluate', config=_config())
  shown = dict(line.split() for line in capsys.readouterr().out.splitlines()
               if len(line.split()) == 2)
  test = tiny_run.results(workdir)['metrics']['test']
  for name in ('ranking/auc', 'unified/recall@10', 'retrieval/ndcg@50'):
    assert abs(float(shown[name]) - test[name]['mean']) < 1e-3


def test_recommend(trained, mode, tmp_path):
  workdir, _ = trained
  config = _config()
  with np.load(workdir / 'codes.npz') as file:
    catalog = file['item_id'].tolist()
  rows = [{'user_id': 3}, {'user_id': -12}, {'history': catalog[:4]},
          {'user_id': 3, 'history': [catalog[5], -77]},
          {'user_id': None, 'history': [-77]}]
  (tmp_path / 'in.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in rows))
  _finish([*tiny_run.arguments(
      'dig', workdir, train__num_steps=300, eval__every=100),
           '--mode=recommend', f'--input={tmp_path}/in.jsonl',
           f'--output={tmp_path}/out.jsonl'])
  answers = [json.loads(line) for line in
             (tmp_path / 'out.jsonl').read_text().splitlines()]
  assert [x['user_id'] for x in answers] == [3, -12, None, 3, None]
  alpha, = json.loads((workdir / 'results.json').read_text())['alpha']
  for answer in answers:
    assert len(answer['item_id']) == 8 == len(set(answer['item_id']))
    assert set(answer['item_id']) <= set(catalog)
    assert len(answer['retrieval_score']) == len(answer['ranking_score']) == 8
    both = np.add(answer['retrieval_score'],
                  alpha * np.array(answer['ranking_score']))
    assert (np.diff(both) <= 1e-5).all()
  # Nothing known of either: the same answer.
  assert answers[1]['item_id'] == answers[4]['item_id']
  assert answers[0] != answers[3]
  table = pa.table({
      'user_id': pa.array([row.get('user_id') for row in rows], pa.int64()),
      'history': pa.array(
          [row.get('history') for row in rows], pa.list_(pa.int64()))})
  parquet.write_table(table, tmp_path / 'in.parquet')
  mode(workdir, 'recommend', config=config, input=f'{tmp_path}/in.parquet',
       output=f'{tmp_path}/out.parquet')
  again = parquet.read_table(tmp_path / 'out.parquet').to_pylist()
  assert [x['item_id'] for x in again] == [x['item_id'] for x in answers]
  for a, b in zip(again, answers):
    for name in ('retrieval_score', 'ranking_score'):
      np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_recommend_names_what_is_wrong(trained, mode, tmp_path):
  workdir, _ = trained
  path = tmp_path / 'in.jsonl'
  for text, message in (
      ('{"user_id": 1}\n{"user": 2}\n', "row 1: unknown key 'user'; did you "
       "mean 'user_id'"),
      ('{"history": 7}\n', 'row 0, column history'), ('{\n', 'row 0: not JSON'),
      ('', 'no rows')):
    path.write_text(text)
    with pytest.raises(types.InputError, match=message):
      mode(workdir, 'recommend', config=_config(), input=str(path),
           output=str(tmp_path / 'out.jsonl'))
  with pytest.raises(types.InputError, match='--output is missing'):
    mode(workdir, 'recommend', config=_config(), input=str(path))


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path):
  more = dict(train__num_steps=90, eval__every=15)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  _finish(tiny_run.arguments('dig', whole, **more))
  for step in (5, 33, 61):
    process = _start(tiny_run.arguments('dig', killed, **more))
    _wait_for(process, lambda step=step: _has_step(killed, step))
    process.kill()
    process.communicate()
    assert not (killed / 'results.json').exists()
  _finish(tiny_run.arguments('dig', killed, **more))
  assert tiny_run.lines(killed) == tiny_run.lines(whole)
  assert tiny_run.results(killed) == tiny_run.results(whole)
