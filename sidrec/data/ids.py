"""Ids as they stand in the tables: exact integers or exact text, no floats.

A key (`user_id`, `item_id`) has one type in all tables: integers where every
column holds integers, else text. What a text file spells as a plain decimal
number is an integer; '007', '1e5' or '0x1f' are text.
"""

import dataclasses
import decimal
import re
from typing import Any, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.data import faults as faults_lib

# 2**53: beyond it a float does not tell one integer from the next.
_EXACT = 2.**53
_PLAIN = r'^(0|-?[1-9][0-9]{0,19})$'
_IS_PLAIN = re.compile(_PLAIN)
_TEXT = pa.large_string()


@dataclasses.dataclass(frozen=True)
class Column:
  """Ids of R rows, as places in a vocabulary that tables share.

  codes: [R] int32. values: [N] int64 or uint64, or text as objects.
  """
  codes: np.ndarray
  values: np.ndarray

  def __len__(self) -> int:
    return len(self.codes)

  def __getitem__(self, rows: Any) -> 'Column':
    return Column(self.codes[rows], self.values)

  @property
  def ids(self) -> np.ndarray:
    """The ids themselves, [R] of the vocabulary's type."""
    return self.values[self.codes]


@dataclasses.dataclass(frozen=True)
class Lists:
  """Lists of ids of R rows: row r has `codes[offsets[r]:offsets[r + 1]]`.

  offsets: [R + 1] int64. codes: int32. values: as those of `Column`.
  """
  offsets: np.ndarray
  codes: np.ndarray
  values: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets) - 1

  @property
  def rows(self) -> np.ndarray:
    """The row of each entry."""
    return np.repeat(np.arange(len(self)), np.diff(self.offsets))

  def lists(self) -> list[np.ndarray]:
    """The ids of each row."""
    return np.split(self.values[self.codes], self.offsets[1:-1])


def read(column: Any, where: str, key: str, faults: faults_lib.Faults
         ) -> pa.Array | None:
  """Reads a column of ids.

  Args:
    column: Arrow or NumPy, [R].
    where, key: for messages.
    faults: gets what is wrong.

  Returns:
    [R] int64, uint64 or large_string without missing values; None where the
    column cannot be read.
  """
  array = as_arrow(column)
  kind = array.type
  refuse = lambda reason: faults.add(f'{where}: column {key}: {reason}')
  if pa.types.is_floating(kind):
    values = array.to_numpy(zero_copy_only=False).astype(np.float64)
    broken = np.isnan(values)
    whole = np.isfinite(values) & (values == np.floor(values))
    if faults.rows(~broken & ~whole, where, key, lambda row: (
        f'{values[row]:g} is no id; give every row an integer or a text')):
      return None
    if faults.rows(np.abs(values) >= _EXACT, where, key, lambda row: (
        f'{values[row]:.0f} came through a float, which holds no integer from '
        '2**53 on exactly; write the column as integers or as text')):
      return None
    array = pa.array(np.where(broken, 0., values).astype(np.int64), mask=broken)
  elif pa.types.is_decimal(kind):
    text = array.cast(pa.string()).cast(_TEXT)
    array = _plain(pc.replace_substring_regex(text, r'\.0+$', ''))
  elif pa.types.is_null(kind):
    array = array.cast(_TEXT)
  elif pa.types.is_integer(kind):
    array = array.cast(
        pa.uint64() if pa.types.is_uint64(kind) else pa.int64())
  elif not _is_text(kind):
    refuse(f'{kind} is no id; write it as integers or as text')
    return None
  else:
    array = array.cast(_TEXT)
  missing = array.is_null()
  if _is_text(array.type):
    missing = pc.or_(missing, pc.fill_null(pc.equal(array, ''), True))
  if faults.rows(missing.to_numpy(zero_copy_only=False), where, key, lambda _: (
      'missing or broken id; give every row an integer or a text')):
    return None
  return array


def as_arrow(column: Any) -> pa.Array:
  """Returns a column as one Arrow array, its dictionary decoded.

  Args:
    column: Arrow or NumPy; numbers and text may be mixed in an object array:
      then all become text.
  """
  if isinstance(column, Column):
    column = column.ids
  if isinstance(column, np.ndarray):
    if column.dtype == object:
      return _of_objects(column)
    return pa.array(column)
  if pa.types.is_dictionary(column.type):
    kind = column.type.value_type
    column = column.cast(_TEXT if _is_text(kind) else kind)
  if pa.types.is_string(column.type):
    column = column.cast(_TEXT)  # Offsets of 32 bits end at 2 GiB.
  if isinstance(column, pa.ChunkedArray):
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # No chunk, or more than one.
      column = (pa.concat_arrays(column.chunks) if column.num_chunks
                else pa.array([], column.type))
  return column


def from_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """Returns ids of a text file: integers if all are plain ones, else text.

  Args:
    column: text; an empty one is missing.
  """
  array = as_arrow(column)
  array = pc.if_else(pc.equal(array, ''), pa.scalar(None, _TEXT), array)
  return pa.chunked_array([_plain(array)])


def join(columns: Sequence[pa.Array]) -> list[pa.Array]:
  """Brings columns of one key to one type.

  Args:
    columns: of `read`.

  Returns:
    The same, all int64, all uint64, or all large_string.
  """
  kinds = {column.type for column in columns}
  if len(kinds) == 1:
    return list(columns)
  if not any(_is_text(kind) for kind in kinds):
    if all(pc.min(column).as_py() is None or pc.min(column).as_py() >= 0
           for column in columns):
      return [column.cast(pa.uint64()) for column in columns]
  return [column.cast(_TEXT) for column in columns]


def encode(ids: pa.Array) -> tuple[np.ndarray, pa.Array]:
  """Returns (place of each id [R] int32, distinct ids by first appearance)."""
  found = ids.dictionary_encode()
  return (found.indices.to_numpy(zero_copy_only=False).astype(np.int32),
          found.dictionary)


def union(columns: Sequence[pa.Array]) -> pa.Array:
  """Returns all distinct ids in order: integers by value, text by code."""
  distinct = pc.unique(pa.concat_arrays(columns))
  return distinct.take(pc.sort_indices(distinct))


def look_up(ids: pa.Array, vocabulary: pa.Array) -> np.ndarray:
  """Returns the place of each id in a vocabulary, [R] int32, -1: not there.

  Args:
    ids: int64, uint64 or large_string, null where missing.
    vocabulary: distinct, of any of these types.
  """
  if ids.type != vocabulary.type:
    if _is_text(vocabulary.type):
      ids = ids.cast(_TEXT)
    elif _is_text(ids.type):
      fits = pc.match_substring_regex(ids, _PLAIN)
      ids = pc.if_else(fits, ids, pa.scalar(None, _TEXT))
      vocabulary = vocabulary.cast(_TEXT)
    else:
      ids, vocabulary = ids.cast(_TEXT), vocabulary.cast(_TEXT)
  found = pc.index_in(ids, value_set=vocabulary, skip_nulls=True)
  return pc.fill_null(found, -1).to_numpy(zero_copy_only=False)


def values_of(vocabulary: pa.Array) -> np.ndarray:
  """Returns ids as NumPy: int64, uint64, or text as objects."""
  return vocabulary.to_numpy(zero_copy_only=False)


def flatten(column: Any, where: str, name: str, faults: faults_lib.Faults
            ) -> tuple[np.ndarray, pa.Array] | None:
  """Reads a column of lists of ids.

  Args:
    column: lists; or text such as '[1, 2]', '["a", "b"]', '1,2', '1 2'; or
      single ids, each a list of one; Arrow or NumPy, [R].
    where, name: for messages.
    faults: gets what is wrong.

  Returns:
    (offsets [R + 1] int64, the ids of all rows one after the other: int64,
    uint64 or large_string, null where a list has a hole).
  """
  array = as_arrow(column)
  kind = array.type
  if pa.types.is_list(kind) or pa.types.is_large_list(kind) or (
      pa.types.is_fixed_size_list(kind)):
    array = array.cast(pa.large_list(kind.value_type))
    length = pc.fill_null(pc.list_value_length(array), 0)
    flat = as_arrow(pc.list_flatten(array))
  elif _is_text(kind):
    lists = [split_text(text) for text in array.to_pylist()]
    bad = np.array([entries is None for entries in lists], bool)
    if faults.rows(bad, where, name, lambda row: (
        f'{array[row].as_py()!r} is no list of ids; write a list, or ids with '
        'commas or spaces between')):
      return None
    length = [len(entries) for entries in lists]
    flat = pa.array([x for entries in lists for x in entries], _TEXT)
    flat = _plain(flat)
  else:
    length = pc.if_else(array.is_valid(), 1, 0)
    flat = array.drop_null()
  offsets = np.concatenate([[0], np.cumsum(np.asarray(length, np.int64))])
  if pa.types.is_null(flat.type):
    return offsets, flat.cast(_TEXT)
  if pa.types.is_floating(flat.type) or pa.types.is_decimal(flat.type) or (
      not pa.types.is_integer(flat.type) and not _is_text(flat.type)):
    read_flat = read(flat.drop_null(), where, name, faults)
    if read_flat is None:
      return None
    valid = flat.is_valid().to_numpy(zero_copy_only=False)
    place = np.where(valid, np.cumsum(valid) - 1, 0)
    return offsets, read_flat.take(pa.array(place, mask=~valid))
  if pa.types.is_integer(flat.type) and not pa.types.is_uint64(flat.type):
    flat = flat.cast(pa.int64())
  return offsets, flat


def split_text(text: str | None) -> list[str | None] | None:
  """Returns the ids of a list written as text; None if it is none.

  Args:
    text: JSON or Python list, or ids with commas, semicolons, bars or spaces
      between them.
  """
  text = '' if text is None else text.strip()
  if text[:1] not in ('[', '('):
    return text.replace(',', ' ').replace(';', ' ').replace('|', ' ').split()
  if text[-1:] != {'[': ']', '(': ')'}[text[0]]:
    return None
  out = []
  # Between commas, or as NumPy prints arrays between spaces.
  for entry in re.findall(
      r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|[^,\s\[\]()]+|[\[\]()]',
      text[1:-1]):
    if entry in '[]()':
      return None
    if entry[0] in '"\'':
      out.append(re.sub(r'\\(.)', r'\1', entry[1:-1]))
    else:
      out.append(None if entry in ('null', 'None', 'nan', 'NaN') else entry)
  return out


class Index:
  """Finds ids that come as Python values: in requests, from notebooks."""

  def __init__(self, values: np.ndarray):
    """Takes a vocabulary, [N] integers or text."""
    self._is_text = values.dtype.kind not in 'iu'
    self._place = {value: place for place, value in enumerate(values.tolist())}

  def find(self, ids: Iterable[Any]) -> np.ndarray:
    """Returns the place of each id, int32, -1: not there."""
    return np.array(
        [self._place.get(self._form(value), -1) for value in ids], np.int32)

  def _form(self, value: Any) -> Any:
    """Returns an id in the vocabulary's type; None if it cannot be one."""
    if isinstance(value, np.generic):
      value = value.item()
    if isinstance(value, bool) or value is None:
      return None
    if isinstance(value, (float, decimal.Decimal)):
      whole = value == value and abs(value) != float('inf') and (
          value == int(value))
      if not whole or (isinstance(value, float) and abs(value) >= _EXACT):
        return None
      value = int(value)
    if isinstance(value, int):
      return str(value) if self._is_text else value
    if isinstance(value, str):
      if self._is_text:
        return value
      return int(value) if _IS_PLAIN.match(value) else None
    return None


def _is_text(kind: pa.DataType) -> bool:
  return (pa.types.is_string(kind) or pa.types.is_large_string(kind)
          or pa.types.is_string_view(kind))


def _plain(array: pa.Array) -> pa.Array:
  """Returns text as integers if all of it are plain ones that fit."""
  plain = pc.match_substring_regex(array, _PLAIN)
  if not len(array) or not pc.all(plain).as_py():
    return array
  for kind in (pa.int64(), pa.uint64()):
    try:
      return array.cast(kind)
    except pa.ArrowInvalid:
      continue
  return array


def _of_objects(column: np.ndarray) -> pa.Array:
  """Reads an object array; numbers beside text become text."""
  values = [
      None if value is None or (isinstance(value, float) and value != value)
      else value.tolist() if isinstance(value, (np.ndarray, np.generic))
      else value for value in column]
  try:
    array = pa.array(values)
    return array.cast(_TEXT) if pa.types.is_string(array.type) else array
  except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
    pass
  return pa.array([value if value is None or isinstance(value, str)
                   else str(value) for value in values], _TEXT)
