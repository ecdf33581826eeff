"""What the codes of finished runs look like, side by side."""

import json
import os
from typing import Mapping, NamedTuple, Sequence

import numpy as np

from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.evaluate import files
from sidrec.evaluate import loaded
from sidrec.tokenizers import diagnostics

# Panel -> name of the metric a level. Each is a line a run, over the levels.
_PANELS = {
    'codes in use': 'usage', 'perplexity': 'perplexity', 'Gini': 'gini',
    'items alone in their prefix': 'alone',
    'near items of one prefix': 'near_prefix',
    'items taken together of one prefix': 'taken_prefix',
    'category purity of prefixes': 'purity',
    'variance that prefixes leave': 'unexplained',
    'error of a guess by the others': 'predicted'}


class Described(NamedTuple):
  """Diagnostics of a run's codes, and of its tuples given out at random."""
  codes: dict[str, float]
  chance: dict[str, float]


def names(folders: Sequence[str]) -> list[str]:
  """Returns as many last parts of each path as tell them all apart.

  Raises:
    types.InputError: a folder stands there twice.
  """
  parts = [os.path.abspath(folder).split(os.sep) for folder in folders]
  for depth in range(1, max(map(len, parts), default=0) + 1):
    found = ['/'.join(part[-depth:]) for part in parts]
    if len(set(found)) == len(found):
      return found
  raise types.InputError(f'the same folder twice: {" ".join(folders)}')


def describe(run: loaded.Loaded, previous: np.ndarray | None = None
             ) -> Described:
  """Computes `diagnostics.report` of a run with all that its data allow.

  Vectors are those that content tokenizers read; items taken together are
  counted in the training split; the category is the items' category field of
  fewest categories, at least two.

  Args:
    run: finished.
    previous: [V, L] codes of an earlier state, for the churn.

  Raises:
    types.InputError: a run without codes.
  """
  if run.codes is None:
    raise types.InputError(f'{run.config.method}: this run has no codes')
  dataset = run.dataset
  events = dataset.examples('train', 'positives')
  known = dict(
      vectors=dataset.catalog.vectors, category=_category(dataset),
      neighbours=diagnostics.taken_together(
          dataset.event_user[events], dataset.event_item[events],
          dataset.spec.num_items))
  return Described(*(
      {k: v for k, v in found.items() if np.isfinite(v)} for found in (
          diagnostics.report(run.codes, run.sizes, previous=previous, **known),
          diagnostics.chance(run.codes, run.sizes, **known))))


def _category(dataset: dataset_lib.Dataset) -> np.ndarray | None:
  """Returns the coarsest category [V] of the items, -1 = unknown."""
  fields = [field for field in dataset.spec.items.fields
            if field.kind == 'category' and field.size >= 2]
  if not fields:
    return None
  column = min(fields, key=lambda field: field.size).start
  category = np.asarray(
      dataset.catalog.features.ids)[:, column].astype(np.int64)
  category[category == 0] = -1  # Row 0 of the vocabulary is 'missing'.
  return category


def write(runs: Mapping[str, loaded.Loaded], folder: str
          ) -> dict[str, Described]:
  """Writes codes.json and, with matplotlib, codes.png of several runs.

  Args:
    runs: name -> finished run.
    folder: where to.

  Returns:
    name -> `describe`; codes.json has the same, by field.
  """
  found = {name: describe(run) for name, run in runs.items()}
  files.write(os.path.join(folder, 'codes.json'), (json.dumps(
      {name: own._asdict() for name, own in found.items()},
      indent=1) + '\n').encode())
  _plot(runs, found, os.path.join(folder, 'codes.png'))
  return found


def _plot(runs: Mapping[str, loaded.Loaded],
          found: Mapping[str, Described], path: str) -> None:
  """Draws a panel a diagnostic, and how often each code is used.

  Dashed: the same tuples given out at random, where that is another line.
  """
  try:
    from matplotlib import figure  # pylint: disable=g-import-not-at-top
  except ImportError:
    return
  panels = {title: name for title, name in _PANELS.items()
            if any(f'tokenizer/{name}@1' in x.codes for x in found.values())}
  canvas = figure.Figure((20, 8), layout='constrained')
  axes = canvas.subplots(2, 5).ravel()
  for axis, (title, name) in zip(axes, panels.items()):
    for number, (run, own) in enumerate(found.items()):
      line, lot = (_levels(x, f'tokenizer/{name}') for x in own)
      color = f'C{number % 10}'
      axis.plot(np.arange(1, len(line) + 1), line, marker='o', label=run,
                color=color)
      if line != lot:
        axis.plot(np.arange(1, len(lot) + 1), lot, '--', color=color)
    axis.set(title=title, xlabel='level')
    axis.xaxis.get_major_locator().set_params(integer=True)
  # The hourglass: a steep line is a level that a few codes take over.
  axis = axes[len(panels)]
  for run, values in runs.items():
    for level in range(values.codes.shape[1] - 1):
      count = np.sort(np.bincount(values.codes[:, level]))[::-1]
      axis.plot(np.arange(1, count.size + 1), np.maximum(count, .5),
                label=f'{run} {level + 1}', linewidth=1)
  axis.set(title='items a code, by rank (levels but the last)', xscale='log',
           yscale='log')
  if sum(x.codes.shape[1] - 1 for x in runs.values()) <= 8:
    axis.legend(fontsize=6)
  axes[0].legend(fontsize=7)
  for axis in axes[len(panels) + 1:]:
    axis.set_axis_off()
  canvas.savefig(path, dpi=110)


def _levels(values: Mapping[str, float], name: str) -> Sequence[float]:
  out = []
  while f'{name}@{len(out) + 1}' in values:
    out.append(values[f'{name}@{len(out) + 1}'])
  return out
