"""Files written whole or not at all, and what went wrong with one, in words."""

import contextlib
import errno
import os
import re
from typing import BinaryIO, Iterator

from etils import epath

TEMPORARY = '.tmp'  # Ends the name of a file that is not whole yet.

NO_SPACE = 'no space left on device'
NO_PERMISSION = 'no permission'
NO_MEMORY = 'not enough memory'
MISSING = 'no such file'
LOST_PEER = 'a process of the run was lost'

_NUMBERS = {
    errno.ENOSPC: NO_SPACE, errno.EDQUOT: f'{NO_SPACE} (quota)',
    errno.EACCES: NO_PERMISSION, errno.EPERM: NO_PERMISSION,
    errno.EROFS: f'{NO_PERMISSION}: read-only file system',
    errno.ENOMEM: NO_MEMORY, errno.ENOENT: MISSING}
# Of libraries that report all they have to say as text; the first one counts.
_WORDS = (
    (r'ENOSPC|no space left', NO_SPACE),
    (r'EDQUOT|quota exceeded', f'{NO_SPACE} (quota)'),
    (r'EACCES|EPERM|PERMISSION_DENIED|permission denied', NO_PERMISSION),
    (r'bad_alloc|out of memory|RESOURCE_EXHAUSTED|cannot allocate', NO_MEMORY),
    (r'gloo|coordination service|heartbeat|connection (reset|closed|refused)|'
     r'DEADLINE_EXCEEDED|UNAVAILABLE', LOST_PEER),
    (r'ENOENT|NOT_FOUND|no such file|not found', MISSING))


def cause(error: BaseException) -> str | None:
  """Returns why a file could not be used, one of the constants here.

  Args:
    error: an `OSError`, or what a library made of one.

  Returns:
    None where it is none of these: what was read is damaged, most likely.
  """
  seen = []
  while error is not None and error not in seen:
    seen.append(error)
    if isinstance(error, MemoryError):
      return NO_MEMORY
    if isinstance(error, OSError) and error.errno in _NUMBERS:
      return _NUMBERS[error.errno]
    error = error.__cause__ or error.__context__
  text = ' '.join(str(x) for x in seen)
  return next((name for words, name in _WORDS
               if re.search(words, text, re.IGNORECASE)), None)


def reason(error: BaseException) -> str:
  """Returns the cause in words, else the error's own message, on one line."""
  return cause(error) or one_line(error)


def one_line(error: BaseException) -> str:
  """Returns the first 200 characters of the message, on one line."""
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 200 else text[:200] + '...'


@contextlib.contextmanager
def whole(path: str) -> Iterator[BinaryIO]:
  """Opens a file to write, whole or not at all, on disk or in a bucket.

  It gets its name only once it is on the disk, so that not even a power cut
  leaves half of it.

  Raises:
    OSError: it cannot be written; nothing is left of the attempt.
  """
  epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
  if '://' in path:
    with epath.Path(path).open('wb') as file:
      yield file  # Objects of a bucket are whole or not there.
    return
  temporary = path + TEMPORARY
  try:
    with open(temporary, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(temporary)  # What little space there is, is needed.
    raise


def write(path: str, content: bytes) -> None:
  """Writes a file as `whole` does.

  Raises:
    OSError: it cannot be written.
  """
  with whole(path) as file:
    file.write(content)


class Appender:
  """A file that grows by whole records.

  A record is one `write` to a file opened for appending, so a killed process
  leaves at most one broken record, the last. Files of a bucket cannot grow:
  there the whole file is written at each flush.
  """

  def __init__(self, path: str, content: bytes = b''):
    """Open the file; what it had is replaced by `content`.

    Raises:
      OSError: it cannot be written, here and below.
    """
    self._path = path
    self._remote = '://' in path
    self._content = content if self._remote else b''
    write(path, content)
    self._file = None if self._remote else os.open(
        path, os.O_WRONLY | os.O_APPEND)

  def append(self, record: bytes) -> None:
    """Append a record."""
    if self._remote:
      self._content += record
    elif os.write(self._file, record) != len(record):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

  def flush(self) -> None:
    """Write a file of a bucket; on disk all records are there already."""
    if self._remote:
      write(self._path, self._content)

  def close(self) -> None:
    """Flush and let go of the file; closing twice is fine."""
    self.flush()
    if self._file is not None:
      os.close(self._file)
      self._file = None
