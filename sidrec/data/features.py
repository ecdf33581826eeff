"""Encodes declared columns into `types.FeatureTable` arrays."""

import datetime
import re
from typing import Any, Mapping, Sequence
import zlib

from absl import logging
import numpy as np

from sidrec import types
from sidrec.data import columns as columns_lib

MAX_VALUES = 8  # Slots of a column with several categories.
MAX_WORDS = 16  # Slots of a hashed text.
NUM_BUCKETS = 4096
HEAVY_TAIL = 2.  # Skewness beyond which a number is compressed first.
MAX_SCALED = 10.  # Standard deviations at which a number is cut off.
_WORD = re.compile(r'\w+')


def encode(
    table: Mapping[str, np.ndarray], columns: Mapping[str, Any],
    num_rows: int, role: types.Role, where: str, *,
    fit_rows: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
) -> tuple[types.FeatureSpec, types.FeatureTable]:
  """Encodes all declared columns of one table that are not `never`.

  Args:
    table: raw columns, `num_rows` rows, after `tables.check`.
    columns: name -> declaration of `dataset.json`.
    num_rows: rows R.
    role: of every field of this table.
    where: file, for messages.
    fit_rows: [R] bool rows that vocabularies and means may see; default all.
      A category that only other rows have is missing (0).
    embeddings: [R, E] stand in for all text columns.

  Returns:
    (spec, features) of R rows.

  Raises:
    types.InputError: a number or date that cannot be read.
  """
  fit = np.ones(num_rows, bool) if fit_rows is None else fit_rows
  fields, ids, values, vectors = [], [], [], []
  vocabulary, num_slots, num_values = 1, 0, 0
  for name, column in columns.items():
    kind = column['type']
    if column['role'] == types.Role.NEVER.value or (
        kind in ('text', 'text_list') and embeddings is not None):
      continue
    if kind in ('number', 'date'):
      parse = _days if kind == 'date' else columns_lib.numbers
      block = standardize(parse(table[name], where, name), fit)
      stop = num_values + block.shape[1]
      fields.append(types.Field(
          name, role, 'number', num_values, stop, block.shape[1]))
      values.append(block)
      num_values = stop
      continue
    block, size = _categories(table[name], kind, fit,
                              f'{where}: column {name}')
    stop = num_slots + block.shape[1]
    fields.append(types.Field(name, role, 'category', num_slots, stop, size))
    ids.append(np.where(block >= 0, block + vocabulary, 0))
    vocabulary += size
    num_slots = stop
  if embeddings is not None:
    vectors.append(normalize(embeddings))
    dims = embeddings.shape[1]
    fields.append(types.Field('embedding', role, 'vector', 0, dims, dims))
  spec = types.FeatureSpec(
      fields=tuple(fields), vocabulary=vocabulary, num_slots=num_slots,
      num_values=num_values,
      num_dims=embeddings.shape[1] if embeddings is not None else 0)
  return spec, types.FeatureTable(
      ids=_join(ids, np.int32), values=_join(values, np.float32),
      vectors=_join(vectors, np.float32))


def _categories(
    column: np.ndarray, kind: str, fit: np.ndarray, where: str
) -> tuple[np.ndarray, int]:
  """Returns (codes [R, S], -1 where missing; number of categories)."""
  if kind in ('text', 'text_list'):
    return hash_words(column), NUM_BUCKETS
  offsets, codes, size = factorize(column, fit)
  cap = 1 if kind == 'category' else MAX_VALUES
  return pad(offsets, codes, cap, where), size


def _join(blocks: Sequence[np.ndarray], dtype: Any) -> np.ndarray | None:
  """Concatenates [R, *] blocks; None of none."""
  return np.concatenate(blocks, axis=1).astype(dtype) if blocks else None


def merge(
    first: types.FeatureSpec, second: types.FeatureSpec
) -> types.FeatureSpec:
  """Returns the spec of `join_rows`: the fields of both, in order."""
  shift = {'category': first.num_slots, 'number': first.num_values,
           'vector': first.num_dims}
  fields = first.fields + tuple(
      types.Field(field.name, field.role, field.kind,
                  field.start + shift[field.kind],
                  field.stop + shift[field.kind], field.size)
      for field in second.fields)
  return types.FeatureSpec(
      fields=fields, vocabulary=first.vocabulary + second.vocabulary - 1,
      num_slots=first.num_slots + second.num_slots,
      num_values=first.num_values + second.num_values,
      num_dims=first.num_dims + second.num_dims)


def shift_ids(table: types.FeatureTable, by: int) -> types.FeatureTable:
  """Moves the ids of a second table behind the vocabulary of a first."""
  if table.ids is None:
    return table
  return table.replace(
      ids=np.where(table.ids > 0, table.ids + by, 0).astype(np.int32))


def take(table: types.FeatureTable, rows: np.ndarray) -> types.FeatureTable:
  """Gathers rows of a feature table."""
  return types.FeatureTable(**{
      kind: None if values is None else values[rows]
      for kind, values in vars(table).items()})


def join_rows(
    first: types.FeatureTable, second: types.FeatureTable
) -> types.FeatureTable:
  """Joins two tables of the same rows side by side."""
  joined = {}
  for kind, values in vars(first).items():
    other = getattr(second, kind)
    if values is not None and other is not None:
      joined[kind] = np.concatenate([values, other], axis=1)
    else:
      joined[kind] = other if values is None else values
  return types.FeatureTable(**joined)


def with_missing_row(
    table: types.FeatureTable, spec: types.FeatureSpec
) -> types.FeatureTable:
  """Appends a row in which every field is missing."""
  out = {}
  for kind, values in vars(table).items():
    if values is not None:
      row = np.zeros_like(values, shape=(1, values.shape[1]))
      if kind == 'values':
        row[0, [f.stop - 1 for f in spec.fields if f.kind == 'number']] = 1.
      values = np.concatenate([values, row])
    out[kind] = values
  return types.FeatureTable(**out)


def factorize(
    column: np.ndarray, fit_rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
  """Numbers the distinct values of a column, lists included.

  Args:
    column: [R] after `tables.check`.
    fit_rows: [R] bool rows that make the vocabulary; default all.

  Returns:
    (offsets [R + 1], codes, size): row r has the distinct codes
    `codes[offsets[r]:offsets[r + 1]]` in [0, size), in the order of the list;
    none where missing or not in the vocabulary.
  """
  missing = columns_lib.is_missing(column)
  is_list = column.dtype == object and any(
      isinstance(value, np.ndarray) for value in column)
  if is_list:
    kept = [np.asarray(value) for value in column[~missing]]
    rows = np.repeat(np.flatnonzero(~missing), [len(v) for v in kept])
    flat = np.concatenate(kept) if kept else np.zeros(0, np.int64)
  else:
    rows = np.flatnonzero(~missing)
    flat = column[~missing]
  if flat.dtype == object:
    flat = flat.astype(str)
  fit = np.ones(len(column), bool) if fit_rows is None else fit_rows
  names, codes = np.unique(flat, return_inverse=True)
  seen = np.zeros(len(names), bool)
  seen[codes[fit[rows]]] = True
  codes = np.where(seen, np.cumsum(seen) - 1, -1)[codes]
  rows, codes = rows[codes >= 0], codes[codes >= 0]
  # The same value twice in one list counts once, at its first place.
  size = max(int(seen.sum()), 1)
  _, first = np.unique(rows * size + codes, return_index=True)
  first.sort()
  rows, codes = rows[first], codes[first]
  offsets = np.searchsorted(rows, np.arange(len(column) + 1))
  return offsets, codes.astype(np.int64), int(seen.sum())


def pad(
    offsets: np.ndarray, codes: np.ndarray, cap: int, where: str
) -> np.ndarray:
  """Returns [R, S] codes, -1 padding, S = the longest list, at most `cap`."""
  counts = np.diff(offsets)
  width = int(min(cap, max(counts.max(initial=0), 1)))
  cut = int((counts > width).sum())
  if cut:
    logging.info('%s: %d rows with more than %d values; the first %d kept',
                 where, cut, width, width)
  slot = np.arange(width)
  valid = slot < counts[:, None]
  index = np.where(valid, offsets[:-1, None] + slot, 0)
  if not len(codes):
    return np.full(valid.shape, -1, np.int64)
  return np.where(valid, codes[index], -1)


def hash_words(column: np.ndarray) -> np.ndarray:
  """Returns [R, S] buckets of the first distinct words, -1 padding.

  A bucket is crc32(word) mod NUM_BUCKETS: the same on every machine.
  """
  rows = []
  for value in column:
    if value is None or (isinstance(value, float) and value != value):
      rows.append([])
      continue
    if isinstance(value, np.ndarray):
      value = ' '.join(str(part) for part in value)
    words = dict.fromkeys(_WORD.findall(str(value).lower()))
    buckets = dict.fromkeys(
        zlib.crc32(word.encode()) % NUM_BUCKETS for word in words)
    rows.append(list(buckets)[:MAX_WORDS])
  width = max(max((len(row) for row in rows), default=0), 1)
  block = np.full((len(rows), width), -1, np.int64)
  for index, row in enumerate(rows):
    block[index, :len(row)] = row
  return block


def standardize(values: np.ndarray, fit_rows: np.ndarray) -> np.ndarray:
  """Returns [R, 2] float32: the number, zero mean and unit variance; missing.

  A heavy tail (|skewness| > HEAVY_TAIL) is first compressed by a signed
  log1p.

  Args:
    values: [R] float64, NaN where missing.
    fit_rows: [R] bool rows that mean and variance may see.
  """
  values = np.where(np.isfinite(values), values, np.nan)
  missing = np.isnan(values)
  seen = values[fit_rows & ~missing]
  if len(seen):
    scale = seen.std()
    # Centered before cubing, and relative, so that big numbers do not drown.
    if scale > 0 and abs(
        np.mean(((seen - seen.mean()) / scale)**3)) > HEAVY_TAIL:
      values = np.sign(values) * np.log1p(np.abs(values))
      seen = values[fit_rows & ~missing]
    mean, scale = seen.mean(), seen.std()
    # Rounding leaves a constant column a tiny spread that is no signal.
    if scale <= 1e-9 * max(abs(mean), 1.):
      scale = 1.
    values = np.clip((values - mean) / scale, -MAX_SCALED, MAX_SCALED)
  return np.stack(
      [np.where(missing, 0., values), missing], axis=1).astype(np.float32)


def normalize(vectors: np.ndarray) -> np.ndarray:
  """Returns [R, E] float32 with zero mean a dimension, unit variance overall.

  One scale for all dimensions keeps the geometry of the vectors.
  """
  vectors = vectors.astype(np.float32)
  vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
  scale = float(np.sqrt(np.mean(np.square(vectors), dtype=np.float64)))
  return vectors / scale if scale > 0 else vectors


def _days(values: np.ndarray, where: str, column: str) -> np.ndarray:
  """Returns days since 1970 as float64, NaN where missing."""
  if values.dtype.kind in 'iuf':
    values = values.astype(np.float64)
    # Beyond any day count it is ms since the epoch.
    return values / 86_400_000. if np.nanmax(
        np.abs(values), initial=0.) > 1e7 else values
  result = np.full(len(values), np.nan)
  for row in np.flatnonzero(~columns_lib.is_missing(values)):
    try:
      day = datetime.datetime.fromisoformat(str(values[row]))
      result[row] = day.replace(tzinfo=datetime.timezone.utc).timestamp(
      ) / 86_400.
    except ValueError as error:
      raise types.InputError(
          f'{where}: row {row}, column {column}: {values[row]!r} is not a '
          'date; write YYYY-MM-DD') from error
  return result
