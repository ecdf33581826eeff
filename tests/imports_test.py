"""Holds the layers of the package, and the shape of its files."""

import ast
import collections
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'sidrec'

# Room (module or folder of the package) -> layer.
LAYERS = dict(
    types=0, disk=0,
    config=1, rng=1, losses=1, metrics=1, trie=1, writers=1, schedule=1,
    data=2, tokenizers=2, models=2, decode=2, distill=2,
    methods=3,
    parallel=4, checkpoint=4,
    evaluate=5,
    train=6,
    main=7, compare=7)
# Rooms that do not see every layer below them -> layers they do see.
NARROW = dict(parallel={0}, checkpoint={0}, main={0, 1, 4, 5, 6},
              compare={0, 1, 5, 6})
# Outside name -> the only rooms that may use it.
HOMES = {
    'tensorflow_datasets': {'data'}, 'array_record': {'data'},
    'pyarrow': {'data'},
    'orbax': {'checkpoint'},
    'absl.flags': {'main'}, 'absl.app': {'main'},
    'ml_collections.config_flags': {'main'},
    'jax.pmap': {'parallel'}, 'jax.shard_map': {'parallel'},
    'jax.experimental.shard_map': {'parallel'},
    'jax.distributed': {'parallel', 'main'},
}
NEVER = ('tensorflow', 'torch', 'pandas', 'experiments', 'tests')
DUMPS = {'utils', 'util', 'common', 'helpers', 'misc'}
MAX_LINES = 400
MAX_FUNCTION = 60
MAX_TRAIN_FUNCTION = 120
MACHINE = re.compile(r'(?<![\w.:/-])/(?:work|farm|root|home|Users|tmp)/')

Use = collections.namedtuple('Use', 'line name')


def _python_files(folder):
  return sorted(
      path for path in folder.rglob('*.py')
      if not any(part.startswith('.') or part.endswith('.egg-info')
                 or part in ('build', 'venv', 'env')
                 for part in path.relative_to(ROOT).parts))


def _name(path):
  return str(path.relative_to(ROOT))


SOURCES = _python_files(PACKAGE)
EVERYTHING = _python_files(ROOT)


def _room(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return parts[0]


def imports(tree):
  """Yields every imported dotted name, `from a import b` as a.b."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield Use(node.lineno, alias.name)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: relative import'
      for alias in node.names:
        yield Use(node.lineno, f'{node.module}.{alias.name}')


def attributes(tree):
  """Yields dotted names that are used, through the imports of the file."""
  known = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        first = alias.name.split('.')[0]
        known[alias.asname or first] = alias.name if alias.asname else first
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        known[alias.asname or alias.name] = f'{node.module}.{alias.name}'
  for node in ast.walk(tree):
    parts, inner = [], node
    while isinstance(inner, ast.Attribute):
      parts.append(inner.attr)
      inner = inner.value
    if parts and isinstance(inner, ast.Name) and inner.id in known:
      yield Use(node.lineno, '.'.join([known[inner.id], *reversed(parts)]))


def _is_in(name, parent):
  return name == parent or name.startswith(f'{parent}.')


def layer_errors(room, tree):
  """Lists imports of a file in `room` that the table does not allow."""
  errors = []
  for line, name in imports(tree):
    parts = name.split('.')
    if parts[0] != 'sidrec' or len(parts) < 2:
      continue
    other = parts[1]
    if other == room:
      continue
    if other not in LAYERS:
      errors.append(f'{line}: {name}: no room of that name has a layer')
    elif room not in LAYERS:
      errors.append(f'{line}: {room} has no layer')
    elif room in NARROW and LAYERS[other] not in NARROW[room]:
      errors.append(f'{line}: {room} must not import {other}')
    elif LAYERS[other] >= LAYERS[room]:
      errors.append(
          f'{line}: {room} (layer {LAYERS[room]}) imports {other} (layer '
          f'{LAYERS[other]})')
  return errors


def home_errors(room, tree):
  """Lists outside names that a file in `room` may not use."""
  errors = []
  for line, name in {*imports(tree), *attributes(tree)}:
    for outside, rooms in HOMES.items():
      if _is_in(name, outside) and room not in rooms:
        errors.append(
            f'{line}: {outside} belongs in {" and ".join(sorted(rooms))}')
    for outside in NEVER:
      if _is_in(name, outside):
        errors.append(f'{line}: {outside} is not used in this package')
  return errors


@pytest.mark.parametrize('path', SOURCES, ids=_name)
def test_layers(path):
  tree = ast.parse(path.read_text())
  if path.parent == PACKAGE and path.name == '__init__.py':
    assert not list(imports(tree)), 'sidrec itself imports nothing'
    return
  room = _room(path)
  assert room in LAYERS, f'{room}: give it a layer in design and in this test'
  errors = layer_errors(room, tree) + home_errors(room, tree)
  assert not errors, errors


@pytest.mark.parametrize('room, source, wrong', [
    ('tokenizers', 'from sidrec import models', True),
    ('tokenizers', 'from sidrec.data import tables', True),
    ('tokenizers', 'from sidrec.tokenizers import base', False),
    ('tokenizers', 'import sidrec.methods.dig', True),
    ('decode', 'from sidrec import trie, types', False),
    ('methods', 'def f():\n  from sidrec import train', True),
    ('checkpoint', 'from sidrec import rng', True),
    ('main', 'from sidrec import models', True),
    ('main', 'from sidrec import config, train', False),
    ('train', 'import pyarrow.parquet as pq', True),
    ('data', 'import pyarrow.parquet as pq', False),
    ('train', 'import orbax.checkpoint as ocp', True),
    ('train', 'from absl import flags', True),
    ('train', 'from absl import logging', False),
    ('train', 'import jax\njax.pmap(f)', True),
    ('train', 'from jax import shard_map', True),
    ('train', 'import jax as j\nj.distributed.initialize()', True),
    ('main', 'import jax\njax.distributed.initialize()', False),
    ('data', 'from experiments import dig', True),
    ('data', 'import tensorflow as tf', True),
    ('data', 'import tensorflow_datasets as tfds', False)])
def test_the_checks_find_what_they_should(room, source, wrong):
  tree = ast.parse(source)
  assert bool(layer_errors(room, tree) + home_errors(room, tree)) == wrong


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'experiments').glob('*.py')), ids=_name)
def test_experiments_import_only_config(path):
  own = [name for _, name in imports(ast.parse(path.read_text()))
         if _is_in(name, 'sidrec')]
  assert set(own) <= {'sidrec.config'}, own


@pytest.mark.parametrize('path', EVERYTHING, ids=_name)
def test_files(path):
  text = path.read_text()
  assert text.count('\n') <= MAX_LINES, 'split it'
  assert path.stem not in DUMPS, 'say in the name what is in it'
  assert not re.search(r'^\t', text, re.MULTILINE), 'two spaces, no tabs'
  if path != pathlib.Path(__file__).resolve():
    places = [n for n, line in enumerate(text.split('\n'), 1)
              if MACHINE.search(line)]
    assert not places, f'lines {places} name a path of one machine'
  if not text.strip():
    return
  assert ast.get_docstring(ast.parse(text)), 'no module docstring'
  if path.parts[len(ROOT.parts)] != 'tests':
    names = [name for _, name in imports(ast.parse(text))]
    assert not any(_is_in(name, 'experiments') for name in names)


def _public(body):
  for node in body:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      if not node.name.startswith('_'):
        yield node


@pytest.mark.parametrize('path', SOURCES, ids=_name)
def test_functions(path):
  tree = ast.parse(path.read_text())
  errors = []
  most = MAX_TRAIN_FUNCTION if _room(path) == 'train' else MAX_FUNCTION
  for node in ast.walk(tree):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      length = node.end_lineno - node.lineno + 1
      if length > most:
        errors.append(f'{node.lineno}: {node.name} has {length} lines')
  functions = []
  for node in _public(tree.body):
    if not ast.get_docstring(node):
      errors.append(f'{node.lineno}: {node.name} has no docstring')
    if isinstance(node, ast.ClassDef):
      functions += [
          inner for inner in node.body if isinstance(inner, ast.FunctionDef)
          and (not inner.name.startswith('_')
               or inner.name in ('__init__', '__call__'))]
    else:
      functions.append(node)
  for node in functions:
    every = node.args
    bare = [argument.arg for argument in (
        *every.posonlyargs, *every.args, *every.kwonlyargs,
        *filter(None, (every.vararg, every.kwarg)))
            if argument.annotation is None
            and argument.arg not in ('self', 'cls')]
    if bare:
      errors.append(f'{node.lineno}: {node.name}: untyped {", ".join(bare)}')
  assert not errors, errors


def test_packages_have_init_files():
  missing = sorted({
      _name(path.parent) for path in SOURCES
      if not (path.parent / '__init__.py').exists()})
  assert not missing, 'without __init__.py they are not installed'


def test_pyproject_has_only_the_build_system():
  assert set(tomllib.loads((ROOT / 'pyproject.toml').read_text())) == {
      'build-system'}


def test_top_level():
  allowed = {'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'sidrec',
             'experiments', 'launch', 'tests', 'third_party'}
  listed = subprocess.run(
      ['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT,
      capture_output=True, text=True)
  if listed.returncode:
    pytest.skip('not a git checkout')
  found = {line.split('/')[0] for line in listed.stdout.split('\n') if line}
  assert {name for name in found if not name.startswith('.')} <= allowed


def test_data_imports_no_tfds():
  """TFDS takes seconds to import: only who prepares or reads it should pay."""
  script = (
      'import sys, sidrec.data, sidrec.data.builders\n'
      'assert "tensorflow_datasets" not in sys.modules\n'
      'assert "tensorflow" not in sys.modules\n')
  done = subprocess.run(
      [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
