"""DIG in two processes x two fake devices equals one process of four."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sidrec import train
from tests import tiny_run

STEPS = dict(train__num_steps=30, eval__every=15,
             tokenizer__num_levels=2, tokenizer__codebook_size=8)
# Sums over devices add up in another order between processes, and Adam makes
# that larger where a gradient is small. Measured over 30 steps: 1e-5.
TOLERANCE = dict(rtol=1e-4, atol=1e-4)


def _wait_for(lines, words, process):
  deadline = time.monotonic() + 300
  while not (lines.exists() and words in lines.read_text()):
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(.02)


def _launch(workdir):
  return subprocess.Popen(
      [sys.executable, 'launch/local_multiprocess.py', '--num_processes=2',
       '--devices_per_process=2', '--',
       *tiny_run.arguments('dig', workdir, **STEPS)],
      cwd=tiny_run.ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_two_processes_train_save_stop_and_go_on_like_one(tmp_path):
  two, one = tmp_path / 'two', tmp_path / 'one'
  process = _launch(two)
  _wait_for(two / 'metrics.jsonl', '"step": 3', process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=100)
  assert process.returncode == 143, output
  assert 'stopped by SIGTERM at step' in output
  assert not (two / 'results.json').exists()
  process = _launch(two)
  output, _ = process.communicate(timeout=200)
  assert process.returncode == 0, output
  assert 'resumed at step' in output
  # Four fake devices of one process: the same shards of the same batches.
  train.train_and_evaluate(tiny_run.config(**STEPS), str(one))
  a, b = tiny_run.lines(two), tiny_run.lines(one)
  # Host work between steps has lines of its own: as many, after the same steps.
  is_host = lambda x: x['split'] == 'train' and 'loss' not in x
  assert [x['step'] for x in a if is_host(x)] == [
      x['step'] for x in b if is_host(x)]
  a, b = ([x for x in lines if not is_host(x)] for lines in (a, b))
  seen = {(x['step'], x['split']): x for x in a}
  assert len(seen) == len(a) and len(a) >= len(b)
  worst = 0.
  for line in b:
    other = seen[line['step'], line['split']]
    for name, value in line.items():
      if isinstance(value, float) and name.startswith('loss'):
        worst = max(worst, abs(value - other[name]))
        np.testing.assert_allclose(
            other[name], value, **TOLERANCE, err_msg=f'{line["step"]} {name}')
  results = [json.loads((x / 'results.json').read_text()) for x in (two, one)]
  for split, metrics in results[1]['metrics'].items():
    for name, value in metrics.items():
      if name.startswith(('ranking', 'oracle', 'tokenizer', 'unified/auc')):
        np.testing.assert_allclose(
            results[0]['metrics'][split][name]['mean'], value['mean'],
            rtol=.01, atol=.01, err_msg=name)
  print('largest difference of a loss', worst)


@pytest.fixture(name='undisturbed', scope='module')
def fixture_undisturbed(tmp_path_factory):
  """Returns the results of a run that nothing happened to."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  process = _launch(workdir)
  output, _ = process.communicate(timeout=500)
  assert process.returncode == 0, output
  return tiny_run.results(workdir)


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
@pytest.mark.parametrize('number, words, code', [
    (signal.SIGKILL, 'ended by SIGKILL', 137),
    (signal.SIGTERM, 'ended with 143', 143),
    (signal.SIGSTOP, 'is frozen', 137)])
def test_a_run_that_lost_a_process_goes_on_to_the_same_results(
    tmp_path, undisturbed, index, number, words, code):
  process = _launch(tmp_path)
  _wait_for(tmp_path / 'metrics.jsonl', '"step": 18', process)
  path = f'/proc/{process.pid}/task/{process.pid}/children'
  children = pathlib.Path(path).read_text().split()
  os.kill(int(children[index]), number)
  began = time.monotonic()
  output, _ = process.communicate(timeout=60)
  print('seconds to the end', time.monotonic() - began)
  assert process.returncode == code, output
  assert f'process {index} {words}' in output
  assert 'Traceback' not in output
  process = _launch(tmp_path)
  output, _ = process.communicate(timeout=500)
  assert process.returncode == 0, output
  assert 'resumed at step' in output
  assert tiny_run.results(tmp_path) == undisturbed
