"""Damaged files of a finished run: noticed and named, or of no importance."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec import checkpoint
from sidrec import data
from sidrec import evaluate
from sidrec import train
from sidrec import trie
from sidrec import types
from tests import tiny_run


def _flip(path, place=None):
  content = bytearray(path.read_bytes())
  bit = len(content) * 4 if place is None else place % (len(content) * 8)
  content[bit // 8] ^= 1 << (bit % 8)
  path.write_bytes(content)


def _deny(path):
  path.chmod(0)
  if os.access(path, os.R_OK):
    pytest.skip('who runs the tests may read everything')


DAMAGES = {
    'flipped bit': _flip,
    'cut': lambda path: path.write_bytes(
        path.read_bytes()[:path.stat().st_size // 2]),
    'empty': lambda path: path.write_bytes(b''),
    'missing': lambda path: path.unlink(),
    'list': lambda path: path.write_text('[1, 2]\n'),
    'number': lambda path: path.write_text('7\n'),
    'other object': lambda path: path.write_text('{"a": {"b": null}}\n'),
    'no permission': _deny,
}
# What a run and its readers open; `*` for names that a save makes up.
FILES = (
    'config.json', 'metrics.jsonl', 'results.json', 'users.parquet',
    'exposures.parquet', 'events.out.tfevents*', 'checkpoints/0/host/metadata',
    'checkpoints/0/metrics/metrics', 'checkpoints/0/_CHECKPOINT_METADATA',
    'checkpoints/0/state/_METADATA', 'checkpoints/0/state/manifest.ocdbt',
    'checkpoints/0/state/d/*', 'checkpoints/0/state/ocdbt.process_0/d/*')
MODES = ('train', 'evaluate', 'recommend')
# In every run of the tests; the rest of the table is slow.
QUICK = {
    ('config.json', 'cut'), ('metrics.jsonl', 'flipped bit'),
    ('results.json', 'list'), ('results.json', 'cut'),
    ('checkpoints/0/host/metadata', 'flipped bit'),
    ('checkpoints/0/metrics/metrics', 'list'),
    ('checkpoints/0/state/manifest.ocdbt', 'empty'),
    ('checkpoints/0/state/d/*', 'flipped bit')}


@pytest.fixture(name='run', scope='module')
def _run(tmp_path_factory):
  """A finished run: (workdir, config, data set)."""
  workdir = tmp_path_factory.mktemp('run') / 'w'
  config = tiny_run.config('popularity')
  dataset = data.load(config.data, config.data.seed)
  train.train_and_evaluate(config, str(workdir))
  return workdir, config, dataset


def _numbers(values):
  return {k: v for k, v in values.items() if not k.startswith('speed/')}


def _use(mode, workdir, config):
  """Does what a user may do with a run; returns what must not change."""
  if mode == 'train':
    train.train_and_evaluate(config, str(workdir))
    found = tiny_run.results(workdir)['metrics']['test']
    return {name: value['mean'] for name, value in found.items()}
  loaded = evaluate.load(str(workdir), config)
  if mode == 'evaluate':
    return _numbers(loaded.evaluate())
  beams, _ = loaded.retrieve(loaded.dataset.user_ids[:4].tolist())
  return {'items': beams.item.tolist()}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name, damage', [
    pytest.param(name, damage, marks=() if (name, damage) in QUICK else (
        pytest.mark.slow,)) for name in FILES for damage in DAMAGES])
def test_every_file_of_a_run(run, tmp_path, monkeypatch, name, damage, mode):
  workdir, config, dataset = run
  monkeypatch.setattr(data, 'load', lambda *_: dataset)
  copy = tmp_path / 'w'
  shutil.copytree(workdir, copy)
  files = sorted(copy.glob(name))
  assert files
  for path in files:
    DAMAGES[damage](path)
  try:
    found = _use(mode, copy, config)
  except types.InputError as error:
    message = str(error)
    assert '\n' not in message and str(copy) in message, message
    assert len(message) < 700
  else:
    want = _use(mode, workdir, config)
    np.testing.assert_equal(found, want)


def test_a_file_that_counts_is_refused_by_name(run, tmp_path, monkeypatch):
  workdir, config, dataset = run
  monkeypatch.setattr(data, 'load', lambda *_: dataset)
  for mode, name, damage, message in (
      ('train', 'checkpoints/0/host/metadata', 'flipped bit', '/0: damaged'),
      ('evaluate', 'checkpoints/0/host/metadata', 'cut', '/0: damaged'),
      ('evaluate', 'results.json', 'list', 'results.json: damaged: holds a '
       'list')):
    copy = tmp_path / 'w'
    shutil.copytree(workdir, copy)
    DAMAGES[damage](copy / name)
    with pytest.raises(types.InputError, match=message):
      _use(mode, copy, config)
    shutil.rmtree(copy)


@pytest.mark.parametrize('change, message', [
    (lambda x: x.pop('checkpoint'), None),
    (lambda x: x['eval'].pop('validations'), None),
    (lambda x: x['data'].update(dir='/nowhere/at/all'),
     'say where they are by --config.data.dir'),
    (lambda x: x['eval'].update(beam_size='many'), 'config.eval.beam_size is'),
    (lambda x: x.update(eval=[1]), 'config.eval is'),
    (lambda x: x.update(data=None), 'config.data is'),
    (lambda x: x.update(method='nothing'), 'config.method')])
def test_config_of_an_earlier_version_or_damaged(
    run, tmp_path, change, message):
  copy = tmp_path / 'w'
  shutil.copytree(run[0], copy)
  saved = json.loads((copy / 'config.json').read_text())
  change(saved)
  (copy / 'config.json').write_text(json.dumps(saved))
  if message is None:
    loaded = evaluate.load(str(copy))
    assert loaded.config.to_dict() == run[1].to_dict()
    return
  with pytest.raises(types.InputError, match=message) as error:
    evaluate.load(str(copy))
  assert '\n' not in str(error.value)


def test_reads_on_while_a_run_replaces_checkpoints(
    run, tmp_path, monkeypatch):
  workdir, config, dataset = run
  monkeypatch.setattr(data, 'load', lambda *_: dataset)
  copy = tmp_path / 'w'
  shutil.copytree(workdir, copy)
  whole, places = checkpoint.Checkpointer.restore, iter(('3', '5'))
  def restore(self, step, abstract_state):
    for place in places:
      (copy / 'checkpoints' / str(step)).rename(copy / 'checkpoints' / place)
      break
    return whole(self, step, abstract_state)
  monkeypatch.setattr(checkpoint.Checkpointer, 'restore', restore)
  assert _use('evaluate', copy, config) == _use('evaluate', workdir, config)


def _state(step):
  draw = np.random.default_rng(step)
  return {'table': jnp.asarray(  # Random bits: they are not compressed.
      draw.integers(0, 1 << 32, (128, 128), np.uint32)),
          'half': jnp.asarray(draw.normal(size=512), jnp.bfloat16),
          'codes': jnp.asarray(draw.integers(0, 256, (300, 3)), jnp.int32)}


def _find(folder, array):
  """The file of a checkpoint that has an array as it is, and where in it."""
  begin = np.asarray(array).tobytes()[:64]
  for path in sorted((folder / 'state').rglob('*')):
    if path.is_file() and begin in path.read_bytes():
      return path, path.read_bytes().index(begin)
  raise AssertionError('no file has it')


@pytest.mark.parametrize('count', [
    10, pytest.param(60, marks=pytest.mark.slow)])
def test_flipped_bits_in_arrays_are_noticed(tmp_path, count):
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    for step in (1, 2):
      saver.save(step, _state(step), {})
  table = _state(2)['table']
  path, place = _find(tmp_path / '2', table)
  whole, draw = path.read_bytes(), np.random.default_rng(count)
  with checkpoint.Checkpointer(str(tmp_path), read_only=True) as saver:
    for _ in range(count):
      _flip(path, int(8 * place + draw.integers(table.nbytes * 8)))
      with pytest.raises(types.InputError, match=(
          r"/2: damaged checkpoint: state\['table'\] has another hash")
                         ) as error:
        saver.restore(2, _state(0))
      assert '1 is whole: to go on from there move 2 out of' in str(error.value)
      assert '\n' not in str(error.value)
      path.write_bytes(whole)
    saver.restore(2, _state(0))


def test_another_hash_names_the_leaf(tmp_path, monkeypatch):
  """As where the file system, or what decodes, gives other bits back."""
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    saver.save(1, _state(1), {})
    saver.wait()
    manager = saver._manager  # pylint: disable=protected-access
    restore = manager.restore

    def changed(step, args):
      out = restore(step, args=args)
      if 'state' in out:
        table = np.array(out['state']['table'])
        table.view(np.uint32)[3, 5] ^= 1 << 30
        return {'state': {**out['state'], 'table': table}}
      return out

    monkeypatch.setattr(manager, 'restore', changed)
    with pytest.raises(types.InputError, match=(
        r"/1: damaged checkpoint: state\['table'\] has another hash .* none "
        'before it is whole')):
      saver.restore(1, _state(0))


@pytest.mark.parametrize('raised, message', [
    (PermissionError(13, 'Permission denied'), 'no permission'),
    (MemoryError(), 'not enough memory'),
    (ValueError('RESOURCE_EXHAUSTED: bad_alloc'), 'not enough memory'),
    (RuntimeError('UNAVAILABLE: Connection reset by peer'),
     'a process of the run was lost'),
    (OSError(28, 'No space left on device'), 'no space left')])
def test_other_failures_have_their_own_names(
    tmp_path, monkeypatch, raised, message):
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    saver.save(1, _state(1), {})
    saver.wait()

    def fail(*unused, **unused_too):
      raise raised

    with monkeypatch.context() as patch:
      patch.setattr(
          saver._manager, 'restore', fail)  # pylint: disable=protected-access
      with pytest.raises(types.InputError, match=message) as error:
        saver.restore(1, _state(0))
  for word in ('damaged', 'remove', 'delete', 'move'):
    assert word not in str(error.value)


def test_checkpoint_without_hashes_is_opened(tmp_path, caplog):
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    saver.save(1, _state(1), {'a': 1})
  path = tmp_path / '1' / 'host' / 'metadata'
  record = json.loads(path.read_text())
  path.write_text(json.dumps(
      {key: record[key] for key in ('host', 'config', 'fingerprint')}))
  with checkpoint.Checkpointer(str(tmp_path)) as saver:
    state, host = saver.restore(1, _state(0))
  assert host == {'a': 1}
  jax.tree.map(np.testing.assert_array_equal, state, _state(1))
  assert 'without hashes' in caplog.text


@pytest.mark.parametrize('damage', [
    'cut', 'empty', 'missing', 'list', 'flipped bit'])
def test_trie_file(tmp_path, damage):
  path = pathlib.Path(tmp_path, 'trie.npz')
  trie.save(str(path), trie.build(np.arange(600).reshape(300, 2) % 40 + (
      np.arange(300)[:, None] // 20)))
  DAMAGES[damage](path)
  with pytest.raises(types.InputError, match='trie.npz: ') as error:
    trie.load(str(path))
  assert '\n' not in str(error.value)
