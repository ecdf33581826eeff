"""One process of the loopback test in multiprocess_test.py; not a test."""

import collections
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np

from sidrec import checkpoint
from sidrec import parallel
from sidrec import types
from sidrec.parallel import processes
from tests import parallel_test


def _resumed(p, directory):
  """init -> 2 steps -> save -> restore -> step, on this process's rows."""
  step = p.map_step(parallel_test.train_step)
  const, history = p.place(parallel_test.CONST), []
  def train(state, t):
    batch = jax.tree.map(
        lambda x: np.split(x, p.process_count)[p.process_index],
        parallel_test.make_batch(t))
    state, metrics = step(state, const, p.shard(batch))
    history.append(p.to_host(metrics))
    return state
  state = train(train(p.place(parallel_test.make_state()), 0), 1)
  with checkpoint.Checkpointer(directory, config={'a': 1}) as saver:
    if p.wrapper == 'pmap':  # Orbax takes no host-local arrays.
      try:
        saver.save(1, state, {})
        raise AssertionError('Orbax saved host-local arrays')
      except (ValueError, types.InputError) as error:
        assert 'host local' in str(error), error
    saver.save(2, p.to_global(state), {'step': 2}, {'auc': 0.5})
  abstract = jax.eval_shape(lambda: parallel_test.make_state())
  with checkpoint.Checkpointer(directory, config={'a': 1}) as saver:
    assert saver.steps() == [2]
    saved = p.to_host(state)
    state, host = saver.restore(2, abstract)
    jax.tree.map(np.testing.assert_array_equal, state, saved)
    assert host == {'step': 2}
  state = train(p.place(state), 2)
  rows = p.map_rows(parallel_test.predict)(
      state, const, parallel_test.make_batch(9, 5 + 2 * p.process_index))
  return p.to_host(state), history, p.allgather_rows(rows['output'])


def _collectives(p):
  """Host values travel bit by bit, whatever each process holds."""
  index = p.process_index
  rows = {'id': np.arange(index + 1) + 2**40 + 10 * index,
          'ok': np.array([True, False, True], bool)[:3 * index],
          'empty': np.zeros((0, 3), np.float16),
          'none': np.zeros((2, 0))}
  rows = p.allgather_rows(rows)
  np.testing.assert_array_equal(rows['id'] - 2**40, [0, 10, 11])
  np.testing.assert_array_equal(rows['ok'], [True, False, True])
  assert rows['empty'].shape == (0, 3) and rows['none'].shape == (4, 0)
  tree = {'codes': np.array([2**40]), 'name': 'x'} if index == 0 else None
  tree = p.broadcast(tree)
  assert tree['codes'].dtype == np.int64 and tree['codes'][0] == 2**40
  calls = []
  assert p.once(lambda: calls.append(1) or 7) == 7
  assert len(calls) == (index == 0)
  def fail():
    raise types.InputError('only process 0 knows')
  try:
    p.once(fail)
    raise AssertionError('no error')
  except types.InputError as error:
    assert 'only process 0' in str(error)
  assert p.any_true(index == 1) and not p.any_true(False)
  block, processes._BLOCK = processes._BLOCK, 64  # Many blocks a value.
  large = {'x': np.arange(1000.) + 2.**40, 'none': np.zeros((0, 2)),
           'text': np.array(['a', 'bcd'])}
  sent = p.broadcast(large if index == 0 else None)
  for name, value in large.items():
    np.testing.assert_array_equal(sent[name], value)
    assert sent[name].dtype == value.dtype
  rows = p.allgather_rows({'x': np.arange(100 * (1 + index)) + 2**40})
  np.testing.assert_array_equal(
      rows['x'] - 2**40, np.r_[np.arange(100), np.arange(200)])
  processes._BLOCK = block
  p.barrier('end of collectives')


def _agreement(index):
  """Different arguments are named in all processes; a lone NamedTuple fits."""
  parallel.agree({'--config': {'a': {'b': 1}}})
  try:
    parallel.agree({'--config': {'a': {'b': 1 + index, 'c': 3}}})
    raise AssertionError('no error')
  except types.InputError as error:
    assert '--config.a.b is 1 in process 0 and 2 in process 1' in str(error)
  pair = collections.namedtuple('Pair', 'left right')
  p = parallel.make()
  sent = p.once(lambda: pair({'x': np.arange(3)}, 'y'), named=(pair,))
  assert type(sent) is pair and sent.right == 'y'
  try:
    p.once(lambda: {'x': {1, 2}})
    raise AssertionError('no error')
  except RuntimeError as error:
    assert "value['x'] is of type set" in str(error)


def _listens_on_loopback():
  """The coordinator listens where nobody else can reach it."""
  port = os.environ['SIDREC_COORDINATOR'].rpartition(':')[2]
  sockets = subprocess.run(['ss', '-ltnH'], capture_output=True, text=True,
                           check=True).stdout.split('\n')
  own = [x.split()[3] for x in sockets if f':{port} ' in x]
  assert own and all('127.0.0.1' in x for x in own), own


def main(directory):
  """Runs both wrappers and writes what process 0 got."""
  parallel.initialize()
  for wrapper in ('pmap', 'shard_map'):
    p = parallel.make(wrapper)
    assert (p.process_count, p.num_devices, p.num_local_devices) == (2, 4, 2)
    state, history, rows = _resumed(p, f'{directory}/{wrapper}')
    if p.is_main:
      leaves = jax.tree.leaves((state, history, rows))
      np.savez(pathlib.Path(directory) / f'{wrapper}.npz', *leaves)
  _collectives(p)
  _agreement(p.process_index)
  if shutil.which('ss'):
    _listens_on_loopback()
  print('all done', p.process_index, flush=True)


if __name__ == '__main__':
  main(sys.argv[1])
