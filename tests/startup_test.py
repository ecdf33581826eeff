"""Processes that do not fit together: one line each, before JAX starts."""

import concurrent.futures
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from sidrec import parallel
from sidrec import types
from sidrec.parallel import startup

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def _variables(address='127.0.0.1:1', count='2', index='0', seconds=''):
  return dict(zip((*startup.NAMES, startup.START_SECONDS),
                  (address, count, index, seconds)))


@pytest.mark.parametrize('changes, wrong', [
    (dict(count=''), 'SIDREC_NUM_PROCESSES is missing'),
    (dict(count='two'), "SIDREC_NUM_PROCESSES='two' must be a whole number"),
    (dict(index='.5'), "SIDREC_PROCESS_ID='.5' must be a whole number"),
    (dict(count='0'), 'SIDREC_NUM_PROCESSES=0 must be at least 1'),
    (dict(index='2'), 'SIDREC_PROCESS_ID=2 must be from 0 to 1'),
    (dict(index='-1'), 'SIDREC_PROCESS_ID=-1 must be from 0 to 1'),
    (dict(address='host'), "SIDREC_COORDINATOR='host' must be host:port"),
    (dict(address='host:99999'), 'a port from 1 to 65535'),
    (dict(seconds='0'), 'SIDREC_START_SECONDS=0 must be at least 1')])
def test_variables_that_do_not_fit(changes, wrong):
  with pytest.raises(types.InputError, match=wrong):
    startup.read_place(_variables(**changes))


def test_places():
  assert startup.read_place({}) is None
  place = startup.read_place(_variables('[::1]:80', '3', '2'))
  assert place == ('::1', 80, 3, 2, 300)
  assert place.address == '[::1]:80' and place.is_loopback
  assert startup.read_place(_variables('localhost:80')).is_loopback
  assert not startup.read_place(_variables('10.0.0.1:80')).is_loopback
  assert not startup.read_place(_variables('host:80')).is_loopback


def _roll(*places, seconds=20):
  """Calls a roll in threads; returns what each (count, index) was told."""
  port = _port()
  def call(place):
    try:
      startup.call_roll(startup.Place('127.0.0.1', port, *place, seconds))
    except types.InputError as error:
      return str(error)
    return ''
  with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
    return list(pool.map(call, places))


def test_a_roll():
  assert _roll((3, 2), (3, 0), (3, 1)) == [''] * 3
  for told in _roll((2, 0), (3, 1)):
    assert 'NUM_PROCESSES is 2 in process 0 and 3 in process 1' in told
  for told in _roll((3, 0), (3, 1), (3, 1)):
    assert 'two processes have SIDREC_PROCESS_ID=1' in told
  for told in _roll((3, 0), (3, 2), seconds=1):
    assert 'process 1 of 3 did not come' in told or 'no process 0' in told
  assert 'process 1: no process 0 at 127.0.0.1' in _roll((2, 1), seconds=1)[0]
  with pytest.raises(types.InputError, match='there is no host'):
    startup.call_roll(startup.Place('no.such.host.invalid', 1, 2, 1, 5))


def test_a_roll_on_a_port_of_another():
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    with pytest.raises(types.InputError, match='process 0 cannot listen'):
      startup.call_roll(startup.Place('127.0.0.1', port, 2, 0, 5))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      told = pool.submit(
          startup.call_roll, startup.Place('127.0.0.1', port, 2, 1, 5))
      with other.accept()[0] as connection:
        connection.sendall(b'220 mail\r\n')
        with pytest.raises(types.InputError, match='something else than'):
          told.result()


def test_main_says_in_one_line_what_is_missing(tmp_path):
  variables = {k: v for k, v in os.environ.items() if k not in startup.NAMES}
  done = subprocess.run(
      [sys.executable, '-m', 'sidrec.main', '--config=popularity',
       f'--workdir={tmp_path}'], cwd=ROOT, text=True, capture_output=True,
      env={**variables, 'SIDREC_DISTRIBUTED': '1'}, check=False)
  assert done.returncode == 2
  assert 'SIDREC_DISTRIBUTED=1: JAX finds no' in done.stderr
  assert done.stderr.count('\n') == 1, done.stderr


def test_one_process_agrees_with_itself():
  parallel.agree({'--config': {'a': {'b': 1}}})
