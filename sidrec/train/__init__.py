"""The one trainer: assembles a run's parts, walks its schedule, reports."""

import contextlib
import json
import os
import time
from typing import Any

from absl import logging
import jax
import ml_collections

from sidrec import checkpoint
from sidrec import data
from sidrec import evaluate
from sidrec import methods
from sidrec import parallel
from sidrec import schedule
from sidrec import types
from sidrec import writers
from sidrec.data import dataset as dataset_lib
from sidrec.evaluate import table
from sidrec.methods import base
from sidrec.train import lock
from sidrec.train import loop
from sidrec.train import run as run_lib
from sidrec.train import signals as signals_lib
from sidrec.train.signals import Terminated

__all__ = ['Terminated', 'train_and_evaluate']


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Trains every seed, chooses on validation, reports test once.

  A run that was killed goes on from its last checkpoint, bit for bit.

  Args:
    config: a whole configuration.
    workdir: where everything is written.

  Returns:
    What `results.json` holds.

  Raises:
    types.InputError: bad configuration or bad input; another run is writing
      into the workdir.
    Terminated: SIGTERM, SIGHUP or SIGINT came, and all is saved.
  """
  evaluate.check(config, jax.device_count())
  mapped = parallel.make(config.parallel.wrapper)
  with signals_lib.Signals(mapped) as signals, contextlib.ExitStack() as held:
    signals.at_once('before the first step')
    mapped.once(lambda: held.enter_context(lock.hold(workdir)))
    return _run(config, workdir, mapped, signals)


def _run(config: ml_collections.ConfigDict, workdir: str,
         mapped: parallel.Parallel, signals: signals_lib.Signals
         ) -> dict[str, Any]:
  """Does all that is done in a workdir that is this run's own."""
  began = time.perf_counter()
  dataset = data.load(config.data, config.data.seed)
  if mapped.is_main:
    logging.info(
        '%s: %d users, %d items, %d events (%d / %d / %d); %s', dataset.name,
        dataset.spec.num_users, dataset.spec.num_items,
        len(dataset.event_time), *(len(dataset.examples(s, 'impressions'))
                                   for s in ('train', 'valid', 'test')),
        dataset.protocol)
  method = methods.get(config.method).make(config, dataset)
  evaluate.check_monitor(method)
  seeds = list(range(config.seed, config.seed + config.num_seeds))
  outcomes = [_run_seed(config, workdir, seed, dataset, mapped, method,
                        signals) for seed in seeds]
  results = {
      'method': config.label or config.method, 'dataset': dataset.name,
      **evaluate.describe_run(config, dataset, method), 'seeds': seeds,
      'steps': int(outcomes[0]['steps']),
      'wall_seconds': sum(o['seconds'] for o in outcomes),
      **({} if outcomes[0]['alpha'] is None else {
          'alpha': [o['alpha'] for o in outcomes]}),
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'metrics': {
          split: table.over_seeds([o[split] for o in outcomes])
          for split in ('valid', 'test')}}
  if mapped.is_main:
    evaluate.write_rows(workdir, dataset, {
        seed: o['rows'] for seed, o in zip(seeds, outcomes)})
    if len(seeds) > 1 and outcomes[0]['codes'] is not None:
      evaluate.write_codes(workdir, dataset, outcomes[0]['codes'])
    # The last: where it is, all is.
    _write_json(os.path.join(workdir, 'results.json'), results)
    print(table.table(results), flush=True)
    logging.info('done in %.0f s; results in %s',
                 time.perf_counter() - began, workdir)
  mapped.barrier('done')
  return results


def _run_seed(
    config: ml_collections.ConfigDict, top: str, seed: int,
    dataset: dataset_lib.Dataset, mapped: parallel.Parallel,
    method: base.Method, signals: signals_lib.Signals) -> dict[str, Any]:
  workdir = top if config.num_seeds == 1 else os.path.join(
      top, f'seed_{seed}')
  signals.stop('before its first step')
  signals.at_once('')  # From here on it is saved first.
  with checkpoint.Checkpointer(
      os.path.join(workdir, 'checkpoints'),
      config={**evaluate.identity(config, dataset), 'seed': seed},
      complete=lambda saved: evaluate.complete_identity(saved, config, dataset),
      keep_latest=config.checkpoint.keep, best_metric='monitor',
      among='section') as saver:
    run = run_lib.Run(
        config=config, workdir=workdir, seed=seed, dataset=dataset,
        mapped=mapped, method=method,
        sections=() if config.train.num_steps == 0 else tuple(
            x for x in method.sections if x.num_events),
        evaluator=evaluate.Evaluator(method, dataset, mapped, config.eval),
        checkpointer=saver, progress=run_lib.Progress(), signals=signals,
        writer=writers.NullWriter(), lines=lambda: (0, 0))
    state, resumed = loop.start(run)
    if mapped.is_main:
      # Not before: a checkpoint of another config has been refused by now.
      _write_json(os.path.join(top, 'config.json'), evaluate.movable(config))
      _open_writer(run, resumed)
    with contextlib.closing(run.writer):
      state = loop.fit(run, state)
      out = _report(run, state)
      signals.at_once('')
      return out


def _open_writer(run: run_lib.Run, resumed: int) -> None:
  lines = writers.JsonlWriter(
      os.path.join(run.workdir, 'metrics.jsonl'), run.progress.lines,
      run.progress.lines_crc)
  run.lines = lambda: (lines.num_lines, lines.crc)
  main = max(run.sections, key=lambda x: x.num_steps, default=None)
  rows = 1
  if main is not None:
    programs = [run.method.programs[x.program] for x in main.items
                if isinstance(x, schedule.Train)]
    rows = sum(s.batch_size for p in programs[:1] for s in p.streams.values())
  run.writer = writers.MultiWriter([
      lines, writers.TensorBoardWriter(run.workdir, resumed),
      writers.ProgressBar(run.num_steps, resumed, rows)])


def _report(run: run_lib.Run, state: types.TrainState) -> dict[str, Any]:
  """Evaluates the chosen state; test is scored here and nowhere else."""
  config, progress = run.config, run.progress
  where = f'after step {progress.steps}, in the final evaluation'
  run.signals.at_once(where)
  valid, valid_rows = run.evaluator.run(
      state, 'valid', config.eval.valid_users, keep_rows=True)
  run.signals.stop(where)
  alpha = valid.get('unified/alpha')
  test, test_rows = run.evaluator.run(
      state, 'test', config.eval.test_users, keep_rows=True, alpha=alpha)
  run.signals.stop(where)
  run.writer.scalars(progress.chosen_steps, 'test', test)
  if progress.step_seconds:
    test['speed/train_examples_per_s'] = (
        progress.examples / progress.step_seconds)
  codes = run.evaluator.codes(state)
  if run.mapped.is_main and codes is not None:
    evaluate.write_codes(run.workdir, run.dataset, codes)
  return {'valid': valid, 'test': test, 'codes': codes, 'alpha': alpha,
          'rows': {'valid': valid_rows, 'test': test_rows},
          'steps': progress.chosen_steps, 'seconds': progress.seconds}


def _write_json(path: str, value: Any) -> None:
  evaluate.write_file(
      path, json.dumps(value, indent=1, allow_nan=False).encode())
