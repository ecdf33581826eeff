"""Signals that end a run: what it has is saved first."""

import signal

import numpy as np

from sidrec import parallel

# Preemption, a terminal that is gone, Ctrl-C.
NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Terminated(Exception):
  """A signal came, and all that the run has is saved.

  status: of the process's exit.
  """

  def __init__(self, number: int, where: str):
    """Takes the signal, and where the run was."""
    super().__init__(f'stopped by {signal.Signals(number).name} {where}')
    self.status = 128 + number


class Signals:
  """Takes signals between __enter__ and __exit__.

  Where nothing is under way that a signal could break (see `at_once`) it ends
  the run by itself; else the run asks for it. What the process was told to
  ignore (`nohup`) stays ignored.
  """

  def __init__(self, mapped: parallel.Parallel):
    """Takes the processes that must stop together."""
    self._mapped = mapped
    self._number, self._where, self._old = 0, '', {}

  def __enter__(self) -> 'Signals':
    for number in NUMBERS:
      if signal.getsignal(number) != signal.SIG_IGN:
        self._old[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def agreed(self) -> int:
    """Returns the signal that came to any process, 0 = none; all must ask."""
    own = np.array([self._number], np.int32)
    return int(self._mapped.allgather_rows(own).max())

  def stop(self, where: str) -> None:
    """Ends the run if a signal came; all processes must ask.

    Args:
      where: the run is, for the message.

    Raises:
      Terminated: a signal came to any process.
    """
    number = self.agreed()
    if number:
      raise Terminated(number, where)

  def at_once(self, where: str) -> None:
    """From here on a signal ends the run, with no one asking for it.

    In several processes it waits to be asked for all the same, for they stop
    together.

    Args:
      where: the run is; '': signals wait again.

    Raises:
      Terminated: a signal came; or one comes later, in whatever is done then.
    """
    if where:
      self.stop(where)
    self._where = where if self._mapped.process_count == 1 else ''

  def _note(self, number, frame) -> None:
    del frame
    self._number = self._number or number
    if self._where:
      where, self._where = self._where, ''  # Once: its end is not cut short.
      raise Terminated(self._number, where)
