"""What reads a configuration and what only looks at it."""

import ml_collections
import pytest

from sidrec import config as config_lib
from sidrec import evaluate
from tests import config_reads
from tests import tiny_run


def _config():
  config = ml_collections.ConfigDict(dict(
      a=1, b=dict(c=2., d='x'), eval=dict(monitor={'m/x': 1.})))
  config.b.e = config.get_ref('a')
  return config


def test_reads_are_noted():
  config, log = config_reads.record(_config())
  assert config_reads.leaves(config) == {
      'a', 'b.c', 'b.d', 'b.e', 'eval.monitor'}
  assert not log.leaves
  assert config.b.c == 2. and config['a'] == 1
  assert log.leaves == {'a', 'b.c'}
  assert dict(**config.b) == dict(c=2., d='x', e=1)
  assert log.leaves == {'a', 'b.c', 'b.d', 'b.e'}
  assert dict(config.eval.monitor) == {'m/x': 1.}
  assert 'eval.monitor' in log.leaves and not log.missing


def test_what_is_not_there_is_noted_even_where_a_default_is_taken():
  config, log = config_reads.record(_config())
  assert config.b.get('none', 3) == 3 and getattr(config, 'other', 4) == 4
  assert 'third' not in config.b  # Asking is fair.
  with pytest.raises(AttributeError):
    print(config.b.fourth)
  assert log.missing == {'b.none', 'other', 'b.fourth'}


def test_copies_note_too():
  config, log = config_reads.record(_config())
  part = config.b.copy_and_resolve_references()
  assert not log.leaves
  assert part.e == 1 and log.leaves == {'b.e'}
  part.e = 5
  assert config.a == 1


def _read(config):
  return config.b.c


def _check_all(config):
  return all(x > 0 for x in [config.a])


def _check_and_read(config):
  return config.a > 0, _read(config)


def test_checking_and_writing_down_are_no_reading():
  config, log = config_reads.record(_config())
  assert _check_all(config)
  assert config.to_dict()['b'] == dict(c=2., d='x', e=1)
  assert not log.leaves and not log.missing
  assert _check_and_read(config) == (True, 2.)
  assert log.leaves == {'b.c'}
  whole, log = config_reads.record(tiny_run.config('letter'))
  evaluate.check(whole)
  assert config_lib.identity(whole)['codes']['collisions'] == 'sinkhorn'
  assert not log.leaves and not log.missing
