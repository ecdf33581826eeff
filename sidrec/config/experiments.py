"""Experiments by name, and the arguments that choose one."""

import importlib.util
import os
from typing import Sequence

import ml_collections

from sidrec import types
from sidrec.config import values

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Installed with the package, or beside it in a checkout.
_FOLDERS = (os.path.join(_PACKAGE, 'experiments'),
            os.path.join(os.path.dirname(_PACKAGE), 'experiments'))


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
    types.InputError: no such experiment, or an unknown word.
  """
  path = find_experiment(name)
  spec = importlib.util.spec_from_file_location(
      f'experiment_{os.path.splitext(os.path.basename(path))[0]}', path)
  if spec is None:
    raise types.InputError(f'--config={name}: not a Python file')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


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
