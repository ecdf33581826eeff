"""Tests the comparison of several methods as users start it."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from scipy import stats

from sidrec import compare
from sidrec import types
from tests import tiny_run

EXPERIMENTS = str(tiny_run.ROOT / 'experiments')


def test_runs():
  out = compare.runs(
      ['popularity', f'{EXPERIMENTS}/tiger.py:decoder+model.dim=64'], 'planted',
      2, 'there', EXPERIMENTS, ['--config.seed=3'])
  assert [run.name for run in out] == [
      'popularity', 'tiger+decoder+model.dim=64']
  assert out[1].arguments == (
      f'--config={EXPERIMENTS}/tiger.py:decoder,model.dim=64,planted',
      '--workdir=there/tiger+decoder+model.dim=64', '--config.num_seeds=2',
      '--config.seed=3')


def test_a_folder_is_no_name(tmp_path):
  run, = compare.runs(['dig'], str(tmp_path), 1, 'there', EXPERIMENTS)
  assert f'--config.data.dir={tmp_path}' in run.arguments
  assert run.arguments[0].endswith('dig.py:')


@pytest.mark.parametrize('configs, message', [
    ([], '--configs is missing'),
    (['digg'], "no file .*digg.py"),
    (['dig', 'dig'], 'twice'),
])
def test_bad_runs(configs, message):
  with pytest.raises(types.InputError, match=message):
    compare.runs(configs, 'planted', 1, 'there', EXPERIMENTS)


def test_summary_is_students_interval():
  values = [.1, .2, .4]
  mean = sum(values) / 3
  std = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
  entry = {'mean': mean, 'std': std, 'per_seed': values}
  results = {'metrics': {'test': {'a': entry, 'b': {
      'mean': 1., 'std': 0., 'per_seed': [1.]}}}}
  got = compare.summary(results, ['a', 'b', 'c'])
  low, high = stats.t.interval(
      .95, 2, loc=mean, scale=stats.sem(values))
  assert got['a']['mean'] == mean and 'c' not in got
  assert math.isclose(got['a']['half'], (high - low) / 2)
  assert math.isnan(got['b']['half'])
  text = compare.markdown({'one': got}, 'head', ['a', 'b', 'c'])
  assert '| one | 0.2333 ± 0.3795 | 1.0000 |' in text


def test_the_head_says_what_differs():
  run = lambda history, seeds, **kwargs: {
      'dataset': 'toy', 'protocol': f'split; history {history}; rest',
      'seeds': seeds, 'device': '1 x cpu', **kwargs}
  same = compare.heading({'a': run(20, [0]), 'b': run(20, [0])})
  assert same == 'toy; test; split; history 20; rest; 1 seed; 1 x cpu.'
  text = compare.heading({
      'a': run(30, [0, 1]), 'b': run(20, [0, 1]), 'c': run(20, [0, 1])})
  assert text.splitlines() == [
      'toy; test; split; rest; 2 seeds; 1 x cpu. ± is half of a 95 % interval '
      'over seeds.', '', 'a: history 30.', '', 'b, c: history 20.']


def test_the_head_says_where_runs_come_from_if_they_differ():
  run = lambda jax, data: {
      'dataset': 'toy', 'protocol': 'split; seen items kept', 'seeds': [0],
      'device': '1 x cpu', 'versions': {'sidrec': '1+a', 'jax': jax},
      'data': {'name': 'toy', 'fingerprint': data}}
  shared = 'toy; test; split; seen items kept; 1 seed; 1 x cpu.'
  assert compare.heading({'a': run('0.10', 'f'), 'b': run('0.10', 'f')}) == (
      shared)
  text = compare.heading({'a': run('0.10', 'f'), 'b': run('0.11', 'g')})
  assert text.splitlines() == [
      shared, '', 'a: jax 0.10; data f.', '', 'b: jax 0.11; data g.']


def test_kept_and_removed_stand_beside_each_other():
  row = {'r': {'mean': .5, 'half': math.nan}}
  text = compare.markdown(
      {'a': row, 'b': row}, 'head', ['r'], {'a': False, 'b': True})
  assert text.splitlines()[2:] == [
      '| | seen items | r |', '|---|---|---|', '| a | kept | 0.5000 |',
      '| b | removed | 0.5000 |']
  text = compare.markdown(
      {'a': row, 'b': row}, 'head', ['r'], {'a': True, 'b': True})
  assert 'seen items' not in text


def test_minutes_are_of_a_seed():
  results = {'metrics': {'test': {}}, 'wall_seconds': 360., 'seeds': [0, 1]}
  got = compare.summary(results, ['a'])
  assert got['minutes']['mean'] == 3
  assert '| minutes |' in compare.markdown({'one': got}, 'head', ['a'])


@pytest.mark.parametrize('number, status', [
    (signal.SIGTERM, 143), (signal.SIGTERM, 0), (signal.SIGINT, 130),
    (signal.SIGHUP, 129)])
def test_a_terminated_comparison_ends_its_run(tmp_path, number, status):
  # Status 0: the run was at its end already.
  mark = tmp_path / 'mark'
  child = (f"import signal, sys, time\nsignal.signal({int(number)}, lambda *_: "
           f"(open({str(mark)!r}, 'w').close(), sys.exit({status})))\n"
           f"print('ready', file=sys.stderr, flush=True)\ntime.sleep(60)")
  parent = ('import sys\nfrom sidrec import compare\n'
            f'sys.exit(compare._call([sys.executable, "-c", {child!r}]))')
  with subprocess.Popen(
      [sys.executable, '-c', parent], stderr=subprocess.PIPE, text=True,
      env=dict(os.environ, PYTHONPATH=str(tiny_run.ROOT))) as process:
    assert process.stderr.readline() == 'ready\n'
    process.send_signal(number)
    assert process.wait(30) == 128 + number
  assert mark.exists()


def test_from_the_command_line_and_again(tmp_path):
  words = [f'--config.{key}={value}'
           for key, value in tiny_run.overrides('popularity').items()]
  command = [
      sys.executable, '-m', 'sidrec.compare', '--configs=popularity',
      f'--experiments={EXPERIMENTS}', '--seeds=2', f'--workdir={tmp_path}']
  environment = dict(os.environ, PYTHONPATH=str(tiny_run.ROOT))
  first, again = (subprocess.run(
      command + words, check=True, capture_output=True, text=True,
      env=environment) for _ in range(2))
  assert first.stdout == again.stdout
  assert '| popularity |' in first.stdout and '2 seeds' in first.stdout
  assert (tmp_path / 'comparison.md').read_text() == first.stdout
  content = json.loads((tmp_path / 'comparison.json').read_text())
  assert content['runs']['popularity']['method'] == 'popularity'
  assert pathlib.Path(tmp_path / 'popularity' / 'results.json').exists()
  bad = subprocess.run(command + ['--config.seedd=3'], check=False,
                       capture_output=True, text=True, env=environment)
  assert bad.returncode == 2 and 'seedd' in bad.stderr.splitlines()[-1]
