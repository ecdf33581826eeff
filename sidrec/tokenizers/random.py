"""Control: distinct random code tuples, which say nothing of the items."""

from typing import Any

from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import checks


def make(config: Any, spec: types.DataSpec) -> base.Table:
  """Makes the control.

  Args:
    config: the `tokenizer` sub-tree: num_levels, codebook_size.
    spec: of the data set; only the number of items is read.

  Returns:
    The table: V of the tuples, drawn without replacement.

  Raises:
    types.InputError: a size out of range, or fewer tuples than items.
  """
  sizes = checks.check_capacity(config, spec)
  return base.Table(
      sizes, lambda seed, items: base.placeholder(len(items.ids), sizes, seed))
