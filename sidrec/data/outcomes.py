"""Writes what a run gave to single users and exposures, as Parquet."""

from typing import Mapping

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq


def parquet(columns: Mapping[str, np.ndarray | None]) -> bytes:
  """Returns the content of a Parquet file.

  Args:
    columns: name -> [R] numbers or text; None: an int32 column of no value.
  """
  num = next(len(x) for x in columns.values() if x is not None)
  sink = pa.BufferOutputStream()
  pq.write_table(pa.table({
      name: pa.nulls(num, pa.int32()) if column is None else pa.array(column)
      for name, column in columns.items()}), sink, compression='zstd')
  return sink.getvalue().to_pybytes()
