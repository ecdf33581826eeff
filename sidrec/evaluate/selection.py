"""What validation says of a state: to the trainer a number, to us a line."""

from typing import Mapping

from sidrec import types

# What the line of a validation shows: the first four that there are.
_RANKING = ('ranking/auc', 'ranking/gauc', 'retrieval/recall@10',
            'retrieval/recall@50', 'ranking/logloss', 'ranking/ece')
_RETRIEVAL = ('retrieval/recall@5', 'retrieval/recall@10', 'retrieval/ndcg@5',
              'retrieval/ndcg@10')
_SHOWN = 4


def monitor(values: Mapping[str, float], weights: Mapping[str, float]
            ) -> float:
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


def line(values: Mapping[str, float], value: float, best: bool) -> str:
  """Lays a validation out on one line; metrics.jsonl has all of it.

  Args:
    values: metrics of the validation split.
    value: the monitored one.
    best: whether it is the best so far.

  Returns:
    The monitored value, the four metrics that matter for a method of these
    metrics, and a word where it is the best so far.
  """
  names = _RANKING if _RANKING[0] in values else _RETRIEVAL
  shown = [name for name in names if name in values][:_SHOWN]
  # A probe's section has metrics of its own.
  shown = shown or sorted(values)[:_SHOWN]
  numbers = '  '.join(f'{name} {values[name]:.4f}' for name in shown)
  return f'monitor {value:.4f}{" (best so far)" if best else ""}  {numbers}'
