"""TFDS builder of Amazon reviews 2018, 5-core."""

import tensorflow_datasets as tfds

from sidrec.data.builders import records
from sidrec.data.builders.sources import amazon
from sidrec.data.builders.sources import raw


class Builder(records.TablesBuilder):
  """Amazon reviews 2018; a config a category."""

  BUILDER_CONFIGS = [
      tfds.core.BuilderConfig(name=name) for name in amazon.CATEGORIES[2018]]

  def source(self) -> raw.Source:
    """Returns what to read and how."""
    return amazon.source(2018, self.builder_config.name)
