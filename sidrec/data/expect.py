"""What a run of a method takes on one device of this machine.

Steps are exact: rows of an epoch are counted as the trainer counts them.
Minutes are `work.Work` at the speed of this machine, measured when they are
asked for, by factors that runs of `experiments/benchmarks/steps.py` gave,
and what does not hang on the data: starting, compiling. They are meant to be
right within a factor of two.
"""

import dataclasses
import time
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import config as config_lib
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.data import pipeline
from sidrec.data import reads
from sidrec.data import work
from sidrec.data.work import Work

# What products of a run, and what else it computes, take of the time that the
# product and the copy of `measure_speed` do. Fitted by hand to what
# `experiments/benchmarks/steps.py` gave on a shared CPU core.
_PRODUCT, _ELSE = 1.3, 5.
_CALL = .002  # Seconds that calling a program costs, whatever it does.
_COMPILE = 8.  # Seconds a program that evaluates.
_START = 10.  # Seconds before the first step.
_GIB_START = .3  # JAX, beside what `check` holds.
_GIB_COMPILING = .02  # A second that the largest program compiles.
_COPIES = 8  # Of the parameters: gradients, moments, updates, checkpoints.
_ENTRY = 64  # Bytes of a log entry in the u2i index, a column.
_MEASURE = .06  # Seconds of each measurement.


class Speed(NamedTuple):
  """What a device does in a second.

  flops: of a float32 matrix product.
  numbers: float32 numbers that a copy reads or writes.
  """
  flops: float
  numbers: float


def measure_speed() -> Speed:
  """Measures the default device, in about a fifth of a second."""
  # Short calls: the fastest of them is not disturbed by who shares the core.
  x, y = jnp.ones((256, 128)), jnp.ones((128, 512))
  z = jnp.ones(1 << 18)
  return Speed(_rate(lambda x, y: x @ y, 2. * 256 * 128 * 512, x, y),
               _rate(lambda z: z + 1, 2. * z.size, z))


def _rate(fn: Callable[..., jax.Array], amount: float, *args: jax.Array
          ) -> float:
  """Returns the amount a second of the fastest of many calls."""
  fn = jax.jit(fn)
  fn(*args).block_until_ready()
  best, stop = float('inf'), time.perf_counter() + _MEASURE
  while time.perf_counter() < stop:
    began = time.perf_counter()
    fn(*args).block_until_ready()
    best = min(best, time.perf_counter() - began)
  return amount / best


@dataclasses.dataclass(frozen=True)
class _Run:
  """A configuration on a data set, and what both say together."""
  config: ml_collections.ConfigDict
  dataset: dataset_lib.Dataset
  num_cross: int
  num_known: int
  count: 'Rows'

  @property
  def num_items(self) -> int:
    """V."""
    return self.dataset.spec.num_items

  def rows(self, train: Any) -> int:
    """Returns the rows of an epoch of a stage, see `Rows`."""
    return self.count(train, self.config.data.history_length)

  @property
  def sizes(self) -> tuple[int, ...]:
    """K_1, ..., K_T of the codes, that of a suffix included."""
    tokenizer, spec = self.config.tokenizer, self.dataset.spec
    if 'fields' in tokenizer:
      return (*(field.size + 1 for field in reads.levels(spec.items)[
          :tokenizer.num_levels - 1]), tokenizer.codebook_size)
    if not tokenizer.codebook_size:  # About three codes an item in all.
      return tokenizer.num_levels * (
          int((3 * self.num_items) ** (1 / tokenizer.num_levels)) + 3,)
    sizes = work.code_sizes(tokenizer)
    if 'codes' in self.config and self.config.codes.collisions == 'suffix':
      sizes += (self.config.codes.suffix_size,)
    return sizes

  @property
  def tower(self) -> work.Tower:
    """The ranking tower."""
    matched = 'loss' in self.config and self.config.loss.match
    return work.Tower(
        self.config.model, self.dataset.spec, self.num_cross, self.num_known,
        len(self.sizes) * self.dataset.spec.num_actions if matched else 0)


class Rows:
  """Counts the rows of an epoch as the trainer does, once for all methods."""

  def __init__(self, dataset: dataset_lib.Dataset):
    self.dataset, self._found = dataset, {}

  def __call__(self, train: Any, history_length: int) -> int:
    """Returns the rows of an epoch of a stage.

    Args:
      train: the stage: what it is of is seen by what it has.
      history_length: of the run.

    Raises:
      types.InputError: there are none.
    """
    if 'rank_negatives' in train:
      stream = types.StreamSpec('impressions', 1, train.rank_negatives)
    elif 'row_items' in train:
      stream = types.StreamSpec('sequences', 1, length=train.row_items)
    else:
      stream = types.StreamSpec('sequences', 1, layout='last')
    key = stream, history_length
    if key not in self._found:
      self._found[key] = pipeline.Pipeline(
          with_lengths(self.dataset, history_length), {'epoch': stream}, seed=0
      ).num_examples('epoch')
    return self._found[key]


def with_lengths(dataset: dataset_lib.Dataset, history_length: int,
                 seen_length: int = 0) -> dataset_lib.Dataset:
  """Returns the data set with histories of another length."""
  return dataclasses.replace(dataset, spec=dataclasses.replace(
      dataset.spec, history_length=history_length, seen_length=seen_length))


def expect(experiment: reads.Experiment, rows: Rows, num_columns: int,
           held: float, speed: Speed) -> dict[str, float]:
  """Returns what a run takes.

  Args:
    experiment: of the method.
    rows: of the data set to run on; its own statistics of users with items
      are not read.
    num_columns: item columns that such statistics are kept for.
    held: GiB that reading the data takes.
    speed: of the device.

  Returns:
    'steps' of the main stage, 'minutes' of the whole run, 'gib' of memory.

  Raises:
    types.InputError: the data have nothing to learn from.
  """
  config = experiment.config
  dataset = with_lengths(
      rows.dataset, config.data.history_length, config.data.seen_length)
  columns = num_columns if config.data.cross == 'all' else 0
  run = _Run(config, dataset, *_statistics(
      columns, config.data.item_stats, dataset), rows)
  num_steps = config_lib.steps(
      config.train, 0 if config.train.num_steps == 0 else run.rows(
          config.train))
  before, main = _codes(run), _main(run, num_steps)
  stages = [(step, count) for step, count in before + main if count]
  total = _host(run)
  for step, count in stages:
    total += step.work * count
  scored, programs = _evaluation(run, num_steps)
  total += scored
  seconds = (_START + _COMPILE * programs
             + sum(step.compiling for step, _ in stages)
             + _CALL * total.calls + _PRODUCT * total.flops / speed.flops
             + _ELSE * total.numbers / speed.numbers)
  params = sum({id(step): step.params for step, _ in stages}.values())
  kept = max((step.kept for step, _ in stages), default=0)
  numbers = _COPIES * params + kept + _catalog(dataset.spec)
  index = _ENTRY * columns * (
      2 * len(dataset.event_item) + len(dataset.sequences.item))
  largest = max((step.compiling for step, _ in stages), default=0)
  return {'steps': num_steps, 'minutes': seconds / 60,
          'gib': (held + _GIB_START + _GIB_COMPILING * largest
                  + (4 * numbers + index) / 2**30)}


def _statistics(columns: int, item_stats: bool, dataset: dataset_lib.Dataset
                ) -> tuple[int, int]:
  """Returns X and F: of users with items, and of items by themselves."""
  counts = 3 if dataset.has_negatives else 1
  known = 0
  if item_stats and not dataset.ordinal:
    # Of the items, and of the values of the other columns.
    known = counts + 5 + max(columns - 1, 0) * (counts // 3 + 2)
  return columns * (counts + 2), known


def _catalog(spec: types.DataSpec) -> int:
  """Returns the numbers that are known of all items."""
  return spec.num_items * (
      spec.vector_dim + spec.items.num_slots + spec.items.num_values
      + spec.items.num_dims)


Stage = tuple[work.Step, int]  # A step, and how many of them.


def _codes(run: _Run) -> list[Stage]:
  """Returns the stages before the main one."""
  config, out = run.config, []
  for name in ('vectors', 'collaborative'):
    if name in config and 'train' in config[name]:
      train = config[name].train
      out.append((work.item_model(config[name].model, train, run.num_items),
                  config_lib.steps(train, run.rows(train))))
  if 'tokenizer_train' in config:
    train = config.tokenizer_train
    out.append((work.auto_encoder(
        config.tokenizer, train.batch_size, _vector_dim(run)),
                config_lib.steps(train, run.num_items)))
  return out


def _vector_dim(run: _Run) -> int:
  """Returns D of the vectors that a tokenizer reads."""
  vectors = run.config.vectors
  return (vectors.model.dim if 'model' in vectors
          else run.dataset.spec.vector_dim)


def _main(run: _Run, num_steps: int) -> list[Stage]:
  """Returns the stages that `config.train` is of."""
  config = run.config
  if not num_steps:
    return []
  train = config.train
  if 'generator' in config:
    packed = 'row_items' in train
    return [(work.generator(
        config.generator, train.batch_size,
        train.row_items if packed else config.data.history_length, run.sizes,
        1 if packed else len(run.sizes)), num_steps)]
  if 'trunk' in config.model:
    return [(work.item_model(config.model, train, run.num_items), num_steps)]
  tower, spec = run.tower, run.dataset.spec
  rank = train.batch_size, 1 if spec.has_negatives else 1 + train.rank_negatives
  alone = _on_tower(tower, [(*rank, 1)])
  if 'retrieval_batch_size' not in train:
    return [(alone, num_steps)]
  found = (1 + train.retrieval_negatives + train.retrieval_siblings
           + train.retrieval_seen_negatives)
  both = _on_tower(tower, [(*rank, 1), (
      train.retrieval_batch_size, found, len(run.sizes))])
  quantized = rank[0] * rank[1] + train.retrieval_batch_size * found
  both = dataclasses.replace(both, work=both.work + work.nearest(
      quantized, run.sizes, config.model.dim) * 4)
  first = int(num_steps * config.loss.warmup)
  frozen = num_steps - int(num_steps * config.loss.freeze)
  return [(alone, first), (both, num_steps - first - frozen), (both, frozen)]


def _on_tower(tower: work.Tower, streams: Sequence[tuple[int, int, int]]
              ) -> work.Step:
  """Returns the step of (requests, candidates, queries a candidate)."""
  length = tower.data.history_length
  forward = tower.encode(sum(b * (c + length) for b, c, _ in streams))
  candidates = sum(b * c for b, c, _ in streams)
  for b, c, queries in streams:
    forward += tower.users(b) + tower.score(b, c * queries)
    if queries > 1:
      forward += tower.guess(b * c * queries)
  step = work.step(forward, tower.params, tower.compiling * (
      2.5 if len(streams) > 1 else 1))
  return dataclasses.replace(
      step, work=step.work + tower.looked_up(candidates))


def _host(run: _Run) -> Work:
  """Returns the work on the codes between steps."""
  config = run.config
  if 'tokenizer' not in config:
    return Work()
  tokenizer, num_items = config.tokenizer, run.num_items
  if 'tokenizer_train' in config:
    train, sizes = config.tokenizer_train, work.code_sizes(tokenizer)
    every = train.between_epochs * max(num_items // train.batch_size, 1)
    times = config_lib.steps(train, num_items) // every if every else 0
    once = work.auto_encoder(tokenizer, num_items, _vector_dim(run)).work * .2
    return once * times + work.kmeans(
        num_items, sizes, tokenizer.latent_dim, tokenizer.kmeans_steps)
  if 'kmeans_steps' in tokenizer:
    return work.kmeans(num_items, work.code_sizes(tokenizer),
                       _vector_dim(run), tokenizer.kmeans_steps)
  return Work()


def _evaluation(run: _Run, num_steps: int) -> tuple[Work, int]:
  """Returns (work, programs) of all validations and of the test."""
  config, dataset = run.config, run.dataset
  count = min(config.eval.validations, num_steps)
  if config.eval.every:
    count = work.ceil_div(num_steps, config.eval.every)
  ranks, finds = (
      any(name.startswith(kind) for name in config.eval.monitor)
      for kind in ('ranking', 'retrieval'))
  total = Work()
  for split, most, times in (('valid', config.eval.valid_users, count + 1),
                             ('test', config.eval.test_users, 1)):
    if finds:
      users = len(dataset.examples(split, 'targets'))
      users = min(users, most) if most else users
      total += _retrieval(run, users, ranks) * times
    if ranks:
      rows = len(dataset.examples(split, 'impressions'))
      total += _ranking(run, rows, 1 + finds) * times
  return total, finds + ranks * (1 + finds)


def _retrieval(run: _Run, users: int, ranks: bool) -> Work:
  """Returns the work of listing items for users, and of ranking the lists."""
  config, num_items = run.config, run.num_items
  beam = min(config.eval.beam_size, num_items)
  length = config.data.history_length
  batches = work.ceil_div(users, config.eval.users_per_batch)
  total = Work(0, 0, batches)
  if 'generator' in config:
    model, sizes = config.generator, run.sizes
    total += work.trunk(
        users, length, model.dim, model.num_layers,
        model.num_heads * model.head_dim, model.hidden, model.num_heads)[0]
    total += work.written(model, users * beam, sizes)
    total += Work(0, 12 * users * sum(work.searched(beam, sizes, num_items)))
  elif 'model' in config and 'trunk' in config.model:
    total += work.item_trunk(users, length, config.model)[0] + Work(
        2 * users * num_items * config.model.dim, 8 * users * num_items)
  elif 'model' in config:
    tower = run.tower
    scored = sum(work.searched(beam, run.sizes, num_items))
    total += tower.encode(num_items) * (2 * batches)
    total += tower.users(users) + tower.score(users, scored)
    total += tower.guess(users * scored)
    if ranks:
      total += tower.encode(num_items) * batches
      total += tower.users(users) + tower.score(users, beam)
  if ranks and 'model' in config:
    total += run.tower.looked_up(users * beam)
  return total


def _ranking(run: _Run, exposures: int, paths: int) -> Work:
  """Returns the work of scoring the exposures of a split by each path."""
  config, dataset = run.config, run.dataset
  batches = work.ceil_div(exposures, config.eval.batch_size)
  if 'model' not in config:
    return Work(0, 0, batches)
  tower = run.tower
  size = 1 if dataset.has_negatives else 1 + config.data.eval_negatives
  once = (tower.encode(run.num_items) * batches + tower.users(exposures)
          + tower.score(exposures, size) + Work(0, 0, batches))
  return once * paths + tower.looked_up(exposures * size)


def lines(expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Returns a line for methods that take the same, quickest first."""
  said: dict[str, list[str]] = {}
  for name, own in sorted(expected.items(), key=lambda x: x[1]['minutes']):
    text = (f'{own["steps"]:,} steps, {own["minutes"]:.2g} min, '
            f'{own["gib"]:.1f} GiB')
    words = f':{own["words"]}' * bool(own['words'])
    said.setdefault(text, []).append(name + words)
  return [f'{", ".join(names)}: {text}' for text, names in said.items()]
