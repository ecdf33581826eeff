"""Scores a state on a split: ranking, retrieval, and both together."""

import functools
import math
import time
from typing import Any, Iterator, Sequence

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from scipy import special

from sidrec import metrics
from sidrec import parallel
from sidrec import trie as trie_lib
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.evaluate import feed
from sidrec.evaluate import lists
from sidrec.evaluate import oracle
from sidrec.evaluate import outcomes
from sidrec.evaluate import selection
from sidrec.evaluate import unified
from sidrec.methods import base


class Evaluator:
  """Compiled scoring functions of one method on one data set.

  Rows are shared out over processes and gathered; the metrics themselves are
  exact and computed on the host. Of a batch only numbers a row are kept.
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
    self._compiled, self._most_seen = {}, {}
    self.catalog = mapped.place(dataset.catalog)
    rows = lambda fn: None if fn is None else mapped.map_rows(fn)
    self._score = rows(method.score)
    self._token_score = rows(method.token_score)
    self._beam = min(config.beam_size, dataset.spec.num_items)
    if self.can_retrieve and self._beam < config.beam_size:
      logging.warning(
          'config.eval.beam_size=%d is wider than the catalog: clipped to %d',
          config.beam_size, self._beam)

  def run(
      self, state: types.TrainState, split: str, max_users: int = 0,
      keep_rows: bool = False, alpha: float | None = None
  ) -> dict[str, float] | tuple[dict[str, float], outcomes.Rows]:
    """Computes every metric that the method can have.

    Args:
      state: placed by `parallel.place`.
      split: 'train', 'valid' or 'test'.
      max_users: cap on retrieval targets, evenly spread; 0 for all.
      keep_rows: also give what each user and exposure got.
      alpha: of the order by both paths; None = the best on this split.

    Returns:
      Metric name -> value (contract names); with `keep_rows`, (that, rows).
    """
    out, users, exposures = {}, None, None
    codes = self.codes(state)
    if codes is not None:
      out.update(metrics.code_statistics(codes, self._method.sizes))
    if self.can_score:
      values, exposures = self.ranking(state, split)
      out.update(values)
    if self.can_retrieve:
      values, users = self.retrieval(state, split, codes, max_users, alpha)
      out.update(values)
    # A metric that is undefined here (one class only, say) is left out.
    out = {k: v for k, v in out.items() if math.isfinite(v)}
    return (out, outcomes.Rows(users, exposures)) if keep_rows else out

  def codes(self, state: types.TrainState) -> np.ndarray | None:
    """Returns the served codes [V, L] int32, or None."""
    if not self._method.sizes:
      return None
    return np.asarray(self._mapped.to_host(state.variables['codes']))

  def ranking(self, state: types.TrainState, split: str
              ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """AUC and kin on all exposures of a split, for both paths.

    Returns:
      (metrics, `outcomes.Rows.exposures`).
    """
    dataset = self._dataset
    logits, tokens, label, mask = [], [], [], []
    events = dataset.examples(split, 'impressions')
    for batch, valid in self._exposures(split, events):
      logits.append(self._score(state, self.catalog, batch)[:valid])
      if self._token_score is not None:
        tokens.append(self._token_score(state, self.catalog, batch)[:valid])
      label.append(batch.label[:valid])
      mask.append(batch.mask[:valid])
    width = dataset.ranking_candidates(split, events[:1])[0].shape[1]
    none = np.zeros((0, width), np.float32)
    gather = lambda x: self._mapped.allgather_rows(
        np.concatenate(x) if x else none)
    label, mask = gather(label), gather(mask) > 0
    users = np.broadcast_to(
        dataset.event_user[events][:, None], label.shape)[mask]
    truth, label = label, label[mask]
    logits = gather(logits)[mask]
    score = logits.astype(np.float64)
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
    return out, {'row': np.arange(len(label)), 'label': label, 'score': logits}

  def _share(self, rows: int) -> slice:
    """Returns the contiguous part of `rows` that is this process's."""
    count, index = self._mapped.process_count, self._mapped.process_index
    return slice(rows * index // count, rows * (index + 1) // count)

  def _exposures(self, split: str, events: np.ndarray
                 ) -> Iterator[tuple[types.Batch, int]]:
    """Yields (batch of constant size, valid rows) of this process's share."""
    size = self._config.batch_size

    def make(part: np.ndarray) -> tuple[types.Batch, int]:
      full = np.resize(part, size)
      return self._dataset.assemble(
          full, *self._dataset.ranking_candidates(split, full)), len(part)

    return feed.ahead(
        make, feed.parts(events[self._share(len(events))], size))

  def _targets(self, split: str, max_users: int) -> np.ndarray:
    """Returns the events of the retrieval targets, evenly spread if fewer."""
    events = self._dataset.examples(split, 'targets')
    if not len(events):
      raise types.InputError(
          f'{self._dataset.name}: no positive event in the {split} split: move '
          'the cut, or set config.data.split')
    if max_users and max_users < len(events):
      events = events[np.linspace(0, len(events) - 1, max_users).astype(int)]
    return events

  def retrieval(
      self, state: types.TrainState, split: str, codes: np.ndarray | None,
      max_users: int = 0, alpha: float | None = None
  ) -> tuple[dict[str, float], dict[str, np.ndarray | None]]:
    """Recall and NDCG of the retrieval path, and of the order by both.

    Returns:
      (metrics, `outcomes.Rows.users`).
    """
    dataset, size = self._dataset, self._config.users_per_batch
    events = self._targets(split, max_users)
    find = self._finder(codes, self._wanted(split, events))
    groups = None if codes is None else lists.groups(codes)
    remove = self._config.remove_seen
    alphas = unified.ALPHAS if alpha is None else (alpha,)
    alphas = alphas if self.can_score else ()

    def make(part: np.ndarray) -> tuple[np.ndarray, types.Batch, Any]:
      full, none = np.resize(part, size), np.zeros((size, 0), np.float32)
      return (part, dataset.assemble(full, none.astype(np.int32), none),
              dataset.seen(full) if remove else None)

    found, seconds = [], []
    for part, batch, seen in feed.ahead(
        make, feed.parts(events[self._share(len(events))], size)):
      began = time.perf_counter()
      beams = find(state, batch)
      seconds.append(time.perf_counter() - began)
      if groups is not None:
        beams = lists.complete(beams, groups)
      if remove:
        beams = lists.remove(beams, *seen)
      found.append(self._judge(state, batch, part, beams, alphas))
    rows = self._mapped.allgather_rows(np.concatenate(found) if found else (
        np.zeros((0, 1 + len(alphas), len(selection.LISTS) + 1))))
    means = [dict(zip(selection.LISTS, x)) for x in rows[..., 1:].mean(0)]
    out = {f'retrieval/{name}': x for name, x in means[0].items()}
    place = {'retrieval': rows[:, 0, 0].astype(np.int32)}
    if alphas:
      best = unified.choose(means[1:]) if alpha is None else 0
      out |= {f'unified/{name}': x for name, x in means[1 + best].items()}
      out['unified/alpha'] = alphas[best]
      place['unified'] = rows[:, 1 + best, 0].astype(np.int32)
    if dataset.truth is not None:
      out.update(oracle.retrieval(dataset, events, remove))
    # The first call compiles.
    timed = seconds[1:] or seconds
    if timed:
      out['speed/retrieve_users_per_s'] = size * len(timed) / sum(timed)
    return out, {'event': events, 'place': place['retrieval'],
                 'unified_place': place.get('unified')}

  def _judge(self, state: types.TrainState, batch: types.Batch,
             part: np.ndarray, beams: types.Beams,
             alphas: Sequence[float]) -> np.ndarray:
    """Scores the lists of a batch's first rows.

    Args:
      state: placed.
      batch: [B] requests.
      part: [n] the events of the first n of them; the others are padding.
      beams: [B, W] whole lists.
      alphas: of orders by both paths; () where there is one path.

    Returns:
      [n, 1 + len(alphas), M] float64: place, then `selection.LISTS`; of the
      retrieval path and of each order by both.
    """
    target = self._dataset.event_item[part]

    def columns(found: types.Beams) -> list[np.ndarray]:
      found = jax.tree.map(lambda x: x[:len(part)], found)
      values = metrics.recall_ndcg(
          found.item, found.mask, target, scores=found.score,
          limit=self._beam)
      return [metrics.places(found.item, found.mask, target, self._beam),
              *(values[name] for name in selection.LISTS)]

    out = [columns(beams)]
    if alphas:
      # Of a tie at its end the list has the first: some, as a user would see.
      beams = lists.cut(beams, self._beam)
      again = self._dataset.with_candidates(
          batch, np.resize(part, len(batch.user)), beams.item,
          mask=beams.mask.astype(np.float32))
      logits = self.score(state, again)
      for alpha in alphas:
        score = unified.scores(beams, logits, alpha)
        out.append(columns(lists.permute(
            beams.replace(score=score), unified.order(beams, logits, alpha))))
    return np.moveaxis(np.array(out, np.float64), 2, 0)

  def _wanted(self, split: str, events: np.ndarray) -> int:
    """Returns how many items must be listed, so that a beam's are left."""
    if not self._config.remove_seen:
      return self._beam
    key = (split, len(events))
    if key not in self._most_seen:
      self._most_seen[key] = lists.most_seen(self._dataset, events)
    # To a power of two: fewer programs, and splits share them.
    wanted = 1 << (self._beam + self._most_seen[key] - 1).bit_length()
    return min(wanted, self._dataset.spec.num_items)

  def _finder(self, codes: np.ndarray | None, wanted: int) -> Any:
    """Returns (state, batch) -> Beams of `wanted` items, or of more."""
    if self._method.width is not None:
      wanted = min(max(self._method.width(self._dataset.catalog, wanted),
                       wanted), self._dataset.spec.num_items)
    if codes is None:
      tree, bounds = None, None
    else:
      tree, bounds = trie_lib.pad(
          trie_lib.build(codes), self._method.sizes, wanted)
      tree = self._mapped.place(tree)
    key = ('find', wanted, bounds)
    if key not in self._compiled:
      self._compiled[key] = self._mapped.map_rows(functools.partial(
          _retrieve, self._method, beam_size=wanted, bounds=bounds))
    find = self._compiled[key]
    return lambda state, batch: find(state, (self.catalog, tree), batch)

  def finder(self, state: types.TrainState) -> Any:
    """Returns batch -> Beams on NumPy leaves, for the state's codes."""
    find = self._finder(self.codes(state), self._beam)
    return lambda batch: lists.cut(find(state, batch), self._beam)

  def probe(self, state: types.TrainState, name: str, split: str,
            max_users: int = 0) -> dict[str, float]:
    """Computes what a method measures on the targets of a split by itself.

    Args:
      state: placed.
      name: of `method.probes`: (state, catalog, batch) -> {metric: (sum,
        count)}, over the rows of a batch whose one candidate, the target, has
        mask 1; rows of mask 0 fill it up. A device sees its rows alone.
      split: 'train', 'valid' or 'test'.
      max_users: as `run`.

    Returns:
      Metric -> sum over count; those without a count are left out.
    """
    key = ('probe', name)
    if key not in self._compiled:
      self._compiled[key] = self._mapped.map_rows(functools.partial(
          _first_row, self._method.probes[name]))
    measure, found = self._compiled[key], {}
    local = self._mapped.num_local_devices
    # No row is added to fill a device: its sums are told once.
    size = -(-self._config.users_per_batch // local) * local

    def make(part: np.ndarray) -> types.Batch:
      full = np.resize(part, size)
      mask = (np.arange(size) < len(part)).astype(np.float32)[:, None]
      return self._dataset.assemble(
          full, self._dataset.event_item[full][:, None], mask, mask=mask)

    events = self._targets(split, max_users)
    mine = events[self._share(len(events))]
    # Without a target of its own a process still tells the names.
    for batch in feed.ahead(make, [*feed.parts(mine, size)] or [mine]):
      for metric, pair in measure(state, self.catalog, batch).items():
        found[metric] = found.get(metric, 0.) + np.sum(pair, 0, np.float64)
    names = sorted(found)
    total = self._mapped.allgather_rows(
        np.stack([found[x] for x in names])[None]).sum(0)
    return {x: float(part / count) for x, (part, count) in zip(names, total)
            if count}

  @property
  def sizes(self) -> tuple[int, ...]:
    """Codes a level of the served codes; () where there are none."""
    return self._method.sizes

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


def _retrieve(method: base.Method, state: types.TrainState, const: Any,
              batch: types.Batch, *, beam_size: int,
              bounds: trie_lib.Bounds | None) -> types.Beams:
  catalog, tree = const
  return method.retrieve(state, catalog, batch, tree, beam_size, bounds)


def _first_row(probe: Any, state: types.TrainState, catalog: types.Catalog,
               batch: types.Batch) -> dict[str, jax.Array]:
  """Returns the sums [B, 2] of a probe in the first of a device's rows."""
  first = jnp.arange(batch.user.shape[0])[:, None] == 0
  return {name: jnp.where(first, jnp.stack(pair).astype(jnp.float32)[None], 0.)
          for name, pair in probe(state, catalog, batch).items()}
