"""What train.py measures: sidrec's own steps on synthetic data, and the data.

A step is the trainer's: `train.make_train_step` of the method's phase, mapped
over one device. Batches are drawn and placed before: input is not timed.
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
from sidrec import train
from sidrec import trie
from sidrec import types
from sidrec.methods import base
from sidrec.methods import generative
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
  model: values of `config.model` other than the paper's.
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
  # Only the tokenizer takes part.
  vectors = np.random.default_rng(_SEED).normal(
      size=(s.items, s.dim)).astype(np.float32)
  method, state, catalog = _method(config, s.items, vectors)
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
  config = _config(s, 't5')
  config.tokenizer = config_lib.fitted_tokenizer(
      'rqkmeans', balance='none', kmeans_steps=s.kmeans_steps, start_rows=0)
  spec = _spec(s.kmeans_items, s.kmeans_dim)
  tokenizer = tokenizers.get('rqkmeans').make(config.tokenizer, spec)
  params, codebook = tokenizer.init(jax.random.key(0), vectors[:1024])
  fit = lambda: tokenizer.fit(_SEED, params, codebook, vectors)
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
  batches = [_requests(s, s.batch, seed, len(codes))
             for seed in range(_BATCHES)]
  ours, flops, num = _step(
      method, 'generator', state, catalog,
      [{'positives': batch} for batch in batches])
  data = [dict(history=codes[b.history], target=codes[b.item[:, 0]],
               user=b.user) for b in batches]
  return Case('t5', {'sequences': s.batch}, ours, flops, None, config,
              method.codebook_sizes, dict(batches=data), num)


def t5_beauty(s: Settings) -> Case:
  """The same with the histories of amazon14-beauty, as the trainer has them.

  A call is eight steps of the trainer's own batches, whose histories are cut to
  a few lengths; a rival's call is one step with all histories filled up to 20,
  as Cornac and its kin pad them.
  """
  config = _config(s, 't5')
  config.data.name = 'amazon14-beauty'
  dataset = data_lib.load(config.data, 0)
  rng = np.random.default_rng(_SEED)
  codes = rng.integers(0, 256, (dataset.spec.num_items, 4)).astype(np.int32)
  method, state, catalog = _generator(config, codes)
  streams = method.phases[-1].streams
  reader = data_lib.Pipeline(dataset, streams, seed=_SEED)
  batches = [reader.batch(step) for step in range(_MIXED)]
  one, _, num = _step(method, 'generator', state, catalog, batches)
  call = lambda: [one() for _ in range(_MIXED)][-1]
  full = [_requests(s, s.batch, seed, len(codes)) for seed in range(_BATCHES)]
  data = [dict(history=codes[b.history], target=codes[b.item[:, 0]],
               user=b.user) for b in full]
  return Case('t5_beauty', {'sequences': _MIXED * s.batch}, call, None, None,
              config, method.codebook_sizes, dict(
                  batches=data, share=1 / _MIXED), num)


def decoder(s: Settings) -> Case:
  """One step of the causal generator on rows of packed sequences."""
  config = _config(s, 'decoder')
  codes = decode_catalogs.make('beauty', 12_088, 256, 4)
  method, state, catalog = _generator(config, codes)
  place = np.arange(s.row_items)
  each = lambda x, dtype: np.broadcast_to(
      x.astype(dtype), (s.rows, s.row_items)).copy()
  batches = []
  for seed in range(_BATCHES):
    item = np.random.default_rng(seed).integers(
        0, len(codes), (s.rows, s.row_items))
    batches.append(types.SequenceBatch(
        row=np.arange(s.rows, dtype=np.int32), item=item.astype(np.int32),
        segment=each(place // _SEQUENCE + 1, np.int32),
        target=each(place % _SEQUENCE > 0, np.float32)))
  ours, flops, num = _step(
      method, 'generator', state, catalog,
      [{'sequences': batch} for batch in batches])
  data = [dict(codes=codes[b.item], segment=b.segment, target=b.target)
          for b in batches]
  amounts = {'sequences': s.rows * -(-s.row_items // _SEQUENCE),
             'items': s.rows * s.row_items,
             'targets': int(batches[0].target.sum())}
  return Case('decoder', amounts, ours, flops, None, config,
              method.codebook_sizes, dict(batches=data), num)


def t5_decode(s: Settings) -> Case:
  """Retrieval with the T5 over a trie of 12,088 items, as evaluation does."""
  config = _config(s, 't5')
  codes = decode_catalogs.make('beauty', 12_088, 256, 4)
  method, state, catalog = _generator(config, codes)
  tree, bounds = trie.pad(trie.build(codes), method.codebook_sizes, s.beam)
  batch = _requests(s, s.users, 0, len(codes))
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
              config, method.codebook_sizes, dict(
                  codes=codes, beam=s.beam, history=codes[batch.history]))


CASES = {fn.__name__: fn for fn in (
    rqvae, rqkmeans, t5, t5_beauty, decoder, t5_decode)}


def _config(s: Settings, generator: str) -> ml_collections.ConfigDict:
  config = config_lib.base_config()
  config_lib.add_generator(config)
  config.tokenizer = config_lib.residual_tokenizer('rqvae')
  config.model.name = generator
  config.train.examples = (
      'sequences' if generator == 'decoder' else 'positives')
  config.model.dtype = s.dtype
  with config.unlocked():
    config.model.update(dict(s.model))
  config.data.history_length = s.history
  config.train.row_items = s.row_items
  config.train.batch_size = s.rows if generator == 'decoder' else s.batch
  return config


def _spec(num_items: int, dim: int, history: int = 20) -> types.DataSpec:
  field = types.Field(
      'vector', types.Role.ITEM_STATIC, 'vector', 0, dim, dim)
  return types.DataSpec(
      num_items=num_items, num_users=_NUM_USERS,
      items=types.FeatureSpec(fields=(field,), num_dims=dim),
      request=types.FeatureSpec(), cross_names=(), num_actions=1,
      history_length=history, has_negatives=False)


def _method(config: ml_collections.ConfigDict, num_items: int,
            vectors: np.ndarray) -> tuple[
                base.Method, types.TrainState, types.Catalog]:
  """Builds the method, its untrained state and the catalog."""
  spec = _spec(num_items, vectors.shape[1], config.data.history_length)
  method = generative.make(config, spec, _STEPS)
  catalog = types.Catalog(
      features=types.FeatureTable(
          ids=np.zeros((num_items, 0), np.int32),
          values=np.zeros((num_items, 0), np.float32), vectors=vectors),
      popularity=np.ones(num_items, np.float32))
  return method, base.init_state(method, jax.random.key(_SEED), catalog), (
      catalog)


def _generator(config: ml_collections.ConfigDict, codes: np.ndarray
               ) -> tuple[base.Method, types.TrainState, types.Catalog]:
  """The same where codes are given and vectors do not matter."""
  with config.unlocked():
    config.tokenizer.hidden = (8,)
  method, state, catalog = _method(
      config, len(codes), np.ones((len(codes), 2), np.float32))
  return method, state.replace(
      codebook={**state.codebook, 'codes': jnp.asarray(codes)}), catalog


def _requests(s: Settings, size: int, seed: int, num_items: int
              ) -> types.Batch:
  """Draws requests with one candidate and full histories."""
  rng = np.random.default_rng(seed)
  none = np.zeros((size, 0), np.float32)
  return types.Batch(
      row=np.arange(size, dtype=np.int32),
      user=rng.integers(0, _NUM_USERS, size).astype(np.int32),
      item=rng.integers(0, num_items, (size, 1)).astype(np.int32),
      label=np.ones((size, 1), np.float32),
      mask=np.ones((size, 1), np.float32),
      history=rng.integers(0, num_items, (size, s.history)).astype(np.int32),
      history_action=np.zeros((size, s.history), np.int32),
      history_mask=np.ones((size, s.history), np.float32),
      request=types.FeatureTable(
          ids=none.astype(np.int32), values=none, vectors=none),
      cross=none[:, :, None])


def _step(method: base.Method, name: str, state: types.TrainState,
          catalog: types.Catalog, batches: Sequence[Mapping[str, Any]]
          ) -> tuple[Callable[[], Any], float | None, int]:
  """Returns the call of one training step, its FLOPs, how much it trains."""
  phase = next(p for p in method.phases if p.name == name)
  mapped = parallel.make('pmap', devices=jax.devices()[:1])
  placed = mapped.place(catalog)
  shards = [{k: mapped.shard(v) for k, v in batch.items()}
            for batch in batches]
  held = dict(state=mapped.place(state), count=0)
  step, run = mapped.map_step(train.make_train_step(phase, _SEED)), {}
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

  sizes = jax.tree.map(lambda x: x.size, phase.trained(state.params))
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
