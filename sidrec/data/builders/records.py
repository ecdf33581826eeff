"""Tables as TFDS records: array_record files, no TensorFlow needed.

A split is a table (events, items, users, histories). A record is a block of
up to `BLOCK` rows in column form: numbers as [R], text and lists as their
entries one after another plus how many each row has, 0 where it is missing.
One row a record would cost TFDS half a millisecond a row each way.
"""

import os
from typing import Any, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from sidrec import types
from sidrec.data import tables
from sidrec.data.builders import layout
from sidrec.data.builders.sources import raw

BLOCK = 4096
INFO = 'dataset'  # Key of `dataset.json` in the metadata.
_EMBEDDING = 'embedding'  # Beside the columns of an item record.


def schema_of(data: tables.Tables) -> dict[str, dict[str, str]]:
  """Returns table -> column -> kind (`layout.kind_of`) of what is there."""
  return {
      name: {column: layout.kind_of(values, f'{name}.{column}')
             for column, values in layout.plain(getattr(data, name)).items()}
      for name in layout.TABLES if getattr(data, name) is not None}


def features(schema: raw.Schema) -> tfds.features.FeaturesDict:
  """Returns what a record holds: one entry a table and column.

  Args:
    schema: table -> column -> kind.

  Raises:
    types.InputError: a column name with a slash, which TFDS keeps for itself.
  """
  result = {}
  for table, columns in schema.items():
    for name in columns:
      if '/' in name:
        raise types.InputError(
            f'{table}: column {name!r}: rename it, TFDS allows no slash')
    result[table] = {name: _feature(kind) for name, kind in columns.items()}
  result[_EMBEDDING] = tfds.features.Tensor(shape=(None,), dtype=np.float32)
  return tfds.features.FeaturesDict(result)


def _feature(kind: str) -> Any:
  """Returns the TFDS feature of a block of a column."""
  if kind in ('text', 'ints', 'texts'):
    dtype = np.int64 if kind == 'ints' else np.str_
    return {'values': tfds.features.Tensor(shape=(None,), dtype=dtype),
            'lengths': tfds.features.Tensor(shape=(None,), dtype=np.int64)}
  # A tf.Example has no doubles: as bytes they stay what they are.
  encoding = 'bytes' if kind == 'float64' else 'none'
  return tfds.features.Tensor(
      shape=(None,), dtype=np.dtype(kind), encoding=encoding)


def blocks(
    data: tables.Tables, table: str, schema: raw.Schema
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (key, record) of one table, in the order of its rows.

  Args:
    data: checked tables.
    table: name of one of them.
    schema: of all of them; other tables are empty in these records.
  """
  empty = {name: {column: _block(np.empty(0, object), kind)
                  for column, kind in columns.items()}
           for name, columns in schema.items()}
  columns = layout.plain(getattr(data, table))
  num_rows = len(next(iter(columns.values())))
  for key, start in enumerate(range(0, num_rows, BLOCK)):
    rows = slice(start, start + BLOCK)
    embedding = np.zeros(0, np.float32)
    if table == 'items' and data.embeddings is not None:
      embedding = data.embeddings[rows].astype(np.float32).reshape(-1)
    yield key, {
        **empty, _EMBEDDING: embedding,
        table: {name: _block(columns[name][rows], kind)
                for name, kind in schema[table].items()}}


def _block(values: np.ndarray, kind: str) -> Any:
  """Encodes rows of a column."""
  if kind not in ('text', 'ints', 'texts'):
    return values.astype(kind)
  if kind == 'text':
    rows = [[] if _is_missing(value) else [str(value)] for value in values]
  else:
    rows = [[] if _is_missing(value) else list(value) for value in values]
  flat = [entry for row in rows for entry in row]
  return {'values': np.array(flat, np.int64 if kind == 'ints' else object),
          'lengths': np.array([len(row) for row in rows], np.int64)}


def _is_missing(value: Any) -> bool:
  return value is None or (isinstance(value, float) and value != value)


def _column(blocks_of: list[Any], kind: str) -> np.ndarray:
  """Decodes the blocks of a column."""
  if kind not in ('text', 'ints', 'texts'):
    return np.concatenate([np.asarray(block) for block in blocks_of])
  lengths = np.concatenate([block['lengths'] for block in blocks_of])
  values = np.concatenate([block['values'] for block in blocks_of])
  if kind != 'ints':
    values = np.array([entry.decode() for entry in values] + [''],
                      object)[:-1]
  result = np.empty(len(lengths), object)
  stop = np.cumsum(lengths)
  for row, (start, end) in enumerate(zip(stop - lengths, stop)):
    if kind != 'text':
      result[row] = values[start:end]
    elif end > start:
      result[row] = values[start]
  return result


def read(data_dir: str) -> tables.Tables:
  """Reads checked tables from a data set that a builder here prepared.

  Args:
    data_dir: folder of the version, or one above it with nothing else in it.

  Raises:
    types.InputError: nothing prepared there, more than one, or damaged.
  """
  directory = _version_folder(data_dir)
  try:
    builder = tfds.builder_from_directory(directory)
    info = (builder.info.metadata or {}).get(INFO)
    if info is None:
      raise types.InputError(
          f'{directory}: a TFDS data set, but not one of tables; prepare it '
          'with sidrec.data.builders')
    schema = info['schema']
    content = {}
    embedding = []
    for name, columns in schema.items():
      records = list(builder.as_data_source(split=name))
      content[name] = {
          column: _column([record[name][column] for record in records], kind)
          for column, kind in columns.items()}
      embedding += [record[_EMBEDDING] for record in records]
  except (OSError, ValueError, KeyError, RuntimeError) as error:
    if isinstance(error, types.InputError):
      raise
    reason = ' '.join(str(error).split())[:200]
    raise types.InputError(
        f'{directory}: damaged TFDS files ({reason}); prepare them again'
    ) from error
  embeddings = np.concatenate(embedding).astype(info['embedding'])
  data = tables.Tables(
      info=info['info'], **content, embeddings=embeddings.reshape(
          len(content['items']['item_id']), -1) if embeddings.size else None)
  return tables.check(data, directory)


def _version_folder(data_dir: str) -> str:
  """Returns the one folder at or below that holds a prepared data set."""
  found = sorted(
      folder for folder, _, names in os.walk(data_dir)
      if 'dataset_info.json' in names and 'features.json' in names)
  if len(found) == 1:
    return found[0]
  what = f'{len(found)} prepared data sets' if found else (
      'no prepared TFDS data set')
  raise types.InputError(
      f'{data_dir}: {what} there; name the folder with dataset_info.json')


def download(source: raw.Source, manager: Any) -> dict[str, str]:
  """Downloads (and unpacks) the raw files of a source.

  Args:
    source: what to download.
    manager: `tfds.download.DownloadManager`.

  Returns:
    Key -> path, as `raw.locate` returns them.

  Raises:
    types.InputError: offline, or the address is gone.
  """
  try:
    if 'archive' in source.urls:
      path = str(manager.download(source.urls['archive']))
      # TFDS cannot unpack without TensorFlow.
      return raw.locate(raw.unpack(path), source)
    return {key: str(path) for key, path in manager.download(
        dict(source.urls)).items()}
  except types.InputError:
    raise
  except Exception as error:  # TFDS has no common class for these.
    reason = ' '.join(str(error).split())[:200]
    raise types.InputError(
        f'{source.name}: cannot be downloaded ({reason}); put the raw files '
        f'in a folder, from {source.page}, and name it as manual_dir'
    ) from error


def _fits(found: str | None, declared: str | None) -> bool:
  """Says whether a column can be stored as declared."""
  if found is None or declared is None:
    return False
  lists = ('text', 'ints', 'texts')
  if found in lists or declared in lists:
    # A column of lists with nothing in it looks like text.
    return found == declared or (found == 'text' and declared in lists)
  return True


class TablesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """TFDS builder of the three tables of one source."""

  embedding_dtype = 'float16'  # They are stored as float32.
  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First release.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      'Put the official raw files in manual_dir, packed or not; without them '
      'they are downloaded. third_party/ lists the names.')

  def __init__(self, *, file_format: str = 'array_record', **kwargs: Any):
    super().__init__(file_format=file_format, **kwargs)

  def source(self) -> raw.Source:
    """Returns what to read and how."""
    raise NotImplementedError

  def _load(self, dl_manager: Any) -> tables.Tables:
    """Returns checked tables of the raw files."""
    source = self.source()
    try:
      folder = str(dl_manager.manual_dir)
    except AssertionError:  # There is no such folder, or it is empty.
      folder = ''
    paths = (raw.locate(folder, source) if folder else
             download(source, dl_manager))
    return tables.check(source.parse(paths, True), source.name)

  def _describe(self) -> tuple[Mapping[str, Any], raw.Schema]:
    """Returns `dataset.json` and the schema, before any file is opened."""
    source = self.source()
    return source.info, source.schema

  def _info(self) -> tfds.core.DatasetInfo:
    info, schema = self._describe()
    return tfds.core.DatasetInfo(
        builder=self, features=features(schema), disable_shuffling=True,
        description=str(info.get('version', info['name'])),
        citation=str(info.get('citation', '')),
        license=str(info.get('licence', '')),
        metadata=tfds.core.MetadataDict(
            {INFO: {'info': info, 'schema': schema,
                    'embedding': self.embedding_dtype}}))

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    data = self._load(dl_manager)
    _, schema = self._describe()
    found = schema_of(data)
    for name in {**schema, **found}:
      declared, there = schema.get(name, {}), found.get(name, {})
      for column in {**declared, **there}:
        if not _fits(there.get(column), declared.get(column)):
          raise types.InputError(
              f'{self.name}: {name}.{column} is {there.get(column)}, declared '
              f'is {declared.get(column)}')
    return {name: self._generate_examples(data, name) for name in schema}

  def _generate_examples(
      self, data: tables.Tables, table: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    _, schema = self._describe()
    yield from blocks(data, table, schema)
