"""Columns as NumPy arrays: conversion, missing values, lists."""

from typing import Any, Mapping

from absl import logging
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec import types
from sidrec.data import faults as faults_lib
from sidrec.data import ids as ids_lib


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
  if is_list(kind):
    return _lists(column)
  if pa.types.is_null(kind):
    return np.full(len(column), None, object)
  values = column.to_numpy(zero_copy_only=False)
  if column.null_count and pa.types.is_integer(kind):
    values = values.astype(np.float64)
  return values


def unusable(kind: pa.DataType) -> str | None:
  """Returns why a column of this Arrow type is no feature, None if it is."""
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  if is_list(kind):
    inner = kind.value_type
    if is_list(inner) or pa.types.is_struct(inner):
      return f'{kind} is nested; a list of text or numbers is not'
    return unusable(inner)
  if pa.types.is_struct(kind) or pa.types.is_map(kind):
    return f'{kind} holds columns of its own; make them columns of the table'
  if (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
      or pa.types.is_fixed_size_binary(kind)):
    return f'{kind} holds bytes; write text or numbers'
  if (pa.types.is_duration(kind) or pa.types.is_time(kind)
      or pa.types.is_interval(kind)):
    return f'{kind} is no value to learn from; write a number'
  if isinstance(kind, pa.BaseExtensionType) or pa.types.is_union(kind):
    return f'{kind} is not known; write text or numbers'
  return None


def is_list(kind: pa.DataType) -> bool:
  """Whether an Arrow type is one of lists."""
  return (pa.types.is_list(kind) or pa.types.is_large_list(kind)
          or pa.types.is_fixed_size_list(kind))


def is_vector(kind: pa.DataType) -> bool:
  """Whether an Arrow type is one of lists of floats."""
  return is_list(kind) and pa.types.is_floating(kind.value_type)


def vectors(column: pa.ChunkedArray, where: str, name: str,
            faults: faults_lib.Faults) -> np.ndarray | None:
  """Returns a column of lists of floats as [R, E] float32, if it is one.

  Args:
    column: of a type that `is_vector`.
    where, name: for messages.
    faults: gets what is wrong.
  """
  array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
  if isinstance(array, pa.ChunkedArray):
    array = pa.concat_arrays(array.chunks)
  length = pc.fill_null(pc.list_value_length(array), -1).to_numpy(
      zero_copy_only=False)
  width = int(np.bincount(np.maximum(length, 0)).argmax()) if len(length) else 0
  if faults.rows(length != width, where, name, lambda row: (
      f'{"nothing" if length[row] < 0 else f"{length[row]} numbers"} where '
      f'others have {width}; give every item a vector of one width')):
    return None
  flat = pc.list_flatten(array).to_numpy(zero_copy_only=False)
  return flat.astype(np.float32).reshape(len(length), width)


def _lists(column: pa.ChunkedArray) -> np.ndarray:
  """Converts a list column to an object array of arrays (missing: None)."""
  result = np.empty(len(column), object)
  row = 0
  for chunk in column.chunks:
    values = to_numpy(pa.chunked_array([chunk.flatten()]))
    length = pc.fill_null(pc.list_value_length(chunk), 0).to_numpy(
        zero_copy_only=False)
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
      elif isinstance(value, str) and value[:1] == '[':
        result[row] = np.array(
            [x for x in ids_lib.split_text(value) or () if x], str)
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

