"""TFDS builder of KuaiRand-Pure."""

from sidrec.data.builders import records
from sidrec.data.builders.sources import kuairand
from sidrec.data.builders.sources import raw


class Builder(records.TablesBuilder):
  """KuaiRand-Pure, all standard exposures (arXiv 2208.10696)."""

  def source(self) -> raw.Source:
    """Returns what to read and how."""
    return kuairand.source()
