"""Schedules as values, and a method that alternates two programs 400 times."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sidrec import checkpoint
from sidrec import methods
from sidrec import schedule
from sidrec import train
from sidrec import types
from sidrec.data import pipeline
from sidrec.methods import base
from sidrec.train import loop
from tests import tiny_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
ITEMS = types.StreamSpec('items', 8)
EXPOSURES = types.StreamSpec('impressions', 16)
TRACES = []  # Names of programs, one a trace.

# --- Schedules ---------------------------------------------------------------

A, B = schedule.Train('a', 3), schedule.Train('b', 2)
H = schedule.Host('h', lambda bench, state: base.Changes())


def test_every_cuts_with_hosts_between():
  long = schedule.Train('a', 7)
  assert schedule.every(long, 3, H) == (A, H, A, H, long._replace(num_steps=1))
  assert schedule.every(A, 3, H) == (A,) == schedule.every(A, 0, H)
  assert schedule.every(long, 3) == (long,)


def test_remaining_is_the_same_from_every_cursor():
  section = schedule.Section('s', (H, A, B._replace(num_steps=0), H, H, B))
  whole = list(schedule.remaining(section, schedule.Cursor()))
  assert [at.event for at, _ in whole] == [0, 1, 4, 5, 6]
  assert section.num_steps == 5

  def walk(at, most):
    """Does events one by one up to `most`; returns (what it did, cursor)."""
    done = []
    for at, item in schedule.remaining(section, at):
      if isinstance(item, schedule.Host):
        if at.event == most:
          return done, at
        done.append('h')
        at = at.next_item(True)
        continue
      for _ in range(item.num_steps):
        if at.event == most:
          return done, at
        done.append(item.program)
        at = at.step()
    return done, at

  every, _ = walk(schedule.Cursor(), 99)
  assert ''.join(every) == 'haaahhbb'
  for most in range(len(every)):
    first, at = walk(schedule.Cursor(), most)
    assert at.event == most
    at = schedule.Cursor(**json.loads(json.dumps(at._asdict())))
    assert first + walk(at, 99)[0] == every
    assert schedule.steps_done(section, at) == sum(x != 'h' for x in first)
    if at.done == 0:
      assert schedule.hosts_done(section, at, 'h') == first.count('h')


# --- A method that alternates ------------------------------------------------


def _loss(name, num_items, params, state, catalog, batches, *, key,
          axis_name):
  """Pulls a number to noise; counts in variables what it has read."""
  del catalog
  TRACES.append(name)
  batch = batches[name]
  item = batch.item.reshape(-1)
  count = jnp.zeros(num_items, jnp.int32).at[item].add(1)
  count = jax.lax.psum(count, axis_name)
  noise = jax.random.normal(key, (3,))
  devices = jax.lax.psum(1, axis_name)
  loss = jnp.sum(jnp.square(params[name] - noise)) / devices
  return loss, base.Aux(
      {'loss': loss}, {f'read_{name}': state.variables[f'read_{name}'] + count})


def _grow(bench, state):
  """Host work that reads the state, counts itself and resets an optimizer."""
  value = bench.host(state.params['a'])
  hosts = bench.host(state.variables['hosts'])
  return base.Changes(
      params={'a': value * np.float32(.5)},
      variables={'hosts': hosts + 1 + bench.count}, reset=('a',),
      metrics={'host': float(hosts)})


def _probe(state, catalog, batch):
  del catalog
  count = jnp.sum(batch.mask)
  # Up and down again: the best state is in the middle.
  return {'distance': (
      count * jnp.sin(25. * jnp.sum(state.params['b'])), count)}


def toy(sections):
  """Returns a module-like object whose `make` builds the method."""
  def make(config, dataset):
    del config
    num_items = dataset.spec.num_items
    def init(key, catalog):
      del key, catalog
      zeros = lambda: jnp.zeros(num_items, jnp.int32)
      return ({'a': jnp.ones(3), 'b': jnp.ones(3)}, {
          'read_a': zeros(), 'read_b': zeros(),
          'hosts': jnp.zeros([], jnp.int32)})
    program = lambda name, stream: base.Program(
        lambda *args, **kwargs: _loss(name, num_items, *args, **kwargs),
        {name: stream}, (name,))
    adam = lambda: optax.adam(1e-2)
    return base.Method(
        init=init,
        programs={'a': program('a', ITEMS), 'b': program('b', EXPOSURES)},
        optimizers={name: base.Optimizer((name,), adam()) for name in 'ab'},
        sections=sections(dataset), probes={'toy': _probe})
  return type('Toy', (), {'make': staticmethod(make)})


def _run(monkeypatch, workdir, sections, **more):
  """Trains the toy; returns (the state it ended with, its data set)."""
  monkeypatch.setattr(methods, 'get', lambda name: toy(sections))
  kept, whole = {}, loop.fit
  def fit(run, state):
    kept['state'] = run.mapped.to_host(whole(run, state))
    kept['dataset'] = run.dataset
    return run.mapped.place(kept['state'])
  monkeypatch.setattr(loop, 'fit', fit)
  try:
    train.train_and_evaluate(
        tiny_run.config('ranker', run__log_every=50, **more), str(workdir))
  finally:
    monkeypatch.setattr(loop, 'fit', whole)
  return kept['state'], kept['dataset']


def _alternate(dataset):
  del dataset
  return (schedule.Section('alternate', 400 * (A, B)),)


def test_400_alternations_trace_twice_and_read_all(tmp_path, monkeypatch):
  TRACES.clear()
  state, dataset = _run(monkeypatch, tmp_path, _alternate)
  assert sorted(TRACES) == ['a', 'b']
  assert {k: int(v) for k, v in state.clock.items()} == {'a': 1200, 'b': 800}
  # Epochs of both streams are whole: every example as often as any other.
  rows = 1200 * ITEMS.batch_size
  epochs, rest = divmod(rows, dataset.spec.num_items)
  assert set(np.unique(state.variables['read_a'])) <= {epochs, epochs + 1}
  assert (state.variables['read_a'] == epochs + 1).sum() == rest
  events = dataset.examples('train', 'impressions')
  epochs, rest = divmod(800 * EXPOSURES.batch_size, len(events))
  once = np.bincount(
      dataset.event_item[events], minlength=dataset.spec.num_items)
  extra = state.variables['read_b'] - epochs * once
  assert (extra >= 0).all() and (extra <= once).all() and extra.sum() == rest
  # Optimizers keep their memory through all of it.
  assert int(state.opt_state['a'][0].count) == 1200
  assert int(state.opt_state['b'][0].count) == 800


def test_programs_of_one_stream_go_on_where_the_other_stopped(
    tmp_path, monkeypatch):
  read = []
  whole = pipeline.Pipeline.batch
  monkeypatch.setattr(pipeline.Pipeline, 'batch', lambda self, numbers: (
      read.append(dict(numbers)), whole(self, numbers))[1])

  def sections(dataset):
    del dataset
    return (schedule.Section('s', (A, B, A)),)

  def share(config, dataset):
    method = toy(sections).make(config, dataset)
    spec = method.programs['a']
    return method._replace(programs={
        'a': spec, 'b': spec._replace(optimizers=('b',))})
  monkeypatch.setattr(
      methods, 'get', lambda name: type('T', (), {'make': staticmethod(share)}))
  train.train_and_evaluate(tiny_run.config('ranker'), str(tmp_path))
  assert read == [{'a': n} for n in range(8)]


# --- Stops -------------------------------------------------------------------


def _every_kind(dataset):
  """Hosts alone, cut training, alternation, early stops, best states."""
  del dataset
  monitor = {'distance': 1.}
  host = schedule.Host('grow', _grow)
  return (
      schedule.Section('start', (host, host, *schedule.every(
          schedule.Train('a', 7), 3, host))),
      schedule.Section(
          'watched', 5 * (A, host, B), schedule.Watch(4, monitor, 2, 'toy'),
          'best'),
      schedule.Section('hosts', (host,)),
      schedule.Section('end', (schedule.Train('b', 6), host),
                       schedule.Watch(2, monitor, 0, 'toy'), 'best'))


class _PowerCut(Exception):
  """What the tests raise in the middle of a run."""


def _cut_at(monkeypatch, event):
  """Fails right before an event: a step, a Host, or the end of a section."""
  seen = {'events': None}
  names = ('_host', '_end_section', '_save')

  def watch(name, whole):
    def fn(run, *args, **kwargs):
      if run.cursor.event == event and name == seen['kind']:
        raise _PowerCut
      return whole(run, *args, **kwargs)
    return fn
  for name in names:
    monkeypatch.setattr(loop, name, watch(name, getattr(loop, name)))
  return seen


def _final(workdir):
  """Returns the newest checkpoint's arrays, and the lines of metrics."""
  lines = tiny_run.lines(workdir)
  with checkpoint.Checkpointer(
      str(workdir / 'checkpoints'), read_only=True) as saver:
    return saver.latest_step(), lines


@pytest.fixture(name='unbroken', scope='module')
def _unbroken(tmp_path_factory):
  monkeypatch = pytest.MonkeyPatch()
  workdir = tmp_path_factory.mktemp('unbroken')
  state, _ = _run(monkeypatch, workdir, _every_kind)
  monkeypatch.undo()
  return state, _final(workdir)


@pytest.mark.parametrize('kind, event', [
    ('_host', 0), ('_host', 1), ('_host', 5), ('_end_section', 11),
    ('_host', 14), ('_host', 20), ('_save', 15), ('_end_section', None),
    ('step', 3), ('step', 12), ('step', 16), ('step', 'last')])
def test_a_stop_at_any_item_changes_nothing(
    tmp_path, monkeypatch, unbroken, kind, event):
  """Each cut is followed by the same command again."""
  want, (last, lines) = unbroken
  with monkeypatch.context() as patch:
    if kind == 'step':
      number = 40 if event == 'last' else event
      whole, steps = pipeline.Pipeline.iterate, []
      def iterate(self, starts, num):
        for batch in whole(self, starts, num):
          steps.append(1)
          if len(steps) == number:
            raise _PowerCut
          yield batch
      patch.setattr(pipeline.Pipeline, 'iterate', iterate)
    else:
      _cut_at(patch, last if event is None else event)['kind'] = kind
    try:
      _run(patch, tmp_path, _every_kind)
      assert kind == 'step' or kind == '_save'  # Never came there.
    except _PowerCut:
      pass
  state, _ = _run(monkeypatch, tmp_path, _every_kind)
  chex.assert_trees_all_equal(state, want)
  assert _final(tmp_path) == (last, lines)


_KILLED = """
import pathlib, sys, time, os, signal
import pytest
from sidrec.data import pipeline
from tests import schedule_test as s
number, workdir = int(sys.argv[1]), pathlib.Path(sys.argv[2])
whole, steps = pipeline.Pipeline.iterate, []
def iterate(self, starts, num):
  for batch in whole(self, starts, num):
    steps.append(1)
    if len(steps) == number:
      os.kill(os.getpid(), signal.SIGKILL)
    yield batch
pipeline.Pipeline.iterate = iterate
s._run(pytest.MonkeyPatch(), workdir, s._every_kind)
"""


def test_a_kill_changes_nothing(tmp_path, monkeypatch, unbroken):
  want, (last, lines) = unbroken
  process = subprocess.run(
      [sys.executable, '-c', _KILLED, '14', str(tmp_path)], cwd=ROOT,
      env=dict(os.environ, PYTHONPATH=str(ROOT)), capture_output=True,
      text=True, timeout=120, check=False)
  assert process.returncode == -signal.SIGKILL, process.stderr
  assert not (tmp_path / 'results.json').exists()
  state, _ = _run(monkeypatch, tmp_path, _every_kind)
  chex.assert_trees_all_equal(state, want)
  assert _final(tmp_path) == (last, lines)
