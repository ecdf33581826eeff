"""DIG: a semantic-ID tokenizer trained inside a ranker (arXiv 2605.14853).

One loss, one step. Both paths share the history attention and the mixer; the
retrieval path reads the semantic embedding of a token prefix where the ranking
path reads the item, and a bucket mean of u2i (or MLP_u2t's guess) where the
ranking path reads u2i itself.

Three programs: the warm-up trains the ranker alone, then codes grow as a tree
over its item vectors; 'joint' trains everything while codes explore; 'frozen'
goes on with the codes as they are.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from sidrec import decode
from sidrec import rng
from sidrec import schedule
from sidrec import tokenizers
from sidrec import types
from sidrec.config import ranges
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base
from sidrec.methods import dig_losses
from sidrec.methods import dig_serving
from sidrec.methods import prefixes
from sidrec.methods import ranking
from sidrec.models import ranker
from sidrec.tokenizers import base as tokenizers_base

_SIZE = tokenizers.table('dig')['codebook_size']
RANGES: ranges.Table = {
    'model': ranker.RANGES,
    'train': {
        **ranking.RANGES['train'],
        'retrieval_batch_size': ranges.BATCH,
        'retrieval_negatives': ranges.whole(1, 1 << 12),
        'retrieval_siblings': ranges.whole(0, 1 << 12),
        'retrieval_seen_negatives': ranges.whole(0, 1 << 12)},
    'data': {'seen_length': ranges.whole(1, 1 << 14)},
    'tokenizer': {
        **tokenizers.table('dig'), 'name': ranges.choice('dig'),
        'codebook_size': ranges.either(ranges.whole(0, 0), _SIZE).that(
            '0 for the default', lambda own, whole: not own[
                'codebook_size'] or _SIZE.fits(own, whole))},
    'loss': {
        **dict.fromkeys(('rank', 'recall', 'code', 'recon', 'u2t', 'sigma',
                         'address_scale', 'leaf_scale'), ranges.WEIGHT),
        **dict.fromkeys(('warmup', 'freeze', 'sigma_until', 'p_mix',
                         'p_mix_ramp'), ranges.SHARE),
        'reassign_every': ranges.STEPS,
        'rank_item': ranges.choice('both', 'e_v'),
        'leaf': ranges.choice('item', 'code'),
        'u2t_target': ranges.choice('own', 'bucket'),
        'match': ranges.FLAG, 'stop_h': ranges.FLAG},
    'eval': {'score': ranges.choice(*decode.SCORES), 'use_u2t': ranges.FLAG,
             'beam_mass': ranges.FLAG}}


def make(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
         ) -> base.Method:
  """Builds DIG.

  Args:
    config: the whole configuration.
    dataset: what it learns from.

  Returns:
    The method.

  Raises:
    types.InputError: if the code space is too small for the catalog.
  """
  data = dataset.spec
  rank = ranking.exposures(config, data)
  num_steps = base.main_steps(config, dataset, rank)
  warmup, freeze = (
      int(num_steps * share) for share in (config.loss.warmup,
                                           config.loss.freeze))
  dig = dig_serving.Dig(
      config, data, _tokenizer(config, data), joint=max(freeze - warmup, 0),
      frozen=num_steps - max(freeze, warmup))
  both = {'rank': rank, 'retrieval': types.StreamSpec(
      'positives', config.train.retrieval_batch_size,
      config.train.retrieval_negatives,
      config.train.retrieval_seen_negatives)}
  optimizers = _optimizers(
      config, num_steps, warmup, base.num_examples(dataset, rank))
  program = lambda explore, *names: base.Program(
      functools.partial(dig_losses.joint_loss, dig, explore), both, names)
  vectors = functools.partial(item_vectors, dig)
  return base.Method(
      init=functools.partial(init, dig),
      programs={
          'warmup': base.Program(
              functools.partial(dig_losses.warmup_loss, dig), {'rank': rank},
              ('tower',)),
          'joint': program(True, *optimizers),
          'frozen': program(False, 'tower', 'semantic')},
      optimizers=optimizers,
      sections=_sections(
          dig, warmup, num_steps,
          schedule.Host('tree', functools.partial(grow_tree, dig, vectors)),
          schedule.Host('reassign', functools.partial(reassign, dig, vectors))),
      sizes=dig.tokenizer.sizes,
      score=functools.partial(dig_serving.score, dig),
      token_score=functools.partial(dig_serving.token_score, dig),
      retrieve=functools.partial(dig_serving.retrieve, dig))


def _sections(dig: dig_serving.Dig, warmup: int, num_steps: int,
              grow: schedule.Host, again: schedule.Host
              ) -> tuple[schedule.Section, ...]:
  """The ranker alone, the tree, codes that learn, codes that stay."""
  every = dig.config.loss.reassign_every or max(num_steps // 8, 1)
  return (
      schedule.Section('warmup', (schedule.Train('warmup', warmup), grow)),
      schedule.Section(
          'dig', (*schedule.every(
              schedule.Train('joint', dig.joint), every, again),
                  schedule.Train('frozen', dig.frozen)),
          base.watch(dig.config, dig.joint + dig.frozen), 'best'))


def _optimizers(config: ml_collections.ConfigDict, num_steps: int, warmup: int,
                num_examples: int) -> dict[str, base.Optimizer]:
  """One for the tower; one a table of the tokenizer, from the tree on."""
  train, clip = config.train, optax.clip_by_global_norm
  rate = lambda factor: base.cosine(
      train, num_steps, train.learning_rate * factor, first=warmup)
  out = {
      'tower': base.Optimizer(('tower',), ranking.optimizer(
          config, num_steps, num_examples,
          {'leaf_id': config.loss.leaf_scale})),
      'semantic': base.Optimizer(('tokenizer/semantic',), optax.chain(
          clip(train.clip), optax.adam(rate(1.))))}
  if config.tokenizer.assignment == 'gumbel_st':  # Else no parameter.
    out['address'] = base.Optimizer(('tokenizer/address',), optax.chain(
        clip(train.clip), optax.adam(rate(config.loss.address_scale))))
  return out


def _tokenizer(config: ml_collections.ConfigDict, data: types.DataSpec
               ) -> tokenizers_base.Tokenizer:
  settings = config.tokenizer.copy_and_resolve_references()
  if not settings.codebook_size:
    settings.codebook_size = default_size(data.num_items, settings.num_levels)
  return tokenizers.make(settings, data)


def default_size(num_items: int, num_levels: int) -> int:
  """Returns the multiple of 4 whose K ** L is at least three times V.

  Args:
    num_items: V.
    num_levels: L.
  """
  size = 4
  while size ** num_levels < 3 * num_items:
    size += 4
  return size


def init(dig: dig_serving.Dig, key: jax.Array, catalog: types.Catalog
         ) -> tuple[dict[str, types.PyTree], dict[str, types.PyTree]]:
  """Returns fresh (params, variables); consumes `key`."""
  tower, batch_stats = ranker.init(
      rng.stream(key, 'tower'), ranker.make(dig.config.model, dig.data),
      lambda model, batch: dig_serving.both_paths(dig, model, catalog, batch))
  own, variables = dig.tokenizer.init(
      rng.stream(key, 'tokenizer'), dig.config.model.dim)
  codes = tokenizers_base.placeholder(dig.data.num_items, dig.tokenizer.sizes)
  return {'tower': tower, 'tokenizer': own}, {
      'batch_stats': batch_stats, 'tokenizer': variables,
      'codes': jnp.asarray(codes),
      'prefixes': prefixes.empty(dig.tokenizer.sizes, catalog)}


def item_vectors(dig: dig_serving.Dig, state: types.TrainState,
                 catalog: types.Catalog, batch: types.ItemBatch) -> jax.Array:
  """Returns e_v [B, D] of items."""
  return ranking.serve(
      dig.config, dig.data, state,
      lambda model: model.items(catalog.features, batch.item))


def _items(vectors: Any, bench: base.Bench, state: types.TrainState
           ) -> tokenizers_base.Items:
  """Gathers what the tokenizer reads of all items. A collective."""
  catalog = bench.dataset.catalog
  found = bench.rows(
      vectors, state, base.item_blocks(bench.dataset.spec.num_items))
  return tokenizers_base.Items(
      ids=bench.dataset.item_ids, vectors=found, latents=found,
      features=catalog.features, popularity=np.asarray(catalog.popularity))


def grow_tree(dig: dig_serving.Dig, vectors: Any, bench: base.Bench,
              state: types.TrainState) -> base.Changes:
  """Host: balanced k-means tree over e_v, after the warm-up."""
  items = _items(vectors, bench, state)

  def work(own: types.PyTree, variables: types.PyTree) -> base.Changes:
    params, changed, codes = dig.tokenizer.start(
        bench.seed, own, variables, items)
    return base.Changes({'tokenizer': params}, {
        'tokenizer': changed, 'codes': codes,
        'prefixes': _tables(dig, bench, codes)})
  # What an optimizer remembers of the placeholder tables is of no use.
  reset = tuple(
      {'semantic', 'address'} & set(state.params['tokenizer']))
  out = base.once_with(bench, state, 'tokenizer', work)
  return out._replace(reset=reset)


def reassign(dig: dig_serving.Dig, vectors: Any, bench: base.Bench,
             state: types.TrainState) -> base.Changes:
  """Host: capacity-limited reassignment of the stored codes."""
  items = _items(vectors, bench, state)
  old = bench.host(state.variables['codes'])

  def work(own: types.PyTree, variables: types.PyTree) -> base.Changes:
    codes, metrics = dig.tokenizer.assign(own, variables, items, old)
    return base.Changes(metrics=metrics, variables={
        'codes': codes, 'prefixes': _tables(dig, bench, codes)})
  return base.once_with(bench, state, 'tokenizer', work)


def _tables(dig: dig_serving.Dig, bench: base.Bench, codes: np.ndarray
            ) -> prefixes.Tables:
  """Makes the tables of new codes; they change with them."""
  return prefixes.build(
      codes, dig.tokenizer.sizes, bench.dataset.catalog.known)
