"""One run at a time writes into a workdir."""

import contextlib
import fcntl
import json
import os
import socket
from typing import Any, Iterator

from etils import epath

from sidrec import disk
from sidrec import types

FILE = 'run.lock'  # {"host": NAME, "pid": NUMBER} while a run writes there.


@contextlib.contextmanager
def hold(workdir: str) -> Iterator[None]:
  """Holds a workdir for this process, until the end of the block.

  The system lets go of the lock of a process that was killed; the file that it
  leaves is taken over by the next run on the host. Buckets know no locks:
  there the file alone counts.

  Args:
    workdir: made if absent, and removed again should nothing be in it.

  Raises:
    types.InputError: another run holds it, or the file cannot be written.
  """
  path = os.path.join(workdir, FILE)
  is_new = not epath.Path(workdir).exists()
  try:
    file = None if '://' in path else _open(path)
  except OSError as error:
    raise types.InputError(
        f'{path}: cannot be written ({disk.reason(error)}): make room there '
        'or choose another --workdir') from error
  try:
    _check(path, is_ours=file is not None)
    try:
      _write(path, file, {'host': socket.gethostname(), 'pid': os.getpid()})
      yield
    finally:
      with contextlib.suppress(OSError):
        epath.Path(path).unlink()
  finally:
    if file is not None:
      os.close(file)
    if is_new:
      with contextlib.suppress(OSError):
        os.rmdir(workdir)


def _open(path: str) -> int | None:
  """Opens the file and locks it; None where the system has no locks."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      os.close(file)
      raise _refusal(path, _read(path)) from error
    except OSError:  # Of a file system that cannot.
      os.close(file)
      return None
    # Who held it may just have removed it.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file), os.stat(path)):
        return file
    os.close(file)


def _check(path: str, is_ours: bool) -> None:
  """Refuses a file of a run that is, or may be, alive."""
  held = _read(path)
  if held is None:
    return
  if held.get('host') != socket.gethostname():
    raise types.InputError(
        f'{path}: held by {_name(held)}, which cannot be seen from this host: '
        'wait for its end or choose another --workdir; if it is over, remove '
        'the file')
  if not is_ours and _is_alive(held.get('pid')):
    raise _refusal(path, held)


def _read(path: str) -> dict[str, Any] | None:
  """What the file says; None where it says nothing whole."""
  try:
    held = json.loads(epath.Path(path).read_bytes())
  except (OSError, ValueError):
    return None
  return held if isinstance(held, dict) else None


def _write(path: str, file: int | None, held: dict[str, Any]) -> None:
  content = json.dumps(held).encode()
  try:
    if file is None:
      epath.Path(path).write_bytes(content)
    else:
      os.ftruncate(file, 0)
      os.pwrite(file, content, 0)
  except OSError as error:
    raise types.InputError(
        f'{path}: cannot be written ({disk.reason(error)}): make room there '
        'and run the same command again') from error


def _is_alive(pid: Any) -> bool:
  """Whether this host has such a process."""
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, TypeError, OverflowError):
    return False
  except PermissionError:
    pass
  return True


def _refusal(path: str, held: dict[str, Any] | None) -> types.InputError:
  return types.InputError(
      f'{path}: {_name(held or {})} is writing there: wait for its end or '
      'choose another --workdir')


def _name(held: dict[str, Any]) -> str:
  return (f'a run on host {held.get("host", "unknown")} (pid '
          f'{held.get("pid", "unknown")})')
