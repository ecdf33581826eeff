"""Finds, opens and reads raw files, with errors that name file and row."""

import ast
import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import tarfile
from typing import Any, Callable, Iterator, Mapping, Sequence
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import tqdm

from sidrec import types
from sidrec.data import tables

Paths = Mapping[str, str]
Schema = Mapping[str, Mapping[str, str]]  # Table -> column -> kind.

_READ_ERRORS = (OSError, EOFError, zlib.error, UnicodeDecodeError)


@dataclasses.dataclass(frozen=True)
class Source:
  """What is known of a public data set before any file is opened.

  name: of the folder of tables that comes out.
  page: where a person finds and downloads it.
  files: key -> accepted file names, the official one first.
  urls: key -> address of that file; key 'archive' for one that holds all.
  optional: keys of files that may be missing.
  info: the `dataset.json` of the result, without counts.
  schema: kind of each column, as `records.kind_of` names them.
  parse: (paths by key, progress) -> raw tables; a pure function.
  """
  name: str
  page: str
  files: Mapping[str, Sequence[str]]
  urls: Mapping[str, str]
  info: Mapping[str, Any]
  schema: Schema
  parse: Callable[[Paths, bool], tables.Tables]
  optional: frozenset[str] = frozenset()


def locate(directory: str, source: Source) -> dict[str, str]:
  """Finds the raw files of a source in a folder or two levels below it.

  Args:
    directory: where the raw files were put, or an archive was unpacked.
    source: says which names to look for; each may end in .gz or not.

  Returns:
    Key -> path; optional files that are not there are left out.

  Raises:
    types.InputError: no such folder, or a file is missing.
  """
  if not os.path.isdir(directory):
    raise types.InputError(
        f'{directory}: no such folder; put the raw files there, from '
        f'{source.page}')
  found = {}
  for folder, below, names in os.walk(directory):
    depth = os.path.relpath(folder, directory).count(os.sep)
    if depth >= 2:
      below.clear()
    below.sort()
    for name in names:
      found.setdefault(name, os.path.join(folder, name))
  paths = {}
  for key, names in source.files.items():
    either = [spelling for name in names
              for spelling in (name, name.removesuffix('.gz'), f'{name}.gz')]
    path = next((found[name] for name in either if name in found), None)
    if path is not None:
      paths[key] = path
    elif key not in source.optional:
      raise types.InputError(
          f'{directory}: missing raw file {" or ".join(names)}; download it '
          f'from {source.page}')
  return paths


def unpack(path: str) -> str:
  """Unpacks a zip or tar archive beside itself and returns the folder.

  Raises:
    types.InputError: neither, or a damaged one.
  """
  folder = f'{path}.unpacked'
  if os.path.isdir(folder):
    return folder
  partial = f'{folder}.part'
  shutil.rmtree(partial, ignore_errors=True)
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        archive.extractall(partial)
    else:
      with tarfile.open(path) as archive:
        archive.extractall(partial, filter='data')
  except (tarfile.TarError, zipfile.BadZipFile, *_READ_ERRORS) as error:
    raise types.InputError(
        f'{path}: cannot be unpacked ({_one_line(error)}); delete it, it will '
        'be downloaded again') from error
  os.replace(partial, folder)
  return folder


def open_text(path: str, encoding: str = 'utf-8') -> io.TextIOBase:
  """Opens a text file, gzipped or not, whatever its name says."""
  with open(path, 'rb') as file:
    zipped = file.read(2) == b'\x1f\x8b'
  if zipped:
    return gzip.open(path, 'rt', encoding=encoding)
  return open(path, 'rt', encoding=encoding)


def lines(
    path: str, progress: bool = False, encoding: str = 'utf-8'
) -> Iterator[tuple[int, str]]:
  """Yields (0-based row, text) for each line that is not empty.

  Raises:
    types.InputError: unreadable or truncated file.
  """
  row = 0
  try:
    with open_text(path, encoding) as file:
      for row, line in enumerate(tqdm.tqdm(
          file, desc=os.path.basename(path), unit=' lines', unit_scale=True,
          disable=not progress)):
        if line.strip():
          yield row, line.rstrip('\r\n')
  except _READ_ERRORS as error:
    raise types.InputError(
        f'{path}: cannot be read after row {row} ({_one_line(error)}); '
        'download it again') from error


def json_lines(
    path: str, progress: bool = False, loose: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (0-based row, object) for each line.

  Args:
    path: one JSON object a line.
    progress: shows a bar.
    loose: lines may be Python dict literals (Amazon 2014 metadata).

  Raises:
    types.InputError: names the first line that does not parse.
  """
  for row, line in lines(path, progress):
    try:
      record = json.loads(line)
    except ValueError as error:
      record = _literal(line) if loose else None
      if record is None:
        raise types.InputError(
            f'{path}: row {row}: not a JSON object ({_one_line(error)})'
        ) from error
    if not isinstance(record, dict):
      raise types.InputError(f'{path}: row {row}: not a JSON object')
    yield row, record


def _literal(line: str) -> Any:
  """Parses a Python literal, None if it is not one; runs no code."""
  try:
    return ast.literal_eval(line)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None


def field(record: Mapping[str, Any], name: str, path: str, row: int) -> Any:
  """Returns a field that must be there.

  Raises:
    types.InputError: names file, row and field.
  """
  value = record.get(name)
  if value is None:
    raise types.InputError(f'{path}: row {row}: missing field {name!r}')
  return value


def csv(path: str, columns: Mapping[str, str]) -> dict[str, np.ndarray]:
  """Reads columns of a CSV file with a header.

  Args:
    path: gzipped or not.
    columns: name -> kind ('int64', 'float64' or 'text').

  Returns:
    The columns; missing numbers are NaN, missing text is None.

  Raises:
    types.InputError: missing column, broken value, truncated file.
  """
  kinds = {'int64': pa.int64(), 'float64': pa.float64(), 'text': pa.string()}
  with open(path, 'rb') as file:
    zipped = file.read(2) == b'\x1f\x8b'
  try:
    with (gzip.open(path) if zipped else open(path, 'rb')) as file:
      table = pa_csv.read_csv(
          file, read_options=pa_csv.ReadOptions(use_threads=False),
          convert_options=pa_csv.ConvertOptions(
              include_columns=list(columns), strings_can_be_null=True,
              column_types={name: kinds[kind]
                            for name, kind in columns.items()}))
  except (pa.ArrowException, *_READ_ERRORS) as error:
    raise types.InputError(f'{path}: {_one_line(error)}') from error
  for name, kind in columns.items():
    if kind == 'int64' and table[name].null_count:
      row = np.flatnonzero(table[name].is_null().to_numpy())[0]
      raise types.InputError(f'{path}: row {row}, column {name}: missing')
  return {name: table[name].to_numpy() for name in columns}


def first_number(value: Any) -> float:
  """Returns the first number in a value such as '$12.99 - $20', else NaN."""
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    return float(value)
  # A price is short: longer text is markup that slipped into the field.
  match = re.search(r'\d+(?:\.\d+)?', value.replace(',', '')) if (
      isinstance(value, str) and len(value) < 40) else None
  return float(match.group()) if match else np.nan


def text(value: Any) -> str | None:
  """Returns stripped text, None where there is none."""
  value = ' '.join(value.split()) if isinstance(value, str) else ''
  return value or None


def objects(values: Sequence[Any]) -> np.ndarray:
  """Returns [R] objects; lists become arrays of text, one an entry."""
  result = np.empty(len(values), object)
  for row, value in enumerate(values):
    is_list = isinstance(value, (list, tuple))
    result[row] = np.array(value, object) if is_list else value
  return result


def first_of_each(*keys: np.ndarray) -> np.ndarray:
  """Returns sorted rows at which a combination of keys is seen first."""
  code = np.zeros(len(keys[0]), np.int64)
  for key in keys:
    _, column = np.unique(key, return_inverse=True)
    _, code = np.unique(
        code * (column.max(initial=0) + 1) + column, return_inverse=True)
  return np.sort(np.unique(code, return_index=True)[1])


def ordinal(user: np.ndarray, time: np.ndarray) -> np.ndarray:
  """Returns [E] int64 position 0, 1, ... of each event among its user's.

  Args:
    user: [E] user ids.
    time: [E] times; equal ones keep the order of the rows.
  """
  _, code = np.unique(user, return_inverse=True)
  order = np.lexsort((time, code))
  start = np.r_[True, np.diff(code[order]) > 0]
  rank = np.arange(len(user))
  position = np.empty(len(user), np.int64)
  position[order] = rank - np.maximum.accumulate(np.where(start, rank, 0))
  return position


def core(
    user: np.ndarray, item: np.ndarray, minimum: int
) -> np.ndarray:
  """Returns [E] bool: the k-core, every user and item with enough events."""
  _, user = np.unique(user, return_inverse=True)
  _, item = np.unique(item, return_inverse=True)
  keep = np.ones(len(user), bool)
  while True:
    enough = keep.copy()
    for column in (user, item):
      count = np.bincount(column[keep], minlength=len(user))
      enough &= count[column] >= minimum
    if enough.sum() == keep.sum():
      return keep
    keep = enough


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split())[:200]
