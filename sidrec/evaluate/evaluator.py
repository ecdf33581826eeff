"""Scores a state on a split: ranking, retrieval, and both together."""

import functools
import math
import time
from typing import Any, Iterator

from absl import logging
import ml_collections
import numpy as np
from scipy import special

from sidrec import metrics
from sidrec import parallel
from sidrec import trie as trie_lib
from sidrec import types
from sidrec.data import dataset as dataset_lib
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
    # A metric that is undefined here (one class only, say) is left out.
    return {k: v for k, v in out.items() if math.isfinite(v)}

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
    none = np.zeros((0, 1), np.float32)
    gather = lambda x: self._mapped.allgather_rows(
        np.concatenate(x) if x else none)
    label, mask = gather(label), gather(mask) > 0
    users = np.broadcast_to(
        dataset.event_user[events][:, None], label.shape)[mask]
    truth, label = label, label[mask]
    score = gather(logits)[mask].astype(np.float64)
    probability = special.expit(score)
    auc = metrics.auc(label, score)
    out = {
        'ranking/auc': auc,
        'ranking/gauc': metrics.gauc(label, score, users),
        'ranking/logloss': metrics.logloss(label, probability),
        'ranking/ece': metrics.ece(label, probability)}
    if self._token_score is not None:
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
    if not len(events):
      raise types.InputError(
          f'{self._dataset.name}: no positive event in the {split} split: move '
          'the cut, or set config.data.split')
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
    width = min(self._config.beam_size, self._dataset.spec.num_items)
    gather = lambda x, dtype: self._mapped.allgather_rows(
        np.concatenate(x) if x else np.zeros((0, width), dtype))
    item, mask = gather(items, np.int32), gather(masks, bool)
    target = self._dataset.event_item[events]
    out = metrics.retrieval(item, mask, target, KS)
    if self.can_score:
      out.update(metrics.retrieval(
          gather(ranked, np.int32), mask, target, KS, prefix='unified'))
    if self._dataset.truth is not None:
      out.update(self._oracle(events))
    # The first call compiles.
    timed = seconds[1:] or seconds
    if timed:
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
    if beam < self._config.beam_size and 'clipped' not in self._cached:
      self._cached['clipped'] = True
      logging.warning(
          'config.eval.beam_size=%d is wider than the catalog: clipped to %d',
          self._config.beam_size, beam)
    if codes is None:
      tree, bounds = None, None
    else:
      tree, bounds = trie_lib.pad(
          trie_lib.build(codes), self._method.codebook_sizes, beam)
      tree = self._mapped.place(tree)
    key = ('find', beam, bounds)
    if key not in self._cached:
      fn = functools.partial(
          _retrieve, self._method, beam_size=beam, bounds=bounds)
      self._cached[key] = self._mapped.map_rows(fn)
    find = self._cached[key]
    return lambda state, batch: find(state, (self.catalog, tree), batch)

  def finder(self, state: types.TrainState) -> Any:
    """Returns batch -> Beams on NumPy leaves, for the state's codes."""
    find = self._finder(self.codes(state))
    return functools.partial(find, state)

  @property
  def codebook_sizes(self) -> tuple[int, ...]:
    """Codes a level of the served codes; () where there are none."""
    return self._method.codebook_sizes

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

  def token_score(
      self, state: types.TrainState, batch: types.Batch) -> np.ndarray:
    """Returns retrieval logits [B, C] of a batch's candidates."""
    return self._token_score(state, self.catalog, batch)

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
              bounds: trie_lib.Bounds | None) -> types.Beams:
  catalog, tree = const
  return method.retrieve(state, catalog, batch, tree, beam_size, bounds)


def monitor(values: dict[str, float], weights: dict[str, float]) -> float:
  """Returns what model selection maximizes: a weighted sum of metrics.

  Args:
    values: metrics of the validation split.
    weights: metric name -> weight.

  Raises:
    types.InputError: if a weighted metric is not there.
  """
  unknown = [k for k in weights if k not in values]
  if unknown:
    raise types.InputError(
        f'config.eval.monitor names {", ".join(unknown)}: on this split there '
        f'is {", ".join(sorted(values))}')
  return float(sum(weight * values[k] for k, weight in weights.items()))
