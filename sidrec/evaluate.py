"""Scores a state on a split: ranking, retrieval, and both together."""

import functools
import json
import os
import time
from typing import Any, Iterator, Sequence

import jax
import ml_collections
import numpy as np

from sidrec import checkpoint
from sidrec import config as config_lib
from sidrec import data
from sidrec import methods
from sidrec import metrics
from sidrec import parallel
from sidrec import rng
from sidrec import trie as trie_lib
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.data import requests
from sidrec.methods import base

KS = (5, 10, 50)


class Evaluator:
  """Compiled scoring functions of one method on one data set.

  Rows are shared out over processes and gathered; the metrics themselves are
  exact and computed on the host.
  """

  def __init__(
      self, method: base.Method, dataset: dataset_lib.Dataset,
      mapped: parallel.Parallel, config: ml_collections.ConfigDict):
    """Wraps the method's functions; nothing is compiled yet.

    Args:
      method: what to evaluate.
      dataset: where its rows come from.
      mapped: how rows are spread over devices.
      config: the `eval` sub-tree.
    """
    self._method = method
    self._dataset = dataset
    self._mapped = mapped
    self._config = config
    self._cached = {}
    self.catalog = mapped.place(dataset.catalog)
    rows = lambda fn: None if fn is None else mapped.map_rows(fn)
    self._score = rows(method.score)
    self._token_score = rows(method.token_score)

  def run(
      self, state: types.TrainState, split: str, max_users: int = 0
  ) -> dict[str, float]:
    """Computes every metric that the method can have.

    Args:
      state: placed by `parallel.place`.
      split: 'train', 'valid' or 'test'.
      max_users: cap on retrieval targets, evenly spread; 0 for all.

    Returns:
      Metric name -> value (contract names).
    """
    out = {}
    codes = self.codes(state)
    if codes is not None:
      out.update(metrics.code_statistics(codes, self._method.codebook_sizes))
    if self._method.score is not None:
      out.update(self.ranking(state, split))
    if self._method.retrieve is not None:
      out.update(self.retrieval(state, split, codes, max_users))
    return out

  def codes(self, state: types.TrainState) -> np.ndarray | None:
    """Returns the served codes [V, L] int32, or None."""
    if self._method.codes is None:
      return None
    return np.asarray(self._mapped.to_host(self._method.codes(state)))

  def ranking(self, state: types.TrainState, split: str) -> dict[str, float]:
    """AUC and kin on all exposures of a split, for both paths."""
    dataset = self._dataset
    logits, tokens, label, mask = [], [], [], []
    events = dataset.examples(split, 'impressions')
    for batch, valid in self._batches(split, events, self._config.batch_size):
      logits.append(self._score(state, self.catalog, batch)[:valid])
      if self._token_score is not None:
        tokens.append(self._token_score(state, self.catalog, batch)[:valid])
      label.append(batch.label[:valid])
      mask.append(batch.mask[:valid])
    gather = lambda x: self._mapped.allgather_rows(np.concatenate(x))
    label, mask = gather(label), gather(mask) > 0
    users = np.broadcast_to(
        dataset.event_user[events][:, None], label.shape)[mask]
    truth, label = label, label[mask]
    score = gather(logits)[mask].astype(np.float64)
    probability = 1. / (1. + np.exp(-score))
    auc = metrics.auc(label, score)
    out = {
        'ranking/auc': auc,
        'ranking/gauc': metrics.gauc(label, score, users),
        'ranking/logloss': metrics.logloss(label, probability),
        'ranking/ece': metrics.ece(label, probability)}
    if tokens:
      out['unified/auc_gap'] = auc - metrics.auc(label, gather(tokens)[mask])
    if dataset.truth is not None:
      out['oracle/ranking/auc'] = metrics.auc(
          truth[:, 0], dataset.truth.click_probability[events])
    return out

  def _share(self, rows: int) -> slice:
    """Returns the contiguous part of `rows` that is this process's."""
    count, index = self._mapped.process_count, self._mapped.process_index
    return slice(rows * index // count, rows * (index + 1) // count)

  def _batches(
      self, split: str, events: np.ndarray, size: int
  ) -> Iterator[tuple[types.Batch, int]]:
    """Yields (batch of constant size, valid rows) of this process's share."""
    mine = self._share(len(events))
    for start in range(mine.start, mine.stop, size):
      key = (split, len(events), start, size)
      if key not in self._cached:
        part = events[start:min(start + size, mine.stop)]
        full = np.resize(part, size)
        self._cached[key] = (self._dataset.assemble(
            full, *self._dataset.ranking_candidates(split, full)), len(part))
      yield self._cached[key]

  def retrieval(
      self, state: types.TrainState, split: str, codes: np.ndarray | None,
      max_users: int = 0) -> dict[str, float]:
    """Recall and NDCG of the retrieval path, and after re-ranking."""
    events = self._dataset.examples(split, 'targets')
    if max_users and max_users < len(events):
      events = events[np.linspace(0, len(events) - 1, max_users).astype(int)]
    mine = events[self._share(len(events))]
    size = self._config.users_per_batch
    find = self._finder(codes)
    items, masks, ranked, seconds = [], [], [], []
    for start in range(0, len(mine), size):
      part = mine[start:start + size]
      batch = self._dataset.assemble(
          np.resize(part, size), np.zeros((size, 0), np.int32),
          np.zeros((size, 0), np.float32))
      began = time.perf_counter()
      beams = find(state, batch)
      seconds.append(time.perf_counter() - began)
      items.append(beams.item[:len(part)])
      masks.append(beams.mask[:len(part)])
      if self.can_score:
        again = self._dataset.with_candidates(
            batch, np.resize(part, size), beams.item,
            mask=beams.mask.astype(np.float32))
        order, _ = self.order(state, again, beams)
        ranked.append(permute(beams, order).item[:len(part)])
    gather = lambda x: self._mapped.allgather_rows(np.concatenate(x))
    item, mask = gather(items), gather(masks)
    target = self._dataset.event_item[events]
    out = metrics.retrieval(item, mask, target, KS)
    if ranked:
      out.update(metrics.retrieval(
          gather(ranked), mask, target, KS, prefix='unified'))
    if self._dataset.truth is not None:
      out.update(self._oracle(events))
    # The first call compiles.
    timed = seconds[1:] or seconds
    out['speed/retrieve_users_per_s'] = size * len(timed) / sum(timed)
    return out

  def _oracle(self, events: np.ndarray) -> dict[str, float]:
    """Ranks the catalog by the true probability of the next click."""
    best = []
    for start in range(0, len(events), 256):
      chance = self._dataset.truth.exposure_and_click(events[start:start + 256])
      best.append(np.argsort(-chance, 1, kind='stable')[:, :max(KS)])
    item = np.concatenate(best).astype(np.int32)
    return metrics.retrieval(
        item, np.ones(item.shape, bool), self._dataset.event_item[events], KS,
        prefix='oracle/retrieval')

  def _finder(self, codes: np.ndarray | None) -> Any:
    beam = min(self._config.beam_size, self._dataset.spec.num_items)
    if codes is None:
      tree, branching = None, ()
    else:
      tree, branching = trie_lib.pad(
          trie_lib.build(codes), self._method.codebook_sizes)
      tree = self._mapped.place(tree)
    key = ('find', beam, branching)
    if key not in self._cached:
      fn = functools.partial(
          _retrieve, self._method, beam_size=beam, branching=branching)
      self._cached[key] = self._mapped.map_rows(fn)
    find = self._cached[key]
    return lambda state, batch: find(state, (self.catalog, tree), batch)

  def finder(self, state: types.TrainState) -> Any:
    """Returns batch -> Beams on NumPy leaves, for the state's codes."""
    find = self._finder(self.codes(state))
    return functools.partial(find, state)

  @property
  def can_retrieve(self) -> bool:
    """Whether the method has a retrieval path."""
    return self._method.retrieve is not None

  @property
  def can_score(self) -> bool:
    """Whether the method has a ranking path."""
    return self._score is not None

  def score(self, state: types.TrainState, batch: types.Batch) -> np.ndarray:
    """Returns ranking logits [B, C] of a batch's candidates."""
    return self._score(state, self.catalog, batch)

  def order(
      self, state: types.TrainState, batch: types.Batch, beams: types.Beams
  ) -> tuple[np.ndarray, np.ndarray]:
    """Orders retrieved items by the ranking path.

    Args:
      state: placed state.
      batch: whose candidates are the beams' items.
      beams: [B, W].

    Returns:
      order [B, W], best first, and the ranking logits in that order (-inf
      where a beam is not valid).
    """
    score = np.where(beams.mask, self.score(state, batch), -np.inf)
    order = np.argsort(-score, 1, kind='stable')
    return order, np.take_along_axis(score, order, 1)


def permute(beams: types.Beams, order: np.ndarray) -> types.Beams:
  """Returns the beams in another order [B, W]."""
  take = lambda x: np.take_along_axis(x, order, 1)
  return types.Beams(
      item=take(beams.item), score=take(beams.score), mask=take(beams.mask),
      code=np.take_along_axis(beams.code, order[..., None], 1))


def _retrieve(method: base.Method, state: types.TrainState, const: Any,
              batch: types.Batch, *, beam_size: int,
              branching: tuple[int, ...]) -> types.Beams:
  catalog, tree = const
  return method.retrieve(state, catalog, batch, tree, beam_size, branching)


def monitor(values: dict[str, float], weights: dict[str, float]) -> float:
  """Returns what model selection maximizes: a weighted sum of metrics.

  Args:
    values: metrics of the validation split.
    weights: metric name -> weight.

  Raises:
    types.InputError: if no weighted metric is there.
  """
  known = [k for k in weights if k in values]
  if not known:
    raise types.InputError(
        f'config.eval.monitor names {", ".join(weights)}: this method has '
        f'{", ".join(sorted(values))}')
  return float(sum(weights[k] * values[k] for k in known))




class Loaded:
  """A finished run, ready to use; see `load`.

  config: of the run. dataset: encoded. codes: [V, L] int32 or None.
  metrics: what results.json holds, or {} before the run's end.
  """

  def __init__(
      self, config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset,
      evaluator: Evaluator, state: types.TrainState, results: dict[str, Any]):
    """See `load`."""
    self.config, self.dataset = config, dataset
    self.metrics = results.get('metrics', {})
    self._evaluator, self._state = evaluator, state
    self.codes = evaluator.codes(state)
    self._find = None

  def evaluate(self, split: str = 'test') -> dict[str, float]:
    """Computes a split's metrics again."""
    return self._evaluator.run(self._state, split)

  def score(self, batch: types.Batch) -> np.ndarray:
    """Returns ranking logits [B, C] of a batch's candidates."""
    return self._evaluator.score(self._state, batch)

  def retrieve(
      self, users: Sequence[Any] | None = None,
      histories: Sequence[Sequence[Any] | None] | None = None,
  ) -> tuple[types.Beams, np.ndarray | None]:
    """Retrieves for users or histories, then re-ranks.

    Args:
      users: B original user ids; unknown ones are cold.
      histories: B lists of original item ids, oldest first, or None entries.

    Returns:
      (beams [B, W] in final order with retrieval scores, ranking logits
      [B, W] or None). `dataset.item_ids[beams.item]` are the original ids.

    Raises:
      types.InputError: if the method cannot retrieve.
    """
    if not self._evaluator.can_retrieve:
      raise types.InputError(
          f'config.method={self.config.method} can rank but not retrieve')
    if self._find is None:
      self._find = self._evaluator.finder(self._state)
    batch = self.dataset.requests(users, histories)
    beams = self._find(batch)
    if not self._evaluator.can_score:
      return beams, None
    batch = self.dataset.with_candidates(
        batch, None, beams.item, mask=beams.mask.astype(np.float32))
    order, ranking = self._evaluator.order(self._state, batch, beams)
    return permute(beams, order), ranking

  def recommend(self, source: str, target: str) -> int:
    """Answers a file of requests; see `data.requests` for the formats.

    Args:
      source: path of the requests.
      target: path of the answers, one row a request: item ids, retrieval
        scores and ranking scores in final order.

    Returns:
      The number of requests.

    Raises:
      types.InputError: bad files, or a method that cannot retrieve.
    """
    users, histories = requests.read(source)
    items, found, ranked = [], [], []
    size = self.config.eval.users_per_batch
    for start in range(0, len(users), size):
      part = slice(start, start + size)
      beams, ranking = self.retrieve(users[part], histories[part])
      for row, mask in enumerate(beams.mask):
        items.append(self.dataset.item_ids[beams.item[row][mask]])
        found.append(beams.score[row][mask])
        ranked.append(ranking[row][mask] if ranking is not None
                      else np.zeros(0))
    requests.write(target, users, items, found, ranked)
    return len(users)

  def export(self, workdir: str) -> None:
    """Writes codes.npz again.

    Raises:
      types.InputError: if the method has no codes.
    """
    if self.codes is None:
      raise types.InputError(
          f'--mode=export: {self.config.method} has no semantic IDs')
    write_codes(workdir, self.dataset, self.codes)


def write_codes(workdir: str, dataset: dataset_lib.Dataset,
                codes: np.ndarray) -> None:
  """Writes codes.npz: `item_id` [V] and `codes` [V, L] int32."""
  path = os.path.join(workdir, 'codes.npz')
  with open(path + '.tmp', 'wb') as f:
    np.savez(f, item_id=dataset.item_ids, codes=codes.astype(np.int32))
  os.replace(path + '.tmp', path)


def load(workdir: str, config: ml_collections.ConfigDict | None = None
         ) -> Loaded:
  """Opens the best checkpoint of a run.

  Args:
    workdir: of `sidrec.main`; of several seeds, the first.
    config: overrides what the run was evaluated with (`eval`, `parallel`);
      None takes the run's own configuration.

  Returns:
    The run: codes, config, metrics, and ready `retrieve` and `score`.

  Raises:
    types.InputError: no finished run there, or one of another configuration.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.isfile(path):
    raise types.InputError(f'{path}: no such file; train first')
  with open(path) as f:
    saved = ml_collections.ConfigDict(json.load(f))
  config = saved if config is None else config
  seed, folder = config.seed, workdir
  if config.num_seeds > 1:
    folder = os.path.join(workdir, f'seed_{seed}')
  dataset = data.load(config.data, config.data.seed)
  mapped = parallel.make(config.parallel.wrapper)
  method = methods.get(config.method).make(
      config, dataset.spec, base.num_steps(config, dataset))
  shapes = jax.eval_shape(
      functools.partial(base.init_state, method), rng.stream(seed, 'init'),
      dataset.catalog)
  saver = checkpoint.Checkpointer(
      os.path.join(folder, 'checkpoints'), best_metric='monitor',
      config={**config_lib.identity(config), 'seed': seed})
  step = saver.best_step()
  step = saver.latest_step() if step is None else step
  if step is None:
    raise types.InputError(f'{folder}/checkpoints: no checkpoint; train first')
  state, _ = saver.restore(step, shapes)
  saver.close()
  results = {}
  if os.path.isfile(os.path.join(workdir, 'results.json')):
    with open(os.path.join(workdir, 'results.json')) as f:
      results = json.load(f)
  evaluator = Evaluator(method, dataset, mapped, config.eval)
  return Loaded(config, dataset, evaluator, mapped.place(state), results)
