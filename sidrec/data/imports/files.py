"""Opens raw files of any kind as tables of columns."""

import dataclasses
import json
import os
import re
from typing import Any, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tqdm

from sidrec import types
from sidrec.data import columns as columns_lib
from sidrec.data import ids
from sidrec.data import reading

TOKEN, TOKENS, FLOAT, FLOATS = 'token', 'token_seq', 'float', 'float_seq'
_ATOMIC = ('.inter', '.item', '.user')  # RecBole's.
_KINDS = re.compile(f':({TOKENS}|{TOKEN}|{FLOATS}|{FLOAT})$')
_PARQUET = ('.parquet', '.pq')
_JSON = ('.json', '.jsonl', '.ndjson')
_NUMBER = re.compile(r'^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$')
_EXACT = 2**53  # Beyond it a float does not tell one integer from the next.


@dataclasses.dataclass(frozen=True)
class Raw:
  """One raw file.

  path: of it. table: its columns; of a text file all are text. rows: [R] row
    in the file of each row of the table. broken: (row, reason, text) of what
    is no row. kinds: column -> RecBole's word for it. is_text: whether numbers
    are still text. separator: of a text file. left_out: (column, why).
  """
  path: str
  table: pa.Table
  rows: np.ndarray
  broken: tuple[tuple[int, str, str], ...] = ()
  kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
  is_text: bool = False
  separator: str = ','
  left_out: tuple[tuple[str, str], ...] = ()

  @property
  def name(self) -> str:
    """The name of the file."""
    return os.path.basename(self.path)


def read(path: str, separator: str | None, encoding: str) -> Raw:
  """Reads a file by its ending, `.gz` left aside.

  Args:
    path: of the file.
    separator: of a text file; None: the one its heading has most of.
    encoding: of text and JSON.

  Raises:
    types.InputError: not there, not readable, or nothing in it.
  """
  if not os.path.isfile(path):
    raise types.InputError(f'{path}: no such file; name the raw files')
  ending = os.path.splitext(path.lower().removesuffix('.gz'))[1]
  if ending in _PARQUET:
    table = reading.parquet(path)
    raw = Raw(path, table, np.arange(len(table)))
  elif ending in _JSON:
    raw = _json(path, encoding)
  else:
    raw = _text(path, ending in _ATOMIC, separator, encoding)
  if not raw.table.num_rows and not raw.broken:
    raise types.InputError(f'{path}: has no rows')
  return _usable(raw)


def _usable(raw: Raw) -> Raw:
  """Returns a file without columns that hold no values."""
  left_out = list(raw.left_out)
  for name in raw.table.column_names:
    reason = columns_lib.unusable(raw.table[name].type)
    if reason:
      left_out.append((name, reason))
  return dataclasses.replace(
      raw, left_out=tuple(left_out), table=raw.table.drop_columns(
          [name for name, _ in left_out if name in raw.table.column_names]))


def _text(path: str, atomic: bool, separator: str | None, encoding: str
          ) -> Raw:
  """Reads a text file; without a heading its columns are column_1, ..."""
  first = reading.heading(path, encoding)
  separator = separator or ('\t' if atomic else reading.sniff(first))
  names = reading.split_heading(first, separator)
  given = None
  if any(_NUMBER.match(name.strip()) for name in names) and (
      names != [str(place) for place in range(len(names))]):
    names = given = [f'column_{place + 1}' for place in range(len(names))]
  broken: list[reading.BrokenRow] = []
  table = reading.text(
      path, separator, encoding, given,
      quoting=not atomic and len(separator) == 1, broken=broken, progress=True)
  rows = np.ones(len(table) + len(broken), bool)
  rows[[row.row for row in broken]] = False
  kinds = {}
  for place, name in enumerate(table.column_names):
    match = _KINDS.search(name)
    if match:
      bare = name[:match.start()]
      if bare in table.column_names:
        raise types.InputError(f'{path}: column {bare!r} is there twice')
      kinds[bare] = match.group(1)
      table = table.rename_columns([
          bare if i == place else old
          for i, old in enumerate(table.column_names)])
  return Raw(path, table, np.flatnonzero(rows), tuple(
      (row.row, 'another number of fields', row.text) for row in broken),
             kinds, True, separator)


def _json(path: str, encoding: str) -> Raw:
  """Reads JSON: an object a line, a list of objects, or an object of them."""
  reading.check_encoding_known(encoding)
  try:
    with reading.opened(path, progress=True) as file:
      text = file.read().decode(encoding).lstrip('\ufeff')
  except UnicodeError:
    reading.check_encoding(path, encoding)
    raise
  except (OSError, EOFError) as error:
    raise types.InputError(f'{path}: cannot be read ({error})') from error
  whole = _whole(text)
  if isinstance(whole, dict) and whole and all(
      isinstance(value, list) for value in whole.values()):
    return Raw(path, pa.table({
        'user_id': ids.from_text(pa.chunked_array([pa.array(list(whole))])),
        'items': _column(list(whole.values()))}), np.arange(len(whole)))
  if isinstance(whole, dict) and whole and all(
      isinstance(value, dict) for value in whole.values()):
    key = 'user_id' if 'user' in os.path.basename(path).lower() else 'item_id'
    of_key = ids.from_text(pa.chunked_array([pa.array(list(whole))]))
    raw = _records(path, list(enumerate(whole.values())), ())
    if key in raw.table.column_names:
      return raw
    return dataclasses.replace(raw, table=raw.table.add_column(0, key, of_key))
  if isinstance(whole, list):
    return _records(path, list(enumerate(whole)), ())
  records, broken = [], []
  lines = text.split('\n')
  for row, line in enumerate(tqdm.tqdm(
      lines, desc=os.path.basename(path), delay=2, leave=False, disable=None)):
    if not line.strip():
      continue
    try:
      records.append((row, json.loads(line)))
    except ValueError:
      broken.append((row, 'not JSON', line))
  return _records(path, records, tuple(broken))


def _whole(text: str) -> Any:
  """Returns the one JSON value of a file; None where lines are objects."""
  stripped = text.strip()
  end = stripped.find('\n')
  if end >= 0 and stripped[0] == '{':
    try:
      json.loads(stripped[:end])
      return None  # The first line is an object of its own.
    except ValueError:
      pass
  try:
    return json.loads(stripped)
  except ValueError:
    return None


def _records(path: str, records: list[tuple[int, Any]],
             broken: tuple[tuple[int, str, str], ...]) -> Raw:
  """Makes columns of objects."""
  kept = [(row, record) for row, record in records if isinstance(record, dict)]
  broken += tuple((row, 'not a JSON object', json.dumps(record))
                  for row, record in records if not isinstance(record, dict))
  if not kept:
    raise types.InputError(f'{path}: holds no JSON objects')
  names = list(dict.fromkeys(name for _, record in kept for name in record))
  columns, left_out = {}, []
  for name in names:
    column = _column([record.get(name) for _, record in kept])
    if column is None:
      left_out.append((name, 'holds objects; make columns of what is in them'))
    else:
      columns[name] = column
  return Raw(path, pa.table(columns), np.array([row for row, _ in kept]),
             broken, left_out=tuple(left_out))


def _column(values: list[Any]) -> pa.Array | None:
  """Returns JSON values as one exact type, None where they are objects."""
  kinds = {type(value) for value in values} - {type(None)}
  if dict in kinds:
    return None
  if kinds == {list}:
    flat = [None if value is None else [
        entry for inner in value for entry in (
            inner if isinstance(inner, list) else [inner])]
            for value in values]
    kinds = {type(entry) for value in flat if value for entry in value}
    if kinds & {dict, list}:
      return None
    if not kinds <= {int} and kinds != {float}:
      flat = [None if value is None else [_word(entry) for entry in value]
              for value in flat]
    return pa.array(flat)
  if kinds <= {int, float} and not (len(kinds) == 2 and any(
      abs(value) >= _EXACT for value in values if value is not None)):
    try:
      return pa.array(values)
    except (OverflowError, pa.ArrowInvalid):
      if kinds == {int} and all(
          value is None or 0 <= value < 2**64 for value in values):
        return pa.array(values, pa.uint64())
  elif kinds == {bool}:
    return pa.array(values).cast(pa.int8())
  return pa.array([_word(value) for value in values], pa.string())


def _word(value: Any) -> str | None:
  """Returns a JSON value as text."""
  if value is None or isinstance(value, str):
    return value
  return json.dumps(value)


def shown(raw: Raw, row: int) -> str:
  """Returns a row as it stood in its file, for people.

  Args:
    raw: of the file.
    row: as `Raw.rows` counts.
  """
  place = int(np.searchsorted(raw.rows, row))
  record = raw.table.slice(place, 1).to_pylist()[0]
  if not raw.is_text:
    return json.dumps(record, ensure_ascii=False, default=str)
  quoted = [f'"{value}"'.replace('"', '""')[1:-1]
            if raw.separator in value or '\n' in value else value
            for value in record.values()]
  return raw.separator.join(quoted)


def missing(column: pa.ChunkedArray) -> np.ndarray:
  """Returns [R] bool: null or an empty text."""
  out = pc.is_null(column, nan_is_null=pa.types.is_floating(column.type))
  if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
    out = pc.or_(out, pc.fill_null(pc.equal(column, ''), True))
  return out.to_numpy() if isinstance(out, pa.ChunkedArray) else (
      out.to_numpy(zero_copy_only=False))
