"""Tokenizers: items become short code tuples (semantic IDs).

A variant is one module of this package with a function
`make(config, spec) -> base.Tokenizer`; nothing else has to know of it.
"""

import importlib
import pkgutil
import types as python_types

from sidrec import types


def _load(name: str) -> python_types.ModuleType:
  return importlib.import_module(f'{__name__}.{name}')


def names() -> tuple[str, ...]:
  """Lists the variants: the modules here that have a `make`."""
  found = sorted(m.name for m in pkgutil.iter_modules(__path__))
  return tuple(name for name in found if hasattr(_load(name), 'make'))


def get(name: str) -> python_types.ModuleType:
  """Returns the module of a tokenizer variant.

  Args:
    name: module name, for instance 'dig'.

  Returns:
    The module, with `make(config, spec) -> base.Tokenizer`.

  Raises:
    types.InputError: no such variant; the message lists what there is.
  """
  if name not in names():
    raise types.InputError(
        f'tokenizer.name: there is no tokenizer {name!r}; '
        f'choose one of {", ".join(names())}.')
  return _load(name)
