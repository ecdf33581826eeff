"""Columns as NumPy arrays: conversion, missing values, lists."""

from typing import Any, Mapping

from absl import logging
import numpy as np
import pyarrow as pa

from sidrec import types


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
  """Converts an Arrow column: missing numbers to NaN, missing text to None.

  Args:
    column: any number, text, bool, list, time or dictionary column.

  Returns:
    Numbers as they are; text, and lists as arrays, in an object array; times
    as int64 ms since the epoch; dates as text.
  """
  kind = column.type
  if pa.types.is_dictionary(kind):
    column = column.cast(kind.value_type)
  elif pa.types.is_timestamp(kind):
    column = column.cast(pa.timestamp('ms'), safe=False).cast(pa.int64())
  elif pa.types.is_date(kind):
    column = column.cast(pa.string())
  elif pa.types.is_boolean(kind):
    column = column.cast(pa.int8())
  elif pa.types.is_decimal(kind):
    column = column.cast(pa.float64())
  kind = column.type
  if pa.types.is_list(kind) or pa.types.is_large_list(kind):
    return _lists(column)
  if pa.types.is_null(kind):
    return np.full(len(column), None, object)
  values = column.to_numpy(zero_copy_only=False)
  if column.null_count and pa.types.is_integer(kind):
    values = values.astype(np.float64)
  return values


def _lists(column: pa.ChunkedArray) -> np.ndarray:
  """Converts a list column to an object array of arrays (missing: None)."""
  result = np.empty(len(column), object)
  row = 0
  for chunk in column.chunks:
    values = to_numpy(pa.chunked_array([chunk.flatten()]))
    length = chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    stop = np.cumsum(length)
    valid = chunk.is_valid().to_numpy(zero_copy_only=False)
    for start, end, present in zip(stop - length, stop, valid):
      result[row] = values[start:end] if present else None
      row += 1
  return result


def numbers(values: np.ndarray, where: str, column: str) -> np.ndarray:
  """Returns a column as float64, NaN where missing.

  Args:
    values: [R] of any type; text is parsed.
    where, column: for the message.

  Raises:
    types.InputError: at the first row that is no number.
  """
  if values.dtype.kind in 'iufb':
    return values.astype(np.float64)
  result = np.empty(len(values), np.float64)
  for row, value in enumerate(values):
    try:
      result[row] = np.nan if value is None or value == '' else float(value)
    except (TypeError, ValueError) as error:
      raise types.InputError(
          f'{where}: row {row}, column {column}: {value!r} is not a number'
      ) from error
  return result


def is_missing(values: np.ndarray) -> np.ndarray:
  """Returns [R] bool: NaN, None, an empty text or an empty list."""
  if values.dtype.kind == 'f':
    return np.isnan(values)
  if values.dtype != object:
    return np.zeros(len(values), bool)
  return np.array([
      value is None or (isinstance(value, float) and value != value)
      or (isinstance(value, (str, np.ndarray)) and not len(value))
      for value in values], bool).reshape(-1)


def split_lists(table: dict[str, np.ndarray], columns: Mapping[str, Any]):
  """Splits text columns of several values at their separator, in place."""
  for name, column in columns.items():
    if column['role'] == types.Role.NEVER.value or (
        column['type'] not in ('categories', 'text_list')):
      continue
    separator = column['separator'] or ','
    values = table[name]
    result = np.empty(len(values), object)
    for row, value in enumerate(values):
      if value is None or (isinstance(value, float) and value != value):
        result[row] = None
      elif isinstance(value, (np.ndarray, list, tuple)):
        result[row] = np.asarray(value)
      else:
        parts = [part.strip() for part in str(value).split(separator)]
        result[row] = np.array([part for part in parts if part], str)
    table[name] = result


def warn_missing(
    table: Mapping[str, np.ndarray], columns: Mapping[str, Any], where: str):
  """Counts missing feature values in one warning."""
  counts = {
      name: int(is_missing(table[name]).sum())
      for name, column in columns.items()
      if column['role'] != types.Role.NEVER.value}
  counts = [f'{name} {count}' for name, count in counts.items() if count]
  if counts:
    logging.warning(
        '%s: missing values, encoded as missing: %s', where, ', '.join(counts))


def history_list(value: Any, is_text: bool) -> np.ndarray:
  """Returns one user's list as an array of int64 or text."""
  if value is None or (isinstance(value, float) and value != value):
    value = []
  elif isinstance(value, str):
    value = value.replace(',', ' ').split()
  elif not isinstance(value, (np.ndarray, list, tuple)):
    value = [value]
  try:
    return np.asarray(value).astype(str if is_text else np.int64)
  except (TypeError, ValueError):
    return np.full(len(value), -1, np.int64)  # No such item: dropped.
