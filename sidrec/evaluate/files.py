"""Writes and reads files of a workdir; what is wrong with one is one line."""

import json
from typing import Any

from etils import epath

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
