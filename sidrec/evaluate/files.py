"""Writes files whole or not at all."""

from etils import epath

from sidrec import types


def write(path: str, content: bytes) -> None:
  """Writes a file whole or not at all, on disk or in a bucket.

  Raises:
    types.InputError: if it cannot be written (full disk, permissions).
  """
  temporary = epath.Path(path + '.tmp')
  try:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError as error:
    raise types.InputError(
        f'{path}: cannot be written ({error}): free space there or choose '
        'another --workdir') from error
