"""Ranks exposures by item click rate and by gradient-boosted trees."""

import dataclasses
import time
from typing import Any, Mapping

import lightgbm
import numpy as np
import outcome
from sidrec import data
from sidrec import metrics
import tree_features

RATE_PRIORS = (2., 5., 10., 20.)  # Exposures that the mean rate counts for.
TREES = dict(
    objective='binary', metric='binary_logloss', learning_rate=.05,
    min_data_in_leaf=100, feature_fraction=.5, bagging_fraction=.8,
    bagging_freq=1, lambda_l2=10., max_bin=127, verbose=-1,
    deterministic=True, force_row_wise=True)
TREE_LEAVES = (15, 31, 63)
MAX_TREES, PATIENCE = 1500, 50


@dataclasses.dataclass(frozen=True)
class Rows:
  """R ranked rows: matrix [R, columns] and label, user, item [R]."""
  matrix: np.ndarray
  label: np.ndarray
  user: np.ndarray
  item: np.ndarray

  def score(self, probability: np.ndarray) -> dict[str, float]:
    """Returns the metrics of the ranking path."""
    return metrics.ranking(self.label, probability, self.user)


def item_rates(dataset: data.Dataset, parts: Mapping[str, Rows],
               layout: tree_features.Layout) -> list[dict[str, Any]]:
  """Scores the smoothed click rate of the item alone.

  Two forms: counted over the training split, and over everything strictly
  before the event.

  Args:
    dataset: the data.
    parts: 'valid' and 'test'.
    layout: names of the columns.
  """
  began = time.perf_counter()
  events = dataset.examples('train', 'impressions')
  items, label = dataset.ranking_candidates('train', events)
  num_items = dataset.spec.num_items
  exposures = np.bincount(items.ravel(), minlength=num_items)
  clicks = np.bincount(
      items.ravel(), weights=label.ravel(), minlength=num_items)
  mean = float(label.mean())
  counts = {'item click rate': {
      split: (exposures[rows.item], clicks[rows.item])
      for split, rows in parts.items()}}
  names = [f'known/item/{name}' for name in ('exposures', 'positives')]
  if set(names) <= set(layout.names):
    columns = [layout.names.index(name) for name in names]
    # The features are log(1 + count).
    counts['item click rate, point in time'] = {
        split: tuple(np.expm1(rows.matrix[:, c].astype(np.float64))
                     for c in columns) for split, rows in parts.items()}
  else:
    outcome.log('item click rate, point in time: does not apply, the data '
                'has no item rates in time')
  results = []
  for name, of_split in counts.items():
    rate = lambda split, prior, of_split=of_split: (
        (of_split[split][1] + prior * mean) / (of_split[split][0] + prior))
    prior = max(RATE_PRIORS, key=lambda prior: metrics.auc(
        parts['valid'].label, rate('valid', prior)))
    values = {split: rows.score(rate(split, prior))
              for split, rows in parts.items()}
    results.append(outcome.summarize(
        name, dataset, [0], [values], time.perf_counter() - began,
        dict(prior=prior)))
  return results


def is_running(name: str) -> bool:
  """Returns whether a column counts what this user did in the log."""
  group, *rest = name.split('/')
  counted = group == 'cross' or (group == 'request' and rest[0] == 'user')
  return counted and not any(x.startswith('history_') for x in rest)


def trees(
    name: str, dataset: data.Dataset, parts: Mapping[str, Rows],
    layout: tree_features.Layout, columns: np.ndarray, num_seeds: int,
    num_threads: int,
) -> dict[str, Any]:
  """Trains gradient-boosted trees; size and length chosen on validation.

  Args:
    name: of the method.
    dataset: the data.
    parts: 'train', 'valid' and 'test'.
    layout: names of the columns.
    columns: which to use.
    num_seeds: S.
    num_threads: of LightGBM.
  """
  began = time.perf_counter()
  names = [layout.names[c] for c in columns]
  matrices = {split: rows.matrix[:, columns] for split, rows in parts.items()}
  made = lightgbm.Dataset(
      matrices['train'], parts['train'].label, params=TREES,
      categorical_feature=[
          place for place, n in enumerate(names) if n in layout.categories])
  valid = made.create_valid(matrices['valid'], parts['valid'].label)

  def fit(leaves: int, seed: int) -> lightgbm.Booster:
    booster = lightgbm.train(
        dict(TREES, num_leaves=leaves, seed=seed, num_threads=num_threads),
        made, MAX_TREES, valid_sets=[valid],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)])
    outcome.log(f'{name}: {leaves} leaves, seed {seed}: '
                f'{booster.best_iteration} trees')
    return booster

  def score(booster: lightgbm.Booster, split: str) -> dict[str, float]:
    return parts[split].score(booster.predict(matrices[split]))

  tried = {leaves: fit(leaves, 0) for leaves in TREE_LEAVES}
  leaves = max(tried, key=lambda n: score(tried[n], 'valid')['ranking/auc'])
  boosters = [tried[leaves]] + [fit(leaves, s) for s in range(1, num_seeds)]
  gain = boosters[0].feature_importance('gain')
  top = np.argsort(-gain)[:8]
  outcome.log(f'{name}: most used: ' + ', '.join(names[place] for place in top))
  return outcome.summarize(
      name, dataset, range(num_seeds),
      [{split: score(booster, split) for split in outcome.SPLITS}
       for booster in boosters], time.perf_counter() - began,
      dict(num_leaves=leaves, num_trees=boosters[0].best_iteration))


def run(
    dataset: data.Dataset, num_seeds: int, num_threads: int, max_rows: int
) -> list[dict[str, Any]]:
  """Runs all ranking baselines."""
  if not dataset.has_negatives:
    outcome.log('the log has no negatives: ranking is against sampled items, '
                'as the protocol says')
  layout = tree_features.Layout(dataset)
  parts = {}
  for split in ('train',) + outcome.SPLITS:
    events = dataset.examples(split, 'impressions')
    width = 1 if dataset.has_negatives else 1 + dataset.eval_negatives
    if split == 'train' and len(events) * width > max_rows:
      outcome.log(f'trees train on {max_rows // width} of {len(events)} events')
      events = np.sort(np.random.default_rng(0).choice(
          events, max_rows // width, replace=False))
    parts[split] = Rows(*layout.split(split, events))
    outcome.log(f'{split}: {len(parts[split].label)} rows, '
                f'{len(layout.names)} columns')
  results = item_rates(
      dataset, {split: parts[split] for split in outcome.SPLITS}, layout)
  every = np.arange(len(layout.names))
  results.append(trees('gradient-boosted trees', dataset, parts, layout,
                       every, num_seeds, num_threads))
  still = np.array([not is_running(name) for name in layout.names])
  if not still.all():
    results.append(trees(
        'trees, no statistics of the user', dataset, parts, layout,
        every[still], num_seeds, num_threads))
  return results
