"""TFDS builder of any folder of tables, Parquet or CSV."""

import re
from typing import Any, Mapping

import tensorflow_datasets as tfds

from sidrec.data import tables
from sidrec.data.builders import records
from sidrec.data.builders.sources import raw


class Builder(records.TablesBuilder):
  """The tables of a folder.

  directory: the folder, as `sidrec.data.tables.read` takes it.
  """

  def __init__(self, *, directory: str, **kwargs: Any):
    self._data = tables.check(tables.read(directory), directory)
    if self._data.embeddings is not None:
      self.embedding_dtype = self._data.embeddings.dtype.name
    name = re.sub(r'[^\w.-]+', '_', str(self._data.info['name']))
    super().__init__(config=tfds.core.BuilderConfig(
        name=name, version=self.VERSION), **kwargs)

  def _describe(self) -> tuple[Mapping[str, Any], raw.Schema]:
    return self._data.info, records.schema_of(self._data)

  def _load(self, dl_manager: Any) -> tables.Tables:
    del dl_manager
    return self._data
