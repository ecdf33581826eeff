"""TFDS builder of MovieLens 1M and 20M."""

import tensorflow_datasets as tfds

from sidrec.data.builders import records
from sidrec.data.builders.sources import movielens
from sidrec.data.builders.sources import raw


class Builder(records.TablesBuilder):
  """MovieLens; configs ml-1m and ml-20m."""

  BUILDER_CONFIGS = [
      tfds.core.BuilderConfig(name=name) for name in movielens.FILES]

  def source(self) -> raw.Source:
    """Returns what to read and how."""
    return movielens.source(self.builder_config.name)
