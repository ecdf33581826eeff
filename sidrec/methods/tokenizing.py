"""From item vectors to the codes of the catalog, before a generator learns.

The tokenizer is started by the host, trained where it has a loss, and read out
for all items; items of one tuple are told apart; what came out is described,
and refused where it has collapsed.
"""

import functools
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sidrec import config as config_lib
from sidrec import losses
from sidrec import rng
from sidrec import schedule
from sidrec import tokenizers
from sidrec import types
from sidrec.config import ranges
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base
from sidrec.methods import next_item
from sidrec.methods import vectors as vectors_lib
from sidrec.models import item_model
from sidrec.tokenizers import base as tokenizers_base
from sidrec.tokenizers import collisions
from sidrec.tokenizers import diagnostics
from sidrec.tokenizers import walk

# Trees that a tokenizer may name in its `TREES`.
_TREES: ranges.Table = {
    'tokenizer_train': {**config_lib.STAGE, 'between_epochs': ranges.COUNT},
    'collaborative': {
        'model': item_model.RANGES, 'train': next_item.STAGE}}
RANGES: ranges.Table = {
    'tokenizer': {'name': ranges.choice_of({
        name: {'tokenizer': tokenizers.table(name), **{
            tree: _TREES[tree]
            for tree in getattr(tokenizers.get(name), 'TREES', ())}}
        for name in tokenizers.names()})},
    'codes': {**collisions.RANGES, 'least_entropy': ranges.WEIGHT}}


class Codes(NamedTuple):
  """How a method comes to its codes.

  sizes: of each of the T levels, that of a suffix included.
  part: 'tokenizer' (params and variables), 'codes', and what feeds it.
  sections: of the schedule, up to the codes.
  """
  sizes: tuple[int, ...]
  part: base.Part
  sections: tuple[schedule.Section, ...]


class _Parts(NamedTuple):
  """What the functions here share.

  settings: `config.codes`. collaborative: SASRec or None. latents, decoded:
  functions for `Bench.rows`, one object each, so that they compile once.
  """
  settings: ml_collections.ConfigDict
  tokenizer: tokenizers_base.Tokenizer | tokenizers_base.Table
  collaborative: item_model.ItemModel | None
  latents: Any
  decoded: Any

  @property
  def is_table(self) -> bool:
    """Whether the codes are a table, not a function of codewords."""
    return isinstance(self.tokenizer, tokenizers_base.Table)


def build(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset,
          dim: int) -> Codes:
  """Builds the way to the codes.

  Args:
    config: the whole configuration: `tokenizer`, `codes`, where the tokenizer
      is trained `tokenizer_train`, where it is aligned `collaborative`.
    dataset: what it reads.
    dim: D of the vectors.

  Raises:
    types.InputError: settings that do not fit the catalog.
  """
  data = dataset.spec
  tokenizer = tokenizers.make(config.tokenizer, data)
  collisions.check(config.codes, tokenizer)
  sizes = tokenizer.sizes
  if config.codes.collisions == 'suffix':
    sizes = (*sizes, config.codes.suffix_size)
  model = None
  if 'collaborative' in config:
    model = item_model.make(
        config.collaborative.model, data.num_items, 'collaborative.model')
  parts = _Parts(
      config.codes, tokenizer, model,
      functools.partial(_latents, tokenizer), functools.partial(
          _decoded, tokenizer))
  own, items = _own(parts, config, dataset, dim, sizes)
  joined, sections = [own], []
  if model is not None:
    part, train = vectors_lib.train_items(
        'collaborative', model, config.collaborative.train, dataset)
    joined.append(part)
    sections.append(schedule.Section('collaborative', train))
  sections.append(schedule.Section('tokenizer', items))
  return Codes(sizes, base.join(*joined), tuple(sections))


def _own(parts: _Parts, config: ml_collections.ConfigDict,
         dataset: dataset_lib.Dataset, dim: int, sizes: tuple[int, ...]
         ) -> tuple[base.Part, tuple[schedule.Train | schedule.Host, ...]]:
  """Returns the tokenizer's part, and its stretch of the schedule."""
  host = lambda name, fn: schedule.Host(name, functools.partial(fn, parts))
  init = functools.partial(_init, parts, dim, sizes, dataset.spec.num_items)
  if parts.is_table:
    return base.Part(init), (host('fit', fit),)
  if parts.tokenizer.loss is None:
    return base.Part(init), (host('fit', fit_codewords),)
  train = config.tokenizer_train
  stream = types.StreamSpec('items', train.batch_size)
  steps = config_lib.steps(
      train, rows=dataset.spec.num_items, key='tokenizer_train')
  epoch = max(dataset.spec.num_items // train.batch_size, 1)
  training = (schedule.Train('tokenizer', steps),)
  if parts.tokenizer.between is not None:
    training = schedule.every(
        training[0], epoch * train.between_epochs, host('between', between))
  return base.Part(
      init, {'tokenizer': base.Program(
          functools.partial(loss_fn, parts.tokenizer), {'items': stream},
          ('tokenizer',))},
      {'tokenizer': base.Optimizer(
          ('tokenizer',), base.adamw(train, steps))}), (
              host('start', start), *training, host('assign', assign))


def _init(parts: _Parts, dim: int, sizes: tuple[int, ...], num_items: int,
          key: jax.Array, catalog: types.Catalog
          ) -> tuple[dict[str, types.PyTree], dict[str, types.PyTree]]:
  """Returns fresh (params, variables); consumes `key`."""
  del catalog
  codes = jnp.asarray(tokenizers_base.placeholder(num_items, sizes))
  if parts.is_table:
    return {}, {'codes': codes}
  params, variables = parts.tokenizer.init(rng.stream(key, 'tokenizer'), dim)
  return {'tokenizer': params}, {'tokenizer': variables, 'codes': codes}


def loss_fn(
    tokenizer: tokenizers_base.Tokenizer, params: types.PyTree,
    state: types.TrainState, catalog: types.Catalog,
    batches: Mapping[str, types.ItemBatch], *, key: jax.Array,
    axis_name: str | None) -> tuple[jax.Array, base.Aux]:
  """The tokenizer's own loss on a batch of items."""
  item, own = batches['items'].item, params['tokenizer']
  variables = state.variables['tokenizer']
  x = vectors_lib.of(state, catalog)[item]
  path = tokenizer.quantize(
      own, variables, tokenizer.latent(own, x), train=True,
      axis_name=axis_name)
  per_item, metrics = tokenizer.loss(
      own, variables, x, path, item=item, key=rng.stream(key, 'loss'),
      axis_name=axis_name)
  loss = losses.reduce(per_item, None, axis_name)
  changed = {}
  if tokenizer.update is not None:
    changed['tokenizer'] = tokenizer.update(
        variables, path, mask=jnp.ones(item.shape), axis_name=axis_name)
  return loss, base.Aux({'loss': loss, **{
      f'tokenizer/{k}': losses.reduce(v, None, axis_name)
      for k, v in metrics.items()}}, changed)


def _latents(tokenizer: tokenizers_base.Tokenizer, state: types.TrainState,
             catalog: types.Catalog, batch: types.ItemBatch) -> jax.Array:
  """Returns latents [B, d] of items."""
  return tokenizer.latent(
      state.params['tokenizer'], vectors_lib.of(state, catalog)[batch.item])


def _decoded(tokenizer: tokenizers_base.Tokenizer, state: types.TrainState,
             catalog: types.Catalog, codes: jax.Array) -> jax.Array:
  """Returns vectors [B, D] that codes [B, L] stand for."""
  del catalog
  own = state.params['tokenizer']
  return tokenizer.decode(own, walk.prefix(tokenizer.books(own), codes))


def _items(parts: _Parts, bench: base.Bench, state: types.TrainState
           ) -> tokenizers_base.Items:
  """Gathers what host work on the tokenizer may read. A collective."""
  catalog = bench.dataset.catalog
  vectors = state.variables.get('vectors', None)
  latents = collaborative = None
  if not parts.is_table:
    latents = bench.rows(parts.latents, state, base.item_blocks(
        bench.dataset.spec.num_items))
  if parts.collaborative is not None:
    collaborative = bench.host(
        parts.collaborative.table(state.params['collaborative']))
  return tokenizers_base.Items(
      ids=bench.dataset.item_ids,
      vectors=np.asarray(catalog.vectors) if vectors is None
      else bench.host(vectors),
      features=catalog.features, popularity=np.asarray(catalog.popularity),
      collaborative=collaborative, latents=latents)


def fit(parts: _Parts, bench: base.Bench, state: types.TrainState
        ) -> base.Changes:
  """Host: the codes of a table."""
  items = _items(parts, bench, state)

  def work() -> base.Changes:
    codes = np.asarray(parts.tokenizer.fit(bench.seed, items))
    return _finish(parts, items, codes, {}, {}, None)
  return bench.once(work)


def fit_codewords(parts: _Parts, bench: base.Bench, state: types.TrainState
                  ) -> base.Changes:
  """Host: the whole of a tokenizer that is not trained by gradient."""
  tokenizer, items = parts.tokenizer, _items(parts, bench, state)

  def work(own: types.PyTree, variables: types.PyTree) -> base.Changes:
    params, changed, codes = tokenizer.start(
        bench.seed, own, variables, items)
    metrics = {}
    if codes is None:
      codes, metrics = tokenizer.assign(params, changed, items, None)
    decoded = None
    if tokenizer.decode is not None:
      books = [np.asarray(book) for book in tokenizer.books(params)]
      decoded = np.asarray(
          tokenizer.decode(params, walk.prefix(books, codes)))
    out = _finish(parts, items, codes, metrics,
                  _last_level(parts, params, items, codes), decoded)
    return out._replace(
        params={'tokenizer': params},
        variables={**out.variables, 'tokenizer': changed})
  return base.once_with(bench, state, 'tokenizer', work)


def start(parts: _Parts, bench: base.Bench, state: types.TrainState
          ) -> base.Changes:
  """Host: the start of a tokenizer that is trained."""
  items = _items(parts, bench, state)

  def work(own: types.PyTree, variables: types.PyTree) -> base.Changes:
    params, changed, _ = parts.tokenizer.start(
        bench.seed, own, variables, items)
    return base.Changes({'tokenizer': params}, {'tokenizer': changed})
  return base.once_with(bench, state, 'tokenizer', work)


def between(parts: _Parts, bench: base.Bench, state: types.TrainState
            ) -> base.Changes:
  """Host: the tokenizer's work between epochs."""
  items = _items(parts, bench, state)

  def work(own: types.PyTree, variables: types.PyTree) -> base.Changes:
    params, changed, metrics = parts.tokenizer.between(
        bench.seed, bench.count, own, variables, items)
    return base.Changes(
        {'tokenizer': params}, {'tokenizer': changed}, metrics=metrics)
  return base.once_with(bench, state, 'tokenizer', work)


def assign(parts: _Parts, bench: base.Bench, state: types.TrainState
           ) -> base.Changes:
  """Host: codes of all items, told apart, and what they look like.

  Raises:
    types.InputError: the codes have collapsed; see `codes.least_entropy`.
  """
  tokenizer, items = parts.tokenizer, _items(parts, bench, state)
  own, variables, old = bench.host((
      state.params['tokenizer'], state.variables['tokenizer'],
      state.variables['codes']))
  old = old[:, :len(tokenizer.sizes)]
  plain, metrics = bench.once(
      lambda: tokenizer.assign(own, variables, items, old))
  decoded = None
  if tokenizer.decode is not None:
    step = len(base.item_blocks(len(plain))[0].item)
    decoded = bench.rows(parts.decoded, state, [
        plain[i:i + step] for i in range(0, len(plain), step)])
  return bench.once(lambda: _finish(
      parts, items, plain, metrics, _last_level(parts, own, items, plain),
      decoded))


def _last_level(
    parts: _Parts, own: types.PyTree, items: tokenizers_base.Items,
    codes: np.ndarray) -> dict[str, np.ndarray]:
  """Returns what collision rules by codewords read of the last level."""
  books = parts.tokenizer.books(own)
  _, _, rest = walk.descend(
      walk.along(books, codes), items.latents, len(books) - 1)
  return dict(residual=rest, book=np.asarray(books[-1]))


def _finish(
    parts: _Parts, items: tokenizers_base.Items, plain: np.ndarray,
    metrics: Mapping[str, float], last: Mapping[str, np.ndarray],
    decoded: np.ndarray | None) -> base.Changes:
  """Tells items of one tuple apart; describes and checks the codes."""
  sizes = parts.tokenizer.sizes
  codes, _, found = collisions.resolve(
      parts.settings.collisions, plain, sizes, popularity=items.popularity,
      suffix_size=parts.settings.suffix_size, **last)
  report = diagnostics.report(
      plain, sizes, vectors=items.vectors, reconstruction=decoded)
  diagnostics.check_collapse(report, sizes, parts.settings.least_entropy)
  values = {**metrics, **found, **report}
  return base.Changes(
      variables={'codes': codes.astype(np.int32)},
      # What this catalog does not define is left out.
      metrics={k: v for k, v in values.items() if np.isfinite(v)})
