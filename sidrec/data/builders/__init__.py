"""Public data sets and folders of tables, to and from TFDS and Parquet.

Nothing here imports TFDS before it is needed: that takes seconds.
"""

import importlib
from typing import Any

from sidrec import types
from sidrec.data import tables as _tables
from sidrec.data.builders import layout
from sidrec.data.builders import sources
from sidrec.data.builders.sources import raw

NAMES = sources.NAMES
write = layout.write


def read(data_dir: str) -> _tables.Tables:
  """Reads checked tables from a data set that a builder here prepared.

  Args:
    data_dir: folder of the version, or one above it with nothing else in it.

  Raises:
    types.InputError: nothing prepared there, more than one, or damaged.
  """
  return _records().read(data_dir)


def convert(
    name: str, manual_dir: str = '', *, category: str = '',
    time: str = 'ordinal', download_dir: str = '', progress: bool = False,
) -> _tables.Tables:
  """Turns official raw files into checked tables.

  Args:
    name: one of `NAMES`.
    manual_dir: folder with the raw files; empty: they are downloaded.
    category: of an Amazon data set, as its file names spell it.
    time: 'ordinal' or 's', see `sources.get`.
    download_dir: where downloads are kept; only without manual_dir.
    progress: shows bars.

  Raises:
    types.InputError: names the file, row and column.
  """
  source = sources.get(name, category, time)
  if manual_dir:
    paths = raw.locate(manual_dir, source)
  elif download_dir:
    import tensorflow_datasets as tfds  # pylint: disable=g-import-not-at-top
    paths = _records().download(
        source, tfds.download.DownloadManager(download_dir=download_dir))
  else:
    raise types.InputError(
        f'{name}: give manual_dir, the folder with the raw files, or '
        'download_dir')
  return _tables.check(source.parse(paths, progress), source.name)


def builder(
    name: str, *, data_dir: str, directory: str = '', category: str = '',
    **kwargs: Any,
) -> Any:
  """Returns the TFDS builder of a public data set, or of a folder of tables.

  Args:
    name: 'tables' or one of `NAMES`.
    data_dir: where TFDS keeps prepared data sets.
    directory: the folder, for 'tables'.
    category: of an Amazon data set.
    **kwargs: to the builder's constructor.

  Returns:
    `tfds.core.DatasetBuilder`; `download_and_prepare` it, then
    `as_data_source`, or `read(builder.data_dir)`.

  Raises:
    types.InputError: unknown name or category, or a broken folder.
  """
  if name == 'tables':
    package, kwargs = 'tables', dict(kwargs, directory=directory)
  else:
    sources.get(name, category)  # Tells a wrong name or category.
    if name.startswith('ml-'):
      package, kwargs = 'movielens', dict(kwargs, config=name)
    elif name.startswith('amazon'):
      package, kwargs = f'amazon_20{name[-2:]}', dict(kwargs, config=category)
    else:
      package = name.replace('-', '_')
  module = importlib.import_module(
      f'{__name__}.{package}.{package}_dataset_builder')
  return module.Builder(data_dir=data_dir, **kwargs)


def _records() -> Any:
  """Imports TFDS, and what needs it."""
  return importlib.import_module(f'{__name__}.records')
