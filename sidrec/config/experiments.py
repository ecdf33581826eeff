"""Experiments by name, and the arguments that choose one."""

import importlib.util
import os
import traceback
import types as python_types
from typing import Any, Callable, Sequence

import ml_collections

from sidrec import types
from sidrec.config import values

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Installed with the package, or beside it in a checkout.
_FOLDERS = (os.path.join(_PACKAGE, 'experiments'),
            os.path.join(os.path.dirname(_PACKAGE), 'experiments'))
# What a method may read of a data set: the words of an experiment's `READS`.
READS = (
    'popularity',  # Counts of the training split.
    'ids',  # Items by their number alone.
    'content',  # `Catalog.vectors`: what items say of themselves.
    'described',  # The same, to say what the codes look like, not to make them.
    'collaborative',  # Vectors of an item model, trained first.
    'taxonomy',  # Category columns of items.
    'columns', 'requests',  # All columns of items; of users and of events.
    'cross',  # u2i statistics.
    'exposures',  # Labels of both classes.
    'sequences')  # What users did before.


def names() -> list[str]:
  """Returns the names of the experiments that come with the package."""
  for folder in _FOLDERS:
    if os.path.isdir(folder):
      return sorted(name[:-3] for name in os.listdir(folder)
                    if name.endswith('.py') and not name.startswith('_'))
  return []


def find_experiment(name: str) -> str:
  """Returns the file of an experiment.

  Args:
    name: 'tiger', or the path of a file.

  Raises:
    types.InputError: if there is none.
  """
  if not name.endswith('.py') and name in names():
    return next(path for path in (
        os.path.join(folder, f'{name}.py') for folder in _FOLDERS)
                if os.path.isfile(path))
  if not os.path.isfile(name):
    raise types.InputError(
        f'--config={name}: no file {name!r} here, and no experiment of this '
        f'name ({", ".join(names())})')
  return name


def load_experiment(name: str, arg: str | None = None
                    ) -> ml_collections.ConfigDict:
  """Returns the config of an experiment.

  Args:
    name: 'tiger', or the path of a file with `get_config`.
    arg: the words after the colon.

  Raises:
    types.InputError: no such experiment, an unknown word, or a file that is
      not Python, fails, or gives no configuration: with its line.
  """
  # Without words without an argument, as the flag library calls it.
  path, config = _from_file(
      name, lambda module: module.get_config(*[arg] * (arg is not None)))
  if not isinstance(config, ml_collections.ConfigDict):
    raise types.InputError(
        f'{path}: get_config returned {type(config).__name__}: it must return '
        'a ConfigDict of ml_collections, see base_config')
  return config


def load_reads(name: str) -> tuple[str, ...]:
  """Returns what an experiment's method reads of the data: its `READS`.

  Args:
    name: as of `load_experiment`.

  Raises:
    types.InputError: as `load_experiment`; no `READS`, or not words of `READS`
      here.
  """
  path, reads = _from_file(name, lambda module: getattr(module, 'READS', None))
  if not isinstance(reads, tuple) or not set(reads) <= set(READS):
    raise types.InputError(
        f'{path}: READS is {reads!r}: it must be a tuple of what the method '
        f'reads of the data, of {", ".join(READS)}')
  return reads


def _from_file(name: str, fn: Callable[[python_types.ModuleType], Any]
               ) -> tuple[str, Any]:
  """Returns the path of an experiment and what `fn` gives of its module."""
  path = os.path.abspath(find_experiment(name))
  spec = importlib.util.spec_from_file_location(
      f'experiment_{os.path.splitext(os.path.basename(path))[0]}', path)
  if spec is None:
    raise types.InputError(
        f'--config={name}: not a Python file, whose name ends with .py')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return path, fn(module)
  except types.InputError:
    raise
  except (Exception, SystemExit) as error:  # Whatever Python can raise.
    # A syntax error's own text says the line again.
    text = ' '.join(str(getattr(error, 'msg', error)).split())
    raise types.InputError(
        f'{path}{_line(path, error)}: {type(error).__name__}: {text}'
    ) from error


def _line(path: str, error: BaseException) -> str:
  """Returns ', line N' where an error came out of a line of a file."""
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == path]
  if isinstance(error, SyntaxError) and error.filename == path:
    lines.append(error.lineno)
  return f', line {lines[-1]}' if any(lines) else ''


def arguments(argv: Sequence[str]) -> list[str]:
  """Returns a command line whose --config is a file and knows all words.

  A bare name becomes its file. Flags that say which words there are
  (data.root) or that stand for a whole sub-tree (generator.name) are said
  behind the colon too, where the config is made.

  Args:
    argv: flags as given.

  Raises:
    types.InputError: if --config names neither a file nor an experiment.
  """
  moved = {f'config.{key}' for key in ('data.root', *values.CHOICES)}
  out, early, at, rest = [], [], None, list(argv)
  while rest:
    argument = rest.pop(0)
    flag, equals, value = argument.partition('=')
    name = flag.lstrip('-') if flag.startswith('-') else ''
    if name not in moved and name != 'config':
      out.append(argument)
      continue
    value = value if equals or not rest else rest.pop(0)
    if name == 'config':
      out.append(value)
      at = len(out) - 1
    else:
      early.append(f'{name.removeprefix("config.")}={value}')
  if at is not None:
    name, _, words = out[at].partition(':')
    words = ','.join(filter(None, [words, *early]))
    out[at] = f'--config={find_experiment(name)}' + (words and f':{words}')
  return out
