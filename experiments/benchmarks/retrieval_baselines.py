"""Retrieves from the whole catalog by popularity, neighbors and EASE."""

import itertools
import time
from typing import Any, Callable, Iterator, Mapping, Sequence

import item_models
import numpy as np
import outcome
from scipy import sparse
from sidrec import data
from sidrec import metrics
from sidrec.data import history

KS = (5, 10, 50)
HALF_LIVES_HOURS = (np.inf, 96., 24., 12., 6., 3., 1.5, .75)
ALPHAS, SHRINKS = (.25, .5, .75), (0., 10., 30., 100., 300.)
L2S = (100., 300., 1000., 2000., 5000.)
# (weight of positives from before the log, decay a step back).
PROFILES = ((1., 1.), (.5, 1.), (.25, 1.), (1., .9), (1., .8), (.5, .9))
# What users did before the log that counts as positive.
BEFORE = (history.LONG_VIEWED, history.LIKED)

Lists = Iterator[item_models.Ranked]


class Requests:
  """The retrieval targets of a split and what is known of their users."""

  def __init__(self, dataset: data.Dataset, events: np.ndarray):
    """Gathers histories strictly before each of the events [B]."""
    read = dataset.requests_of(events, np.arange(len(events))).history
    self.num_items = dataset.spec.num_items
    self.target = dataset.event_item[events]
    self.time = dataset.event_time[events]
    self.history, self.action = read.item, read.action
    self.mask = (read.segment > 0).astype(np.float32)
    self.seen = item_models.profiles(self.history, self.mask, self.num_items)

  def profile(self, before: float, decay: float) -> sparse.csr_matrix:
    """Returns [B, V]: positives of the log 1, earlier ones `before`."""
    weight = np.where(
        self.action == history.POSITIVE, 1.,
        np.where(np.isin(self.action, BEFORE), before, 0.)) * self.mask
    return item_models.profiles(self.history, weight, self.num_items, decay)

  def score(self, lists: Lists) -> dict[str, float]:
    """Returns the retrieval metrics of ranked items; ties are shared out."""
    found = {}
    for part in lists:
      rows = metrics.recall_ndcg(
          part.item, part.mask, self.target[part.row], KS, scores=part.score)
      for name, value in rows.items():
        found.setdefault(f'retrieval/{name}', []).append(value)
    return {name: float(np.concatenate(value).mean())
            for name, value in found.items()}


def training_matrix(dataset: data.Dataset) -> sparse.csr_matrix:
  """Returns [U, V]: training positives and those from before the log."""
  events = dataset.examples('train', 'positives')
  sequences = dataset.sequences
  earlier = np.isin(sequences.action, BEFORE)
  num_users = dataset.spec.num_users
  owner = np.repeat(
      np.arange(num_users), np.diff(sequences.offsets)[:num_users])
  return item_models.interactions(
      np.concatenate([dataset.event_user[events], owner[earlier]]),
      np.concatenate([dataset.event_item[events], sequences.item[earlier]]),
      num_users, dataset.spec.num_items)


class Retrieval:
  """Chooses settings on some validation users and scores both splits."""

  def __init__(self, dataset: data.Dataset, tune_users: int):
    """Gathers all requests.

    Args:
      dataset: the data.
      tune_users: validation users to choose settings on; 0: all.
    """
    self.dataset = dataset
    events = {s: dataset.examples(s, 'targets') for s in outcome.SPLITS}
    self.requests = {s: Requests(dataset, e) for s, e in events.items()}
    some = events['valid']
    if 0 < tune_users < len(some):
      some = some[np.linspace(0, len(some) - 1, tune_users).astype(int)]
    self.tuning = Requests(dataset, some)
    self.prior = np.asarray(dataset.catalog.popularity, np.float64)

  def choose(
      self, name: str, options: Sequence[Any],
      rank: Callable[[Requests, Any], Lists],
  ) -> tuple[Any, float]:
    """Returns the option with the best Recall@10 + Recall@50, and that sum."""
    best = None
    for option in options:
      values = self.tuning.score(rank(self.tuning, option))
      value = values['retrieval/recall@10'] + values['retrieval/recall@50']
      if best is None or value > best[1]:
        best = option, value
    outcome.log(f'{name}: best of {len(options)}: {best[0]}, '
                f'R@10 + R@50 {best[1]:.4f}')
    return best

  def finish(
      self, name: str, settings: Mapping[str, Any], began: float,
      rank: Callable[[Requests, sparse.csr_matrix | None], Lists],
  ) -> list[dict[str, Any]]:
    """Scores a ranking as it is, and with seen items at the end."""
    results = []
    for suffix, is_dropped in (('', False), (', seen items dropped', True)):
      values = {s: r.score(rank(r, r.seen if is_dropped else None))
                for s, r in self.requests.items()}
      results.append(outcome.summarize(
          name + suffix, self.dataset, [0], [values],
          time.perf_counter() - began, settings, is_dropped))
    return results

  def popularity(self) -> list[dict[str, Any]]:
    """Runs the training split's counts, and counts that fade with time."""
    began, dataset, k = time.perf_counter(), self.dataset, max(KS)
    results = self.finish(
        'popularity', {}, began, lambda r, seen: item_models.popular(
            self.prior, len(r.target), k, seen))
    if dataset.ordinal:
      outcome.log('popularity, point in time: does not apply, the data has '
                  'only the order within a user')
      return results
    # Leave-one-out hides the last events of everyone.
    is_counted = dataset.event_label > 0
    if not dataset.protocol.startswith('temporal'):
      is_counted &= dataset.event_split == 0
    item = dataset.event_item[is_counted]
    moment = dataset.event_time[is_counted]
    now = lambda r, hours, seen=None: item_models.popular_now(
        item, moment, r.time, r.num_items, k, hours * 3.6e6, seen)
    began = time.perf_counter()
    hours, _ = self.choose('popularity, point in time', HALF_LIVES_HOURS, now)
    return results + self.finish(
        'popularity, point in time', dict(half_life_hours=str(hours)), began,
        lambda r, seen: now(r, hours, seen))

  def linear(
      self, name: str, options: Sequence[Mapping[str, float]],
      make: Callable[..., Any],
  ) -> list[dict[str, Any]]:
    """Runs an item-to-item model: `make(**option)` gives the weights.

    Both the option and how a history becomes a profile are chosen.
    """
    began, best = time.perf_counter(), None
    for option in options:
      weights = make(**option)
      profile, value = self.choose(
          f'{name} {option}', PROFILES,
          lambda r, p, weights=weights: item_models.recommend(
              r.profile(*p), weights, self.prior, max(KS)))
      if best is None or value > best[0]:
        best = value, option, profile, weights
    _, option, (before, decay), weights = best
    return self.finish(
        name, dict(option, before=before, decay=decay), began,
        lambda r, seen: item_models.recommend(
            r.profile(before, decay), weights, self.prior, max(KS), seen))


def run(
    dataset: data.Dataset, tune_users: int, max_ease_items: int
) -> list[dict[str, Any]]:
  """Runs all retrieval baselines."""
  runs = Retrieval(dataset, tune_users)
  results = runs.popularity()
  matrix = training_matrix(dataset)
  outcome.log(f'{matrix.nnz} interactions to learn from')
  plain = [dict(alpha=.5, shrink=0.)]
  make = lambda alpha, shrink: item_models.neighbors(matrix, alpha, shrink)
  results += runs.linear('item-kNN, plain cosine', plain, make)
  results += runs.linear('item-kNN', [
      dict(alpha=alpha, shrink=shrink)
      for alpha, shrink in itertools.product(ALPHAS, SHRINKS)], make)
  if dataset.spec.num_items > max_ease_items:
    outcome.log(f'EASE: does not apply, {dataset.spec.num_items} items are '
                f'more than --max_ease_items={max_ease_items}')
    return results
  return results + runs.linear('EASE', [dict(l2=l2) for l2 in L2S],
                               lambda l2: item_models.ease(matrix, l2))
