"""A workdir: who may write into it, signals, full disks, data that moved."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from sidrec import disk
from sidrec import evaluate
from sidrec import main
from sidrec import train
from sidrec import types
from sidrec.evaluate import run_identity
from sidrec.train import lock
from tests import data_tables
from tests import tiny_run

HOLD = """
import sys, time
from sidrec.train import lock
with lock.hold(sys.argv[1]):
  print('held', flush=True)
  time.sleep(600)
"""


def _refusal(workdir):
  with pytest.raises(types.InputError) as error:
    with lock.hold(str(workdir)):
      pass
  assert '\n' not in str(error.value)
  return str(error.value)


def test_lock_of_a_living_run_and_of_a_killed_one(tmp_path):
  workdir = tmp_path / 'new' / 'run'
  child = subprocess.Popen(
      [sys.executable, '-c', HOLD, str(workdir)], cwd=tiny_run.ROOT,
      stdout=subprocess.PIPE, text=True)
  try:
    assert child.stdout.readline() == 'held\n'
    message = _refusal(workdir)
    assert f'host {socket.gethostname()} (pid {child.pid})' in message
    with pytest.raises(types.InputError, match=f'pid {child.pid}'):
      train.train_and_evaluate(tiny_run.config('popularity'), str(workdir))
  finally:
    child.kill()
    child.communicate()
  assert (workdir / lock.FILE).exists()  # Nobody could remove it.
  with lock.hold(str(workdir)):
    held = json.loads((workdir / lock.FILE).read_text())
    assert held == {'host': socket.gethostname(), 'pid': os.getpid()}
  assert not workdir.exists() or not list(workdir.iterdir())


def test_lock_of_another_host_names_the_file(tmp_path):
  path = tmp_path / lock.FILE
  path.write_text('{"host": "elsewhere", "pid": 1}')
  message = _refusal(tmp_path)
  assert 'elsewhere (pid 1)' in message and str(path) in message
  assert 'if it is over, remove the file' in message
  assert path.exists()
  for text in ('', '{"host"', '[]'):  # A full disk, a power cut.
    path.write_text(text)
    with lock.hold(str(tmp_path)):
      pass
    assert not path.exists()


def test_lock_where_the_system_has_none(tmp_path, monkeypatch):
  def refuse(*unused):
    raise OSError(errno.ENOTSUP, 'no locks here')
  monkeypatch.setattr(lock.fcntl, 'flock', refuse)
  with lock.hold(str(tmp_path)):
    assert f'pid {os.getpid()}' in _refusal(tmp_path)
  done = subprocess.Popen(['true'])
  done.wait()
  (tmp_path / lock.FILE).write_text(json.dumps(
      {'host': socket.gethostname(), 'pid': done.pid}))
  with lock.hold(str(tmp_path)):
    pass
  assert not list(tmp_path.iterdir())


def test_bad_data_leave_no_workdir(tmp_path):
  with pytest.raises(types.InputError, match='data.dir'):
    train.train_and_evaluate(
        tiny_run.config('popularity', data__dir='/nowhere'),
        str(tmp_path / 'run'))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('number, status', [
    (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_in_the_final_evaluation(
    tmp_path, monkeypatch, number, status):
  config, whole = tiny_run.config('popularity'), evaluate.Evaluator.run
  def run(self, state, split, *arguments, **more):
    if split == 'test':
      os.kill(os.getpid(), number)
      time.sleep(30)
    return whole(self, state, split, *arguments, **more)
  began, handler = time.monotonic(), signal.getsignal(number)
  with monkeypatch.context() as patch:
    patch.setattr(evaluate.Evaluator, 'run', run)
    with pytest.raises(train.Terminated, match='final evaluation') as error:
      train.train_and_evaluate(config, str(tmp_path))
  assert error.value.status == status
  assert number.name in str(error.value)
  assert time.monotonic() - began < 20
  assert signal.getsignal(number) == handler
  assert not (tmp_path / 'results.json').exists()
  assert not (tmp_path / lock.FILE).exists()
  train.train_and_evaluate(config, str(tmp_path))
  assert (tmp_path / 'results.json').exists()


def test_a_signal_that_is_ignored_stays_so(tmp_path):
  kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As `nohup` does.
  try:
    def stop():
      os.kill(os.getpid(), signal.SIGHUP)
    stop()
    train.train_and_evaluate(tiny_run.config('popularity'), str(tmp_path))
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, kept)


# Of those that are written once, and of those that grow.
WRITTEN = ('run.lock', 'config.json', 'metrics.jsonl', 'events.out',
           'results.json', 'users.parquet', 'exposures.parquet')


def _full(name, monkeypatch):
  """Lets every write to a file fail as on a full disk."""
  error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  whole, append, pwrite = disk.whole, disk.Appender.append, os.pwrite
  def no_whole(path):
    if name in path:
      raise error
    return whole(path)
  def no_append(self, record):
    if name in self._path:  # pylint: disable=protected-access
      raise error
    return append(self, record)
  def no_pwrite(*arguments):
    if name == lock.FILE:
      raise error
    return pwrite(*arguments)
  monkeypatch.setattr(disk, 'whole', no_whole)
  monkeypatch.setattr(disk.Appender, 'append', no_append)
  monkeypatch.setattr(os, 'pwrite', no_pwrite)


@pytest.mark.parametrize('name', WRITTEN)
def test_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path, monkeypatch, name):
  config = tiny_run.config('popularity')
  with monkeypatch.context() as patch:
    _full(name, patch)
    with pytest.raises(types.InputError, match='no space left') as error:
      train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert name in str(error.value) and '\n' not in str(error.value)
  for left in tmp_path.rglob('*'):
    assert not left.name.endswith(disk.TEMPORARY), left
    assert left.name not in (lock.FILE, 'results.json')
  train.train_and_evaluate(config, str(tmp_path / 'run'))
  assert len(tiny_run.lines(tmp_path / 'run')) == 1


def test_half_of_a_record_is_a_full_disk(tmp_path):
  read, write = os.pipe()
  os.set_blocking(write, False)
  file = disk.Appender(str(tmp_path / 'file'))
  file._file = write  # pylint: disable=protected-access
  with pytest.raises(OSError, match='No space left'):
    file.append(b'x' * (1 << 20))
  os.close(read)
  file.close()


def test_nobody_looks_at_the_output_any_more():
  for full in (False, True):
    read, write = os.pipe()
    stream = main._Lasting(os.fdopen(write, 'w'))  # pylint: disable=protected-access
    os.close(read)
    for _ in range(3):
      stream.write('line\n' * (10_000 if full else 1))
      stream.flush()
    stream.close()
  main._Lasting(None).write('x')  # pylint: disable=protected-access


@pytest.mark.slow
def test_a_run_without_anybody_who_looks_on(tmp_path):
  read, write = os.pipe()
  os.close(read)
  process = subprocess.Popen(
      [sys.executable, '-m', 'sidrec.main',
       *tiny_run.arguments('popularity', tmp_path)], cwd=tiny_run.ROOT,
      stdout=write, stderr=write)
  os.close(write)
  assert process.wait(100) == 0
  assert (tmp_path / 'results.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('kilobytes', [0, 8, 20, 60])
def test_a_small_disk(tmp_path, kilobytes):
  """A real one, of a run whose checkpoint is small."""
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs',
                     str(tmp_path)], capture_output=True).returncode:
    pytest.skip('mounting is not allowed')
  try:
    space = os.statvfs(tmp_path)
    (tmp_path / 'fill').write_bytes(
        b'x' * (space.f_bavail * space.f_frsize - 1024 * kilobytes))
    command = [sys.executable, '-m', 'sidrec.main',
               *tiny_run.arguments('popularity', tmp_path / 'run')]
    began = time.monotonic()
    done = subprocess.run(command, cwd=tiny_run.ROOT, capture_output=True,
                          text=True, timeout=100, check=False)
    assert time.monotonic() - began < 60
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    assert 'no space left' in done.stderr.splitlines()[-1]
    (tmp_path / 'fill').unlink()
    done = subprocess.run(command, cwd=tiny_run.ROOT, capture_output=True,
                          text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
  finally:
    subprocess.run(['umount', str(tmp_path)], check=True)


def _tables(folder, last=1):
  draw = np.random.default_rng(0)
  click = draw.integers(0, 2, 400)
  click[-1] = last
  os.makedirs(folder, exist_ok=True)
  data_tables.write(folder, dict(
      events={'user_id': draw.integers(0, 20, 400),
              'item_id': draw.integers(0, 30, 400),
              'timestamp': np.arange(400) * 3_600_000, 'click': click},
      items={'item_id': np.arange(30)}))


def test_data_may_move_but_not_change(tmp_path, monkeypatch):
  here, there = tmp_path / 'here', tmp_path / 'there'
  _tables(here / 'log')
  (tmp_path / 'a').mkdir()
  monkeypatch.chdir(tmp_path / 'a')
  config = lambda folder: tiny_run.config('popularity', data__dir=str(folder))
  workdir = str(tmp_path / 'run')
  first = train.train_and_evaluate(config('../here/log'), workdir)
  monkeypatch.chdir(tmp_path)
  numbers = lambda x: x['metrics']['test']['ranking/auc']
  assert numbers(train.train_and_evaluate(
      config(here / 'log'), workdir)) == numbers(first)
  assert evaluate.load(workdir).metrics
  shutil.move(here, there)
  assert numbers(train.train_and_evaluate(
      config('there/log'), workdir)) == numbers(first)
  shutil.move(there, here)
  with pytest.raises(types.InputError, match=(
      'config.json: the data of the run cannot be read .*no folder .*say '
      'where they are')) as error:
    evaluate.load(workdir)
  assert '\n' not in str(error.value)
  assert evaluate.load(workdir, data_dir='here/log').metrics
  _tables(here / 'log', last=0)
  for use in (lambda: train.train_and_evaluate(config('here/log'), workdir),
              lambda: evaluate.load(workdir, config('here/log'))):
    with pytest.raises(types.InputError, match='data.content: ') as error:
      use()
    assert '\n' not in str(error.value)


def test_identity_of_an_earlier_version(tmp_path):
  config = tiny_run.config('sasrec', data__dir=str(tmp_path))
  dataset = type('Data', (), {'fingerprint': 'abc'})
  now = run_identity.identity(config, dataset)
  assert now['data']['content'] == 'abc'
  old = json.loads(json.dumps(now))
  old['data'].pop('content')
  old['data'].update(dir=str(tmp_path), name='planted')
  old['model'].pop('seen_bias', None)
  old['eval'].pop('patience')
  complete = lambda: run_identity.complete_identity(old, config, dataset)
  assert complete() == now
  old['data']['dir'] = 'elsewhere'
  assert complete()['data']['content'] == 'not known'
