"""Sets up JAX for all tests: four CPU devices, strict rank promotion."""

import atexit
import importlib.metadata
import os
import shutil
import signal
import tempfile

# Before jax is imported anywhere: the backend reads these only once.
os.environ['JAX_PLATFORMS'] = 'cpu'
_FLAG = '--xla_force_host_platform_device_count'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}=4'
# Compiling takes half as long; later versions do not know the flag and abort.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
# Tests compile far more than they compute: cheap programs, and one store of
# them for all workers and child processes of this session.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(
      prefix='sidrec-tests-')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'],
                  ignore_errors=True)

# Tests send these to runs; what a shell starts in the background ignores them.
for _number in (signal.SIGHUP, signal.SIGINT):
  if signal.getsignal(_number) == signal.SIG_IGN:
    signal.signal(_number, signal.SIG_DFL if _number == signal.SIGHUP
                  else signal.default_int_handler)

import pathlib  # pylint: disable=g-import-not-at-top

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_configure(config):
  """Registers the markers of this test suite."""
  config.addinivalue_line(
      'markers', 'slow: takes more than a few seconds (-m "not slow" to skip)')


@pytest.fixture(scope='session')
def data_root() -> pathlib.Path:
  """Gives the folder of the real data sets, or skips with the reason."""
  given = os.environ.get('SIDREC_DATA')
  root = pathlib.Path(given) if given else ROOT.parent / 'shared' / 'data'
  if not root.is_dir():
    pytest.skip(f'no real data: {root} is not a folder (set SIDREC_DATA)')
  return root
