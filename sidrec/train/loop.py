"""Walks a run's schedule: steps, host work, validations, checkpoints."""

import contextlib
import functools
import math
import os
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from sidrec import evaluate
from sidrec import schedule
from sidrec import types
from sidrec.data import pipeline
from sidrec.methods import base
from sidrec.train import run as run_lib
from sidrec.train import signals

_SAVES = 4  # Checkpoints in a section that is not validated.


def start(run: run_lib.Run) -> tuple[types.TrainState, int]:
  """Returns (placed state, steps done): the own checkpoint, else fresh."""
  init = jax.jit(functools.partial(base.init_state, run.method))
  latest, seed = run.checkpointer.latest_step(), np.uint32(run.seed)
  shapes = jax.eval_shape(init, seed, run.dataset.catalog)
  _check_memory(shapes)
  if latest is None:
    run.progress.clock = {name: 0 for name in run.method.programs}
    began = time.perf_counter()
    state = run.mapped.place(init(seed, run.dataset.catalog))
    run.progress.seconds += time.perf_counter() - began
    return state, 0
  state, host = run.checkpointer.restore(latest, shapes)
  run.progress = run_lib.Progress.from_json(host)
  logging.info('resumed at step %d', run.progress.steps)
  return run.mapped.place(state), run.progress.steps


def _check_memory(shapes: types.TrainState) -> None:
  """Refuses a state that no device here can hold.

  Raises:
    types.InputError: saying how large it is, and what of it is the largest.
  """
  size = lambda x: x.size * x.dtype.itemsize
  leaves = jax.tree_util.tree_leaves_with_path(shapes)
  need = sum(size(x) for _, x in leaves)
  stats = jax.local_devices()[0].memory_stats() or {}
  have = stats.get('bytes_limit') or (
      os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
  if need > have:
    path, largest = max(leaves, key=lambda leaf: size(leaf[1]))
    raise types.InputError(
        f'the state of this run takes {need / 1e9:,.0f} GB, a device has '
        f'{have / 1e9:,.0f} GB: make widths, layers or codebooks smaller; the '
        f'largest part is {jax.tree_util.keystr(path)} {largest.shape}')


def fit(run: run_lib.Run, state: types.TrainState) -> types.TrainState:
  """Walks the schedule from the run's cursor to its end.

  Returns:
    The chosen state, placed.

  Raises:
    signals.Terminated: a signal came, and a checkpoint is written.
    FloatingPointError: a metric that is not finite.
  """
  while run.cursor.section < len(run.sections):
    section = run.sections[run.cursor.section]
    for at, item in schedule.remaining(section, run.cursor):
      # The rest of the cursor is what validations have found so far.
      run.cursor = run.cursor._replace(
          item=at.item, done=at.done, event=at.event)
      if isinstance(item, schedule.Host):
        state = _host(run, section, item, state)
        run.cursor = run.cursor.next_item(is_host=True)
      else:
        state, stopped = _train(run, section, item, state)
        if stopped:
          break
        run.cursor = run.cursor.next_item(is_host=False)
    state = _end_section(run, section, state)
    number = run.signals.agreed()
    if number:
      run.checkpointer.wait()
      raise signals.Terminated(number, f'at step {run.progress.steps}')
  if run.checkpointer.latest_step() is None:
    _save(run, state)
  run.checkpointer.wait()
  return state


def _host(run: run_lib.Run, section: schedule.Section, item: schedule.Host,
          state: types.TrainState) -> types.TrainState:
  """Runs host work in every process and puts its changes into the state."""
  began = time.perf_counter()
  bench = run_lib.Bench(
      run, schedule.hosts_done(section, run.cursor, item.name))
  changes = item.fn(bench, state)
  place = run.mapped.place
  params = base.merge(state.params, place(dict(changes.params)))
  opt_state = dict(state.opt_state)
  for name in changes.reset:
    own = run.method.optimizers[name]
    opt_state[name] = place(own.tx.init(base.select(params, own.params)))
  state = state.replace(
      params=params, opt_state=opt_state,
      variables={**state.variables, **place(dict(changes.variables))})
  if changes.metrics:
    _log(run, changes.metrics)
  run.progress.seconds += time.perf_counter() - began
  return state


def _batch_numbers(run: run_lib.Run, program: str) -> dict[str, int]:
  """Returns which batch of each stream is next.

  Programs that read the same stream share its examples: the clocks of all of
  them add up.
  """
  programs = run.method.programs
  return {
      name: sum(run.progress.clock[other] for other, own in programs.items()
                if own.streams.get(name) == spec)
      for name, spec in programs[program].streams.items()}


def _feed(run: run_lib.Run, program: str) -> pipeline.Pipeline:
  """Returns what makes a program's batches, one a run."""
  if program not in run.feeds:
    run.feeds[program] = pipeline.Pipeline(
        run.dataset, run.method.programs[program].streams, seed=run.seed,
        process_index=run.mapped.process_index,
        process_count=run.mapped.process_count,
        prefetch=run.config.run.prefetch)
  return run.feeds[program]


def _train(run: run_lib.Run, section: schedule.Section, item: schedule.Train,
           state: types.TrainState) -> tuple[types.TrainState, bool]:
  """Does the steps of an item; says whether the section is to end early."""
  progress, mapped, name = run.progress, run.mapped, item.program
  if name not in run.steps:
    run.steps[name] = mapped.map_step(base.make_step(run.method, name))
    compiled = None
  else:
    compiled = time.perf_counter()
  step_fn, began = run.steps[name], time.perf_counter()
  rows = sum(s.batch_size for s in run.method.programs[name].streams.values())
  every = (section.watch.every if section.watch
           else max(section.num_steps // _SAVES, 1))
  last = section.num_steps
  batches = _feed(run, name).iterate(_batch_numbers(run, name), item.num_steps)
  with contextlib.closing(batches):
    for batch in batches:
      shards = {k: mapped.shard(v) for k, v in batch.items()}
      state, metrics = step_fn(state, run.evaluator.catalog, shards)
      progress.steps += 1
      progress.clock[name] += 1
      run.cursor = run.cursor.step()
      if compiled is None:
        jax.block_until_ready(state.clock)
        compiled = time.perf_counter()
      else:
        progress.examples += rows
      run.checkpointer.check()
      done = schedule.steps_done(section, run.cursor)
      due = done % every == 0 and done < last
      # Before a validation too: what is not finite must not reach it.
      if progress.steps % run.config.run.log_every == 0 or due or done == last:
        _log(run, metrics)
      # Every process must ask at the same steps, and asking is not free.
      asks = (mapped.process_count == 1 or
              progress.steps % run.config.run.log_every == 0)
      # The end of a section is written by `_end_section` alone.
      stop = run.signals.agreed() if asks and done < last else 0
      if due or stop:
        jax.block_until_ready(state.clock)
        now = time.perf_counter()
        progress.step_seconds += now - compiled
        ended = False
        if due and section.watch:
          ended = _validate(run, section, state)
        progress.seconds += time.perf_counter() - began
        if ended:
          return state, True
        _save(run, state)
        if stop:
          run.checkpointer.wait()
          raise signals.Terminated(stop, f'at step {progress.steps}')
        began = compiled = time.perf_counter()
  jax.block_until_ready(state.clock)
  now = time.perf_counter()
  progress.step_seconds += now - compiled
  progress.seconds += now - began
  return state, False


def _end_section(run: run_lib.Run, section: schedule.Section,
                 state: types.TrainState) -> types.TrainState:
  """Validates, chooses the state that goes on, and writes one checkpoint.

  Its cursor is the next section's, so that a kill on either side of it
  replays alike.
  """
  began, progress, metrics = time.perf_counter(), run.progress, None
  patience = section.watch.patience if section.watch else 0
  if section.watch and not 0 < patience <= run.cursor.stale:
    _validate(run, section, state)
  at_best = section.watch and run.cursor.best_event == run.cursor.event
  if at_best:
    metrics = _quality(run)
  elif section.watch and section.keep == 'best' and run.cursor.best_event >= 0:
    shapes = jax.eval_shape(lambda x: x, state)
    state, host = run.checkpointer.restore(run.cursor.best_event, shapes)
    state, progress.clock = run.mapped.place(state), host['clock']
  else:
    progress.chosen_steps = progress.steps
  run.cursor = run.cursor.next_section()
  progress.seconds += time.perf_counter() - began
  _save(run, state, metrics)
  return state


def _validate(run: run_lib.Run, section: schedule.Section,
              state: types.TrainState) -> bool:
  """Validates; says whether the section's patience is at its end."""
  watch, progress = section.watch, run.progress
  if watch.probe:
    values = run.evaluator.probe(state, watch.probe, 'valid')
  else:
    values = run.evaluator.run(state, 'valid', run.config.eval.valid_users)
  value = evaluate.monitor(values, watch.monitor)
  is_best = value > run.cursor.best
  if is_best:
    run.cursor = run.cursor._replace(
        best=value, best_event=run.cursor.event, stale=0)
    progress.chosen_steps = progress.steps
  else:
    run.cursor = run.cursor._replace(stale=run.cursor.stale + 1)
  run.writer.scalars(progress.steps, 'valid', {**values, 'monitor': value})
  run.writer.message(
      f'step {progress.steps} valid: {evaluate.line(values, value, is_best)}')
  run.writer.flush()
  return 0 < watch.patience <= run.cursor.stale


def _log(run: run_lib.Run, values: Any) -> None:
  values = {k: float(v) for k, v in run.mapped.to_host(values).items()}
  done = run.progress.steps
  run.writer.scalars(done, 'train', values)
  bad = sorted(k for k, v in values.items() if not math.isfinite(v))
  if bad:
    first = max(0, done - run.config.run.log_every)
    raise FloatingPointError(
        f'non-finite {", ".join(bad)} between steps {first} and {done}: lower '
        'train.learning_rate; the last checkpoint is kept')


def _quality(run: run_lib.Run) -> dict[str, float]:
  """What the best checkpoint of a section is chosen by."""
  return {'monitor': run.cursor.best, 'section': float(run.cursor.section)}


def _save(run: run_lib.Run, state: types.TrainState,
          metrics: dict[str, float] | None = None) -> None:
  if run.cursor.best_event == run.cursor.event:
    metrics = _quality(run)
  run.writer.flush()
  run.progress.lines, run.progress.lines_crc = run.lines()
  finished = run.cursor.section >= len(run.sections)
  run.checkpointer.save(
      run.cursor.event, run.mapped.to_global(state),
      {**run.progress.to_json(), 'finished': finished}, metrics)
