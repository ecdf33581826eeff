"""Sums runs up: intervals over seeds and the table on the last screen."""

from typing import Any, Sequence

from sidrec import metrics
from sidrec import writers


def over_seeds(
    values: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
  """Gathers S seeds' metrics into the form of results.json.

  Args:
    values: one dict of metrics a seed.

  Returns:
    name -> {'mean', 'std', 'per_seed'}; names that every seed has.
  """
  names = [n for n in values[0] if all(n in v for v in values)]
  out = {}
  for name in names:
    column = [float(v[name]) for v in values]
    mean, std = metrics.interval(column)
    out[name] = {'mean': mean, 'std': std, 'per_seed': column}
  return out


def table(results: dict[str, Any]) -> str:
  """Lays out results.json as text, the oracle beside what it bounds.

  Args:
    results: what results.json holds.

  Returns:
    Lines for the screen.
  """
  valid, test = results['metrics']['valid'], results['metrics']['test']
  show = lambda x: '' if x is None else (
      f'{x["mean"]:,.0f}' if x['mean'] >= 1000 else f'{x["mean"]:.4f}') + (
          f' ±{x["std"]:.4f}' if len(x['per_seed']) > 1 else '')
  columns = ['metric', 'valid', 'test', 'oracle (test)', 'of oracle']
  rows = []
  for name in sorted(test):
    if name.startswith('oracle/'):
      continue
    best = test.get(f'oracle/{name}')
    share = '' if best is None else f'{test[name]["mean"] / best["mean"]:.0%}'
    rows.append(dict(zip(columns, [
        name, show(valid.get(name)), show(test[name]), show(best), share])))
  if not any(r[columns[3]] for r in rows):
    columns = columns[:3]
  seeds = ', '.join(str(s) for s in results['seeds'])
  head = (f'{results["method"]} on {results["dataset"]}, seeds {seeds}, '
          f'step {results["steps"]}, {results["wall_seconds"]:.0f} s of '
          f'training on {results["device"]}')
  return '\n'.join([head, results['protocol'], writers.table(rows, columns)])


def values_table(values: dict[str, float]) -> str:
  """Lays out one state's metrics as text."""
  return writers.table(
      [{'metric': k, 'value': v} for k, v in sorted(values.items())],
      ['metric', 'value'])
