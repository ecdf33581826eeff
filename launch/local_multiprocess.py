"""Starts sidrec.main in N processes on this machine, over loopback.

  python launch/local_multiprocess.py --num_processes=2 -- \
      --config=experiments/dig.py:runlocal --workdir=DIR

Each process sees its own fake CPU devices; what runs here runs on a pod. The
output of process 0 is shown as it comes; that of the others only on failure.

A process that fails, dies or stands still is named in one line, and the rest
are ended: at once where it died of a signal, else after some seconds. SIGTERM
and SIGINT go to all. No process outlives this one. The exit status is the worst
of those that ended by themselves, as main gives it.
"""

import argparse
import collections
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

NAME = 'local_multiprocess'
TAIL_LINES = 40
LINE_BYTES = 1 << 16
GRACE_SECONDS = 10.
SAVE_SECONDS = 120.  # Of grace, where one process was told to save and stop.
POLL_SECONDS = .5  # A signal, the end of a process too, is seen at once.
DEVICES_FLAG = '--xla_force_host_platform_device_count'
BAD_INPUT, STOPPED = 2, 143  # Statuses that main chooses; see there.
PR_SET_PDEATHSIG = 1


class Parser(argparse.ArgumentParser):
  """Says what is wrong in one line."""

  def error(self, message):
    self.exit(BAD_INPUT, f'{NAME}: {message}\n')


def parse_arguments(arguments):
  """Splits our arguments from those of the module after `--`."""
  parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--num_processes', type=int, required=True)
  parser.add_argument('--devices_per_process', type=int, default=2)
  parser.add_argument('--module', default='sidrec.main',
                      help='the module that every process runs')
  parser.add_argument('--frozen_seconds', type=float, default=10.,
                      help='a process that stands still so long is ended')
  cut = arguments.index('--') if '--' in arguments else len(arguments)
  options = parser.parse_args(arguments[:cut])
  if options.num_processes < 1 or options.devices_per_process < 1:
    parser.error('--num_processes and --devices_per_process must be at least 1')
  return options, arguments[cut + 1:]


def environment(options, process_id, port):
  """The variables that sidrec.parallel.initialize reads, and fake devices."""
  flags = [flag for flag in os.environ.get('XLA_FLAGS', '').split()
           if not flag.startswith(DEVICES_FLAG)]
  flags.append(f'{DEVICES_FLAG}={options.devices_per_process}')
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  paths = [root, os.environ.get('PYTHONPATH', '')]
  return dict(
      os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=' '.join(flags),
      PYTHONPATH=os.pathsep.join(filter(None, paths)),
      SIDREC_COORDINATOR=f'127.0.0.1:{port}',
      SIDREC_NUM_PROCESSES=str(options.num_processes),
      SIDREC_PROCESS_ID=str(process_id))


def free_port():
  """A port of loopback that nobody listens on at the moment."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


class Tail(threading.Thread):
  """Reads a pipe to its end, keeps the last lines, and may show all of it."""

  def __init__(self, pipe, shown=None):
    super().__init__(daemon=True)
    self._pipe, self._shown = pipe, shown
    self._lines = collections.deque([b''], TAIL_LINES + 1)

  def run(self):
    while part := os.read(self._pipe.fileno(), 1 << 16):
      first, *rest = part.split(b'\n')
      self._lines[-1] = (self._lines[-1] + first)[-LINE_BYTES:]
      self._lines.extend(rest)
      try:
        if (shown := self._shown) is not None:
          shown.write(part)
          shown.flush()
      except OSError:  # Nobody looks on any more; the run goes on.
        self.mute()

  def mute(self):
    """Shows nothing of what comes from now on."""
    self._shown = None

  def lines(self):
    """The last lines that are not empty; waits a little for their writer."""
    self.join(1)
    # What a crash prints of its stack says nothing to a reader.
    return [text for line in list(self._lines)
            if (text := line.decode('utf-8', 'replace').strip())
            and not text.startswith(('@ ', '*** Check failure stack'))]


class Child:
  """One process of the run.

  code: as `subprocess.Popen.returncode`; None while it runs.
  stopped_at: when it was stopped (SIGSTOP and its like); None while it goes.
  is_frozen: whether it was ended for being stopped too long.
  is_ended_by_us: whether it was ended because of another: that says nothing.
  """

  def __init__(self, index, command, variables):
    launcher = os.getpid()

    def die_with_launcher():
      if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:
          os._exit(1)

    self.index, self.code, self.stopped_at = index, None, None
    self.is_frozen = self.is_ended_by_us = False
    # A session of its own, so that Ctrl-C reaches a child once, through us.
    self._process = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE if index else None,
        stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=die_with_launcher)
    self.pid = self._process.pid
    self.errors = Tail(
        self._process.stderr, None if index else sys.stderr.buffer)
    self.output = Tail(self._process.stdout) if index else None

  def listen(self):
    """Reads the output; once all processes are there: a fork has no threads."""
    self.errors.start()
    if self.output is not None:
      self.output.start()

  def poll(self):
    """Looks once whether the process ended, stopped, or goes on."""
    if self.code is not None:
      return
    pid, status = os.waitpid(
        self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
    if not pid:
      return
    if os.WIFSTOPPED(status):
      self.stopped_at = time.monotonic()
    elif os.WIFCONTINUED(status):
      self.stopped_at = None
    else:
      self.code = self._process.returncode = os.waitstatus_to_exitcode(status)

  def send(self, number):
    """Sends a signal, if there still is a process."""
    if self.code is None:
      os.kill(self.pid, number)

  def end(self):
    """Kills the process and what it started."""
    if self.code is None:
      self.is_ended_by_us = not self.is_frozen
      os.killpg(self.pid, signal.SIGKILL)

  def how(self):
    """How it ended, and its last word."""
    how = (f'with {self.code}' if self.code >= 0 else
           f'by {signal.Signals(-self.code).name}')
    lines = self.errors.lines()
    last = (f'the last line of its stderr: {lines[-1]}' if lines else
            'nothing on its stderr')
    return f'ended {how} (pid {self.pid}); {last}'


def say(child, text):
  """One line about a process, on stderr."""
  print(f'{NAME}: process {child.index} {text}',
        file=sys.stderr, flush=True)


class Signals:
  """Collects signals that come, and wakes `wait` for each of them."""

  def __init__(self):
    self._came = []
    self._reader, self._writer = socket.socketpair()
    self._reader.setblocking(False)
    self._writer.setblocking(False)
    signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, lambda number, _: self._came.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)

  def wait(self):
    """Returns the signals to pass on, after some time or as soon as one came.

    The end of a process, or its stop, is a signal too, but none to pass on.
    """
    if select.select([self._reader], [], [], POLL_SECONDS)[0]:
      self._reader.recv(1 << 12)
    came, self._came = self._came, []
    return came


def watch(children, signals, frozen_seconds):
  """Waits for all; once one fails, the rest get some seconds, then SIGKILL.

  They get a little time, for the failure of one often is that of all, and
  the one that knows the reason should be able to print it.

  Args:
    children: that run.
    signals: a `Signals`.
    frozen_seconds: before a stopped process is ended.
  """
  deadline = float('inf')
  while running := [child for child in children if child.code is None]:
    for number in signals.wait():
      for child in running:
        child.send(number)
    for child in running:
      child.poll()
    now = time.monotonic()
    for child in running:
      if child.is_frozen or child.is_ended_by_us:
        continue
      if child.code:
        if child.code < 0:
          # Of no interest: what the others say of a peer that is gone.
          for other in running:
            other.errors.mute()
        say(child, child.how())
        deadline = min(deadline, now + _grace(child.code))
      elif child.stopped_at and now - child.stopped_at > frozen_seconds:
        say(child, f'is frozen (pid {child.pid}, stopped by a signal for '
            f'{frozen_seconds:g} s): all are ended; the same command goes on '
            'from the last checkpoint')
        child.is_frozen, deadline = True, now
    if now >= deadline:
      for child in children:
        child.end()


def _grace(code):
  """Seconds for the rest, once a process ended so."""
  if code < 0:
    return 0.
  return SAVE_SECONDS if code == STOPPED else GRACE_SECONDS


def status(codes):
  """One exit status: bad input (2) before SIGTERM (143) before other failures.

  Args:
    codes: of the processes that ended by themselves.
  """
  codes = [128 - code if code < 0 else code for code in codes]
  for code in (BAD_INPUT, STOPPED):
    if code in codes:
      return code
  return max(codes)


def main(arguments):
  """Runs all processes; returns the exit status."""
  options, rest = parse_arguments(arguments)
  port = free_port()
  children, signals = [], Signals()
  command = [sys.executable, '-m', options.module] + rest
  try:
    for index in range(options.num_processes):
      children.append(
          Child(index, command, environment(options, index, port)))
    for child in children:
      child.listen()
    watch(children, signals, options.frozen_seconds)
  finally:
    for child in children:
      child.end()
  children[0].errors.join(1)  # What it said is shown to the end.
  own = [child for child in children if not child.is_ended_by_us]
  for child in own:
    # One line says all of bad input, of SIGTERM and of SIGKILL.
    if child.index and child.code not in (
        0, BAD_INPUT, STOPPED, -signal.SIGKILL):
      print(f'--- the last lines of process {child.index}:', file=sys.stderr)
      for tail in (child.output, child.errors):
        print('\n'.join(tail.lines()[-TAIL_LINES:]), file=sys.stderr)
  return status([child.code for child in own])


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
