"""Writes and reads files of a workdir; what is wrong with one is one line."""

import io
import json
from typing import Any
import zipfile

from etils import epath
import numpy as np

from sidrec import disk
from sidrec import types


def write(path: str, content: bytes) -> None:
  """Writes a file whole or not at all, on disk or in a bucket.

  Raises:
    types.InputError: if it cannot be written (full disk, permissions).
  """
  try:
    disk.write(path, content)
  except OSError as error:
    raise types.InputError(
        f'{path}: cannot be written ({disk.reason(error)}): make room there '
        'or choose another --workdir') from error


_ROWS = 256  # Of text that are made as wide as the longest at a time.


def npz(**arrays: np.ndarray) -> bytes:
  """Returns what `np.load` reads as these arrays.

  Text, [N] objects, becomes as wide as its longest: in parts and compressed, so
  that one long text among many does not cost what all of its length would.

  Args:
    **arrays: numbers, or text as objects.
  """
  content = io.BytesIO()
  with zipfile.ZipFile(content, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, values in arrays.items():
      kind = values.dtype
      if kind == object:
        kind = np.dtype(f'<U{max(map(len, values), default=1) or 1}')
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {
            'descr': np.lib.format.dtype_to_descr(kind),
            'fortran_order': False, 'shape': values.shape})
        for start in range(0, len(values), _ROWS):
          file.write(values[start:start + _ROWS].astype(kind).tobytes())
  return content.getvalue()


def read_json(path: str) -> dict[str, Any] | None:
  """Returns the object that a JSON file of a run holds; None without a file.

  Raises:
    types.InputError: if it cannot be read, or holds something else.
  """
  again = 'the command that made the run writes it again'
  file = epath.Path(path)
  try:
    if not file.is_file():
      return None
    value = json.loads(file.read_bytes())
  except OSError as error:
    raise types.InputError(
        f'{path}: cannot be read ({disk.reason(error)})') from error
  except ValueError as error:  # Neither text nor JSON.
    raise types.InputError(
        f'{path}: damaged: not JSON ({disk.one_line(error)}); {again}'
        ) from error
  if not isinstance(value, dict):
    raise types.InputError(
        f'{path}: damaged: holds a {type(value).__name__}, not an object; '
        f'{again}')
  return value
