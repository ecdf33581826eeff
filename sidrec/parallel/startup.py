"""How the processes of a run find each other, and how one leaves them.

JAX's own start ends a process with a crash where a peer does not come. So the
processes call a roll first, on the port that JAX's coordinator then takes: each
sends its number to process 0, and all hear whether the run can start.
"""

import contextlib
import ipaddress
import json
import os
import socket
import sys
import time
from typing import Any, Mapping, NamedTuple

import jax

from sidrec import types

COORDINATOR, NUM_PROCESSES, PROCESS_ID = NAMES = (
    'SIDREC_COORDINATOR', 'SIDREC_NUM_PROCESSES', 'SIDREC_PROCESS_ID')
START_SECONDS = 'SIDREC_START_SECONDS'
_HEARTBEAT_SECONDS = 45  # Without a sign of life before a peer is given up.
_LINE = 1 << 16  # Most bytes of a message of the roll.
_STRANGER_SECONDS = 5.  # For a connection to say who it is.
_LAST_SECONDS = 1.  # Before process 0 takes the coordinator down with it.


class Place(NamedTuple):
  """A process's place in a run.

  host, port: where process 0 is.
  num_processes, process_id: of the run, and of this process.
  seconds: to wait for the others.
  """
  host: str
  port: int
  num_processes: int
  process_id: int
  seconds: float

  @property
  def address(self) -> str:
    """host:port, as JAX wants it."""
    return f'[{self.host}]:{self.port}' if ':' in self.host else (
        f'{self.host}:{self.port}')

  @property
  def is_loopback(self) -> bool:
    """Whether nobody on another machine can be part of the run."""
    if self.host == 'localhost':
      return True
    with contextlib.suppress(ValueError):
      return ipaddress.ip_address(self.host).is_loopback
    return False


def initialize() -> None:
  """Join the processes of this run; call before any device is touched.

  Reads SIDREC_COORDINATOR (host:port), SIDREC_NUM_PROCESSES and
  SIDREC_PROCESS_ID; with SIDREC_DISTRIBUTED=1 instead, JAX finds the others by
  itself. Does nothing where neither is set. From here on an exception that
  nobody takes ends the process at once.

  Raises:
    types.InputError: the variables are missing or do not fit, or the others
      do not come within SIDREC_START_SECONDS.
  """
  place = read_place(os.environ)
  automatic = os.environ.get('SIDREC_DISTRIBUTED', '0') not in ('', '0')
  if place is None and not automatic:
    return
  # The service takes SIGTERM for itself, but `main` answers it by a save.
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if place is None:
    _find_others()
  else:
    call_roll(place)
    try:
      jax.distributed.initialize(
          coordinator_address=place.address, num_processes=place.num_processes,
          process_id=place.process_id,
          coordinator_bind_address=place.address if place.is_loopback else None,
          initialization_timeout=max(int(place.seconds), 1),
          heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
    except jax.errors.JaxRuntimeError as error:
      raise types.InputError(
          f'{COORDINATOR}={place.address}: the coordinator does not start '
          f'({_one_line(error)}): choose another port') from error
  sys.excepthook = _end_with_traceback


def leave(status: int) -> None:
  """End this process, whatever the others do.

  An ordinary exit waits for all of them, and then crashes, where they do not
  come; they hear of the end at once.

  Args:
    status: the exit status.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    time.sleep(_LAST_SECONDS)
  os._exit(status)  # pylint: disable=protected-access


def read_place(variables: Mapping[str, str]) -> Place | None:
  """Reads a process's place from environment variables; None: not set.

  Raises:
    types.InputError: some are missing, not numbers, or out of range.
  """
  values = {name: variables.get(name, '').strip() for name in NAMES}
  if not any(values.values()):
    return None
  for name, value in values.items():
    if not value:
      raise types.InputError(
          f'environment variable {name} is missing: set all of '
          f'{", ".join(NAMES)}, or none')
  host, _, port = values[COORDINATOR].rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
    raise types.InputError(
        f'environment variable {COORDINATOR}={values[COORDINATOR]!r} must be '
        'host:port, of process 0, with a port from 1 to 65535')
  count, index = (
      _whole(name, values[name]) for name in (NUM_PROCESSES, PROCESS_ID))
  if count < 1:
    raise types.InputError(
        f'environment variable {NUM_PROCESSES}={count} must be at least 1')
  if not 0 <= index < count:
    raise types.InputError(
        f'environment variable {PROCESS_ID}={index} must be from 0 to '
        f'{count - 1}, for {NUM_PROCESSES}={count}')
  seconds = _whole(START_SECONDS, variables.get(START_SECONDS, '').strip()
                   or '300')
  if seconds < 1:
    raise types.InputError(
        f'environment variable {START_SECONDS}={seconds} must be at least 1')
  return Place(host.strip('[]'), int(port), count, index, seconds)


def call_roll(place: Place) -> None:
  """Returns once all processes of a run are there, each of them once.

  Args:
    place: of this process.

  Raises:
    types.InputError: the port is taken, process 0 or others do not come in
      time, or their places do not fit together; in all that are there.
  """
  if place.process_id:
    problem = _answer(place)
  else:
    problem = _call(place)
  if problem:
    raise types.InputError(problem)


def _call(place: Place) -> str:
  """Process 0's side of the roll; returns what is wrong, or ''."""
  deadline = time.monotonic() + place.seconds
  try:
    listener = _listen(place)
  except OSError as error:
    return (f'{COORDINATOR}={place.address}: process 0 cannot listen there '
            f'({error.strerror or error}): choose a free port of its machine')
  present, heard, problem = {}, [], ''
  with listener:
    while not problem and len(present) < place.num_processes - 1:
      listener.settimeout(max(deadline - time.monotonic(), .01))
      try:
        connection, _ = listener.accept()
      except TimeoutError:
        missing = sorted({*range(1, place.num_processes)} - {*present})
        problem = (
            f'process {", ".join(map(str, missing))} of {place.num_processes} '
            f'did not come to {place.address} within {place.seconds} s: start '
            f'all processes, or raise {START_SECONDS}')
        break
      heard.append(connection)
      connection.settimeout(_STRANGER_SECONDS)
      index, count = _who(_receive(connection))
      if index is None:
        continue  # Something else came by.
      if count != place.num_processes:
        problem = (
            f'{NUM_PROCESSES} is {place.num_processes} in process 0 and '
            f'{count} in process {index}: all must have the same')
      elif index == 0 or not _is_gone(present.get(index)):
        problem = (f'two processes have {PROCESS_ID}={index}: each must have '
                   'its own')
      present[index] = connection
  for connection in heard:
    with connection:
      _send(connection, {'problem': problem})
  return problem


def _answer(place: Place) -> str:
  """The other processes' side of the roll; returns what is wrong, or ''."""
  deadline = time.monotonic() + place.seconds
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection(
          (place.host, place.port), timeout=left) as connection:
        _send(connection, {'process': place.process_id,
                           'of': place.num_processes})
        connection.settimeout(max(deadline - time.monotonic(), .01))
        reply = _receive(connection)
    except socket.gaierror as error:
      return (f'{COORDINATOR}={place.address}: there is no host {place.host!r} '
              f'({error.strerror}): name the machine of process 0')
    except OSError:
      reply = b''
    if reply:
      message = _parse(reply)
      if 'problem' in message:
        return str(message['problem'])
      return (f'{COORDINATOR}={place.address}: something else than process 0 '
              'answers there: choose a free port of its machine')
    time.sleep(min(.1, place.seconds))
  return (f'process {place.process_id}: no process 0 at {place.address} within '
          f'{place.seconds} s: start it, correct {COORDINATOR}, or raise '
          f'{START_SECONDS}')


def _listen(place: Place) -> socket.socket:
  """Returns a socket that takes connections for the roll."""
  if place.is_loopback:
    family, _, _, _, address = socket.getaddrinfo(
        place.host, place.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=1024)
  if socket.has_dualstack_ipv6():
    return socket.create_server(('', place.port), family=socket.AF_INET6,
                                dualstack_ipv6=True, backlog=1024)
  return socket.create_server(('', place.port), backlog=1024)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
  with contextlib.suppress(OSError):  # One that left hears nothing.
    connection.sendall(json.dumps(message).encode() + b'\n')


def _receive(connection: socket.socket) -> bytes:
  """Returns a line; b'' where none comes."""
  line = b''
  with contextlib.suppress(OSError):
    while not line.endswith(b'\n') and len(line) < _LINE:
      part = connection.recv(_LINE)
      if not part:
        break
      line += part
  return line


def _parse(line: bytes) -> dict[str, Any]:
  """Returns the message of a line; {} where it is none."""
  try:
    message = json.loads(line)
  except ValueError:
    return {}
  return message if isinstance(message, dict) else {}


def _who(line: bytes) -> tuple[int | None, int | None]:
  """Returns (process, number of processes) of a line, or (None, None)."""
  message = _parse(line)
  found = tuple(message.get(name) for name in ('process', 'of'))
  return found if all(type(x) is int for x in found) else (None, None)


def _is_gone(connection: socket.socket | None) -> bool:
  """Whether a process of the roll has left again, or never came."""
  if connection is None:
    return True
  connection.setblocking(False)
  try:
    return connection.recv(1, socket.MSG_PEEK) == b''
  except BlockingIOError:
    return False
  except OSError:
    return True


def _find_others() -> None:
  """Lets JAX find the other processes."""
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
  except Exception as error:
    raise types.InputError(
        'SIDREC_DISTRIBUTED=1: JAX finds no other processes here '
        f'({_one_line(error)}); it knows Cloud TPU, Slurm, Open MPI and '
        f'Kubernetes. Elsewhere set {", ".join(NAMES)} in each process, or '
        'SIDREC_DISTRIBUTED=0 for one process alone') from error


def _whole(name: str, value: str) -> int:
  try:
    return int(value)
  except ValueError as error:
    raise types.InputError(
        f'environment variable {name}={value!r} must be a whole number'
    ) from error


def _one_line(error: BaseException) -> str:
  return ' '.join(str(error).split()).rstrip('.')


def _end_with_traceback(kind: type[BaseException], *rest: Any) -> None:
  sys.__excepthook__(kind, *rest)
  leave(130 if issubclass(kind, KeyboardInterrupt) else 1)
