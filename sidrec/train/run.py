"""One seed's run: its parts, what it remembers, what host work finds there."""

import dataclasses
from typing import Any, Callable, Sequence

import jax
import ml_collections
import numpy as np

from sidrec import checkpoint
from sidrec import evaluate
from sidrec import parallel
from sidrec import schedule
from sidrec import types
from sidrec import writers
from sidrec.data import dataset as dataset_lib
from sidrec.data import pipeline
from sidrec.methods import base
from sidrec.train import signals


@dataclasses.dataclass
class Progress:
  """What a run remembers beside its state; saved with every checkpoint.

  cursor: how far the run has come. clock: steps of each program, on the host.
  steps: done in the whole run, those of states given up for better ones too.
  lines, lines_crc: of metrics.jsonl, and CRC-32 of their bytes (None: not
    known).
  chosen_steps: `steps` of the state that the run would report.
  seconds: wall-clock seconds of training so far.
  step_seconds, examples: of the steps alone, without compiling.
  """
  cursor: schedule.Cursor = schedule.Cursor()
  clock: dict[str, int] = dataclasses.field(default_factory=dict)
  steps: int = 0
  lines: int = 0
  lines_crc: int | None = None
  chosen_steps: int = 0
  seconds: float = 0.
  step_seconds: float = 0.
  examples: int = 0

  def to_json(self) -> dict[str, Any]:
    """Returns the fields; the cursor as a mapping."""
    return {**dataclasses.asdict(self), 'cursor': self.cursor._asdict()}

  @classmethod
  def from_json(cls, host: dict[str, Any]) -> 'Progress':
    """Reads `to_json`, whatever stands beside it.

    Args:
      host: what came later than its version of sidrec may be missing.

    Raises:
      types.InputError: it is of a version that is too old.
    """
    try:
      return cls(**{
          **{f.name: host[f.name] for f in dataclasses.fields(cls)
             if f.name in host or f.name in ('cursor', 'clock', 'steps')},
          'cursor': schedule.Cursor(**host['cursor'])})
    except (KeyError, TypeError) as error:
      raise types.InputError(
          'the checkpoint is of another version of sidrec, which remembered '
          f'other things ({error}): choose another --workdir') from error


@dataclasses.dataclass
class Run:
  """One seed's run: its parts, put together once."""
  config: ml_collections.ConfigDict
  workdir: str
  seed: int
  dataset: dataset_lib.Dataset
  mapped: parallel.Parallel
  method: base.Method
  sections: tuple[schedule.Section, ...]
  evaluator: evaluate.Evaluator
  checkpointer: checkpoint.Checkpointer
  progress: Progress
  writer: writers.Writer
  lines: Callable[[], tuple[int, int]]  # Of metrics.jsonl now, and CRC-32.
  signals: signals.Signals
  # Compiled functions and what feeds them, made where first used.
  steps: dict[str, Any] = dataclasses.field(default_factory=dict)
  feeds: dict[str, pipeline.Pipeline] = dataclasses.field(default_factory=dict)
  rows: dict[Any, Any] = dataclasses.field(default_factory=dict)

  @property
  def cursor(self) -> schedule.Cursor:
    """Where the run is."""
    return self.progress.cursor

  @cursor.setter
  def cursor(self, value: schedule.Cursor) -> None:
    self.progress.cursor = value

  @property
  def num_steps(self) -> int:
    """Steps of the whole schedule."""
    return sum(section.num_steps for section in self.sections)


@dataclasses.dataclass
class Bench:
  """What host work finds at hand; see `methods.base.Bench`."""
  run: Run
  count: int

  @property
  def dataset(self) -> dataset_lib.Dataset:
    """The encoded data set."""
    return self.run.dataset

  @property
  def seed(self) -> int:
    """The run's."""
    return self.run.seed

  def rows(self, fn: Callable[..., types.PyTree], state: types.TrainState,
           batches: Sequence[types.PyTree]) -> types.PyTree:
    """Runs fn over batches on all devices; see `methods.base.Bench.rows`."""
    mapped = self.run.mapped
    if fn not in self.run.rows:
      self.run.rows[fn] = mapped.map_rows(fn)
    # A process too few gets the last batch again, and gives no row of it.
    count, index = mapped.process_count, mapped.process_index
    first, stop = (len(batches) * i // count for i in (index, index + 1))
    mine = batches[first:stop] or batches[-1:]
    out = [self.run.rows[fn](state, self.run.evaluator.catalog, batch)
           for batch in mine]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *out)
    if first == stop:
      joined = jax.tree.map(lambda x: x[:0], joined)
    return mapped.allgather_rows(joined)

  def once(self, fn: Callable[[], Any]) -> Any:
    """Does host work in process 0 and gives its result to all."""
    return self.run.mapped.once(fn, named=(base.Changes,))

  def host(self, tree: types.PyTree) -> types.PyTree:
    """Copies a tree of the state to NumPy."""
    return self.run.mapped.to_host(tree)
