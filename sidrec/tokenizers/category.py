"""Control: codes from the catalog's own categories, coarse to fine.

Levels 1 to L - 1 are category fields, the last level numbers the items that
share them, in random order. No vector is read.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from sidrec import config as config_lib
from sidrec import types
from sidrec.config import ranges
from sidrec.tokenizers import base
from sidrec.tokenizers import collisions

RANGES: ranges.Table = {
    'num_levels': ranges.whole(2, 64),
    'codebook_size': ranges.whole(2, 1 << 24),
    'fields': ranges.several(ranges.NAME)}
# A field with more slots holds words of a text, not categories.
_MAX_SLOTS = 8


class _Column(NamedTuple):
  """One column of `FeatureTable.ids`.

  index: of the column.
  offset: id of the field's first category.
  size: categories of the field; code 0 is 'missing'.
  """
  index: int
  offset: int
  size: int


def make(config: Any, spec: types.DataSpec) -> base.Table:
  """Makes the control.

  Args:
    config: the `tokenizer` sub-tree: num_levels (L), codebook_size (one
      number, of the last level) and fields (L - 1 names, coarse to fine;
      'name.1' is the second category of a field with several; empty = the
      L - 1 columns with the fewest categories, at least two).
    spec: of the data set: the number of items and the fields.

  Returns:
    The table; level sizes are 1 + categories of the field, and last
    codebook_size.

  Raises:
    types.InputError: a size out of range, too few or unknown category fields,
      or more items than tuples; in `fit`, a cell with more items than
      codebook_size.
  """
  config_lib.check_part(config, RANGES, 'tokenizer')
  columns = _columns(spec.items)
  # A column that says the same of all items is no level.
  wanted = tuple(config.fields) or tuple(
      name for name, own in columns.items() if own.size > 1)[
          :config.num_levels - 1]
  if len(wanted) != config.num_levels - 1:
    raise types.InputError(
        f'tokenizer.num_levels: {config.num_levels} needs '
        f'{config.num_levels - 1} category columns, got {len(wanted)} '
        f'({", ".join(wanted) or "none"}).')
  for name in wanted:
    if name not in columns:
      raise types.InputError(
          f'tokenizer.fields: there is no category column {name!r}; choose '
          f'from {", ".join(columns) or "none"}.')
  chosen = tuple(columns[name] for name in wanted)
  sizes = tuple(column.size + 1 for column in chosen) + (
      config.codebook_size,)
  if spec.num_items > math.prod(sizes):
    raise types.InputError(
        f'tokenizer.codebook_size: the levels name {math.prod(sizes)} items, '
        f'the catalog has {spec.num_items}; raise it.')
  return base.Table(
      sizes, functools.partial(_fit, chosen, config.codebook_size))


def _columns(spec: types.FeatureSpec) -> dict[str, _Column]:
  """Returns the category columns by name, those of fewest categories first."""
  found, offset = [], 1  # Row 0 of the vocabulary is 'missing'.
  for field in spec.fields:
    if field.kind != 'category':
      continue
    slots = field.stop - field.start
    if slots <= _MAX_SLOTS:
      found += [
          (field.name if not slot else f'{field.name}.{slot}',
           _Column(field.start + slot, offset, field.size))
          for slot in range(slots)]
    offset += field.size
  return dict(sorted(found, key=lambda pair: pair[1].size))


def _fit(
    columns: tuple[_Column, ...], most: int, seed: int, items: base.Items
) -> np.ndarray:
  """Reads the fields and numbers the items of each cell in random order."""
  ids = items.features.ids
  if ids is None:
    raise types.InputError(
        'tokenizer.name: category needs the item features; choose another.')
  ids = np.asarray(ids)
  codes = np.zeros((len(ids), len(columns) + 1), np.int32)
  for level, column in enumerate(columns):
    own = ids[:, column.index]
    codes[:, level] = np.where(own > 0, own - column.offset + 1, 0)
  cell, count = collisions.groups(codes[:, :-1])
  if count.max() > most:
    raise types.InputError(
        f'tokenizer.codebook_size: {most}, but {count.max()} items share one '
        f'cell of the category fields; raise it to {count.max()}, or name '
        f'finer fields in tokenizer.fields.')
  # Not in the order of the items: where a catalog is sorted by time, places in
  # a cell would say what comes next.
  order = np.random.default_rng(seed).permutation(len(ids))
  order = order[np.argsort(cell[order], kind='stable')]
  start = np.searchsorted(cell[order], cell[order])
  codes[order, -1] = np.arange(len(ids)) - start
  return codes
