"""Writes metrics: JSON lines, TensorBoard, a progress bar, aligned tables."""

import json
import math
import os
import socket
import struct
import sys
import time
from typing import Any, Callable, Mapping, Protocol, Sequence, TextIO
import zlib

from absl import logging
from etils import epath
import numpy as np
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2
from tensorboardX.proto import summary_pb2
import tqdm

from sidrec import disk
from sidrec import types


class Writer(Protocol):
  """Where metrics go. Process 0 alone makes other than `NullWriter`s."""

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Write numbers of a split ('train', 'valid' or 'test') at a step."""

  def message(self, line: str) -> None:
    """Say a line to whoever looks on."""

  def flush(self) -> None:
    """Make all that was written so far visible to readers."""

  def close(self) -> None:
    """Flush and let go of the files."""


class NullWriter:
  """Writes nothing."""

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Ignore the numbers."""
    del step, split, values

  def message(self, line: str) -> None:
    """Ignore the line."""
    del line

  def flush(self) -> None:
    """Do nothing."""

  def close(self) -> None:
    """Do nothing."""


class MultiWriter:
  """Writes to several writers in their order."""

  def __init__(self, writers: Sequence[Writer]):
    self._writers = tuple(writers)

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Pass the numbers on."""
    for writer in self._writers:
      writer.scalars(step, split, values)

  def message(self, line: str) -> None:
    """Pass the line on."""
    for writer in self._writers:
      writer.message(line)

  def flush(self) -> None:
    """Flush all."""
    for writer in self._writers:
      writer.flush()

  def close(self) -> None:
    """Close all."""
    for writer in self._writers:
      writer.close()


class JsonlWriter:
  """Writes one JSON object a line: step, split, then the numbers by name.

  A killed process leaves at most one broken line, the last, which the next
  start cuts off.
  """

  def __init__(self, path: str, keep: int = 0, crc: int | None = None):
    """Open the file and drop what a resumed run will write again.

    Args:
      path: local path or bucket address; its folder is made if absent.
      keep: lines that were there when the restored checkpoint was written; 0 =
        a fresh run, which starts with an empty file. Where there is no file
        any more, a new one begins, and a warning says so.
      crc: `crc` of then; None = not known.

    Raises:
      types.InputError: the file cannot be written, or does not begin with
        what it had then.
    """
    self._path = path
    try:
      old = epath.Path(path)
      if keep and not old.exists():
        logging.warning('%s is gone: a new one begins, without the %d lines '
                        'that it had', path, keep)
        keep = 0
      text = _first_lines(path, old.read_bytes(), keep, crc) if keep else b''
      self._num_lines, self._crc = keep, zlib.crc32(text)
      self._file = disk.Appender(path, text)
    except OSError as error:
      raise _unwritable(path, error) from error

  @property
  def num_lines(self) -> int:
    """Lines that the file has."""
    return self._num_lines

  @property
  def crc(self) -> int:
    """CRC-32 of their bytes."""
    return self._crc

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Append one line; NaN and infinities are written as null."""
    record = {'step': int(step), 'split': split}
    record.update((name, _number(value)) for name, value in values.items())
    line = (json.dumps(record, allow_nan=False) + '\n').encode()
    _try(self._path, lambda: self._file.append(line))
    self._num_lines += 1
    self._crc = zlib.crc32(line, self._crc)

  def message(self, line: str) -> None:
    """Ignore the line."""
    del line

  def flush(self) -> None:
    """Write a bucket file; local lines are in the file already."""
    _try(self._path, self._file.flush)

  def close(self) -> None:
    """Flush and close the file; closing twice is fine."""
    _try(self._path, self._file.close)


class TensorBoardWriter:
  """Writes event files for TensorBoard, `split/name` a curve.

  In this thread: the one of `tensorboardX.SummaryWriter` ends at the first
  write that fails, and a full queue before it then halts the run.
  """

  def __init__(self, directory: str, resume_step: int = 0):
    """Open a new event file; curves after `resume_step` are hidden by it.

    Raises:
      types.InputError: the file cannot be written, here and below.
    """
    now = time.time_ns()
    self._path = os.path.join(
        directory, f'events.out.tfevents.{now // 10**9}.'
        f'{socket.gethostname()}.{now % 10**9}')
    events = [event_pb2.Event(file_version='brain.Event:2')]
    if resume_step:
      # Hides events of that step and later ones.
      events.append(event_pb2.Event(
          step=resume_step + 1, session_log=event_pb2.SessionLog(
              status=event_pb2.SessionLog.START)))
    content = b''.join(map(_framed, events))
    self._file = _try(
        self._path, lambda: disk.Appender(self._path, content))

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Add one point a curve."""
    record = _framed(event_pb2.Event(
        step=int(step), summary=summary_pb2.Summary(value=[
            summary_pb2.Summary.Value(
                tag=f'{split}/{name}', simple_value=float(value))
            for name, value in values.items()])))
    _try(self._path, lambda: self._file.append(record))

  def message(self, line: str) -> None:
    """Ignore the line."""
    del line

  def flush(self) -> None:
    """Write a bucket file; local events are in the file already."""
    _try(self._path, self._file.flush)

  def close(self) -> None:
    """Close the event file."""
    _try(self._path, self._file.close)


class ProgressBar:
  """Shows loss, examples/s and time left; plain lines when not a terminal."""

  def __init__(self, num_steps: int, first_step: int = 0,
               batch_size: int = 1, loss_name: str = 'loss',
               stream: TextIO | None = None, seconds: float = 10.0):
    """Start the clock.

    Args:
      num_steps: steps of the whole run.
      first_step: steps done before this process started.
      batch_size: rows of the global batch, for examples/s.
      loss_name: the metric of 'train' that is shown.
      stream: None = standard error.
      seconds: least time between two plain lines.
    """
    self._stream = sys.stderr if stream is None else stream
    self._num_steps, self._batch_size = num_steps, batch_size
    self._loss_name, self._seconds = loss_name, seconds
    self._start, self._first = time.monotonic(), first_step
    self._last_line = -math.inf
    self._bar = None
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
          total=num_steps, initial=first_step, file=self._stream, unit='step',
          dynamic_ncols=True)

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Show progress at 'train'; of other splits a `message` tells."""
    if split != 'train':
      return
    elapsed = max(time.monotonic() - self._start, 1e-9)
    done = max(step - self._first, 0)
    rate = done * self._batch_size / elapsed
    loss = _short(values[self._loss_name]) if self._loss_name in values else '-'
    if self._bar is not None:
      self._bar.set_postfix_str(
          f'loss {loss}, {rate:.0f} examples/s', refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    if now - self._last_line < self._seconds and step < self._num_steps:
      return
    self._last_line = now
    left = (self._num_steps - step) * elapsed / done if done else math.nan
    self.message(f'step {step}/{self._num_steps}  loss {loss}  '
                f'{rate:.0f} examples/s  {_duration(left)} left')

  def message(self, line: str) -> None:
    """Show the line above the bar."""
    if self._bar is not None:
      self._bar.write(line, file=self._stream)
    else:
      print(line, file=self._stream, flush=True)

  def flush(self) -> None:
    """Draw the bar."""
    if self._bar is not None:
      self._bar.refresh()

  def close(self) -> None:
    """Leave the bar on the screen and go to a new line."""
    if self._bar is not None:
      self._bar.close()


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
  """Format rows as an aligned text table.

  Args:
    rows: one mapping a row; a column that a row lacks stays empty.
    columns: keys, in order, which are the headings too.

  Returns:
    Lines joined by newlines; numbers to the right with four decimals, text to
    the left.
  """
  cells = [[_cell(row.get(c)) for c in columns] for row in rows]
  widths = [max([len(c)] + [len(row[i]) for row in cells])
            for i, c in enumerate(columns)]
  right = [any(_is_number(row.get(c)) for row in rows) for c in columns]
  def line(texts):
    return '  '.join(
        t.rjust(w) if r else t.ljust(w)
        for t, w, r in zip(texts, widths, right)).rstrip()
  rule = ['-' * w for w in widths]
  return '\n'.join(line(x) for x in [list(columns), rule] + cells)


def _try(path: str, action: Callable[[], Any]) -> Any:
  """Does what may fail as writes to a file do."""
  try:
    return action()
  except OSError as error:
    raise _unwritable(path, error) from error


def _unwritable(path: str, error: OSError) -> types.InputError:
  return types.InputError(
      f'{path}: cannot be written ({disk.reason(error)}): make room there and '
      'run the same command again')


def _framed(event: event_pb2.Event) -> bytes:
  """An event as files of TensorBoard have it: length, crc, data, crc."""
  event.wall_time = time.time()
  data = event.SerializeToString()
  length = struct.pack('<Q', len(data))
  crc = lambda x: struct.pack('<I', record_writer.masked_crc32c(x))
  return length + crc(length) + data + crc(data)


def _first_lines(
    path: str, content: bytes, keep: int, crc: int | None) -> bytes:
  """The first `keep` lines, each a record; refuses what is not as it was."""
  advice = ('choose another --workdir, or move the file elsewhere to go on '
            'without its lines')
  kept = content.splitlines(keepends=True)[:keep]
  for i, line in enumerate(kept):
    try:
      record = json.loads(line)
      whole = isinstance(record, dict) and 'step' in record
    except ValueError:
      whole = False
    if not whole or not line.endswith(b'\n'):
      raise types.InputError(
          f'{path}: row {i} is not a line of metrics: {advice}')
  if len(kept) < keep:
    raise types.InputError(
        f'{path}: has {len(kept)} of the {keep} lines that were there '
        f'when the checkpoint was written: {advice}')
  if crc is not None and zlib.crc32(b''.join(kept)) != crc:
    raise types.InputError(
        f'{path}: damaged: its first {keep} lines are not those that '
        f'were there when the checkpoint was written: {advice}')
  return b''.join(kept)


def _number(value):
  """A JSON number; null for what JSON cannot say."""
  if isinstance(value, (bool, np.bool_)):
    return int(value)
  if isinstance(value, (int, np.integer)):
    return int(value)
  value = float(value)
  return value if math.isfinite(value) else None


def _is_number(value):
  return (isinstance(value, (int, float, np.number))
          and not isinstance(value, bool))


def _cell(value):
  if value is None:
    return ''
  if _is_number(value) and not isinstance(value, (int, np.integer)):
    return f'{float(value):.4f}'
  return str(value)


def _short(value):
  return f'{float(value):.4g}'


def _duration(seconds):
  if not math.isfinite(seconds):
    return '?'
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'
