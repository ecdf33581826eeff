"""Starts sidrec.main in N processes on this machine, over loopback.

  python launch/local_multiprocess.py --num_processes=2 -- \
      --config=experiments/dig.py:runlocal --workdir=DIR

Each process sees its own fake CPU devices; what runs here runs on a pod. The
output of process 0 is shown as it comes; that of the others only on failure.
When one process fails, the rest are killed; SIGTERM and SIGINT go to all. The
exit status is the worst of all, as main gives it.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

TAIL_LINES = 40
GRACE_SECONDS = 10.0
DEVICES_FLAG = '--xla_force_host_platform_device_count'


def parse_arguments(arguments):
  """Splits our arguments from those of the module after `--`."""
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument('--num_processes', type=int, required=True)
  parser.add_argument('--devices_per_process', type=int, default=2)
  parser.add_argument('--module', default='sidrec.main',
                      help='the module that every process runs')
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
      SIDREC_COORDINATOR=f'localhost:{port}',
      SIDREC_NUM_PROCESSES=str(options.num_processes),
      SIDREC_PROCESS_ID=str(process_id))


def free_port():
  """A port of loopback that nobody listens on at the moment."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def wait(children):
  """Waits for all; once one fails, the rest get some seconds, then SIGKILL.

  They get a little time, for the failure of one often is that of all, and
  the one that knows the reason should be able to print it.
  """
  deadline = None
  while any(child.poll() is None for child in children):
    if deadline is None and any(child.poll() for child in children):
      deadline = time.monotonic() + GRACE_SECONDS
    if deadline is not None and time.monotonic() > deadline:
      kill(children)
    time.sleep(0.05)
  return [child.returncode for child in children]


def kill(children):
  for child in children:
    if child.poll() is None:
      child.kill()


def status(codes):
  """One exit status: bad input (2) before SIGTERM (143) before other failures.

  The rest of a failed run dies of our SIGKILL or of the lost coordinator, so
  the codes that main chose itself say more.
  """
  for code in (2, 143):
    if code in codes:
      return code
  codes = [128 - code if code < 0 else code for code in codes]
  return max(codes)


def main(arguments):
  """Runs all processes; returns the exit status."""
  options, rest = parse_arguments(arguments)
  port = free_port()
  children, logs = [], []

  def forward(number, frame):
    del frame
    for child in children:
      if child.poll() is None:
        child.send_signal(number)

  signal.signal(signal.SIGTERM, forward)
  signal.signal(signal.SIGINT, forward)
  command = [sys.executable, '-m', options.module] + rest
  try:
    for process_id in range(options.num_processes):
      log = tempfile.TemporaryFile() if process_id else None
      logs.append(log)
      # A session of its own, so that Ctrl-C reaches a child once, through us.
      children.append(subprocess.Popen(
          command, env=environment(options, process_id, port), stdout=log,
          stderr=None if log is None else subprocess.STDOUT,
          start_new_session=True))
    codes = wait(children)
  finally:
    kill(children)
  for process_id, (code, log) in enumerate(zip(codes, logs)):
    if code and log is not None:
      log.seek(0)
      lines = log.read().decode('utf-8', 'replace').splitlines()
      print(f'--- process {process_id} ended with {code}; its last lines:',
            file=sys.stderr)
      print('\n'.join(lines[-TAIL_LINES:]), file=sys.stderr)
  return status(codes)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
