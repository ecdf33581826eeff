"""Keeps quiet what Orbax says beside the errors that it raises."""

import logging
import sys


def drop() -> None:
  """Drops its progress, and tracebacks of errors that are raised as well."""
  logging.getLogger('absl').addFilter(_is_wanted)
  logging.getLogger('asyncio').addFilter(_is_retrieved)
  if sys.unraisablehook is not _hook:
    _earlier.append(sys.unraisablehook)
    sys.unraisablehook = _hook


_earlier = [sys.__unraisablehook__]


def _hook(unraisable) -> None:
  """Reads that go on when another one has failed find their loop closed."""
  error = unraisable.exc_value
  if not (isinstance(error, RuntimeError)
          and str(error) == 'Event loop is closed'):
    _earlier[-1](unraisable)


def _is_wanted(record: logging.LogRecord) -> bool:
  if 'orbax' not in record.pathname:
    return True
  return record.levelno >= logging.WARNING and not record.exc_info


def _is_retrieved(record: logging.LogRecord) -> bool:
  """Of several writes that fail, one is raised."""
  return 'was never retrieved' not in record.getMessage()
