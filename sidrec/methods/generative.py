"""Codes first, then a generator of codes: TIGER and its kin.

One method for every tokenizer and every generator: item vectors are tokenized
(a phase of training, or a fit), items that share a tuple are told apart, and a
sequence model learns to write the next item's codes, which beam search reads
off the trie. TIGER (arXiv 2305.05065) is tokenizer rqvae, generator t5.
"""

import functools
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sidrec import decode
from sidrec import losses
from sidrec import rng
from sidrec import tokenizers
from sidrec import trie
from sidrec import types
from sidrec.methods import base
from sidrec.methods import item_vectors
from sidrec.methods import next_item
from sidrec.models import decoder
from sidrec.models import generator as generator_lib
from sidrec.models import sasrec
from sidrec.models import t5
from sidrec.tokenizers import base as tokenizers_base
from sidrec.tokenizers import collisions
from sidrec.tokenizers import diagnostics

GENERATORS = {'t5': t5.make, 'decoder': decoder.make}


class Parts(NamedTuple):
  """What the functions of the method share.

  config: the whole configuration. data: static facts.
  tokenizer, generator: pure functions. collaborative: SASRec or None.
  sizes: codes of each of the T levels, that of a suffix included.
  """
  config: ml_collections.ConfigDict
  data: types.DataSpec
  tokenizer: tokenizers_base.Tokenizer
  generator: generator_lib.Generator
  collaborative: sasrec.Sasrec | None
  sizes: tuple[int, ...]


def make(
    config: ml_collections.ConfigDict, data: types.DataSpec, num_steps: int
) -> base.Method:
  """Builds the method.

  Args:
    config: the whole configuration.
    data: static facts of the data set.
    num_steps: steps of the generator; 0 trains nothing at all.

  Returns:
    The method: it retrieves by codes, and does not rank exposures.

  Raises:
    types.InputError: unknown generator or tokenizer, or settings that do not
      fit the catalog.
  """
  parts = _parts(config, data)
  # A run of no steps is the untrained state, all through.
  steps = lambda settings: settings.num_steps if num_steps else 0
  first = steps(config.collaborative) if parts.collaborative else 0
  second = steps(config.tokenizer_train) if parts.tokenizer.loss else 0
  hooks = _hooks(parts, first, second)
  phases = []
  if first:
    phases.append(next_item.sasrec_phase(
        'collaborative', parts.collaborative, config.collaborative, first,
        hooks=hooks, validates=False))
  if second:
    phases.append(base.Phase(
        'tokenizer', second,
        {'items': types.StreamSpec(
            'items', config.tokenizer_train.batch_size)},
        base.adamw(config.tokenizer_train, second),
        functools.partial(tokenizer_loss, parts), trains=('tokenizer',),
        hooks=hooks, validates=False))
  phases.append(base.Phase(
      'generator', num_steps, _generator_stream(parts),
      base.adamw(config.train, num_steps),
      functools.partial(generator_loss, parts), trains=('generator',),
      hooks=hooks))
  return base.Method(
      init=functools.partial(init, parts), phases=tuple(phases), score=None,
      token_score=None, retrieve=functools.partial(retrieve, parts),
      codes=lambda state: state.codebook['codes'], codebook_sizes=parts.sizes)


def _parts(config: ml_collections.ConfigDict, data: types.DataSpec) -> Parts:
  settings = config.tokenizer.copy_and_resolve_references()
  try:
    tokenizer = tokenizers.get(settings.name).make(settings, data)
  except (AttributeError, KeyError) as error:
    raise types.InputError(
        f'tokenizer.name={settings.name}: needs settings that are not there '
        f'({str(error).splitlines()[0]}); start from the experiment of that '
        'tokenizer') from error
  sizes = tokenizer.codebook_sizes
  collisions.check(settings, tokenizer)
  if settings.collisions == 'suffix':
    sizes = (*sizes, settings.suffix_size)
  if config.model.name not in GENERATORS:
    raise types.InputError(
        f'config.model.name={config.model.name!r}: one of '
        f'{", ".join(GENERATORS)}')
  generator = GENERATORS[config.model.name](config.model, sizes)
  expected = 'sequences' if generator.packed else 'positives'
  if config.train.examples != expected:
    raise types.InputError(
        f'config.model.name={config.model.name} learns from {expected}, '
        f'config.train.examples={config.train.examples}: put the word '
        f'`decoder` behind the colon, or leave it out')
  collaborative = None
  if 'collaborative' in config:
    collaborative = sasrec.make(config.collaborative.model, data.num_items)
  return Parts(config, data, tokenizer, generator, collaborative, sizes)


def _generator_stream(parts: Parts) -> dict[str, types.StreamSpec]:
  train = parts.config.train
  if parts.generator.packed:
    return next_item.stream(train)
  most = parts.data.history_length
  # Most histories are short: only a part of the places is padding then.
  widths = sorted({max(most // 4, 1), max(most // 2, 1), most})
  return {'positives': types.StreamSpec(
      'positives', train.batch_size, widths=tuple(widths))}


def _hooks(parts: Parts, first: int, second: int) -> tuple[base.Hook, ...]:
  """Fit before the tokenizer's steps, work between its epochs, codes after."""
  settings = parts.config.tokenizer_train
  epoch = max(parts.data.num_items // settings.batch_size, 1)
  every = epoch * max(settings.tend_epochs, 1)
  within = lambda done: (
      settings.tend_epochs > 0 and first < done < first + second
      and (done - first) % every == 0)
  hooks = [base.Hook('fit', lambda done: done == first,
                     functools.partial(fit, parts))]
  if parts.tokenizer.tend is not None:
    hooks.append(base.Hook('tend', within, functools.partial(
        tend, parts, first, every)))
  hooks.append(base.Hook('assign', lambda done: done == first + second,
                         functools.partial(assign, parts)))
  return tuple(hooks)


def init(parts: Parts, key: jax.Array, catalog: types.Catalog
         ) -> tuple[types.PyTree, types.PyTree, types.PyTree]:
  """Returns fresh (params, codebook, batch_stats); consumes `key`."""
  data = parts.data
  width = item_vectors.width(data.items)
  sample = item_vectors.raw(
      catalog, data.items, jnp.arange(min(data.num_items, 1024)))
  params, codebook = parts.tokenizer.init(rng.stream(key, 'tokenizer'), sample)
  params = {'tokenizer': params, 'generator': parts.generator.init(
      rng.stream(key, 'generator'))}
  if parts.collaborative is not None:
    params['collaborative'] = parts.collaborative.init(
        rng.stream(key, 'collaborative'))
  return params, {
      'tokenizer': codebook, 'mean': jnp.zeros(width), 'scale': jnp.ones(width),
      'codes': jnp.zeros((data.num_items, len(parts.sizes)), jnp.int32)}, {}


def tokenizer_loss(
    parts: Parts, params: types.PyTree, state: types.TrainState,
    catalog: types.Catalog, batches: Mapping[str, types.ItemBatch], *,
    key: jax.Array, axis_name: str | None
) -> tuple[jax.Array, base.LossOutput]:
  """The tokenizer's own loss on a batch of items."""
  item = batches['items'].item
  x = item_vectors.standardized(
      catalog, parts.data.items, item, state.codebook)
  output = parts.tokenizer.encode(
      params['tokenizer'], state.codebook['tokenizer'], x, item=item,
      train=True, axis_name=axis_name)
  per_item, metrics = parts.tokenizer.loss(
      params['tokenizer'], state.codebook['tokenizer'], x, output, item=item,
      key=rng.stream(key, 'loss'), axis_name=axis_name)
  loss = losses.reduce(per_item, None, axis_name)
  metrics = {f'tokenizer/{k}': losses.reduce(v, None, axis_name)
             for k, v in metrics.items()}
  codebook = parts.tokenizer.update(
      state.codebook['tokenizer'], output, mask=jnp.ones(item.shape),
      axis_name=axis_name)
  return loss, base.LossOutput(
      next_item.share({'loss': loss, **metrics}, axis_name),
      {**state.codebook, 'tokenizer': codebook}, state.batch_stats)


def generator_loss(
    parts: Parts, params: types.PyTree, state: types.TrainState,
    catalog: types.Catalog, batches: Mapping[str, Any], *, key: jax.Array,
    axis_name: str | None) -> tuple[jax.Array, base.LossOutput]:
  """Cross entropy of the target's codes, a mean over targets and levels."""
  del catalog
  codes, own = state.codebook['codes'], params['generator']
  key = rng.stream(key, 'dropout')
  if parts.generator.packed:
    batch = batches['sequences']
    label, weight = codes[batch.item], batch.target
    logits = parts.generator.train_logits(
        own, label, batch.segment, key=key, row=batch.row)
  else:
    batch = batches['positives']
    label = codes[batch.item[:, 0]]
    # Who did nothing before is no example.
    weight = jnp.max(batch.history_mask, -1)
    logits = parts.generator.train_logits(
        own, codes[batch.history], batch.history_mask, batch.user, label,
        key=key, row=batch.row)
  per_level = [
      losses.reduce(losses.softmax_cross_entropy(z, label[..., level]),
                    weight, axis_name)
      for level, z in enumerate(logits)]
  loss = sum(per_level) / len(per_level)
  metrics = {'loss': loss, **{
      f'loss/level_{level + 1}': x for level, x in enumerate(per_level)}}
  return loss, base.LossOutput(
      next_item.share(metrics, axis_name), state.codebook, state.batch_stats)


def retrieve(parts: Parts, state: types.TrainState, catalog: types.Catalog,
             batch: types.Batch, t: types.Trie, beam_size: int,
             bounds: trie.Bounds) -> types.Beams:
  """Beam search over the trie; see `base.Method.retrieve`."""
  del catalog
  params = state.params['generator']
  context, carry = parts.generator.start(
      params, state.codebook['codes'][batch.history], batch.history_mask,
      batch.user)
  return decode.beam_search(
      lambda prefix, carry: parts.generator.step(
          params, context, prefix, carry),
      t, beam_size=beam_size, batch_size=batch.user.shape[0], state=carry,
      bounds=bounds, normalize=True, num_rungs=2)


def _vectors(parts: Parts, state: types.TrainState, catalog: types.Catalog
             ) -> np.ndarray:
  """Returns the standardized vectors [V, D] of the catalog, on the host."""
  item = np.arange(parts.data.num_items)
  return np.asarray(item_vectors.standardized(
      catalog, parts.data.items, item, state.codebook))


def fit(parts: Parts, state: types.TrainState, catalog: types.Catalog,
        seed: int) -> tuple[types.TrainState, types.Metrics]:
  """Host hook: scales of the vectors, the tokenizer's start or whole fit."""
  raw = np.asarray(item_vectors.raw(
      catalog, parts.data.items, np.arange(parts.data.num_items)))
  mean, scale = item_vectors.scales(raw)
  codebook = {**state.codebook, 'mean': mean, 'scale': scale}
  params = state.params
  if parts.tokenizer.fit is not None:
    table = None
    if parts.collaborative is not None:
      table = np.asarray(parts.collaborative.table(params['collaborative']))
    own, codebook['tokenizer'] = parts.tokenizer.fit(
        seed, params['tokenizer'], codebook['tokenizer'],
        (raw - mean) / scale, features=catalog.features, collaborative=table)
    params = {**params, 'tokenizer': own}
  return state.replace(params=params, codebook=codebook), {}


def tend(parts: Parts, first: int, every: int, state: types.TrainState,
         catalog: types.Catalog, seed: int
         ) -> tuple[types.TrainState, types.Metrics]:
  """Host hook: the tokenizer's work between epochs."""
  epoch = (int(state.step) - first) // every
  own, codebook, metrics = parts.tokenizer.tend(
      seed, epoch, state.params['tokenizer'], state.codebook['tokenizer'],
      _vectors(parts, state, catalog))
  return state.replace(
      params={**state.params, 'tokenizer': own},
      codebook={**state.codebook, 'tokenizer': codebook}), metrics


def assign(parts: Parts, state: types.TrainState, catalog: types.Catalog,
           seed: int) -> tuple[types.TrainState, types.Metrics]:
  """Host hook: codes of all items, told apart, and what they look like.

  Raises:
    types.InputError: the codes have collapsed; see
      `tokenizer.least_entropy`.
  """
  del seed
  settings, tokenizer = parts.config.tokenizer, parts.tokenizer
  vectors = _vectors(parts, state, catalog)
  own, codebook, metrics = (
      state.params['tokenizer'], state.codebook['tokenizer'], {})
  # What is only fitted has its codes: balanced ones would not come out again.
  if tokenizer.loss is not None and tokenizer.refresh is not None:
    codebook, metrics = tokenizer.refresh(own, codebook, vectors)
  plain = np.asarray(tokenizer.codes(codebook))
  last = {}
  if tokenizer.last_level is not None:
    last['residual'], last['book'] = tokenizer.last_level(
        own, codebook, vectors)
  codes, _, found = collisions.resolve(
      settings.collisions, plain, tokenizer.codebook_sizes,
      popularity=np.asarray(catalog.popularity),
      suffix_size=settings.suffix_size, **last)
  decoded = tokenizer.reconstruct and tokenizer.reconstruct(own, plain)
  report = diagnostics.report(
      plain, tokenizer.codebook_sizes, vectors=vectors, reconstruction=decoded)
  diagnostics.check_collapse(
      report, tokenizer.codebook_sizes, settings.least_entropy)
  return state.replace(codebook={
      **state.codebook, 'tokenizer': codebook,
      'codes': codes.astype(np.int32)}), {
          k: v for k, v in {**metrics, **found, **report}.items()
          if np.isfinite(v)}  # What this catalog does not define is left out.
