"""What validation says of a state: to the trainer a number, to us a line."""

from typing import Any, Collection, Mapping

from sidrec import metrics
from sidrec import types
from sidrec.config import ranges
from sidrec.methods import base

# Of lists of items, whichever path made them.
LISTS = tuple(
    f'{kind}@{k}' for k in metrics.KS for kind in ('recall', 'ndcg'))
_WEIGHT = ranges.number(-1e6, 1e6)
# What the line of a validation shows: the first four that there are.
_RANKING = ('ranking/auc', 'ranking/gauc', 'retrieval/recall@10',
            'retrieval/recall@50', 'ranking/logloss', 'ranking/ece')
_RETRIEVAL = ('retrieval/recall@5', 'retrieval/recall@10', 'retrieval/ndcg@5',
              'retrieval/ndcg@10')
_SHOWN = 4
_MOST_LEVELS = 65  # Those of a tokenizer, and a suffix.


def names(ranks: bool, retrieves: bool, both: bool, num_levels: int
          ) -> list[str]:
  """Returns the metrics that say how good a state is.

  Args:
    ranks: whether there is a ranking path.
    retrieves: whether there is a retrieval path.
    both: whether the retrieval path ranks exposures too.
    num_levels: of the codes; 0 = there are none.
  """
  out = [f'ranking/{x}' for x in ('auc', 'gauc', 'logloss', 'ece') if ranks]
  for path, there in (('retrieval', retrieves), ('unified', ranks)):
    out += [f'{path}/{name}' for name in LISTS if retrieves and there]
  out += ['unified/auc_gap'] * both
  out += ['tokenizer/collision_rate'] * (num_levels > 0)
  return out + [f'tokenizer/{x}@{level + 1}' for level in range(num_levels)
                for x in ('usage', 'perplexity', 'gini')]


def _weighs(value: Any) -> bool:
  """Whether a value is weights of metrics, not all of them 0."""
  known = names(True, True, True, _MOST_LEVELS)
  return isinstance(value, Mapping) and any(value.values()) and all(
      name in known and _WEIGHT.holds(weight)
      for name, weight in value.items())


MONITOR = ranges.Range(
    'weights of metrics, finite and not all 0: '
    f'{", ".join(names(True, True, True, 1))}', _weighs)


def check(method: base.Method) -> None:
  """Refuses to select by metrics that a method does not have.

  Args:
    method: what is trained.

  Raises:
    types.InputError: naming them.
  """
  known = names(method.score is not None, method.retrieve is not None,
                method.token_score is not None, len(method.sizes))
  for section in method.sections:
    if section.watch is not None and not section.watch.probe:
      _refuse(set(section.watch.monitor) - set(known), known)


def _refuse(unknown: Collection[str], known: Collection[str]) -> None:
  if unknown:
    raise types.InputError(
        f'config.eval.monitor names {", ".join(sorted(unknown))}: there is '
        f'{", ".join(sorted(known))}')


def monitor(values: Mapping[str, float], weights: Mapping[str, float]
            ) -> float:
  """Returns what model selection maximizes: a weighted sum of metrics.

  Args:
    values: metrics of the validation split.
    weights: metric name -> weight.

  Raises:
    types.InputError: if a weighted metric is not there.
  """
  _refuse(set(weights) - set(values), values)
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
