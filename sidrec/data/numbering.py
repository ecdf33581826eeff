"""Internal item numbers: a random permutation of the rows of `items`.

Published catalogs often number items by first appearance over whole sequences,
test items included: then whatever reads a number (a tie broken by number, codes
counted off in order) reads the future. Ids in files stay what they are.
"""

import dataclasses
import zlib

import numpy as np

from sidrec.data import ids
from sidrec.data import tables as tables_lib


def draw(num_items: int, seed: int) -> np.ndarray:
  """Returns the row of the items table [V] int64 of each internal number.

  Args:
    num_items: V.
    seed: of the data (`config.data.seed`), not of a run: seeds of one
      experiment share a catalog.
  """
  entropy = [seed, zlib.crc32(b'item numbers')]
  return np.random.Generator(np.random.Philox(
      np.random.SeedSequence(entropy))).permutation(num_items)


def inverse(order: np.ndarray) -> np.ndarray:
  """Returns [V] int32 with `out[order[n]] = n`."""
  out = np.empty(len(order), np.int32)
  out[order] = np.arange(len(order), dtype=np.int32)
  return out


def reorder(tables: tables_lib.Tables, order: np.ndarray) -> tables_lib.Tables:
  """Puts the items, and all that is in their order, into internal order.

  Args:
    tables: after `tables.check`.
    order: [V] of `draw`.
  """
  embeddings, truth, number = tables.embeddings, tables.truth, inverse(order)
  values = tables.items['item_id'].values[order]
  items = {name: column[order] for name, column in tables.items.items()}
  items['item_id'] = ids.Column(np.arange(len(order), dtype=np.int32), values)
  histories = tables.histories and {
      name: ids.Lists(column.offsets, number[column.codes], values)
      if isinstance(column, ids.Lists) else column
      for name, column in tables.histories.items()}
  return dataclasses.replace(
      tables, items=items, histories=histories,
      events={**tables.events, 'item_id': ids.Column(
          number[tables.events['item_id'].codes], values)},
      embeddings=None if embeddings is None else embeddings[order],
      truth=None if truth is None else truth.reorder(order))
