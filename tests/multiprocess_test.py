"""Two processes x two fake devices over loopback equal one process."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sidrec import parallel
from tests import parallel_test

ROOT = pathlib.Path(__file__).resolve().parent.parent
LAUNCH = [sys.executable, str(ROOT / 'launch' / 'local_multiprocess.py')]


def _launch(*arguments, **kwargs):
  return subprocess.Popen(
      LAUNCH + list(arguments), cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, **kwargs)


def test_two_processes_train_save_restore_and_go_on_like_one(tmp_path):
  process = _launch('--num_processes=2', '--module=tests.multiprocess_worker',
                    '--', str(tmp_path))
  output, errors = process.communicate(timeout=150)
  assert process.returncode == 0, output + errors
  assert 'all done 0' in output and 'all done 1' not in output
  one = parallel.make('pmap')
  state, history = parallel_test.run(one)
  rows = [one.map_rows(parallel_test.predict)(
      state, parallel_test.CONST, parallel_test.make_batch(9, n))['output']
          for n in (5, 7)]
  expected = jax.tree.leaves((state, history, np.concatenate(rows)))
  for wrapper in ('pmap', 'shard_map'):
    with np.load(tmp_path / f'{wrapper}.npz') as file:
      assert len(file.files) == len(expected)
      for name, value in zip(file.files, expected):
        np.testing.assert_allclose(file[name], value, rtol=1e-5, atol=1e-5)


@pytest.fixture(name='module')
def fixture_module(tmp_path):
  """Makes a module of its own that the processes run."""
  def make(code):
    (tmp_path / 'child_of_test.py').write_text(
        'import os, signal, sys, time\n'
        'index = int(os.environ["SIDREC_PROCESS_ID"])\n' + code)
    return {'env': dict(os.environ, PYTHONPATH=str(tmp_path))}
  return make


COMMAND = ('--num_processes=2', '--module=child_of_test', '--', 'one', '--two')


def test_launcher_kills_all_when_one_fails(module):
  process = _launch(*COMMAND, **module(
      'if index == 1:\n  print("the reason", file=sys.stderr); sys.exit(2)\n'
      'time.sleep(100)'))
  output, errors = process.communicate(timeout=40)
  assert process.returncode == 2
  assert 'process 1 ended with 2' in errors and 'the reason' in errors
  assert not output


def test_launcher_passes_arguments_devices_and_signals(module):
  process = _launch(*COMMAND, **module(
      'def stop(*_): print("stopped", flush=True); sys.exit(143)\n'
      'signal.signal(signal.SIGTERM, stop)\n'
      'print(sys.argv[1:], os.environ["XLA_FLAGS"].split()[-1], flush=True)\n'
      'time.sleep(100)'))
  line = process.stdout.readline()
  assert line == ("['one', '--two'] "
                  '--xla_force_host_platform_device_count=2\n')
  time.sleep(1)
  process.send_signal(signal.SIGTERM)
  output, errors = process.communicate(timeout=40)
  assert process.returncode == 143
  assert output == 'stopped\n' and 'process 1 ended with 143' in errors


def _children(process):
  path = f'/proc/{process.pid}/task/{process.pid}/children'
  return [int(x) for x in pathlib.Path(path).read_text().split()]


def _ended(pid, seconds=10):
  """Whether a process is gone, or is so within some seconds."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return True
    if ') Z ' in pathlib.Path(f'/proc/{pid}/stat').read_text():
      return True
    time.sleep(.05)
  return False


@pytest.mark.parametrize('index', [0, 1])
@pytest.mark.parametrize('number, words', [
    (signal.SIGKILL, 'ended by SIGKILL'), (signal.SIGSTOP, 'is frozen')])
def test_launcher_names_a_process_that_died_or_froze(
    module, index, number, words):
  process = _launch('--frozen_seconds=.5', *COMMAND, **module(
      'print("last words", file=sys.stderr)\n'
      'if index: open(__file__ + "1", "w").close()\n'
      'while not os.path.exists(__file__ + "1"): time.sleep(.02)\n'
      'print("up", flush=True)\ntime.sleep(100)'))
  assert process.stdout.readline() == 'up\n'
  children = _children(process)
  began = time.monotonic()
  os.kill(children[index], number)
  _, errors = process.communicate(timeout=40)
  assert time.monotonic() - began < 10
  assert process.returncode == 137
  line, = [x for x in errors.splitlines() if 'local_multiprocess' in x]
  assert f'process {index} {words}' in line and str(children[index]) in line
  assert number != signal.SIGKILL or line.endswith('stderr: last words')
  assert all(_ended(pid) for pid in children)


def test_no_process_outlives_the_launcher(module):
  process = _launch(*COMMAND, **module(
      'print("up", flush=True)\ntime.sleep(100)'))
  assert process.stdout.readline() == 'up\n'
  children = _children(process)
  process.kill()
  process.wait()
  assert len(children) == 2 and all(_ended(pid) for pid in children)


def test_launcher_gives_zero_and_refuses_bad_numbers(module):
  process = _launch(*COMMAND, **module('print("fine", index)'))
  assert process.communicate(timeout=40)[0] == 'fine 0\n'
  assert process.returncode == 0
  process = _launch('--num_processes=0', '--')
  errors = process.communicate(timeout=40)[1]
  assert 'at least 1' in errors and errors.count('\n') == 1
  assert process.returncode == 2
