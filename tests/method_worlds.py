"""Methods on a tiny planted world, with codes from the first step on."""

import functools
import math
import types as python_types

import jax
import numpy as np

from sidrec import data
from sidrec import methods
from sidrec import schedule
from sidrec import trie
from sidrec.data import pipeline
from sidrec.methods import base
from tests import tiny_run

STEPS, BEAMS, ROWS, CANDIDATES = 12, 8, 8, 5


@functools.cache
def planted():
  return data.load(tiny_run.config('popularity').data, 0)


class Bench:
  """Host work's bench on one device."""

  def __init__(self, dataset, count):
    self.dataset, self.seed, self.count = dataset, 0, count

  def rows(self, fn, state, batches):
    out = [jax.device_get(fn(state, self.dataset.catalog, batch))
           for batch in batches]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *out)

  def once(self, fn):
    return fn()

  def host(self, tree):
    return jax.tree.map(np.array, tree)


def after_hosts(method, state, dataset):
  """The host work of the whole schedule, as the trainer does it."""
  for section in method.sections:
    for item in section.items:
      if isinstance(item, schedule.Host):
        changes = item.fn(Bench(dataset, 0), state)
        assert isinstance(changes, base.Changes), item.name
        assert set(changes.variables) <= set(state.variables)
        assert set(changes.reset) <= set(method.optimizers)
        assert all(math.isfinite(v) for v in changes.metrics.values())
        state = state.replace(
            params=base.merge(state.params, changes.params),
            variables={**state.variables, **changes.variables})
  return state


@functools.cache
def world(name, **changes):
  """A method with codes from the first step on, and batches for it."""
  if name == 'dig':
    changes = {'loss__warmup': .25, **changes}
  config = tiny_run.config(name, train__num_steps=STEPS, **changes)
  dataset = planted()
  method = methods.get(config.method).make(config, dataset)
  fresh = jax.jit(functools.partial(base.init_state, method))(
      0, dataset.catalog)
  batches = {}
  for program, own in method.programs.items():
    reader = pipeline.Pipeline(dataset, own.streams, seed=0)
    batches[program] = [reader.batch({name: step for name in own.streams})
                        for step in range(3)]
  draw = np.random.default_rng(0)
  items = np.stack([
      draw.permutation(dataset.spec.num_items)[:CANDIDATES]
      for _ in range(ROWS)]).astype(np.int32)
  jit = lambda fn, **kwargs: None if fn is None else jax.jit(fn, **kwargs)
  return python_types.SimpleNamespace(
      config=config, method=method, fresh=fresh, batches=batches,
      state=after_hosts(method, fresh, dataset), catalog=dataset.catalog,
      request=request(items), num_items=dataset.spec.num_items,
      score=jit(method.score), token_score=jit(method.token_score),
      retrieve=jit(method.retrieve, static_argnames=(
          'beam_size', 'bounds')))


def request(items):
  """Candidates [B, C] of the first B exposures of the validation split."""
  dataset = planted()
  events = dataset.examples('valid', 'impressions')[:len(items)]
  return dataset.assemble(events, items, np.zeros(items.shape, np.float32))


def retrieve(world, batch, beam_size=BEAMS):
  """Retrieves with the trie as an argument, as the evaluator does."""
  tree, bounds = None, None
  if world.method.sizes:
    tree, bounds = trie.pad(
        trie.build(np.asarray(world.state.variables['codes'])),
        world.method.sizes, beam_size)
  return jax.device_get(world.retrieve(
      world.state, world.catalog, batch, tree, beam_size=beam_size,
      bounds=bounds))
