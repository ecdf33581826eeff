"""Tests of `sidrec.checkpoint`: bits, policy, kills, full disks, processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sidrec import checkpoint
from sidrec import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = {'seed': 1, 'model': {'width': 8, 'dropout': 0.1}}


def make_state(step, width=8):
  random = np.random.default_rng(step)
  params = {'w': jnp.asarray(random.normal(size=(width, 3)), jnp.float32),
            'odd': jnp.array([np.nan, -0.0, 1e-42, np.inf], jnp.float32)}
  return types.TrainState(
      params=params,
      variables={
          'codes': jnp.asarray(random.integers(0, 9, (5, 2)), jnp.int32),
          'bits': jnp.array([1, 2**32 - 1], jnp.uint32),
          'used': jnp.array([True, False]),
          'half': jnp.ones(3, jnp.bfloat16)},
      opt_state=optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
      clock={'a': jnp.int32(step)}, seed=jnp.uint32(0))


def _bits(tree):
  return jax.tree.map(lambda x: (str(x.dtype), x.shape, x.tobytes()),
                      jax.device_get(tree))


def test_restores_every_bit_and_class(tmp_path):
  state = make_state(3)
  with checkpoint.Checkpointer(str(tmp_path), config=CONFIG) as saver:
    assert saver.latest_step() is None and saver.best_step() is None
    saver.save(3, state, {'phase': 0, 'name': 'x', 'best': None})
    saver.save(3, make_state(4), {})  # There already: left as it is.
  with checkpoint.Checkpointer(str(tmp_path), config=CONFIG) as saver:
    restored, host = saver.restore(3, jax.eval_shape(lambda: state))
  assert host == {'phase': 0, 'name': 'x', 'best': None}
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  chex.assert_trees_all_equal_comparator(
      lambda a, b: _bits(a) == _bits(b), lambda a, b: f'{a} {b}',
      restored, jax.device_get(state))
  assert isinstance(restored.opt_state[1][0], optax.ScaleByAdamState)


def test_a_save_does_not_see_later_changes(tmp_path):
  """The state is donated right after `save` returns."""
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    state = {'w': jnp.arange(100_000, dtype=jnp.float32)}
    saver.save(1, state, {})
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s),
                   donate_argnums=0)
    state = step(state)
    jax.block_until_ready(state)
    restored, _ = saver.restore(1, state)
  np.testing.assert_array_equal(restored['w'], np.arange(100_000))


@pytest.mark.parametrize('mode,best', [('max', 2), ('min', 3)])
def test_keeps_the_best_and_the_latest(tmp_path, mode, best):
  values = {1: .5, 2: .9, 3: .1, 4: .4, 5: float('nan'), 6: None, 7: .45}
  def saver_of():
    return checkpoint.Checkpointer(
        str(tmp_path), keep_latest=2, best_metric='auc', best_mode=mode)
  with saver_of() as saver:
    for step, value in values.items():
      saver.save(step, {'w': jnp.float32(step)}, {},
                 None if value is None else {'auc': value})
    assert saver.best_step() == best and saver.latest_step() == 7
  with saver_of() as saver:  # Metrics are read from the files.
    assert saver.steps() == sorted({best, 6, 7})
    assert saver.best_step() == best
  assert {p.name for p in tmp_path.iterdir()} == {str(best), '6', '7'}


def test_the_best_of_the_last_group_and_what_to_serve(tmp_path):
  values = {1: (0, .9), 2: (1, .1), 3: (1, .3), 4: (1, .2), 5: None}
  def saver_of():
    return checkpoint.Checkpointer(
        str(tmp_path), keep_latest=1, best_metric='auc', among='section')
  with saver_of() as saver:
    assert saver.chosen_step() is None
    for step, value in values.items():
      saver.save(step, {'w': jnp.float32(step)}, {'finished': False},
                 value and {'section': value[0], 'auc': value[1]})
    # Values of different groups are never compared.
    assert saver.best_step() == saver.chosen_step() == 3
    assert saver.steps() == [3, 5]
    saver.save(6, {'w': jnp.float32(6)}, {'finished': True})
  with saver_of() as saver:
    assert saver.best_step() == 3 and saver.chosen_step() == 6


def test_other_config_and_other_model_are_refused(tmp_path):
  path = str(tmp_path)
  with checkpoint.Checkpointer(path, config=CONFIG) as saver:
    saver.save(1, make_state(1), {})
  other = {'seed': 1, 'model': {'width': 16, 'dropout': 0.1}, 'new': 1}
  with checkpoint.Checkpointer(path, config=other) as saver:
    with pytest.raises(types.InputError) as error:
      saver.restore(1, make_state(1))
  assert 'model.width: 8 there, 16 now; new: only now' in str(error.value)
  with checkpoint.Checkpointer(path, config=CONFIG) as saver:
    with pytest.raises(types.InputError, match='no such checkpoint.*1'):
      saver.restore(2, make_state(1))
    for state in (make_state(1, width=9), make_state(1).replace(variables={})):
      with pytest.raises(types.InputError, match='config|model') as error:
        saver.restore(1, state)
      assert '\n' not in str(error.value)
  swapped = {'model': {'dropout': 0.1, 'width': np.int64(8)}, 'seed': 1}
  with checkpoint.Checkpointer(path, config=swapped) as saver:
    saver.restore(1, make_state(1))  # The order of keys means nothing.


def test_damaged_checkpoint_is_one_line(tmp_path):
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    saver.save(1, {'w': jnp.arange(10_000)}, {})
    saver.wait()
    for path in (tmp_path / '1' / 'state').rglob('*'):
      if path.is_file() and path.parent.name == 'd':
        path.write_bytes(b'')
    with pytest.raises(types.InputError, match='/1: damaged') as error:
      saver.restore(1, {'w': jnp.arange(10_000)})
    assert '\n' not in str(error.value)


def test_read_only_touches_nothing(tmp_path):
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    saver.save(1, {'w': jnp.float32(2)}, {})
  under_way = tmp_path / '2.orbax-checkpoint-tmp'
  under_way.mkdir()
  with checkpoint.Checkpointer(str(tmp_path), read_only=True) as saver:
    assert saver.steps() == [1]
    assert saver.restore(1, {'w': jnp.float32(0)})[0]['w'] == 2
  assert under_way.exists()
  absent = tmp_path / 'absent'
  with checkpoint.Checkpointer(str(absent), read_only=True) as saver:
    assert saver.latest_step() is None
  assert not absent.exists()


def test_unwritable_directory(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(types.InputError, match='cannot hold checkpoints'):
    checkpoint.Checkpointer(str(tmp_path / 'file' / 'checkpoints'))


def _python(code, *arguments):
  return subprocess.Popen(
      [sys.executable, '-c', code, *arguments], cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


KILLED = """
import sys
import jax.numpy as jnp
from sidrec import checkpoint
saver = checkpoint.Checkpointer(sys.argv[1], keep_latest=2)
step = saver.latest_step() or 0
print('ready', step, flush=True)
while True:
  step += 1
  saver.save(step, {str(i): jnp.full(50_000, step + i) for i in range(8)},
             {'step': step})
  print(step, flush=True)
"""


def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
  random, before = np.random.default_rng(0), 0
  abstract = {str(i): jax.ShapeDtypeStruct((50_000,), jnp.int32)
              for i in range(8)}
  for _ in range(2):
    process = _python(KILLED, str(tmp_path))
    for _ in range(4):
      assert process.stdout.readline(), process.stderr.read()
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with checkpoint.Checkpointer(str(tmp_path)) as saver:
      latest = saver.latest_step()
      assert latest > before
      before = latest
      state, host = saver.restore(latest, abstract)
    assert host == {'step': latest}
    for i in range(8):
      assert (state[str(i)] == latest + i).all()
    names = [p.name for p in tmp_path.iterdir()]
    assert all(n.isdigit() for n in names), names  # No half-written ones.


# A limit on the size of a file makes writes fail in the kernel like a full
# disk does, in the threads of Tensorstore too.
FULL = """
import resource, sys
import numpy as np
from sidrec import checkpoint, types
random = np.random.default_rng(0)
state = lambda step: {'w': random.normal(size=300_000) + step}
try:
  with checkpoint.Checkpointer(sys.argv[1], keep_latest=2) as saver:
    saver.save(1, state(1), {'step': 1})
    saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    saver.save(2, state(2), {'step': 2})
    saver.save(3, state(3), {'step': 3})
except types.InputError as error:
  print(error)
  sys.exit(2)
"""


def test_full_disk_ends_in_one_line_and_keeps_the_last_good(tmp_path):
  process = _python(FULL, str(tmp_path))
  output, errors = process.communicate(timeout=60)
  assert process.returncode == 2, errors
  assert len(output.splitlines()) == 1
  assert 'Traceback' not in errors and 'ERROR' not in errors, errors
  assert 'could not be written' in output
  assert 'last good one is of step 1' in output
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    assert saver.steps() == [1]
    _, host = saver.restore(1, {'w': np.zeros(300_000)})
    assert host == {'step': 1}
    saver.save(2, {'w': np.ones(300_000)}, {})  # And there is room again.
  assert os.path.isdir(tmp_path / '2')
