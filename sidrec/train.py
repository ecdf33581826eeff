"""The one trainer: assembles a run's parts, loops over steps, reports."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import signal
import time
from typing import Any, Callable

from absl import logging
import jax
import ml_collections

from sidrec import checkpoint
from sidrec import config as config_lib
from sidrec import data
from sidrec import evaluate
from sidrec import methods
from sidrec import metrics as metrics_lib
from sidrec import parallel
from sidrec import report
from sidrec import rng
from sidrec import types
from sidrec import writers
from sidrec.data import dataset as dataset_lib
from sidrec.data import pipeline
from sidrec.methods import base


class Terminated(Exception):
  """SIGTERM came and a checkpoint is written."""


@dataclasses.dataclass
class Progress:
  """What a run remembers beside its state; saved with every checkpoint.

  best, best_step: best monitored value on validation, and when.
  stale: validations since then.
  stopped: whether early stopping has ended training.
  seconds: wall-clock seconds of training so far.
  step_seconds, examples: of the steps alone, without compiling.
  """
  best: float = -math.inf
  best_step: int = -1
  stale: int = 0
  stopped: bool = False
  seconds: float = 0.
  step_seconds: float = 0.
  examples: int = 0


@dataclasses.dataclass
class Run:
  """One seed's run: its parts, put together once."""
  config: ml_collections.ConfigDict
  workdir: str
  seed: int
  dataset: dataset_lib.Dataset
  mapped: parallel.Parallel
  method: base.Method
  num_steps: int
  evaluator: evaluate.Evaluator
  checkpointer: checkpoint.Checkpointer
  progress: Progress
  # Metrics of `progress.best_step`, where this process has computed them.
  best_values: dict[str, float] | None = None


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
    types.InputError: bad configuration or bad input.
    Terminated: after SIGTERM, once a checkpoint is written.
  """
  config_lib.check(config)
  began = time.perf_counter()
  mapped = parallel.make(config.parallel.wrapper)
  dataset = data.load(config.data, config.data.seed)
  if mapped.is_main:
    logging.info(
        '%s: %d users, %d items, %d events (%d / %d / %d); %s', dataset.name,
        dataset.spec.num_users, dataset.spec.num_items,
        len(dataset.event_time), *(len(dataset.examples(s, 'impressions'))
                                   for s in ('train', 'valid', 'test')),
        dataset.protocol)
  with _Signal() as signalled:
    seeds = list(range(config.seed, config.seed + config.num_seeds))
    outcomes = []
    for seed in seeds:
      outcomes.append(_run_seed(
          config, workdir, seed, dataset, mapped, signalled))
  results = {
      'method': config.label or config.method, 'dataset': dataset.name,
      'protocol': dataset.protocol, 'seeds': seeds,
      'steps': int(outcomes[0]['steps']),
      'wall_seconds': sum(o['seconds'] for o in outcomes),
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'metrics': {
          split: report.over_seeds([o[split] for o in outcomes])
          for split in ('valid', 'test')}}
  if mapped.is_main:
    _write_json(os.path.join(workdir, 'results.json'), results)
    if len(seeds) > 1 and outcomes[0]['codes'] is not None:
      evaluate.write_codes(workdir, dataset, outcomes[0]['codes'])
    print(report.table(results), flush=True)
    logging.info('done in %.0f s; results in %s',
                 time.perf_counter() - began, workdir)
  mapped.barrier('done')
  return results


def _run_seed(config: ml_collections.ConfigDict, top: str, seed: int,
              dataset: dataset_lib.Dataset, mapped: parallel.Parallel,
              signalled: Callable[[], bool]) -> dict[str, Any]:
  workdir = top if config.num_seeds == 1 else os.path.join(
      top, f'seed_{seed}')
  run = assemble(config, workdir, seed, dataset, mapped)
  with run.checkpointer:
    return _train_seed(run, top, signalled)


def _train_seed(run: Run, top: str, signalled: Callable[[], bool]
                ) -> dict[str, Any]:
  config, mapped = run.config, run.mapped
  state, resumed = start(run)
  if mapped.is_main:
    # Not before: a checkpoint of another config has been refused by now.
    _write_json(os.path.join(top, 'config.json'), config.to_dict())
  with contextlib.closing(_writer(run, resumed)) as writer:
    state = fit(run, state, writer, signalled)
  step = max(run.progress.best_step, 0)
  valid = run.best_values or run.evaluator.run(
      state, 'valid', config.eval.valid_users)
  outcome = {
      'valid': valid,
      'test': run.evaluator.run(state, 'test', config.eval.test_users)}
  with contextlib.closing(_writer(run, None)) as writer:
    writer.scalars(step, 'test', outcome['test'])
  if run.progress.step_seconds:
    outcome['test']['speed/train_examples_per_s'] = (
        run.progress.examples / run.progress.step_seconds)
  codes = run.evaluator.codes(state)
  if mapped.is_main and codes is not None:
    evaluate.write_codes(run.workdir, run.dataset, codes)
  return {**outcome, 'steps': step, 'seconds': run.progress.seconds,
          'codes': codes}


def assemble(
    config: ml_collections.ConfigDict, workdir: str, seed: int,
    dataset: dataset_lib.Dataset, mapped: parallel.Parallel) -> Run:
  """Builds the parts of one seed's run."""
  steps = base.num_steps(config, dataset)
  method = methods.get(config.method).make(config, dataset.spec, steps)
  return Run(
      config=config, workdir=workdir, seed=seed, dataset=dataset,
      mapped=mapped, method=method,
      num_steps=sum(p.num_steps for p in method.phases),
      evaluator=evaluate.Evaluator(method, dataset, mapped, config.eval),
      checkpointer=checkpoint.Checkpointer(
          os.path.join(workdir, 'checkpoints'),
          config={**config_lib.identity(config), 'seed': seed},
          keep_latest=config.checkpoint.keep, best_metric='monitor'),
      progress=Progress())


def start(run: Run) -> tuple[types.TrainState, int]:
  """Returns (placed state, steps done): the own checkpoint, else fresh."""
  init = jax.jit(functools.partial(base.init_state, run.method))
  key = rng.stream(run.seed, 'init')
  latest = run.checkpointer.latest_step()
  if latest is None:
    began = time.perf_counter()
    state = run.mapped.to_host(init(key, run.dataset.catalog))
    state = run.mapped.place(_hooks(run, state, run.method.phases[:1], 0)[0])
    run.progress.seconds += time.perf_counter() - began
    return state, 0
  shapes = jax.eval_shape(init, key, run.dataset.catalog)
  state, host = run.checkpointer.restore(latest, shapes)
  run.progress = Progress(**host)
  logging.info('resumed at step %d', latest)
  return run.mapped.place(state), latest


def make_train_step(
    phase: base.Phase, seed: int
) -> Callable[..., tuple[types.TrainState, types.Metrics]]:
  """Returns a phase's step for one device, with collectives over the axis.

  Args:
    phase: whose loss and optimizer it takes.
    seed: of the run; the step's key is derived from it, the phase and the
      step, so that nothing random needs saving.

  Returns:
    (state, catalog, batches) -> (state, metrics).
  """
  def step(state, catalog, batches):
    key = rng.stream(seed, phase.name, state.step)
    old = phase.trained(state.params)

    def loss_fn(trained):
      return phase.loss_fn(
          {**state.params, **trained}, state, catalog, batches, key=key,
          axis_name=types.AXIS)

    grads, out = jax.grad(loss_fn, has_aux=True)(old)
    # Each device holds its share of one global mean: the shares add up.
    grads = jax.lax.psum(grads, types.AXIS)
    updates, opt_state = phase.optimizer.update(
        grads, state.opt_state[phase.name], old)
    new = jax.tree.map(lambda p, u: p + u, old, updates)
    return state.replace(
        params={**state.params, **new}, codebook=out.codebook,
        batch_stats=out.batch_stats, step=state.step + 1,
        opt_state={**state.opt_state, phase.name: opt_state}), out.metrics
  return step


def fit(run: Run, state: types.TrainState, writer: writers.Writer,
        signalled: Callable[[], bool]) -> types.TrainState:
  """Trains to the end or to an early stop; returns the best state, placed."""
  done = int(run.mapped.to_host(state.step))
  train = run.config.train
  last = 0
  for phase in run.method.phases:
    first, last = last, last + phase.num_steps
    due = frozenset(
        first + step for step in validation_steps(train, phase.num_steps))
    if done >= last or run.progress.stopped:
      continue
    step_fn = run.mapped.map_step(
        make_train_step(phase, run.seed))
    batches = pipeline.Pipeline(
        run.dataset, phase.streams, seed=run.seed,
        process_index=run.mapped.process_index,
        process_count=run.mapped.process_count, prefetch=train.prefetch)
    rows = sum(s.batch_size for s in phase.streams.values())
    began, compiled = time.perf_counter(), None
    for batch in batches.iterate(done, last):
      shards = {k: run.mapped.shard(v) for k, v in batch.items()}
      state, metrics = step_fn(state, run.evaluator.catalog, shards)
      done += 1
      if compiled is None:
        jax.block_until_ready(state.step)
        compiled = time.perf_counter()
      else:
        run.progress.examples += rows
      state, notes = _hooks(run, state, (phase,), done)
      # Before a validation too: what is not finite must not reach it.
      if done % train.log_every == 0 or notes or done in due:
        _log(run, writer, done, {**metrics, **notes})
      if done in due:
        jax.block_until_ready(state.step)
        now = time.perf_counter()
        run.progress.step_seconds += now - compiled
        if phase.validates:
          _validate(run, state, writer, done, phase.select_from)
        writer.flush()
        run.progress.seconds += time.perf_counter() - began
        _save(run, state, done)
        began = compiled = time.perf_counter()
        if run.progress.stopped:
          break
      # Every process must ask at the same steps, and asking is not free.
      asks = run.mapped.process_count == 1 or done % train.log_every == 0
      if asks and run.mapped.any_true(signalled()):
        now = time.perf_counter()
        run.progress.seconds += now - began
        run.progress.step_seconds += now - compiled
        _save(run, state, done)
        run.checkpointer.wait()
        raise Terminated(f'stopped by SIGTERM at step {done}')
  if run.checkpointer.latest_step() is None:
    _save(run, state, done)
  run.checkpointer.wait()
  if run.progress.best_step >= 0 and run.progress.best_step != done:
    shapes = jax.eval_shape(lambda x: x, state)
    state = run.mapped.place(
        run.checkpointer.restore(run.progress.best_step, shapes)[0])
  return state


def validation_steps(
    config: ml_collections.ConfigDict, num_steps: int) -> frozenset[int]:
  """Returns the steps to validate at, the last one always among them.

  Args:
    config: the `train` sub-tree.
    num_steps: of the run.
  """
  every = config.eval_every
  if every:
    return frozenset([*range(every, num_steps, every), num_steps])
  count = max(1, min(round(config.num_epochs * config.evals_per_epoch),
                     num_steps))
  return frozenset(round(num_steps * (i + 1) / count) for i in range(count))


def _hooks(run: Run, state: types.TrainState, phases: Any, done: int
           ) -> tuple[types.TrainState, dict[str, float]]:
  """Runs the host hooks that are due, once, and sends the state to all."""
  notes = {}
  for hook in (h for p in phases for h in p.hooks if h.at(done)):
    def work(hook=hook, state=state):
      return hook.fn(
          run.mapped.to_host(state), run.dataset.catalog, run.seed)
    new, found = run.mapped.once(work)
    state = run.mapped.place(new)
    notes.update(found)
  return state, notes


def _log(run: Run, writer: writers.Writer, done: int, values: Any) -> None:
  values = {k: float(v) for k, v in run.mapped.to_host(values).items()}
  writer.scalars(done, 'train', values)
  bad = sorted(k for k, v in values.items() if not math.isfinite(v))
  if bad:
    first = max(0, done - run.config.train.log_every)
    raise FloatingPointError(
        f'non-finite {", ".join(bad)} between steps {first} and {done}: lower '
        'train.learning_rate; the last checkpoint is kept')


def _validate(run: Run, state: types.TrainState, writer: writers.Writer,
              done: int, select_from: int) -> None:
  values = run.evaluator.run(state, 'valid', run.config.eval.valid_users)
  value = evaluate.monitor(values, run.config.eval.monitor)
  writer.scalars(done, 'valid', {**values, 'monitor': value})
  progress = run.progress
  if done < select_from:
    return
  if value > progress.best:
    progress.best, progress.best_step, progress.stale = value, done, 0
    run.best_values = values
  else:
    progress.stale += 1
    progress.stopped = 0 < run.config.train.patience <= progress.stale


def _save(run: Run, state: types.TrainState, done: int) -> None:
  is_best = run.progress.best_step == done
  run.checkpointer.save(
      done, run.mapped.to_global(state), dataclasses.asdict(run.progress),
      {'monitor': run.progress.best} if is_best else None)


def _writer(run: Run, resumed: int | None) -> writers.Writer:
  """The training's writers, or (None) the one for the last line."""
  path = os.path.join(run.workdir, 'metrics.jsonl')
  if not run.mapped.is_main:
    return writers.NullWriter()
  if resumed is None:
    return writers.JsonlWriter(path, run.num_steps + 1)
  return writers.MultiWriter([
      writers.JsonlWriter(path, resumed),
      writers.TensorBoardWriter(run.workdir, resumed),
      writers.ProgressBar(
          run.num_steps, resumed, run.config.train.batch_size)])


class _Signal:
  """Remembers that SIGTERM came, between __enter__ and __exit__."""

  def __enter__(self):
    self._came = False
    self._old = signal.signal(signal.SIGTERM, self._note)
    return lambda: self._came

  def __exit__(self, *unused):
    signal.signal(signal.SIGTERM, self._old)

  def _note(self, *unused):
    self._came = True


def _write_json(path: str, value: Any) -> None:
  evaluate.write_file(
      path, json.dumps(value, indent=1, allow_nan=False).encode())
