"""How many training steps a second does a program of a method do here?

    python experiments/benchmarks/steps.py tiger:amazon23-mini,decoder \
        sasrec:amazon23-mini dig@warm dig@joint dig@frozen --steps=200

Without `@program` it is the method's main one. Batches are made and fed as in
a run; the codes are placeholders. One JSON line a program: steps a second,
seconds until the first step was done (compiling), and how many programs were
compiled (one a width of the batches).
"""

import argparse
import functools
import json
import sys
import time
from typing import Sequence

import jax

from sidrec import config as config_lib
from sidrec import data
from sidrec import evaluate
from sidrec import main as main_lib
from sidrec import methods
from sidrec import parallel
from sidrec import schedule
from sidrec import types
from sidrec.data import pipeline
from sidrec.methods import base

_COMPILE = '/jax/core/compile/backend_compile_duration'


def main_program(method: base.Method) -> str:
  """Returns the program with the most steps in a method's last section.

  Those before it make what it reads: codes, vectors.

  Raises:
    types.InputError: it has none.
  """
  for section in reversed(method.sections):
    count = {}
    for item in section.items:
      if isinstance(item, schedule.Train):
        count[item.program] = count.get(item.program, 0) + item.num_steps
    if count:
      return max(count, key=count.get)
  raise types.InputError('a method without training has no steps to time')


def measure(name: str, num_steps: int) -> dict[str, float | str]:
  """Times steps of one method.

  Args:
    name: of an experiment, with words after a colon and a program after `@`.
    num_steps: steps on the clock.

  Raises:
    types.InputError: no such experiment or program, or nothing to train.
  """
  experiment, _, program = name.partition('@')
  experiment, _, words = experiment.partition(':')
  config = config_lib.load_experiment(experiment, words)
  evaluate.check(config, jax.device_count())
  dataset = data.load(config.data, config.data.seed)
  method = methods.get(config.method).make(config, dataset)
  mapped = parallel.make(config.parallel.wrapper)
  program = program or main_program(method)
  if program not in method.programs:
    raise types.InputError(
        f'no program {program!r}; it has {sorted(method.programs)}')
  compiled = []

  def listen(event: str, seconds: float, **_) -> None:
    if event == _COMPILE:
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  init = jax.jit(functools.partial(base.init_state, method))
  state = mapped.place(init(config.seed, dataset.catalog))
  catalog = mapped.place(dataset.catalog)
  step_fn = mapped.map_step(base.make_step(method, program))
  feed = pipeline.Pipeline(
      dataset, method.programs[program].streams, seed=config.seed,
      prefetch=config.run.prefetch)
  began, compiled[:] = time.perf_counter(), []
  starts = {stream: 0 for stream in method.programs[program].streams}
  warm = 10  # Every width of the batches has been seen by then, mostly.
  for number, batch in enumerate(feed.iterate(starts, warm + num_steps)):
    state, _ = step_fn(state, catalog, {
        k: mapped.shard(v) for k, v in batch.items()})
    if number == 0:
      jax.block_until_ready(state.clock)
      first = time.perf_counter() - began
    if number + 1 == warm:
      jax.block_until_ready(state.clock)
      began = time.perf_counter()
  jax.block_until_ready(state.clock)
  return {
      'method': f'{experiment}:{words}'.rstrip(':'), 'program': program,
      'steps_per_s': num_steps / (time.perf_counter() - began),
      'first_step_s': first, 'compiled': len(compiled)}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('methods', nargs='+', metavar='NAME[:word,...][@program]')
  parser.add_argument('--steps', type=int, default=200)
  args = parser.parse_args(argv)
  main_lib.tune_xla()  # Before JAX looks for devices.
  for name in args.methods:
    try:
      print(json.dumps(measure(name, args.steps)), flush=True)
    except types.InputError as error:
      print(f'{name}: {error}', file=sys.stderr)
      return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
