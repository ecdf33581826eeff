"""What train.py measures: sidrec's own steps on synthetic data, and the data.

A step is the trainer's: `methods.base.make_step` of the method's program,
mapped over one device. Batches are drawn and placed before: input is not timed.
"""

import contextlib
import functools
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import decode_catalogs
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from sidrec import config as config_lib
from sidrec import data as data_lib
from sidrec import parallel
from sidrec import tokenizers
from sidrec import trie
from sidrec import types
from sidrec.data import history
from sidrec.methods import base
from sidrec.methods import generative
from sidrec.methods import tokenizing
from sidrec.models import generator as generator_lib
from sidrec.tokenizers import base as tokenizers_base
from sidrec.tokenizers import kmeans


_BATCHES = 4  # Drawn before; a step takes them in turns.
_MIXED = 8  # Of different lengths, a call of t5_beauty.
_SEQUENCE = 8  # Items of one user in a packed row.
_NUM_USERS = 22_363
_STEPS = 10_000  # Length of the schedule.
_SEED = 0


class Settings(NamedTuple):
  """Sizes that flags set.

  items, dim: of the catalog of rqvae. kmeans_items, kmeans_dim, kmeans_steps:
  of rqkmeans; rounds a level. batch, history: of t5. rows, row_items: of the
  decoder. users, beam: of t5_decode. dtype: of the generators' activations.
  model: values of `config.generator` other than the paper's.
  """
  items: int = 12_101
  dim: int = 768
  kmeans_items: int = 100_000
  kmeans_dim: int = 384
  kmeans_steps: int = 20
  batch: int = 256
  history: int = 20
  rows: int = 32
  row_items: int = 64
  users: int = 32
  beam: int = 10
  dtype: str = 'float32'
  model: Mapping[str, Any] = {}


class Case(NamedTuple):
  """One measured case.

  name: of it. amounts: unit -> how many of it a call of `ours` does.
  ours: the call. flops: of it by XLA's count, None where there is none.
  floor: FLOPs that no implementation can save, None where nobody counted.
  config: the whole configuration. sizes: codes a level.
  data: NumPy arrays for the other contestants.
  num_params: that are trained.
  """
  name: str
  amounts: dict[str, int]
  ours: Callable[[], Any]
  flops: float | None
  floor: float | None
  config: ml_collections.ConfigDict
  sizes: tuple[int, ...]
  data: dict[str, Any]
  num_params: int = 0


def rqvae(s: Settings) -> Case:
  """One step of the tokenizer of TIGER, batch 1,024."""
  config = _config(s, 't5')
  vectors = np.random.default_rng(_SEED).normal(
      size=(s.items, s.dim)).astype(np.float32)
  method, state, catalog = _tokenizer(config, vectors)
  batch = config.tokenizer_train.batch_size
  rng = np.random.default_rng(1)
  batches = [{'items': types.ItemBatch(
      row=np.arange(batch, dtype=np.int32),
      item=rng.integers(0, s.items, batch).astype(np.int32))}
             for _ in range(_BATCHES)]
  ours, flops, num = _step(method, 'tokenizer', state, catalog, batches)
  t = config.tokenizer
  widths = (s.dim, *t.hidden, t.latent_dim)
  products = [a * b for a, b in zip(widths[:-1], widths[1:])]
  # Forward, and backward to weights and inputs, but not to the data itself;
  # distances need no gradient: nearest codewords are looked up.
  floor = 2 * batch * (6 * sum(products) - products[0]
                       + t.num_levels * t.codebook_size * t.latent_dim)
  return Case('rqvae', {'items': batch}, ours, flops, floor, config, (),
              dict(vectors=vectors, items=[b['items'].item for b in batches]),
              num)


def rqkmeans(s: Settings) -> Case:
  """The whole fit of RQ-KMeans on vectors around 4,096 centers."""
  rng = np.random.default_rng(_SEED)
  vectors = rng.normal(size=(s.kmeans_items, s.kmeans_dim)).astype(np.float32)
  centers = rng.normal(size=(4096, s.kmeans_dim)).astype(np.float32)
  vectors += 2 * centers[rng.integers(0, 4096, s.kmeans_items)]
  config = config_lib.load_experiment('rqkmeans')
  config.tokenizer.kmeans_steps = s.kmeans_steps
  tokenizer = tokenizers.make(
      config.tokenizer, _spec(s.kmeans_items, s.kmeans_dim))
  params, variables = tokenizer.init(jax.random.key(_SEED), s.kmeans_dim)
  items = tokenizers_base.Items(
      ids=np.arange(s.kmeans_items), vectors=vectors,
      features=types.FeatureTable(),
      popularity=np.ones(s.kmeans_items, np.float32), latents=vectors)
  fit = lambda: tokenizer.start(_SEED, params, variables, items)
  with _counted() as rounds:
    fit()
  # Distances of every round, and of the last look at all rows.
  products = sum(rounds) + len(rounds)
  floor = 2. * products * s.kmeans_items * s.kmeans_dim * (
      config.tokenizer.codebook_size)
  return Case('rqkmeans', {'items': s.kmeans_items}, fit, None, floor, config,
              (), dict(vectors=vectors, rounds=list(rounds), seed=_SEED))


def t5(s: Settings) -> Case:
  """One step of TIGER's T5 on (history, target) pairs with full histories."""
  config = _config(s, 't5')
  codes = decode_catalogs.make('beauty', 12_088, 256, 4)
  method, state, catalog = _generator(config, codes)
  batches = _pairs(s, len(codes))
  ours, flops, num = _step(method, 'generator', state, catalog, batches)
  return Case('t5', {'sequences': s.batch}, ours, flops, None, config,
              method.sizes, dict(batches=_of_pairs(batches, codes)), num)


def t5_beauty(s: Settings) -> Case:
  """The same with the histories of amazon14-beauty, as the trainer has them.

  A call is eight steps of the trainer's own batches, whose histories are cut to
  a few lengths; a rival's call is one step with all histories filled up to 20,
  as Cornac and its kin pad them.
  """
  config = _config(s, 't5')
  config.data.name = 'amazon14-beauty'
  dataset = data_lib.load(config.data, config.data.seed)
  rng = np.random.default_rng(_SEED)
  codes = rng.integers(0, 256, (dataset.spec.num_items, 4)).astype(np.int32)
  method, state, catalog = _generator(config, codes)
  streams = generative.make(config, dataset).programs['generator'].streams
  reader = data_lib.Pipeline(dataset, streams, seed=_SEED)
  batches = [reader.batch(number) for number in range(_MIXED)]
  one, _, num = _step(method, 'generator', state, catalog, batches)
  call = lambda: [one() for _ in range(_MIXED)][-1]
  data = _of_pairs(_pairs(s, len(codes)), codes)
  return Case('t5_beauty', {'sequences': _MIXED * s.batch}, call, None, None,
              config, method.sizes, dict(batches=data, share=1 / _MIXED), num)


def decoder(s: Settings) -> Case:
  """One step of the causal generator on rows of packed sequences."""
  config = _config(s, 'decoder')
  codes = decode_catalogs.make('beauty', 12_088, 256, 4)
  method, state, catalog = _generator(config, codes)
  place = np.broadcast_to(np.arange(s.row_items), (s.rows, s.row_items))
  batches = []
  for seed in range(_BATCHES):
    item = np.random.default_rng(seed).integers(
        0, len(codes), (s.rows, s.row_items))
    batches.append({'sequences': _sequence(
        item, user=place // _SEQUENCE, segment=place // _SEQUENCE + 1,
        target=place % _SEQUENCE > 0)})
  ours, flops, num = _step(method, 'generator', state, catalog, batches)
  data = [dict(codes=codes[b.item], segment=b.segment, target=b.target)
          for b in (batch['sequences'] for batch in batches)]
  amounts = {'sequences': s.rows * -(-s.row_items // _SEQUENCE),
             'items': s.rows * s.row_items,
             'targets': int(data[0]['target'].sum())}
  return Case('decoder', amounts, ours, flops, None, config,
              method.sizes, dict(batches=data), num)


def t5_decode(s: Settings) -> Case:
  """Retrieval with the T5 over a trie of 12,088 items, as evaluation does."""
  config = _config(s, 't5')
  codes = decode_catalogs.make('beauty', 12_088, 256, 4)
  method, state, catalog = _generator(config, codes)
  tree, bounds = trie.pad(trie.build(codes), method.sizes, s.beam)
  batch = _requests(s, len(codes))
  run = jax.jit(functools.partial(
      method.retrieve, beam_size=s.beam, bounds=bounds))
  # As map_rows has it: everything stands on the device but the requests.
  state, catalog, tree = jax.device_put((state, catalog, tree))
  compiled = run.lower(state, catalog, batch, tree).compile()
  call = lambda: compiled(state, catalog, batch, tree)
  found = jax.device_get(call())
  np.testing.assert_array_equal(
      codes[found.item[found.mask]], found.code[found.mask])
  return Case('t5_decode', {'users': s.users}, call, _flops(compiled), None,
              config, method.sizes, dict(
                  codes=codes, beam=s.beam, history=codes[batch.history.item]))


CASES = {fn.__name__: fn for fn in (
    rqvae, rqkmeans, t5, t5_beauty, decoder, t5_decode)}


def _config(s: Settings, generator: str) -> ml_collections.ConfigDict:
  """Returns TIGER's experiment with a generator and the sizes of the flags.

  The causal generator gets the T5's widths and layers: what is compared is how
  fast a stack of a size is.
  """
  config = config_lib.load_experiment('tiger', f'generator.name={generator}')
  paper = config_lib.GENERATORS['t5']()['generator']
  config.generator.update({
      key: paper[key] for key in config.generator if key != 'name'})
  config.generator.dtype = s.dtype
  config.generator.update(dict(s.model))
  config.data.history_length = s.history
  config.train.batch_size = s.batch
  if generator == 'decoder':
    config.train.update(dict(batch_size=s.rows, row_items=s.row_items))
  return config


def _spec(num_items: int, dim: int) -> types.DataSpec:
  """Returns the facts that tokenizers read."""
  return types.DataSpec(
      num_items=num_items, num_users=_NUM_USERS, items=types.FeatureSpec(),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=1, has_negatives=False, vector_dim=dim)


def _tokenizer(config: ml_collections.ConfigDict, vectors: np.ndarray
               ) -> tuple[base.Method, types.TrainState, types.Catalog]:
  """Builds a method of the tokenizer alone, its state and the catalog."""
  num_items, dim = vectors.shape
  tokenizer = tokenizers.make(config.tokenizer, _spec(num_items, dim))

  def init(key: jax.Array, catalog: types.Catalog):
    del catalog
    params, variables = tokenizer.init(key, dim)
    return {'tokenizer': params}, {'tokenizer': variables}

  return _untrained(
      'tokenizer', init, functools.partial(tokenizing.loss_fn, tokenizer),
      config.tokenizer_train, num_items, vectors)


def _generator(config: ml_collections.ConfigDict, codes: np.ndarray
               ) -> tuple[base.Method, types.TrainState, types.Catalog]:
  """Builds a method of the generator alone, where codes [V, 4] are given."""
  generator = generator_lib.make(config.generator, (256,) * codes.shape[1])
  method, state, catalog = _untrained(
      'generator', lambda key, catalog: (
          {'generator': generator.init(key)}, {'codes': jnp.asarray(codes)}),
      functools.partial(generative.loss_fn, generator), config.train,
      len(codes))
  return method._replace(
      sizes=(256,) * codes.shape[1], retrieve=functools.partial(
          generative.retrieve, generator)), state, catalog


def _untrained(
    name: str, init: base.InitFn, loss_fn: base.LossFn,
    train: ml_collections.ConfigDict, num_items: int,
    vectors: np.ndarray | None = None
) -> tuple[base.Method, types.TrainState, types.Catalog]:
  """Returns a method of one program, its fresh state and a catalog."""
  method = base.Method(
      init=init, programs={name: base.Program(loss_fn, {}, (name,))},
      optimizers={name: base.Optimizer((name,), base.adamw(train, _STEPS))})
  catalog = types.Catalog(
      features=types.FeatureTable(), vectors=vectors,
      popularity=np.ones(num_items, np.float32))
  return method, base.init_state(method, _SEED, catalog), catalog


def _sequence(item: np.ndarray, user: np.ndarray, segment: np.ndarray,
              target: np.ndarray) -> types.Sequence:
  """Returns sequences of items [B, S] that were all liked, none at a time."""
  full = lambda x, kind: np.broadcast_to(x, item.shape).astype(kind)
  return types.Sequence(
      row=np.arange(len(item), dtype=np.int32), item=item.astype(np.int32),
      user=full(user, np.int32), segment=full(segment, np.int32),
      target=full(target, np.float32), label=np.ones(item.shape, np.float32),
      action=full(history.POSITIVE, np.int32), time=full(0, np.int32))


def _pairs(s: Settings, num_items: int) -> list[dict[str, types.Sequence]]:
  """Draws batches of full histories with a target behind each."""
  batches = []
  for seed in range(_BATCHES):
    rng = np.random.default_rng(seed)
    batches.append({'sequences': _sequence(
        rng.integers(0, num_items, (s.batch, s.history + 1)),
        user=rng.integers(0, _NUM_USERS, (s.batch, 1)),
        segment=np.ones(1), target=np.arange(s.history + 1) == s.history)})
  return batches


def _of_pairs(batches: Sequence[Mapping[str, types.Sequence]],
              codes: np.ndarray) -> list[dict[str, np.ndarray]]:
  """Returns the batches of `_pairs` as the other contestants read them."""
  return [dict(history=codes[b.item[:, :-1]], target=codes[b.item[:, -1]],
               user=b.user[:, -1])
          for b in (batch['sequences'] for batch in batches)]


def _requests(s: Settings, num_items: int) -> types.Batch:
  """Draws requests with full histories, and without candidates."""
  rng = np.random.default_rng(_SEED)
  user = rng.integers(0, _NUM_USERS, (s.users, 1))
  read = _sequence(
      rng.integers(0, num_items, (s.users, s.history)), user=user,
      segment=np.ones(1), target=np.zeros(1))
  none = np.zeros((s.users, 0), np.float32)
  return types.Batch(
      row=read.row, user=user[:, 0].astype(np.int32), history=read,
      item=none.astype(np.int32), label=none, mask=none,
      request=types.FeatureTable(), cross=None)


def _step(method: base.Method, name: str, state: types.TrainState,
          catalog: types.Catalog, batches: Sequence[Mapping[str, Any]]
          ) -> tuple[Callable[[], Any], float | None, int]:
  """Returns the call of one training step, its FLOPs, how much it trains."""
  mapped = parallel.make('pmap', devices=jax.devices()[:1])
  placed = mapped.place(catalog)
  shards = [{k: mapped.shard(v) for k, v in batch.items()}
            for batch in batches]
  trained = [path for o in method.programs[name].optimizers
             for path in method.optimizers[o].params]
  sizes = jax.tree.map(jnp.size, base.select(state.params, trained))
  held = dict(state=mapped.place(state), count=0)
  step, run = mapped.map_step(base.make_step(method, name)), {}
  shapes = [str(jax.tree.map(jnp.shape, shard)) for shard in shards]
  for shape, shard in zip(shapes, shards):
    if shape not in run:  # A program for each length of histories.
      run[shape] = step.lower(held['state'], placed, shard).compile()

  def call() -> Any:
    which = held['count'] % len(shards)
    held['state'], metrics = run[shapes[which]](
        held['state'], placed, shards[which])
    held['count'] += 1
    return metrics

  return call, _flops(run[shapes[0]]), sum(jax.tree.leaves(sizes))


def _flops(compiled: Any) -> float | None:
  """Returns the FLOPs of a compiled program where XLA counts them."""
  analysis = compiled.cost_analysis()
  if isinstance(analysis, (list, tuple)):
    analysis = analysis[0] if analysis else None
  return float((analysis or {}).get('flops', 0.)) or None


@contextlib.contextmanager
def _counted() -> Iterator[list[int]]:
  """Counts the rounds of each k-means: centers move once a round."""
  rounds, means, start = [], kmeans.means, kmeans.start_centers

  def begin(*args):
    rounds.append(0)
    return start(*args)

  def move(*args):
    rounds[-1] += 1
    return means(*args)

  kmeans.means, kmeans.start_centers = move, begin
  try:
    yield rounds
  finally:
    kmeans.means, kmeans.start_centers = means, start
