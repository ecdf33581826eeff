"""A short hash of a data set, so that results say what they were made of."""

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from sidrec.data import ids
from sidrec.data import tables as tables_lib


def of_tables(tables: tables_lib.Tables) -> str:
  """Returns 12 hex digits of all that was read: columns, dtypes and values.

  Not of the name: a folder without one in `dataset.json` may be renamed.

  Args:
    tables: after `tables.check`, in the order of the files.
  """
  info = {key: value for key, value in tables.info.items() if key != 'name'}
  digest = hashlib.sha256(
      json.dumps(info, sort_keys=True, default=str).encode())
  for name in ('events', 'items', 'users', 'histories'):
    for column, values in sorted((getattr(tables, name) or {}).items()):
      digest.update(f'{name}/{column}/{len(values)}'.encode())
      _update(digest, values)
  if tables.embeddings is not None:
    digest.update(b'embeddings')
    _update(digest, tables.embeddings)
  return digest.hexdigest()[:12]


def _update(digest: 'hashlib._Hash', values: Any) -> None:
  """Adds one column."""
  if isinstance(values, (ids.Column, ids.Lists)):
    for field in dataclasses.fields(values):
      _update(digest, getattr(values, field.name))
  elif values.dtype != object:
    digest.update(values.dtype.str.encode())
    digest.update(np.ascontiguousarray(values).tobytes())
  elif any(isinstance(value, np.ndarray) for value in values):
    for value in values:
      if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f'{value.dtype.str}{value.size}'.encode())
        digest.update(value.tobytes())
      else:
        digest.update(repr(value).encode())
  else:
    digest.update('\0'.join(map(repr, values)).encode())
