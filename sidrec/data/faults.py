"""What is wrong with a table, gathered: one message tells all of it."""

from typing import Callable, Sequence

import numpy as np

from sidrec import types

_SHOWN = 3  # Rows that a message names beside the first.


class Faults:
  """Collects what is wrong, then raises once."""

  def __init__(self):
    self._lines: list[str] = []

  def add(self, line: str) -> None:
    """Adds a line that names file and column."""
    if line not in self._lines:
      self._lines.append(line)

  def rows(self, bad: np.ndarray, where: str, column: str,
           say: Callable[[int], str]) -> bool:
    """Adds a line if rows are bad: the first one in full, then how many more.

    Args:
      bad: [R] bool.
      where: table, for the message.
      column: its name.
      say: (row) -> what is wrong with it and what to do.

    Returns:
      Whether any is bad.
    """
    found = np.flatnonzero(bad)
    if len(found):
      self.add(f'{where}: row {found[0]}, column {column}: '
               f'{say(int(found[0]))}{_more(found[1:])}')
    return bool(len(found))

  def check(self) -> None:
    """Raises types.InputError if anything was added; all in one line."""
    if self._lines:
      raise types.InputError(' | '.join(self._lines))


def _more(rows: Sequence[int]) -> str:
  """Returns how many rows more are like this, and the first of them."""
  if not len(rows):
    return ''
  shown = ', '.join(str(row) for row in rows[:_SHOWN])
  return (f' ({len(rows):,} more {"row" if len(rows) == 1 else "rows"} like '
          f'this: {shown}{", ..." if len(rows) > _SHOWN else ""})')
