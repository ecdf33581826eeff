"""What every setting may be, told before any data are read."""

import functools
import pathlib
import re
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest

from sidrec import config as config_lib
from sidrec import evaluate
from sidrec import methods
from sidrec import types
from sidrec.config import checks
from sidrec.config import ranges
from sidrec.evaluate import selection
from sidrec.evaluate import settings
from sidrec.train import loop
from tests import config_reads
from tests import method_worlds
from tests import tiny_run

NAN, INF = float('nan'), float('inf')
WHOLE, NUMBER, ONE_OF = 'a whole number from ', 'a number from ', 'one of '
# Experiment and words -> key -> values that it may not have, and why.
STAGE = {
    'length': (['', '10', 'long', '-1 steps', 'nan steps', '1e3 steps',
                f'{10**10} steps', f'{"9" * 99} epochs'], 'a number and its'),
    'batch_size': ([0, -1, 2**31, 10**30], WHOLE),
    'learning_rate': ([-1., NAN, INF, 1e39], NUMBER),
    'weight_decay': ([-1., NAN, INF], NUMBER),
    'warmup': ([-1, 2**31], WHOLE), 'clip': ([-1., 0., NAN, INF], NUMBER)}
TRUNK = {
    'dim': ([0, -1, 10**9], WHOLE), 'num_layers': ([0, 10**6], WHOLE),
    'num_heads': ([0, 3, 10**6], 'dim a multiple of'),
    'dropout': ([-.1, 1., NAN], NUMBER), 'trunk': (['lstm', ''], ONE_OF)}
ROWS = {'row_items': ([1, 5, 10**9], 'more than data.history_length'),
        'negatives': ([-1, 10**10], WHOLE)}


def _under(prefix, table):
  return {f'{prefix}.{key}': row for key, row in table.items()}


BAD = {
    'popularity': {
        'seed': ([-1, 2**32], WHOLE),
        'num_seeds': ([0, -3, 2**32], 'the last seed'),
        'method': (['digg', ''], ONE_OF), 'label': (['two\nlines'], 'one line'),
        'data.name': (['', ' '], 'a name'), 'data.dir': (['a\0b'], 'one line'),
        'data.seed': ([-1, 2**32], WHOLE),
        'data.history_length': ([0, 10**9], WHOLE),
        'data.history': (['clicks'], ONE_OF), 'data.cross': (['some'], ONE_OF),
        'data.split': (['random'], ONE_OF),
        'data.history_vectors': ([-1, 10**9], WHOLE),
        'data.eval_negatives': ([-1, 10**9], WHOLE),
        'data.planted.num_users': ([0, 10**12], WHOLE),
        'data.planted.num_items': ([1, 10**12], WHOLE),
        'data.planted.events_per_user': ([0., NAN, 1e300], NUMBER),
        'data.planted.days': ([0, 4], 'more than valid_days'),
        'data.planted.noise': ([0., NAN, INF], NUMBER),
        'data.planted.repeat_rate': ([-.1, 1.1, NAN], NUMBER),
        'train.num_steps': ([-1, 10**12], WHOLE),
        'run.log_every': ([0, 10**12], WHOLE), 'run.prefetch': ([0], WHOLE),
        'eval.beam_size': ([0, 10**9], WHOLE),
        'eval.batch_size': ([0, 10**9], WHOLE),
        'eval.users_per_batch': ([0, 10**9], WHOLE),
        'eval.valid_users': ([-1, 2**31], WHOLE),
        'eval.validations': ([0], WHOLE), 'eval.every': ([-1, 2**31], WHOLE),
        'eval.patience': ([-1], WHOLE), 'checkpoint.keep': ([0], WHOLE),
        'parallel.wrapper': (['mpi'], ONE_OF)},
    'ranker': {
        **_under('train', STAGE),
        'train.num_steps': ([-2, 10**12], WHOLE),
        'train.embedding_learning_rate': ([-1., NAN], NUMBER),
        'train.embedding_weight_decay': ([-2., INF], NUMBER),
        'train.rank_negatives': ([0, 10**9], WHOLE),
        'train.pair_weight': ([-1., NAN], NUMBER),
        'train.pair_rows': ([0], WHOLE), 'model.dim': ([0, 10**9], WHOLE),
        'model.id_dim': ([-1, 10**9], WHOLE), 'model.hidden': ([0], WHOLE),
        'model.init_scale': ([-1., NAN], NUMBER),
        'model.experts': ([0, 10**9], WHOLE)},
    'sasrec': {
        **_under('train', ROWS), **_under('model', TRUNK)},
    'dig': {
        'train.retrieval_batch_size': ([0, -1], WHOLE),
        'train.retrieval_negatives': ([0], WHOLE),
        'train.retrieval_seen_negatives': ([-1], WHOLE),
        'tokenizer.codebook_size': (
            [-1, 1, (4, 4), 10**8, (2**20,) * 4], '0 for the default'),
        'tokenizer.num_levels': ([0, 65], WHOLE),
        'tokenizer.tau': ([0., -1., NAN], NUMBER),
        'tokenizer.slack': ([.5, INF], NUMBER),
        'tokenizer.ema_decay': ([-.1, 1.1], NUMBER),
        'tokenizer.assignment': (['best'], ONE_OF),
        'tokenizer.name': (['rqvae'], ONE_OF),
        'loss.warmup': ([-.1, 1.1], NUMBER), 'loss.freeze': ([2.], NUMBER),
        'loss.rank': ([-1., NAN], NUMBER), 'loss.leaf': (['id'], ONE_OF),
        'loss.reassign_every': ([-1], WHOLE), 'eval.score': (['max'], ONE_OF)},
    'letter': {
        **_under('tokenizer_train', STAGE),
        'tokenizer_train.between_epochs': ([-1], WHOLE),
        **_under('collaborative.train', {**STAGE, **ROWS}),
        'collaborative.model.num_heads': ([0, 3], WHOLE),
        'tokenizer.codebook_size': ([0, 1, (8, 8, 8), 2**32], '2 to '),
        'tokenizer.num_levels': ([0, 65], WHOLE),
        'tokenizer.hidden': ([(0,), (8, 10**9)], 'each a whole number'),
        'tokenizer.commitment': ([-1., NAN], NUMBER),
        'tokenizer.next_residual': (['both'], ONE_OF),
        'tokenizer.num_clusters': ([0, 5], 'half of the smallest'),
        'tokenizer.start_rows': ([-1, 3], 'codewords of a level'),
        'tokenizer.kmeans_steps': ([0], WHOLE),
        'tokenizer.name': (['letters'], ONE_OF),
        'vectors.name': (['words'], ONE_OF),
        'generator.name': (['t6'], ONE_OF),
        'generator.dim': ([0, 10**9], WHOLE),
        'generator.dtype': (['float99'], ONE_OF),
        'generator.dropout': ([-.1, 1.], NUMBER),
        'generator.num_user_tokens': ([-1], WHOLE),
        'codes.collisions': (['sufix'], ONE_OF),
        'codes.suffix_size': ([0, 10**12], WHOLE),
        'codes.least_entropy': ([-1., NAN], NUMBER)},
    'cost': {'tokenizer.tau': ([0., NAN], NUMBER),
             'tokenizer.contrast_weight': ([-1.], NUMBER)},
    'pq': {'tokenizer.kmeans_steps': ([0], WHOLE)},
    'rqkmeans': {'tokenizer.balance': (['even'], ONE_OF)},
    'category_codes': {'tokenizer.num_levels': ([1], WHOLE),
                       'tokenizer.codebook_size': ([1, (4, 4)], WHOLE)},
    'tiger:decoder': {'generator.head_dim': ([0, 5], 'an even one'),
                      'train.row_items': ([1, 5], WHOLE)},
    'tiger:vectors.name=sasrec': {
        **_under('vectors.train', ROWS), **_under('vectors.model', TRUNK)}}
CASES = [(name, key, value, says) for name, table in BAD.items()
         for key, (bad, says) in table.items() for value in bad]


@functools.cache
def _tiny(name):
  """Returns a small configuration that passes, as what is made of it."""
  name, _, words = name.partition(':')
  config = tiny_run.config(name, words)
  evaluate.check(config, 4)
  return config.to_dict()


def _config(name, **more):
  config = ml_collections.ConfigDict(_tiny(name))
  for key, value in more.items():
    *path, leaf = key.replace('__', '.').split('.')
    node = functools.reduce(lambda node, part: node[part], path, config)
    with node.ignore_type():
      node[leaf] = value
  return config


def _told(config, num_devices=1):
  """Returns the one line that a configuration is refused with."""
  with pytest.raises(types.InputError) as error:
    evaluate.check(config, num_devices)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_the_table_is_large():
  assert len(CASES) >= 150


@pytest.mark.parametrize('name, key, value, says', CASES)
def test_what_a_setting_may_not_be(name, key, value, says):
  told = _told(_config(name, **{key: value}))
  assert told.startswith(f'config.{key}=')
  assert says in told and '; config' not in told


@pytest.mark.parametrize('name', config_lib.names())
def test_every_leaf_of_every_experiment_has_a_range(name):
  words = {'', 'runlocal', 'vectors.name=sasrec', 'generator.name=decoder'}
  words.update(re.findall(
      r'^      (\w+)=', pathlib.Path(config_lib.find_experiment(
          name)).read_text().split('config_lib.apply(')[1], re.MULTILINE))
  for word in words:
    if '=' in word and not 'tokenizer_train' in tiny_run.config(name):
      continue
    config = config_lib.load_experiment(name, word)
    evaluate.check(config)
    rows, _ = checks._rows(config.to_dict(), settings.table())
    assert config_reads.leaves(config) == set(rows)
    for key, row in rows.items():
      assert isinstance(row, ranges.Range) and row.says
      # Of no type, of another one, and no number at all.
      assert not any(row.holds(x) for x in (None, {}, [None], NAN, INF)), key
  config.train.new = 1.
  assert 'config.train.new=1.0: nothing reads it' in _told(config)


def test_all_that_is_wrong_is_told_at_once():
  told = _told(_config('dig', seed=-1, train__clip=-1., loss__warmup=2.))
  assert told.count('; ') == 2
  for key in ('config.seed=-1: ', 'config.train.clip=-1.0: ',
              'config.loss.warmup=2.0: '):
    assert key in told
  # Of a number that has no text as well.
  assert 'config.seed=2**' in _told(_config('dig', seed=10**5000))


def test_tuples_have_numbers():
  evaluate.check(_config('pq', tokenizer__num_levels=20))
  assert 'config.tokenizer.codebook_size=8: ' in _told(
      _config('pq', tokenizer__num_levels=21))  # 2 ** 63.


def test_the_last_of_the_seeds_is_a_seed():
  evaluate.check(_config('popularity', seed=2**32 - 3, num_seeds=3))
  assert 'config.num_seeds=3: ' in _told(
      _config('popularity', seed=2**32 - 2, num_seeds=3))


@pytest.mark.parametrize('name, key', [
    ('dig', 'train.batch_size'), ('dig', 'train.retrieval_batch_size'),
    ('letter', 'train.batch_size'), ('letter', 'tokenizer_train.batch_size'),
    ('letter', 'collaborative.train.batch_size'),
    ('tiger:vectors.name=sasrec', 'vectors.train.batch_size')])
def test_every_batch_divides_by_the_devices(name, key):
  config = _config(name, **{key: 30})
  evaluate.check(config)
  told = _told(config, 4)
  assert told.startswith(f'config.{key}=30: ') and 'a multiple of 4' in told
  config.train.num_steps = 0  # Nothing is trained.
  evaluate.check(config, 4)


def test_what_is_not_there_and_what_nothing_reads():
  config = _config('dig')
  del config.loss.rank, config.eval, config.seed
  config.train.stepz = 3
  told = _told(config)
  assert 'config.method=dig: comes with ' in told
  for key in ('config.loss.rank', 'config.eval', 'config.seed'):
    assert key in told
  assert 'config.train.stepz=3: nothing reads it' in told
  assert 'config.method' in _told(ml_collections.ConfigDict())
  assert "config.train=3: nothing reads it" in _told(_config('dig', train=3))


@pytest.mark.parametrize('monitor', [
    {}, {'ranking/acu': 1.}, {'retrieval/recall@7': 1.}, {'ranking/auc': NAN},
    {'ranking/auc': INF}, {'ranking/auc': 0.}, {'ranking/auc': '1'},
    {'oracle/ranking/auc': 1.}])
def test_what_a_run_is_selected_by(monitor):
  config = _config('dig')
  config.eval.monitor = ml_collections.ConfigDict(monitor)
  told = _told(config)
  assert told.startswith('config.eval.monitor=') and 'ranking/auc' in told


def test_a_method_has_the_metrics_that_it_is_selected_by():
  for name, metric in (
      ('ranker', 'retrieval/recall@10'), ('sasrec', 'ranking/auc'),
      ('sasrec', 'unified/auc_gap')):
    config = tiny_run.config(name)
    config.eval.monitor = ml_collections.ConfigDict({metric: 1.})
    evaluate.check(config)
    method = methods.get(name).make(config, method_worlds.planted())
    with pytest.raises(types.InputError, match=f'monitor names {metric}'):
      evaluate.check_monitor(method)
  levels = selection.names(False, True, False, 2)
  assert 'tokenizer/usage@2' in levels and 'tokenizer/usage@3' not in levels


# Files.

@pytest.mark.parametrize('text, says', [
    ('def get_config(arg=None):\n  x = (\n', 'mine.py, line 2: SyntaxError: '),
    ('\ndef get_config(arg=None):\n  return {}[arg]\n',
     'mine.py, line 3: KeyError'),
    ('import nothing_there\n', 'mine.py, line 1: ModuleNotFoundError'),
    ('import sys\nsys.exit(3)\n', 'mine.py, line 2: SystemExit'),
    ('x = 1\n', 'get_config'), ('def get_config(arg):\n  pass\n', 'TypeError'),
    ('\0\1', 'SyntaxError'), ('def get_config(arg=None):\n  return 3\n', 'int'),
    ('def get_config(arg=None):\n  return None\n',
     'it must return a ConfigDict')])
def test_a_file_that_gives_no_configuration(text, says, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  with pytest.raises(types.InputError) as error:
    config_lib.load_experiment(str(path))
  assert says in str(error.value) and str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_a_file_of_another_kind(tmp_path):
  (tmp_path / 'data.csv').write_text('a,b\n')
  for name in (tmp_path / 'data.csv', tmp_path / 'none.py', tmp_path):
    with pytest.raises(types.InputError, match='--config='):
      config_lib.load_experiment(str(name))


@pytest.mark.parametrize('words, says', [
    (['--config=dig', '--config.train.clip=-1', '--config.seed=-1'],
     ['config.seed=-1: ', 'config.train.clip=-1.0: ']),
    (['--config=dig', '--config.train.batch_size=30'], ['a multiple of 4']),
    pytest.param(
        ['--config={}/mine.py'], ['mine.py, line 2: SyntaxError'],
        marks=pytest.mark.slow),
    pytest.param(
        ['--config={}/empty.py'], ['config.method', 'base_config'],
        marks=pytest.mark.slow)])
def test_the_command_tells_it_in_one_line(words, says, tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config(arg=None):\n  x = (\n')
  (tmp_path / 'empty.py').write_text(
      'import ml_collections\n'
      'def get_config(arg=None):\n  return ml_collections.ConfigDict()\n')
  found = subprocess.run(
      [sys.executable, '-m', 'sidrec.main', f'--workdir={tmp_path}/run',
       *(word.format(tmp_path) for word in words)], cwd=tiny_run.ROOT,
      text=True, capture_output=True, check=False)
  assert found.returncode == 2 and not found.stdout
  line, = found.stderr.splitlines()
  assert line.startswith('sidrec: ')
  assert all(part in line for part in says)
  assert not (tmp_path / 'run').exists()


def test_a_state_that_no_device_holds():
  state = lambda rows: types.TrainState(
      params={'head': jax.ShapeDtypeStruct((rows, 1 << 16), np.float32)},
      variables={}, opt_state={}, clock={}, seed=np.zeros([], np.uint32))
  loop._check_memory(state(2))
  with pytest.raises(types.InputError, match='GB.*head.*65536'):
    loop._check_memory(state(1 << 30))
