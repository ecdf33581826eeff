"""One order from both paths: retrieval logit + alpha * ranking logit.

The ranking path says what is clicked once it is shown, the retrieval path what
is shown and clicked: neither is the order of a catalog by itself. Alpha is
chosen on validation; 0 is retrieval's own order.
"""

import numbers
from typing import Any, Mapping, Sequence

import numpy as np

from sidrec import types

ALPHAS = (0., .1, .2, .3, .5, .7, 1., 2., 5.)
_JUDGES = ('ndcg@10', 'recall@10')


def scores(beams: types.Beams, ranking: np.ndarray, alpha: float
           ) -> np.ndarray:
  """Scores retrieved items by both paths.

  Args:
    beams: [B, W], scores of the retrieval path.
    ranking: [B, W] logits of the ranking path.
    alpha: what they count for.

  Returns:
    [B, W], -inf where a beam is not valid.
  """
  with np.errstate(invalid='ignore'):  # What is not valid may be infinite.
    return np.where(beams.mask, beams.score + alpha * ranking, -np.inf)


def order(beams: types.Beams, ranking: np.ndarray, alpha: float
          ) -> np.ndarray:
  """Returns the places [B, W] of beams by `scores`, best first."""
  return np.argsort(-scores(beams, ranking, alpha), 1, kind='stable')


def choose(metrics: Sequence[Mapping[str, float]]) -> int:
  """Returns which of `ALPHAS` is the best on validation.

  Args:
    metrics: of the order by each of them, by the names in `selection.LISTS`.

  Returns:
    The place of the highest NDCG@10 among those that are below retrieval's own
    order in nothing; the smallest of equals.
  """
  allowed = [i for i, own in enumerate(metrics) if all(
      own[name] >= metrics[0][name] for name in _JUDGES)]
  return max(allowed, key=lambda i: (metrics[i][_JUDGES[0]], -i))


def of_results(results: Mapping[str, Any]) -> float | None:
  """Returns the alpha of a run's first seed; None where none was chosen.

  Args:
    results: what results.json holds.
  """
  found = results.get('alpha')
  if not isinstance(found, list) or not found or not isinstance(
      found[0], numbers.Real):
    return None
  return float(found[0])
