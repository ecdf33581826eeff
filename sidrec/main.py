"""Starts a run: flags and process start-up only.

    python -m sidrec.main --config=experiments/dig.py --workdir=runs/dig

`--config=dig` means the same.
"""

import logging as std_logging
import os
import sys
from typing import Any, Callable, TextIO

from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from sidrec import config as config_lib
from sidrec import evaluate
from sidrec import parallel
from sidrec import train
from sidrec import types
from sidrec.evaluate import table

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'NAME or FILE.py[:word,word,key=value]', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'where everything is written')
_MODE = flags.DEFINE_enum(
    'mode', 'train_and_evaluate',
    ['train_and_evaluate', 'evaluate', 'recommend', 'export'], 'what to do')
_INPUT = flags.DEFINE_string(
    'input', None, 'recommend: Parquet or JSON lines, user_id and/or history')
_OUTPUT = flags.DEFINE_string(
    'output', None, 'recommend: Parquet or JSON lines to write')


def main(argv: list[str]) -> None:
  """Runs one mode; see the flags."""
  if len(argv) > 1:
    raise types.InputError(f'argument {argv[1]!r} is not known: flags begin '
                           'with --')
  for flag in (_CONFIG, _WORKDIR):
    if flag.value in (None, ''):
      raise types.InputError(f'--{flag.name} is missing')
  config, workdir = _CONFIG.value, os.path.expanduser(_WORKDIR.value)
  parallel.initialize()
  if jax.process_count() > 1:
    logging.info('process %d of %d, devices: %s', jax.process_index(),
                 jax.process_count(), jax.devices())
    settings = config.to_dict()
    settings['data'].pop('root')  # Each machine may have its own.
    parallel.agree({'--config': settings, '--workdir': _WORKDIR.value,
                    '--mode': _MODE.value})
  if _MODE.value == 'train_and_evaluate':
    train.train_and_evaluate(config, workdir)
    return
  run = evaluate.load(workdir, config)
  if _MODE.value == 'evaluate':
    values = run.evaluate()
    if jax.process_index() == 0:
      print(table.values_table(values))
  elif jax.process_count() > 1:
    raise types.InputError(
        f'--mode={_MODE.value} writes one file: start it as one process')
  elif _MODE.value == 'export':
    run.export(workdir)
  else:
    for name, value in (('input', _INPUT.value), ('output', _OUTPUT.value)):
      if not value:
        raise types.InputError(f'--{name} is missing: --mode=recommend reads '
                               'and writes a file')
    logging.info('%d requests answered in %s',
                 run.recommend(_INPUT.value, _OUTPUT.value), _OUTPUT.value)


def tune_xla() -> None:
  """Keeps XLA's CPU backend from a library that is slow at our reductions.

  Since jax 0.10 it hands sums and products to YNNPACK, broadcasts written out
  first: a training step of DIG took 352 ms with it and 300 ms without. An
  unknown flag would end the process, so only where it is known to exist.
  """
  flag, given = '--xla_cpu_experimental_ynn_fusion_type', os.environ.get(
      'XLA_FLAGS', '')
  if jax.__version_info__[:2] == (0, 10) and flag not in given:
    os.environ['XLA_FLAGS'] = f'{given} {flag}='.strip()


class _Lasting:
  """A stream that nobody may look at any more; the run goes on all the same."""

  def __init__(self, stream: TextIO | None):
    # None: the process was started without it.
    self._stream = open(os.devnull, 'w') if stream is None else stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes what can still be seen."""
    try:
      return self._stream.write(text)
    except OSError:  # A reader that is gone, a lost terminal.
      self._mute()
      return len(text)

  def flush(self) -> None:
    """Shows what was written."""
    try:
      self._stream.flush()
    except OSError:
      self._mute()

  def _mute(self):
    """What still waits in its buffers must not fail at the end once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, self._stream.fileno())
    os.close(nowhere)


def keep_output() -> None:
  """Lets no write to standard output or error end the run."""
  sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
  logging.get_absl_handler().python_handler.setStream(sys.stderr)


def run() -> None:
  """Parses flags, keeps compiled programs, and maps errors to exit codes."""
  tune_xla()
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR') or os.path.join(
      os.path.expanduser('~'), '.cache', 'sidrec', 'jax')
  jax.config.update('jax_compilation_cache_dir', cache)
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.)
  logging.set_verbosity(logging.INFO)
  logging.use_absl_handler()  # It looks for the streams that there are.
  keep_output()
  handler = logging.get_absl_handler()
  handler.addFilter(
      lambda r: 'sidrec' in r.pathname or r.levelno >= std_logging.WARNING)
  handler.setFormatter(std_logging.Formatter('%(levelname).1s %(message)s'))
  try:
    # The flag library types overrides by what it finds in `sys.argv`.
    sys.argv[1:] = config_lib.arguments(sys.argv[1:])
    # It would tell of a file that cannot be read by a traceback.
    for word in sys.argv[1:]:
      if word.startswith('--config='):
        config_lib.load_experiment(*word.partition('=')[2].split(':', 1))
    argv = flags.FLAGS(sys.argv)
  except Exception as error:  # pylint: disable=broad-except
    if {'--help', '-h', '--helpfull'} & set(sys.argv):
      print(flags.FLAGS.main_module_help())
      sys.exit(0)
    _fail(2, _flag_message(error))
  try:
    main(argv)
  except types.InputError as error:
    # Maybe the fault of this process alone: the others are not waited for.
    _fail(2, error, parallel.leave)
  except FloatingPointError as error:
    _fail(1, error)
  except train.Terminated as error:
    _fail(error.status, error)
  except KeyboardInterrupt:
    _fail(130, 'stopped by SIGINT')


def _flag_message(error: BaseException) -> str:
  """Returns the line that matters of what the flag library wraps around it."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  text = str(error.args[0]) if error.args else str(error)
  # Some errors carry the representation of another one's text.
  text = text.replace('\\n', ' ').replace("\\'", "'").strip('"')
  if not isinstance(error, (KeyError, AttributeError)):
    return text
  # "'stepz'", or where a key is near it: "'stepz' Did you mean \"steps\" ...".
  name, _, hint = ' '.join(text.split()).partition(' Did you mean ')
  name = name.strip("'")
  for word in sys.argv:
    key = word.split('=')[0].lstrip('-')
    if key.startswith('config.') and name in key.split('.'):
      near = hint.split(' ')[0].strip('"')
      return f'{key}: there is no key {name!r}; ' + (
          f'did you mean {near!r}?' if near else
          'the experiment file has the keys of its method')
  return f'--config: {text}'


def _fail(status: int, error: BaseException | str,
          leave: Callable[[int], None] = sys.exit) -> None:
  message = ' '.join(str(error).split()) or type(error).__name__
  print(f'sidrec: {message}', file=sys.stderr, flush=True)
  leave(status)


if __name__ == '__main__':
  run()
