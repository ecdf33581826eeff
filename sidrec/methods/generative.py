"""Codes first, then a generator of codes: TIGER and its kin.

One method for every tokenizer and every generator: item vectors are tokenized
(trained, or fitted), items that share a tuple are told apart, and a sequence
model learns to write the next item's codes, which beam search reads off the
trie. TIGER (arXiv 2305.05065) is tokenizer rqvae, generator t5.
"""

import functools
from typing import Any, Mapping

import jax
import ml_collections

from sidrec import config as config_lib
from sidrec import decode
from sidrec import losses
from sidrec import rng
from sidrec import schedule
from sidrec import trie
from sidrec import types
from sidrec.config import ranges
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base
from sidrec.methods import next_item
from sidrec.methods import popularity
from sidrec.methods import tokenizing
from sidrec.methods import vectors
from sidrec.models import generator as generator_lib

# Of the stage that trains a generator, by the layout of its batches.
_TRAIN: ranges.Table = {
    'last': config_lib.MAIN_STAGE,
    'packed': {**config_lib.MAIN_STAGE, 'row_items': next_item.ROW_ITEMS}}
RANGES: ranges.Table = {
    **tokenizing.RANGES, 'vectors': vectors.RANGES,
    'generator': {'name': ranges.choice_of({
        name: {'generator': module.RANGES, 'train': _TRAIN[module.LAYOUT]}
        for name, module in generator_lib.modules().items()})}}


def make(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
         ) -> base.Method:
  """Builds the method.

  Args:
    config: the whole configuration.
    dataset: what it learns from.

  Returns:
    The method: it retrieves by codes, and does not rank exposures.

  Raises:
    types.InputError: unknown generator or tokenizer, or settings that do not
      fit the catalog.
  """
  source = vectors.build(config, dataset)
  codes = tokenizing.build(config, dataset, source.dim)
  generator = generator_lib.make(config.generator, codes.sizes)
  stream = _stream(config, dataset.spec, generator)
  num_steps = base.main_steps(config, dataset, stream)
  writing = base.Part(
      init=lambda key, catalog: ({'generator': generator.init(key)}, {}),
      programs={'generator': base.Program(
          functools.partial(loss_fn, generator), {'sequences': stream},
          ('generator',))},
      optimizers={'generator': base.Optimizer(
          ('generator',), base.adamw(config.train, num_steps))})
  return base.Method(
      *base.join(source.part, codes.part, writing),
      sections=(*source.sections, *codes.sections, schedule.Section(
          'generator', (schedule.Train('generator', num_steps),),
          base.watch(config, num_steps), 'best')),
      sizes=codes.sizes, retrieve=functools.partial(retrieve, generator))


def _stream(config: ml_collections.ConfigDict, data: types.DataSpec,
            generator: generator_lib.Generator) -> types.StreamSpec:
  """Returns the batches that a generator learns from."""
  if generator.layout == 'packed':
    return next_item.stream(config.train)
  most = data.history_length
  # Most histories are short: only a part of the places is padding then.
  widths = sorted({max(most // 4, 1), max(most // 2, 1), most})
  return types.StreamSpec(
      'sequences', config.train.batch_size, layout='last',
      widths=tuple(widths))


def loss_fn(
    generator: generator_lib.Generator, params: types.PyTree,
    state: types.TrainState, catalog: types.Catalog,
    batches: Mapping[str, types.Sequence], *, key: jax.Array,
    axis_name: str | None) -> tuple[jax.Array, base.Aux]:
  """Cross entropy of the target's codes, a mean over targets and levels."""
  del catalog
  own, sequence = params['generator'], batches['sequences']
  codes = state.variables['codes'][sequence.item]
  parts = generator_lib.split(
      generator.layout, sequence, generator.embed(own, codes), codes)
  key = rng.stream(key, 'dropout')
  read = generator.read(own, parts.x, parts.sequence, key=key)
  written = generator.write(own, read, parts.target, key=key)
  per_level = [
      losses.reduce(losses.softmax_cross_entropy(z, parts.label[..., level]),
                    parts.weight, axis_name)
      for level, z in enumerate(written.logits)]
  loss = sum(per_level) / len(per_level)
  return loss, base.Aux({'loss': loss, **{
      f'loss/level_{level + 1}': x for level, x in enumerate(per_level)}})


def retrieve(
    generator: generator_lib.Generator, state: types.TrainState,
    catalog: types.Catalog, batch: types.Batch, t: types.Trie, beam_size: int,
    bounds: trie.Bounds) -> types.Beams:
  """Beam search over the trie; see `base.Method.retrieve`.

  Users without a history get the popular items.
  """
  own, history = state.params['generator'], batch.history
  context, carry = generator.start(
      own, generator.embed(own, state.variables['codes'][history.item]),
      history)

  def logits_fn(prefix: jax.Array, carry: Any) -> tuple[jax.Array, Any]:
    return generator.step(own, context, prefix, carry)

  beams = decode.beam_search(
      logits_fn, t, beam_size=beam_size, batch_size=batch.user.shape[0],
      state=carry, bounds=bounds, normalize=True, num_rungs=2)
  return popularity.to_strangers(
      beams, batch, catalog, state.variables['codes'])
