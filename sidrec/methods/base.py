"""What a method is: pure functions, programs, optimizers, and a schedule.

Three things have names. *Programs* are a loss and its batches, compiled once a
run. *Optimizers* say which parameters learn and by which rule; their memory
lives as long as the run. *Variables* are all that changes without a gradient.
`schedule` says when which program runs, and what the host does in between.
"""

import functools
import math
from typing import Any, Callable, Mapping, NamedTuple, Protocol, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from sidrec import config as config_lib
from sidrec import rng
from sidrec import schedule
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.data import pipeline

_BLOCK = 4096  # Items a call of work on the whole catalog.


class Aux(NamedTuple):
  """What a loss function returns beside the loss.

  metrics: this device's shares of global means: the trainer adds them up.
  variables: those that changed, equal on all devices.
  notes: scalars that are equal on all devices already.
  """
  metrics: Mapping[str, jax.Array]
  variables: Mapping[str, types.PyTree] = {}
  notes: Mapping[str, jax.Array] = {}


class LossFn(Protocol):
  """A loss over the rows of one device."""

  def __call__(
      self, params: types.PyTree, state: types.TrainState,
      catalog: types.Catalog, batches: Mapping[str, Any], *, key: jax.Array,
      axis_name: str | None) -> tuple[jax.Array, Aux]:
    """Returns (share of the loss [], Aux).

    Args:
      params: differentiated by what the program's optimizers hold of them.
      state: the rest of the state.
      catalog: what is known of all items.
      batches: by the names of the program's streams.
      key: of this step, the same on all devices.
      axis_name: data-parallel axis for collectives, or None. Losses are local
        sums over global counts, so gradients are summed over devices.
    """


class Program(NamedTuple):
  """A loss and its batches.

  loss_fn: see `LossFn`.
  streams: which batches a step reads, by name. Programs that read the same
    stream (name and spec) go on where the other one stopped.
  optimizers: names of those that step.
  """
  loss_fn: LossFn
  streams: Mapping[str, types.StreamSpec]
  optimizers: tuple[str, ...]


class Optimizer(NamedTuple):
  """Which parameters learn, and how.

  params: paths in the tree of parameters ('tower', 'tokenizer/address').
  tx: sees {path: subtree}.
  """
  params: tuple[str, ...]
  tx: optax.GradientTransformation


class Changes(NamedTuple):
  """What host work changed, and nothing else.

  params: {path: subtree}, paths as in `Optimizer.params`.
  variables: {name: tree}.
  reset: optimizers whose memory begins anew.
  metrics: for the log.
  """
  params: Mapping[str, types.PyTree] = {}
  variables: Mapping[str, types.PyTree] = {}
  reset: tuple[str, ...] = ()
  metrics: Mapping[str, float] = {}


class Bench(Protocol):
  """What host work finds at hand. It runs in every process.

  dataset: encoded. seed: of the run. count: Hosts of this name before, in this
  section.
  """
  dataset: dataset_lib.Dataset
  seed: int
  count: int

  def rows(self, fn: Callable[..., types.PyTree], state: types.TrainState,
           batches: Sequence[types.PyTree]) -> types.PyTree:
    """Runs fn(state, catalog, batch) -> [rows, ...] over batches.

    On all devices of all processes, so never inside of `once`; compiled once
    a function object.

    Returns:
      The rows of all batches, host NumPy, in every process.
    """

  def once(self, fn: Callable[[], Any]) -> Any:
    """Does host work in one process; gives its result to all."""

  def host(self, tree: types.PyTree) -> types.PyTree:
    """Copies a tree of the state to NumPy: the step donates what it has."""


HostFn = Callable[[Bench, types.TrainState], Changes]
InitFn = Callable[[jax.Array, types.Catalog], tuple[
    dict[str, types.PyTree], dict[str, types.PyTree]]]


class Part(NamedTuple):
  """A part that methods are joined from.

  init: (key, catalog) -> (params, variables), both by name.
  programs, optimizers: as those of a method.
  """
  init: InitFn
  programs: Mapping[str, Program] = {}
  optimizers: Mapping[str, Optimizer] = {}


class Method(NamedTuple):
  """A recommender as pure functions; absent abilities are None.

  init: as `Part.init`; `variables['codes']` [V, T] int32 where there are codes.
  programs, optimizers: by name.
  sections: the run; () for a method without training.
  sizes: codes of each level of `variables['codes']`; () = no codes.
  score: (state, catalog, batch) -> [B, C] logits of the ranking path.
  token_score: the same from the retrieval path alone (no u2i).
  retrieve: (state, catalog, batch, trie, beam_size, bounds) -> Beams.
  probes: name -> (state, catalog, batch) -> {metric: (sum, count)}, what a
    section may be validated by instead of all metrics.
  width: (catalog, beam_size) -> items that must be listed for the last of
    them not to tie with one that is not; None: ties across the end are rare.
  """
  init: InitFn
  programs: Mapping[str, Program] = {}
  optimizers: Mapping[str, Optimizer] = {}
  sections: tuple[schedule.Section, ...] = ()
  sizes: tuple[int, ...] = ()
  score: Callable[..., jax.Array] | None = None
  token_score: Callable[..., jax.Array] | None = None
  retrieve: Callable[..., types.Beams] | None = None
  probes: Mapping[str, Callable[..., Mapping[str, Any]]] = {}
  width: Callable[[types.Catalog, int], int] | None = None


def once_with(bench: Bench, state: types.TrainState, name: str,
              work: Callable[[types.PyTree, types.PyTree], Any]) -> Any:
  """Does host work on the values of one part, in one process.

  Args:
    bench: where the work is done.
    state: of the run.
    name: of the part.
    work: (params, variables) of that name, host NumPy -> its result.
  """
  own = bench.host((state.params[name], state.variables[name]))
  return bench.once(lambda: work(*own))


def join(*parts: Part) -> Part:
  """Joins parts with different names; their keys are derived by place."""
  def init(key: jax.Array, catalog: types.Catalog):
    params, variables = {}, {}
    for place, part in enumerate(parts):
      own, other = part.init(rng.stream(key, 'part', place), catalog)
      params.update(own)
      variables.update(other)
    return params, variables
  merge = lambda name: {
      k: v for part in parts for k, v in getattr(part, name).items()}
  return Part(init, merge('programs'), merge('optimizers'))


def init_state(method: Method, seed: types.Array | int,
               catalog: types.Catalog) -> types.TrainState:
  """Returns a fresh TrainState.

  Args:
    method: whose.
    seed: of the run; the parameters' keys come from it.
    catalog: item features.
  """
  params, variables = method.init(rng.stream(seed, 'init'), catalog)
  return types.TrainState(
      params=params, variables=variables,
      opt_state={name: own.tx.init(select(params, own.params))
                 for name, own in method.optimizers.items()},
      clock={name: jnp.zeros([], jnp.int32) for name in method.programs},
      seed=jnp.asarray(seed, jnp.uint32))


def select(params: Mapping[str, types.PyTree], paths: Sequence[str]
           ) -> dict[str, types.PyTree]:
  """Returns {path: subtree} of the paths, keys parted by '/'."""
  def walk(tree: types.PyTree, path: str) -> types.PyTree:
    return functools.reduce(lambda node, name: node[name], path.split('/'),
                            tree)
  return {path: walk(params, path) for path in paths}


def merge(params: Mapping[str, types.PyTree],
          parts: Mapping[str, types.PyTree]) -> dict[str, types.PyTree]:
  """Returns the params with the subtrees of `select` in their places."""
  def put(tree: Any, names: list[str], value: types.PyTree) -> Any:
    if not names:
      return value
    return {**tree, names[0]: put(tree[names[0]], names[1:], value)}
  for path, value in parts.items():
    params = put(params, path.split('/'), value)
  return dict(params)


def make_step(
    method: Method, name: str
) -> Callable[..., tuple[types.TrainState, types.Metrics]]:
  """Returns the step of a program for one device, collectives over the axis.

  Keys come from the run's seed, the program and its own clock, so that nothing
  random needs saving.

  Args:
    method: whose program it is.
    name: of the program.

  Returns:
    (state, catalog, batches) -> (state, metrics).
  """
  program = method.programs[name]
  stepping = {o: method.optimizers[o] for o in program.optimizers}
  paths = [path for o in stepping.values() for path in o.params]

  def step(state, catalog, batches):
    key = rng.stream(state.seed, name, state.clock[name])
    old = select(state.params, paths)
    grads, aux = jax.grad(
        lambda trained: program.loss_fn(
            merge(state.params, trained), state, catalog, batches, key=key,
            axis_name=types.AXIS), has_aux=True)(old)
    # Each device holds its share of one global mean: the shares add up.
    grads, metrics = jax.lax.psum((grads, dict(aux.metrics)), types.AXIS)
    new, opt_state = {}, dict(state.opt_state)
    for o, optimizer in stepping.items():
      pick = lambda tree, o=optimizer: {path: tree[path] for path in o.params}
      metrics[f'gradient/{o}'] = _norm(pick(grads))
      updates, opt_state[o] = optimizer.tx.update(
          pick(grads), state.opt_state[o], pick(old))
      new.update(optax.apply_updates(pick(old), updates))
    return state.replace(
        params=merge(state.params, new), opt_state=opt_state,
        variables={**state.variables, **aux.variables},
        clock={**state.clock, name: state.clock[name] + 1}), {
            **metrics, **aux.notes}
  return step


def _norm(tree: types.PyTree) -> jax.Array:
  """Returns the Euclidean norm of all leaves together."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def adamw(stage: ml_collections.ConfigDict, num_steps: int
          ) -> optax.GradientTransformation:
  """AdamW with clipping, linear warm-up and cosine decay to a hundredth.

  Args:
    stage: a sub-tree of `config.stage`.
    num_steps: length of the schedule.
  """
  return optax.chain(
      optax.clip_by_global_norm(stage.clip),
      optax.adamw(cosine(stage, num_steps), weight_decay=stage.weight_decay))


def cosine(stage: ml_collections.ConfigDict, num_steps: int,
           peak: float | None = None, first: int = 0) -> optax.Schedule:
  """Linear warm-up, then cosine decay to a hundredth.

  Args:
    stage: with `learning_rate` and `warmup` (steps).
    num_steps: length of the schedule.
    peak: instead of the stage's learning rate.
    first: steps of the schedule that are over at count 0.
  """
  peak = stage.learning_rate if peak is None else peak
  fn = optax.schedules.warmup_cosine_decay_schedule(
      0., peak, stage.warmup, max(num_steps, stage.warmup + 1),
      end_value=peak / 100)
  return lambda count: fn(count + first)


def num_examples(dataset: dataset_lib.Dataset, stream: types.StreamSpec
                 ) -> int:
  """Returns the rows of an epoch of a stream."""
  return pipeline.Pipeline(dataset, {'epoch': stream}, seed=0).num_examples(
      'epoch')


def main_steps(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset,
               stream: types.StreamSpec) -> int:
  """Returns the length of the run's main stage, `config.train`, in steps."""
  return config_lib.steps(config.train, rows=num_examples(dataset, stream))


def watch(config: ml_collections.ConfigDict, num_steps: int,
          probe: str = '') -> schedule.Watch:
  """Returns how `config.eval` has a stage of the run validated.

  Args:
    config: the whole configuration.
    num_steps: of the stage.
    probe: as `schedule.Watch.probe`.
  """
  count = max(1, min(config.eval.validations, num_steps))
  return schedule.Watch(
      config.eval.every or max(math.ceil(num_steps / count), 1),
      dict(config.eval.monitor), config.eval.patience, probe)


def item_blocks(num_items: int, block: int = _BLOCK) -> list[types.ItemBatch]:
  """Returns the catalog in blocks, for `Bench.rows`."""
  rows = np.arange(num_items, dtype=np.int32)
  return [types.ItemBatch(row=rows[i:i + block], item=rows[i:i + block])
          for i in range(0, num_items, block)]
