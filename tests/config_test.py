"""Shared values, the words after the colon, ranges, and their errors."""

import configparser
import pathlib

import pytest

from sidrec import config as config_lib
from sidrec import evaluate
from sidrec import types
from tests import config_reads
from tests import tiny_run

NAMES = config_lib.names()
CODES = ('tiger', 'cost', 'letter', 'rqkmeans', 'pq', 'random_codes',
         'category_codes')


@pytest.fixture(name='root', autouse=True)
def _root(tmp_path, monkeypatch):
  """A folder of data sets: two that are, one that is not."""
  for name in ('shop', 'books', 'empty'):
    (tmp_path / name).mkdir()
  (tmp_path / 'shop' / 'events.csv').touch()
  (tmp_path / 'books' / 'events.parquet').touch()
  (tmp_path / 'note.txt').touch()
  monkeypatch.setenv('SIDREC_DATA', str(tmp_path))
  return tmp_path


def _one_line(call, *args, **kwargs):
  """Returns the message of the InputError that a call ends with."""
  with pytest.raises(types.InputError) as error:
    call(*args, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


# Stages.


@pytest.mark.parametrize('length, rows, want', [
    ('1000 steps', 5, 1000), ('1 step', 7, 1), ('2.5 steps', 5, 3),
    ('0 steps', 5, 0), ('30 epochs', 160, 300), ('2.5epochs', 1001, 157),
    ('.5 epochs', 1, 1), ('1 epoch', 17, 2),
    # Exact: 2.3 * 1600 / 16 is a little more than 230 in floating point.
    ('2.3 epochs', 1600, 230)])
def test_steps(length, rows, want):
  settings = config_lib.stage(length, batch_size=16, learning_rate=1)
  assert config_lib.steps(settings, rows) == want


def test_num_steps_wins_over_the_length():
  settings = config_lib.stage('30 epochs', 16, 1e-3, num_steps=-1)
  assert config_lib.steps(settings, 160) == 300
  for num in (7, 0):
    settings.num_steps = num
    assert config_lib.steps(settings, 160) == num
  assert config_lib.steps(tiny_run.config('popularity').train, 5) == 0


@pytest.mark.parametrize('length', [
    '', '1000', 'ten steps', '3 weeks', '-1 steps', '1/2 epochs', 'nan steps',
    '1e3 steps', '10 %'])
def test_a_length_that_does_not_parse_names_its_key(length):
  settings = config_lib.stage(length, 16, 1e-3)
  assert f'config.tokenizer_train.length={length!r}: ' in _one_line(
      config_lib.steps, settings, 10, key='tokenizer_train')


def test_a_stage_is_typed_and_whole():
  settings = config_lib.stage('1 step', 2, 1, weight_decay=0, row_items=8)
  assert settings.to_dict() == dict(
      length='1 step', batch_size=2, learning_rate=1., weight_decay=0.,
      warmup=0, clip=1., row_items=8)
  assert isinstance(settings.weight_decay, float)


# Shared values.


@pytest.mark.parametrize('name', NAMES)
def test_experiments_are_whole_and_pass_the_checks(name):
  for arg in (None, '', 'runlocal', 'seed=3,planted,runlocal', 'shop'):
    config = config_lib.load_experiment(name, arg)
    evaluate.check(config)
    assert (config.label or config.method) == name
    assert config_lib.identity(config)['method'] == config.method
  assert config_lib.load_experiment(name, 'seed=3').seed == 3
  assert config.data.name == 'shop'
  assert 'config.nothing: no such key' in _one_line(
      config_lib.load_experiment, name, 'nothing=3')


def test_only_whose_method_reads_them_has_keys():
  leaves = {name: config_reads.leaves(tiny_run.config(name)) for name in NAMES}
  having = lambda key: {name for name in NAMES if any(
      leaf == key or leaf.startswith(f'{key}.') for leaf in leaves[name])}
  rankers = {'dig', 'ranker'}
  trained = {'tiger', 'cost', 'letter'}
  for key, want in {
      'train.embedding_learning_rate': rankers, 'train.pair_weight': rankers,
      'train.embedding_weight_decay': rankers, 'train.rank_negatives': rankers,
      'train.retrieval_batch_size': {'dig'}, 'loss': {'dig'},
      'train.length': set(NAMES) - {'popularity'},
      'train.num_steps': set(NAMES),
      'train.negatives': {'sasrec'}, 'train.row_items': {'sasrec'},
      'codes': set(CODES), 'vectors': set(CODES), 'generator': set(CODES),
      'tokenizer': {'dig', *CODES}, 'tokenizer_train': trained,
      'collaborative': {'letter'}, 'model': {'sasrec', *rankers},
      'tokenizer.collisions': set(), 'train.log_every': set(),
      'data.planted': set(NAMES), 'run': set(NAMES)}.items():
    assert having(key) == want, key


@pytest.mark.parametrize('word', ['', 'decoder', 'runlocal'])
def test_a_comparison_of_codes_holds_generator_and_training_fixed(word):
  configs = [config_lib.load_experiment(name, word) for name in CODES]
  for config in configs[1:]:
    for key in ('generator', 'train', 'data', 'eval', 'run'):
      assert config[key].to_dict() == configs[0][key].to_dict()
  want = config_lib.GENERATORS[
      {'': 't5', 'runlocal': 'small'}.get(word, word)]()
  assert configs[0].generator.to_dict() == want['generator'].to_dict()
  assert configs[0].train.to_dict() == want['train'].to_dict()


def test_dig_and_its_base_share_tower_and_training():
  for word in ('', 'runlocal'):
    dig, ranker = (
        config_lib.load_experiment(name, word) for name in ('dig', 'ranker'))
    assert dig.model.to_dict() == ranker.model.to_dict()
    assert ranker.train.to_dict().items() <= dig.train.to_dict().items()
    # Retrieval alone asks what was seen.
    assert dig.data.to_dict() == {
        **ranker.data.to_dict(), 'seen_length': dig.data.seen_length}


def test_shared_values_are_made_anew():
  first = config_lib.GENERATORS['decoder']()
  first['train'].batch_size = 1
  assert config_lib.GENERATORS['decoder']()['train'].batch_size == 16


def test_no_setting_hangs_on_the_name_of_a_data_set(root):
  (root / 'kuairand-pure-14d').mkdir()
  for name in ('dig', 'ranker'):
    named = config_lib.load_experiment(name, 'kuairand-pure-14d')
    named.data.name = 'planted'
    assert named.to_dict() == config_lib.load_experiment(name).to_dict()


# Words.


def test_words_come_in_order_and_runlocal_last_of_them():
  words = {'runlocal': {'train.batch_size': 4, 'run.log_every': 5},
           'wide': {'train.batch_size': 9, 'eval.beam_size': 7},
           'wider': {'eval.beam_size': 8}}
  def made(arg):
    config = config_lib.base_config()
    config.update(config_lib.RANKERS['din']())
    config = config_lib.apply(config, arg, **words)
    return (config.data.name, config.train.batch_size, config.eval.beam_size,
            config.run.log_every)
  assert made(' , ') == ('planted', 512, 100, 20)
  assert made('run.log_every=6,runlocal, shop ,wide') == ('shop', 4, 7, 6)
  assert made('wider,wide') == ('planted', 9, 7, 20)
  assert made('wide,wider') == ('planted', 9, 8, 20)


@pytest.mark.parametrize('arg', ['shop,decodr', 'decodr', 'a b', 'note.txt'])
def test_an_unknown_word_is_refused_with_both_lists(root, arg):
  message = _one_line(config_lib.load_experiment, 'tiger', arg)
  assert repr(arg.split(',')[-1]) in message
  assert '(decoder, runlocal)' in message
  assert '(planted, books, shop; ' in message and str(root) in message


def test_names_are_looked_up_where_the_words_say(root, monkeypatch):
  monkeypatch.setenv('SIDREC_DATA', str(root / 'nowhere'))
  assert '(planted; ' in _one_line(config_lib.load_experiment, 'dig', 'shop')
  config = config_lib.load_experiment('dig', f'shop,data.root={root}')
  assert (config.data.name, config.data.root) == ('shop', str(root))
  monkeypatch.delenv('SIDREC_DATA')
  assert config_lib.data_root() == str(
      pathlib.Path('~/sidrec_data').expanduser())


def test_two_data_sets_are_refused():
  assert 'names 2 data sets (planted, shop)' in _one_line(
      config_lib.load_experiment, 'dig', 'planted,shop')


# Keys.


@pytest.mark.parametrize('key, value, want', [
    ('train.num_steps', '7', 7), ('train.learning_rate', '1e-3', 1e-3),
    ('train.learning_rate', 1, 1.), ('data.item_stats', 'false', False),
    ('data.item_stats', 'True', True), ('data.dir', '~/x', '~/x'),
    ('train.length', '3 epochs', '3 epochs'),
    ('data.planted.noise', '2', 2.)])
def test_set_key(key, value, want):
  config = tiny_run.config()
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
  assert message in _one_line(
      config_lib.set_key, tiny_run.config(), key, value)


def test_a_slash_parts_the_values_of_a_tuple():
  config = tiny_run.config('tiger')
  config_lib.set_key(config, 'tokenizer.hidden', '64/32')
  assert config.tokenizer.hidden == (64, 32)
  config = tiny_run.config('category_codes')
  config_lib.set_key(config, 'tokenizer.fields', 'leaf/brand')
  assert config.tokenizer.fields == ('leaf', 'brand')
  assert 'expected tuple' in _one_line(
      config_lib.set_key, tiny_run.config('tiger'), 'tokenizer.hidden', 'x')


def test_levels_may_have_sizes_of_their_own():
  config = tiny_run.config('tiger')
  config_lib.set_key(config, 'tokenizer.codebook_size', '32/40/19')
  assert config.tokenizer.codebook_size == (32, 40, 19)
  config_lib.set_key(config, 'tokenizer.codebook_size', (8, 6, 4))
  assert config.tokenizer.codebook_size == (8, 6, 4)
  config_lib.set_key(config, 'tokenizer.codebook_size', 16)
  assert config.tokenizer.codebook_size == 16
  assert 'expected' in _one_line(
      config_lib.set_key, config, 'tokenizer.codebook_size', 'a/b')
  assert 'train.batch_size=3/4: expected int' in _one_line(
      config_lib.set_key, config, 'train.batch_size', '3/4')


def test_the_name_of_a_generator_brings_the_whole_of_it():
  by_key = config_lib.load_experiment(
      'rqkmeans', 'train.batch_size=8,generator.name=decoder')
  by_word = config_lib.load_experiment('rqkmeans', 'decoder,train.batch_size=8')
  assert by_key.to_dict() == by_word.to_dict()
  config_lib.set_key(by_key, 'generator.name', 'decoder')  # Is there: no news.
  assert by_key.train.batch_size == 8
  config_lib.set_key(by_key, 'generator.name', 't5')
  assert 'row_items' not in by_key.train
  config = config_lib.load_experiment('rqkmeans', 'vectors.name=sasrec')
  evaluate.check(config)
  assert config.vectors.train.row_items == 64


def test_a_name_without_what_it_brings_is_refused():
  config = config_lib.load_experiment('tiger')
  config.generator.name = 'decoder'
  assert 'config.generator.name=decoder: comes with' in _one_line(
      evaluate.check, config)
  config = config_lib.load_experiment('tiger')
  config.vectors.name = 'sasrec'
  assert 'config.vectors.model' in _one_line(evaluate.check, config)


def test_widths_that_must_agree_are_one_number():
  config = config_lib.load_experiment('letter', 'tokenizer.latent_dim=8')
  assert config.collaborative.model.dim == 8


# Ranges.


@pytest.mark.parametrize('method, key, value', [
    ('dig', 'num_seeds', 0), ('dig', 'seed', -1),
    ('dig', 'train.batch_size', 0), ('dig', 'train.num_steps', -2),
    ('dig', 'train.learning_rate', -1.),
    ('dig', 'train.learning_rate', float('nan')),
    ('dig', 'train.learning_rate', float('inf')),
    ('dig', 'train.length', '1 %'), ('dig', 'train.length', 'long'),
    ('dig', 'train.clip', 0.), ('dig', 'train.warmup', -1),
    ('dig', 'train.embedding_weight_decay', -2.),
    ('dig', 'train.pair_rows', 0), ('dig', 'eval.beam_size', 0),
    ('dig', 'eval.validations', 0), ('dig', 'eval.every', -1),
    ('dig', 'run.log_every', 0), ('dig', 'run.prefetch', 0),
    ('dig', 'data.history_length', 0), ('dig', 'checkpoint.keep', 0),
    ('dig', 'parallel.wrapper', 'mpi'), ('dig', 'data.cross', 'some'),
    ('dig', 'data.history', 'clicks'), ('dig', 'data.split', 'random'),
    ('popularity', 'train.num_steps', -1),
    ('letter', 'tokenizer_train.batch_size', 0),
    ('letter', 'tokenizer_train.length', '3'),
    ('letter', 'tokenizer_train.between_epochs', -1),
    ('letter', 'collaborative.train.length', 'all'),
    ('letter', 'collaborative.train.negatives', -1),
    ('letter', 'collaborative.model.num_heads', 0),
    ('letter', 'codes.suffix_size', 0), ('letter', 'codes.least_entropy', -1.),
    ('letter', 'generator.num_heads', 0), ('letter', 'generator.dropout', -.1),
    ('letter', 'generator.name', 't6'), ('letter', 'vectors.name', 'words'),
    ('sasrec', 'model.num_layers', 0), ('sasrec', 'train.row_items', 1)])
def test_check_names_the_key(method, key, value):
  config = tiny_run.config(method)
  evaluate.check(config)
  config_lib.set_key(config, key, value)
  assert f'config.{key}=' in _one_line(evaluate.check, config)


def test_identity_is_what_is_learned_from():
  def same(key, value):
    config = tiny_run.config()
    before = config_lib.identity(config)
    config_lib.set_key(config, key, value)
    return config_lib.identity(config) == before
  for key, value in (
      ('run.log_every', 1), ('run.prefetch', 9), ('eval.beam_size', 9),
      ('eval.remove_seen', True), ('parallel.wrapper', 'vmap'),
      ('checkpoint.keep', 7), ('num_seeds', 3), ('seed', 4),
      ('data.root', '/x')):
    assert same(key, value), key
  for key, value in (
      ('train.length', '9 epochs'), ('data.seed', 1), ('data.dir', 'x'),
      ('tokenizer.tau', .1), ('label', 'x')):
    assert not same(key, value), key


# Experiments by name.


def test_experiments_by_name_and_by_path(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('import ml_collections\ndef get_config(arg=None):\n'
                  '  return ml_collections.ConfigDict(dict(got=arg))\n')
  assert config_lib.load_experiment(str(path), 'x').got == 'x'
  assert config_lib.find_experiment('tiger').endswith('tiger.py')
  for name in ('tigger', 'tigger.py', str(tmp_path)):
    message = _one_line(config_lib.load_experiment, name)
    assert f'no file {name!r}' in message and 'ranker, rqkmeans' in message


def test_arguments_name_a_file_and_say_all_words():
  file = config_lib.find_experiment('tiger')
  assert config_lib.arguments(['--workdir=w', '--config=tiger']) == [
      '--workdir=w', f'--config={file}']
  assert config_lib.arguments(
      ['-config', 'tiger:decoder', '--config.seed=3', '--x', 'y']) == [
          f'--config={file}:decoder', '--config.seed=3', '--x', 'y']
  assert config_lib.arguments([
      '--config.data.root=/there', f'--config={file}:shop',
      '--config.generator.name=decoder', '--config.train.num_steps=1']) == [
          f'--config={file}:shop,data.root=/there,generator.name=decoder',
          '--config.train.num_steps=1']
  assert config_lib.arguments(['--help']) == ['--help']
  assert '--config=tigger: no file' in _one_line(
      config_lib.arguments, ['--config=tigger:planted'])


def test_an_install_has_every_package_and_the_experiments():
  setup = configparser.ConfigParser()
  setup.read(tiny_run.ROOT / 'setup.cfg')
  found = {'.'.join(path.parent.relative_to(tiny_run.ROOT).parts)
           for path in (tiny_run.ROOT / 'sidrec').rglob('__init__.py')}
  assert set(setup['options']['packages'].split()) == {
      *found, 'sidrec.experiments'}
