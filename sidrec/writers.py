"""Writes metrics: JSON lines, TensorBoard, a progress bar, aligned tables."""

import json
import math
import os
import sys
import time
from typing import Any, Mapping, Protocol, Sequence, TextIO

from etils import epath
import numpy as np
import tensorboardX
import tqdm

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

  Each line is one `write` to a file opened for appending, so a killed process
  leaves at most one broken line, the last, which the next start cuts off.
  Bucket files cannot grow: there the whole file is written at each flush.
  """

  def __init__(self, path: str, keep: int = 0):
    """Open the file and drop what a resumed run will write again.

    Args:
      path: local path or bucket address; its folder is made if absent.
      keep: lines that were there when the restored checkpoint was written; 0 =
        a fresh run, which starts with an empty file.

    Raises:
      types.InputError: the file cannot be written, or is not JSON lines.
    """
    self._path = epath.Path(path)
    self._remote = '://' in path
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      old = self._path.read_text() if self._path.exists() else ''
      self._text = _first_lines(path, old, keep)
      self._num_lines = self._text.count('\n')
      self._replace()
      self._file = None if self._remote else os.open(
          path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
      raise types.InputError(f'{path}: cannot be written ({error})') from error

  @property
  def num_lines(self) -> int:
    """Lines that the file has."""
    return self._num_lines

  def _replace(self):
    """Puts the kept text in place of the file, whole or not at all."""
    if self._remote:
      self._path.write_text(self._text)
      return
    temporary = self._path.with_name(self._path.name + '.tmp')
    temporary.write_text(self._text)
    temporary.replace(self._path)
    self._text = ''

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Append one line; NaN and infinities are written as null."""
    record = {'step': int(step), 'split': split}
    record.update((name, _number(value)) for name, value in values.items())
    line = json.dumps(record, allow_nan=False) + '\n'
    self._num_lines += 1
    if self._remote:
      self._text += line
      return
    data = line.encode('utf-8')
    try:
      if os.write(self._file, data) != len(data):
        raise OSError('the disk is full')
    except OSError as error:
      raise types.InputError(
          f'{self._path}: cannot be written ({error}): free space there and '
          'run the same command again') from error

  def message(self, line: str) -> None:
    """Ignore the line."""
    del line

  def flush(self) -> None:
    """Write a bucket file; local lines are in the file already."""
    if self._remote:
      self._path.write_text(self._text)

  def close(self) -> None:
    """Flush and close the file; closing twice is fine."""
    self.flush()
    if self._file is not None:
      os.close(self._file)
      self._file = None


class TensorBoardWriter:
  """Writes event files for TensorBoard, `split/name` a curve."""

  def __init__(self, directory: str, resume_step: int = 0):
    """Open a new event file; curves after `resume_step` are hidden by it."""
    # purge_step hides events of that step and later ones.
    self._writer = tensorboardX.SummaryWriter(
        directory, purge_step=resume_step + 1 if resume_step else None)

  def scalars(self, step: int, split: str, values: types.Metrics) -> None:
    """Add one point a curve."""
    for name, value in values.items():
      self._writer.add_scalar(f'{split}/{name}', float(value), int(step))

  def message(self, line: str) -> None:
    """Ignore the line."""
    del line

  def flush(self) -> None:
    """Write what is buffered."""
    self._writer.flush()

  def close(self) -> None:
    """Close the event file."""
    self._writer.close()


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


def _first_lines(path, text, keep):
  """The first `keep` whole lines, each a record."""
  kept = text.splitlines(keepends=True)[:keep]
  for i, line in enumerate(kept):
    try:
      whole = 'step' in json.loads(line) and line.endswith('\n')
    except (ValueError, TypeError):
      whole = False
    if not whole:
      raise types.InputError(
          f'{path}: row {i} is not a line of metrics: remove the file or '
          'choose another --workdir')
  return ''.join(kept)


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
