"""Tokenizers: items become short code tuples (semantic IDs).

A variant is one module of this package with a function
`make(config, spec) -> base.Tokenizer | base.Table`; nothing else has to know
of it. Where it has settings beside `base.RANGES`, its `RANGES` has them too,
and its `TREES` name the trees of a configuration that it needs beside its own.
"""

import importlib
import pkgutil
import types as python_types
from typing import Any

from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base


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
    The module, with `make(config, spec)`.

  Raises:
    types.InputError: no such variant; the message lists what there is.
  """
  if name not in names():
    raise types.InputError(
        f'tokenizer.name: there is no tokenizer {name!r}; '
        f'choose one of {", ".join(names())}.')
  return _load(name)


def table(name: str) -> ranges.Table:
  """Returns what the settings of a tokenizer may be, beside its name."""
  return getattr(get(name), 'RANGES', base.RANGES)


def make(config: Any, spec: types.DataSpec) -> base.Tokenizer | base.Table:
  """Makes the tokenizer that settings name.

  Args:
    config: the `tokenizer` sub-tree: name, num_levels, codebook_size and the
      settings of the variant's own.
    spec: static facts of the data set.

  Returns:
    The tokenizer.

  Raises:
    types.InputError: no such variant, a setting that it needs is missing or
      out of range, or the codes cannot name the catalog.
  """
  return get(config.name).make(config, spec)
