"""Reads one table file: Parquet, or text with separators between columns.

Text is read as text, whole columns at a time; `typed` says what the columns
are. So a column has one type however long the file is, and ids are never
numbers first.
"""

import codecs
import contextlib
import csv
import gzip
import io
import os
from typing import BinaryIO, Iterator, NamedTuple, Sequence
import zlib

from absl import logging
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import tqdm

from sidrec import disk
from sidrec import types

SEPARATORS = ',\t;|'
_LONG_SEPARATOR = '::'  # MovieLens.
_UNIT = '\x1f'  # Stands for a separator of several characters.
# What a text file writes where a value is missing; of ids only ''.
MISSING = ('', '#N/A', 'N/A', 'NA', 'NULL', 'NaN', 'n/a', 'nan', 'null', 'None')
_BOOLEANS = {'true': 1, 'false': 0, 'True': 1, 'False': 0, 'TRUE': 1,
             'FALSE': 0}
_BLOCK = 1 << 24  # Bytes that Arrow parses at a time.
_LARGEST_BLOCK = 1 << 30  # A row of a text file cannot be longer.
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeError)
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


class BrokenRow(NamedTuple):
  """A row of another number of fields.

  row: in the file, from 0, heading not included. num_fields: there are.
  text: of the row.
  """
  row: int
  num_fields: int
  text: str


def text(path: str, separator: str | None = None, encoding: str = 'utf-8',
         names: Sequence[str] | None = None, quoting: bool = True,
         broken: list[BrokenRow] | None = None, progress: bool = False,
         ) -> pa.Table:
  """Reads a text file, gzipped or not; all columns as text, '' = missing.

  Args:
    path: of the file.
    separator: one character or more; None: the one that the heading has most
      of.
    encoding: of the file, any that Python knows.
    names: of the columns of a file without a heading.
    quoting: whether values in quotes may hold separators and ends of lines.
    broken: gets the rows of another number of fields, which are left out;
      None: such a row is an error.
    progress: shows a bar where reading takes long.

  Raises:
    types.InputError: not readable, another encoding, rows of another length.
  """
  first = heading(path, encoding)
  separator = separator or sniff(first)
  columns = split_heading(first, separator) if names is None else names
  convert = pa_csv.ConvertOptions(
      column_types={name: pa.string() for name in columns},
      strings_can_be_null=False, quoted_strings_can_be_null=False)
  parse = pa_csv.ParseOptions(
      delimiter=separator if len(separator) == 1 else _UNIT,
      quote_char='"' if quoting else False, newlines_in_values=quoting)
  if broken is not None:
    before = 2 if names is None else 1  # Arrow counts from 1, and the heading.

    def leave_out(row: pa_csv.InvalidRow) -> str:
      broken.append(BrokenRow(row.number - before, row.actual_columns,
                              row.text.replace(_UNIT, separator)))
      return 'skip'
    parse.invalid_row_handler = leave_out
  size = _BLOCK
  while True:
    read = pa_csv.ReadOptions(
        block_size=size, encoding=encoding, column_names=names,
        use_threads=broken is None)  # Threads do not know a row's number.
    try:
      with opened(path, progress) as file:
        if len(separator) > 1:
          file = io.BytesIO(file.read().replace(
              separator.encode(), _UNIT.encode()))
        table = pa_csv.read_csv(file, read, parse, convert)
      return _columns(table, path)
    except (pa.ArrowException, LookupError, *_UNREADABLE) as error:
      if broken is not None:
        broken.clear()
      if 'straddling' in str(error) and size < _LARGEST_BLOCK:
        size *= 8  # A row that is longer than a block.
        continue
      check_encoding(path, encoding)
      raise _unreadable(path, error) from error


@contextlib.contextmanager
def opened(path: str, progress: bool = False) -> Iterator[BinaryIO]:
  """Opens a file, gzipped or not, to be read as bytes.

  Args:
    path: of the file.
    progress: shows a bar after two seconds, if there is somebody to see it.
  """
  with open(path, 'rb') as raw:
    zipped = raw.read(2) == b'\x1f\x8b'
    raw.seek(0)
    with tqdm.tqdm.wrapattr(
        raw, 'read', total=os.path.getsize(path), delay=2, leave=False,
        desc=os.path.basename(path),
        disable=None if progress else True) as file:
      yield gzip.GzipFile(fileobj=file) if zipped else file


def split_heading(line: str, separator: str) -> list[str]:
  """Returns the names in a heading."""
  if len(separator) > 1:
    return line.split(separator)
  return next(csv.reader([line], delimiter=separator), [])


def sniff(line: str) -> str:
  """Returns the separator that a heading has most of outside of quotes."""
  bare = ''.join(line.split('"')[::2])
  if _LONG_SEPARATOR in bare:
    return _LONG_SEPARATOR
  return max(SEPARATORS, key=bare.count)


def check_encoding(path: str, encoding: str) -> None:
  """Raises types.InputError with the first byte that is not of an encoding."""
  decoder, place = codecs.getincrementaldecoder(encoding)(), 0
  with opened(path) as file:
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


def heading(path: str, encoding: str) -> str:
  """Returns the first line of a text file.

  Raises:
    types.InputError: not readable, another encoding, or nothing in it.
  """
  check_encoding_known(encoding)
  try:
    with opened(path) as file:
      start = file.read(4)
    if encoding.lower().replace('_', '-') in ('utf-8', 'utf8') and start[
        :2] in (b'\xff\xfe', b'\xfe\xff'):
      raise types.InputError(
          f'{path}: byte 0 is not UTF-8 but UTF-16; save the file as UTF-8, or '
          'say --encoding=utf-16 to `python -m sidrec.data import`')
    with opened(path) as file:
      line = io.TextIOWrapper(file, encoding, newline='').readline()
  except UnicodeError:
    check_encoding(path, encoding)
    raise
  except (OSError, EOFError, zlib.error) as error:
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
  # By its number only: Arrow's words on a damaged file sound like others'.
  if isinstance(error, MemoryError) or getattr(error, 'errno', None):
    return types.InputError(f'{path}: cannot be read: {disk.reason(error)}')
  return types.InputError(
      f'{path}: cannot be read, truncated or corrupt '
      f'({disk.one_line(error)[:300]}); write it again')
