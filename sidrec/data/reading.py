"""Reads one table file: Parquet, or text with separators between columns.

Text is read as text, whole columns at a time; `typed` says what the columns
are. So a column has one type however long the file is, and ids are never
numbers first.
"""

import codecs
import csv

from absl import logging
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from sidrec import types

SEPARATORS = ',\t;|'
# What a text file writes where a value is missing; of ids only ''.
MISSING = ('', '#N/A', 'N/A', 'NA', 'NULL', 'NaN', 'n/a', 'nan', 'null', 'None')
_BOOLEANS = {'true': 1, 'false': 0, 'True': 1, 'False': 0, 'TRUE': 1,
             'FALSE': 0}
_BLOCK = 1 << 24  # Bytes that Arrow parses at a time.
_LARGEST_BLOCK = 1 << 30  # A row of a text file cannot be longer.
_INDEX_COLUMNS = ('', 'Unnamed: 0', '__index_level_0__')  # pandas' row numbers.
_DATETIME = r'^\d{4}-\d\d-\d\d[ T]\d\d:\d\d'


def parquet(path: str) -> pa.Table:
  """Reads a Parquet file.

  Raises:
    types.InputError: not readable, or a column is there twice.
  """
  try:
    table = pa_parquet.read_table(path)
  except (pa.ArrowException, OSError) as error:
    raise _unreadable(path, error) from error
  return _columns(table, path)


def text(path: str, separator: str | None = None, encoding: str = 'utf-8',
         ) -> pa.Table:
  """Reads a text file with a heading; all columns as text, '' = missing.

  Args:
    path: of the file.
    separator: one character; None: the one of `SEPARATORS` that the heading
      has most of.
    encoding: of the file, any that Python knows.

  Raises:
    types.InputError: not readable, another encoding, rows of another length.
  """
  first = _heading(path, encoding)
  separator = separator or sniff(first)
  names = next(csv.reader([first], delimiter=separator), [])
  convert = pa_csv.ConvertOptions(
      column_types={name: pa.string() for name in names},
      strings_can_be_null=False, quoted_strings_can_be_null=False)
  parse = pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True)
  size = _BLOCK
  while True:
    try:
      with open(path, 'rb') as file:
        table = pa_csv.read_csv(
            file, pa_csv.ReadOptions(block_size=size, encoding=encoding),
            parse, convert)
      return _columns(table, path)
    except (pa.ArrowException, OSError, UnicodeError, LookupError) as error:
      if 'straddling' in str(error) and size < _LARGEST_BLOCK:
        size *= 8  # A row that is longer than a block.
        continue
      check_encoding(path, encoding)
      raise _unreadable(path, error) from error


def sniff(heading: str) -> str:
  """Returns the separator that a heading has most of outside of quotes."""
  bare = ''.join(heading.split('"')[::2])
  return max(SEPARATORS, key=bare.count)


def check_encoding(path: str, encoding: str) -> None:
  """Raises types.InputError with the first byte that is not of an encoding."""
  try:
    decoder = codecs.getincrementaldecoder(encoding)()
  except LookupError as error:
    raise types.InputError(
        f'{path}: there is no encoding {encoding!r}; try utf-8, utf-16, cp1252 '
        'or latin-1') from error
  place = 0
  with open(path, 'rb') as file:
    while True:
      block = file.read(1 << 20)
      held = len(decoder.getstate()[0])
      try:
        decoder.decode(block, final=not block)
      except UnicodeError as error:
        start = place - held + getattr(error, 'start', 0)
        raise types.InputError(
            f'{path}: byte {start} is not {encoding}; save the file as UTF-8, '
            'or say --encoding=cp1252 (or what it is) to `python -m '
            'sidrec.data import`') from error
      if not block:
        return
      place += len(block)


def typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """Returns a column of a text file as what all of its values are.

  Args:
    column: text.

  Returns:
    int64, float64, int8 of true and false, timestamps, or text; missing
    values (`MISSING`) are null.
  """
  distinct = column.unique()
  missing = pc.is_in(distinct, value_set=pa.array(MISSING, distinct.type))
  present = distinct.filter(pc.invert(missing))
  if pc.any(missing).as_py():
    column = pc.if_else(pc.is_in(column, value_set=pa.array(
        MISSING, distinct.type)), pa.scalar(None, column.type), column)
  if not len(present):
    return pa.chunked_array([pa.nulls(len(column), pa.string())])
  if len(present) <= len(_BOOLEANS) and (
      set(present.to_pylist()) <= set(_BOOLEANS)):
    true = pc.is_in(column, value_set=pa.array(
        [name for name, value in _BOOLEANS.items() if value], column.type))
    return pc.if_else(column.is_valid(), true, None).cast(pa.int8())
  for kind in (pa.int64(), pa.float64()):
    try:
      present.cast(kind)
    except pa.ArrowInvalid:
      continue
    if _spells_a_code(present):
      break  # 00123 is a code, not a number: a ZIP, an EAN.
    return column.cast(kind)
  if pc.all(pc.match_substring_regex(present, _DATETIME)).as_py():
    for kind in (pa.timestamp('us'), pa.timestamp('us', 'UTC')):
      try:
        return column.cast(kind)
      except pa.ArrowInvalid:
        continue
  return column


def emptied(column: pa.ChunkedArray) -> pa.ChunkedArray:
  """Returns a column of a text file whose empty texts are missing."""
  return pc.if_else(pc.equal(column, ''), pa.scalar(None, column.type), column)


def _spells_a_code(values: pa.Array) -> bool:
  """Whether a text that reads as a number has zeros in front of it."""
  return bool(pc.any(pc.match_substring_regex(values, r'^0[0-9]')).as_py())


def _heading(path: str, encoding: str) -> str:
  """Returns the first line of a text file."""
  check_encoding_known(encoding)
  try:
    with open(path, 'rb') as file:
      start = file.read(4)
    if encoding.lower().replace('_', '-') in ('utf-8', 'utf8') and start[
        :2] in (b'\xff\xfe', b'\xfe\xff'):
      raise types.InputError(
          f'{path}: byte 0 is not UTF-8 but UTF-16; save the file as UTF-8, or '
          'say --encoding=utf-16 to `python -m sidrec.data import`')
    with open(path, encoding=encoding, newline='') as file:
      line = file.readline()
  except UnicodeError:
    check_encoding(path, encoding)
    raise
  except OSError as error:
    raise _unreadable(path, error) from error
  if not line.strip():
    raise types.InputError(f'{path}: has no heading; give columns names')
  return line.lstrip('\ufeff').rstrip('\r\n')


def check_encoding_known(encoding: str) -> None:
  """Raises types.InputError unless Python knows an encoding."""
  try:
    codecs.lookup(encoding)
  except LookupError as error:
    raise types.InputError(
        f'--encoding={encoding}: no such encoding; try utf-8, utf-16, cp1252 '
        'or latin-1') from error


def _columns(table: pa.Table, path: str) -> pa.Table:
  """Returns a table without row numbers; raises on a name that is twice."""
  names = table.column_names
  for name in names:
    if names.count(name) > 1:
      raise types.InputError(f'{path}: column {name!r} is there twice')
  numbers = [name for name in names if name in _INDEX_COLUMNS]
  if numbers:
    logging.info('%s: column %r (row numbers of pandas) is left out', path,
                 numbers[0])
  return table.drop_columns(numbers)


def _unreadable(path: str, error: Exception) -> types.InputError:
  reason = ' '.join(str(error).split())[:300]
  if isinstance(error, (PermissionError, MemoryError)):
    return types.InputError(f'{path}: {reason}')
  return types.InputError(
      f'{path}: cannot be read, truncated or corrupt ({reason}); write it '
      'again')
