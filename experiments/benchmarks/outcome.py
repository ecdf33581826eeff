"""Prints progress and puts values in the form of results.json."""

import time
from typing import Any, Mapping, Sequence

import compare_table
import numpy as np
from sidrec import data
from sidrec import metrics

SPLITS = ('valid', 'test')
_START = time.perf_counter()


def log(text: str) -> None:
  """Prints a line of progress."""
  print(f'[{time.perf_counter() - _START:6.1f} s] {text}', flush=True)


def summarize(
    name: str, dataset: data.Dataset, seeds: Sequence[int],
    values: Sequence[Mapping[str, Mapping[str, float]]], seconds: float,
    settings: Mapping[str, Any] | None = None, remove_seen: bool = False,
) -> dict[str, Any]:
  """Puts the values of a method in the form of results.json.

  Args:
    name: of the method.
    dataset: what was scored.
    seeds: S.
    values: S times split -> metric -> value; NaN is left out.
    seconds: wall time of all.
    settings: what was chosen on the validation split.
    remove_seen: whether items of the history left the lists.
  """
  table = {}
  for split in SPLITS:
    table[split] = {}
    for metric in values[0].get(split, ()):
      numbers = [float(value[split][metric]) for value in values]
      if np.all(np.isfinite(numbers)):
        mean, std = metrics.interval(numbers)
        table[split][metric] = dict(mean=mean, std=std, per_seed=numbers)
  shown = {metric: value['mean'] for metric, value in table['test'].items()}
  log(f'{name}: ' + ', '.join(
      f'{metric} {shown[metric]:.4f}' for metric in compare_table.METRICS
      if metric in shown) + f' {dict(settings or {})}')
  # In the words of a run, so that equal rules are one line of a table.
  protocol = (f'{dataset.protocol}; seen items '
              f'{"removed" if remove_seen else "kept"}; items of one score '
              'count as the mean over their orders')
  return dict(
      method=name, dataset=dataset.name, protocol=protocol,
      remove_seen=remove_seen, data=dict(
          name=dataset.name, fingerprint=dataset.fingerprint),
      seeds=list(seeds), steps=0, wall_seconds=seconds, device='cpu',
      settings=dict(settings or {}), metrics=table)
