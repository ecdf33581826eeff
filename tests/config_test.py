"""The grammar after the colon, its errors, and that every leaf is read."""

import ast

import ml_collections
import pytest

from sidrec import config as config_lib
from sidrec import types
from tests import tiny_run

EXPERIMENTS = sorted(
    path.stem for path in (tiny_run.ROOT / 'experiments').glob('*.py'))


def _leaves(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value


def _read_names():
  """Every name that the package reads as an attribute, argument or key."""
  names = set()
  for path in sorted((tiny_run.ROOT / 'sidrec').rglob('*.py')):
    if path.name == 'config.py':
      continue  # It writes them all.
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        names.add(node.attr)
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        names.add(node.value)
      elif isinstance(node, ast.AnnAssign) and isinstance(
          node.target, ast.Name):
        names.add(node.target.id)  # A field that takes `**config`.
  return names


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_leaf_is_read_somewhere(name):
  read = _read_names()
  config = tiny_run.experiment(name).get_config()
  unread = []
  for key, _ in _leaves(config):
    # Keys of `monitor` are names of metrics, read as a whole.
    if not key.startswith('eval.monitor.') and key.split('.')[-1] not in read:
      unread.append(key)
  assert not unread


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_experiments_are_whole_and_pass_the_checks(name):
  experiment = tiny_run.experiment(name)
  for arg in (None, '', 'runlocal', 'seed=3,planted,runlocal', 'amazon23-mini'):
    config = experiment.get_config(arg)
    config_lib.check(config)
    assert (config.label or config.method) == name
    identity = config_lib.identity(config)
    assert 'eval' not in identity and identity['method'] == config.method
  assert experiment.get_config('seed=3').seed == 3
  assert experiment.get_config('my_folder').data.name == 'my_folder'
  with pytest.raises(types.InputError, match='config.nothing: no such key'):
    experiment.get_config('nothing=3')


@pytest.mark.parametrize('arg, want', [
    (None, ({}, [])), ('', ({}, [])), (' , ', ({}, [])),
    ('a.b=1', ({'a.b': '1'}, [])), ('x', ({}, ['x'])),
    ('x, a=1 ,b=c=d', ({'a': '1', 'b': 'c=d'}, ['x'])),
    ('runlocal', ({'train.num_steps': 5}, [])),
    ('runlocal,train.num_steps=9', ({'train.num_steps': '9'}, [])),
])
def test_parse_arg(arg, want):
  assert config_lib.parse_arg(
      arg, {'runlocal': {'train.num_steps': 5}}) == want


def test_two_data_sets_are_refused():
  with pytest.raises(types.InputError, match='names 2 data sets'):
    config_lib.parse_arg('planted,kuairand', {})


@pytest.mark.parametrize('key, value, want', [
    ('train.num_steps', '7', 7), ('train.learning_rate', '1e-3', 1e-3),
    ('train.learning_rate', 1, 1.), ('data.item_stats', 'false', False),
    ('data.item_stats', 'True', True), ('data.dir', '~/x', '~/x'),
    ('data.planted.noise', '2', 2.)])
def test_set_key(key, value, want):
  config = config_lib.base_config()
  config_lib.set_key(config, key, value)
  node = config
  for part in key.split('.'):
    node = node[part]
  assert node == want and type(node) is type(want)


@pytest.mark.parametrize('key, value, message', [
    ('train.steps', 1, 'config.train.steps: no such key'),
    ('trian.num_steps', 1, 'config.trian.num_steps: no such key'),
    ('seed.x', 1, 'config.seed.x: no such key'),
    ('train.num_steps', 'ten', 'config.train.num_steps=ten: expected int'),
    ('train.num_steps', 1.5, 'config.train.num_steps=1.5: expected int'),
    ('data.item_stats', 'maybe', 'expected bool'),
    ('train', '3', 'config.train=3: expected ConfigDict')])
def test_set_key_names_what_is_wrong(key, value, message):
  with pytest.raises(types.InputError) as error:
    config_lib.set_key(config_lib.base_config(), key, value)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_slash_parts_the_values_of_a_tuple():
  config = tiny_run.config('tiger')
  config_lib.set_key(config, 'tokenizer.hidden', '64/32')
  assert config.tokenizer.hidden == (64, 32)
  config = tiny_run.config('category_codes')
  config_lib.set_key(config, 'tokenizer.fields', 'leaf/brand')
  assert config.tokenizer.fields == ('leaf', 'brand')
  with pytest.raises(types.InputError, match='expected tuple'):
    config_lib.set_key(tiny_run.config('tiger'), 'tokenizer.hidden', 'x')


@pytest.mark.parametrize('key, value', [
    ('tokenizer_train.batch_size', 0), ('tokenizer_train.num_steps', 0),
    ('collaborative.num_steps', 0), ('collaborative.negatives', -1),
    ('model.num_heads', 0), ('model.dropout', -.1), ('train.row_items', 1)])
def test_check_names_the_keys_that_only_some_methods_have(key, value):
  config = tiny_run.config('letter')
  config_lib.check(config)
  config_lib.set_key(config, key, value)
  with pytest.raises(types.InputError, match=f'config.{key}=') as error:
    config_lib.check(config)
  assert '\n' not in str(error.value)


def test_apply_goes_from_data_to_words():
  per_data = {'shop': {'train.num_steps': 1, 'train.batch_size': 2, 'seed': 3}}
  runlocal = {'train.batch_size': 4, 'train.log_every': 5}
  config = config_lib.apply(
      config_lib.base_config(), 'shop,runlocal,train.log_every=6', runlocal,
      per_data)
  assert config.data.name == 'shop' and config.seed == 3
  assert config.train.num_steps == 1
  assert config.train.batch_size == 4 and config.train.log_every == 6


@pytest.mark.parametrize('key, value', [
    ('num_seeds', 0), ('seed', -1), ('train.batch_size', 0),
    ('train.num_steps', -2), ('train.learning_rate', -1.),
    ('train.learning_rate', float('nan')), ('eval.beam_size', 0),
    ('data.history_length', 0), ('checkpoint.keep', 0),
    ('parallel.wrapper', 'mpi'), ('data.cross', 'some'),
    ('data.history', 'clicks'), ('data.split', 'random')])
def test_check_names_the_key(key, value):
  config = tiny_run.config()
  config_lib.check(config)
  config_lib.set_key(config, key, value)
  with pytest.raises(types.InputError, match=f'config.{key}=') as error:
    config_lib.check(config)
  assert '\n' not in str(error.value)
