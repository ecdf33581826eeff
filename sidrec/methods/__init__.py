"""Methods by name: each composes tokenizer, models, decoder and losses."""

import importlib
import pkgutil
from types import ModuleType

from sidrec import types
from sidrec.config import ranges


def names() -> list[str]:
  """Returns the names that `get` knows: the modules here with a `make`."""
  found = (m.name for m in pkgutil.iter_modules(__path__))
  return sorted(n for n in found if hasattr(_load(n), 'make'))


def _load(name: str) -> ModuleType:
  return importlib.import_module(f'{__name__}.{name}')


def tables() -> dict[str, ranges.Table]:
  """Returns what the settings of each method may be, beside the shared ones."""
  return {name: _load(name).RANGES for name in names()}


def get(name: str) -> ModuleType:
  """Returns the module of a method; its `make(config, dataset)` builds it.

  Args:
    name: file name in `sidrec/methods`, for instance 'dig'.

  Raises:
    types.InputError: listing what there is.
  """
  if name not in names():
    raise types.InputError(
        f'config.method={name!r}: one of {", ".join(names())}')
  return _load(name)
