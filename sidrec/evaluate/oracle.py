"""What the best recommender could reach where a planted world knows itself."""

import numpy as np

from sidrec import metrics
from sidrec.data import dataset as dataset_lib
from sidrec.evaluate import feed


def retrieval(dataset: dataset_lib.Dataset, events: np.ndarray,
              remove_seen: bool) -> dict[str, float]:
  """Ranks the catalog by the true probability of the next click.

  Args:
    dataset: of a planted world.
    events: [N] retrieval targets, at least one.
    remove_seen: whether items of the user's sequence are no answers.

  Returns:
    'oracle/retrieval/recall@K' and 'oracle/retrieval/ndcg@K'.
  """
  found = []
  for part in feed.parts(events, 256):
    chance = np.array(dataset.truth.exposure_and_click(part))
    if remove_seen:
      item, mask = dataset.seen(part)
      row, place = np.nonzero(mask)
      chance[row, item[row, place]] = -np.inf
    best = np.argsort(-chance, 1, kind='stable')[:, :max(metrics.KS)]
    score = np.take_along_axis(chance, best, 1)
    found.append(metrics.recall_ndcg(
        best, np.isfinite(score), dataset.event_item[part], scores=score))
  return {f'oracle/retrieval/{name}': float(np.concatenate(
      [x[name] for x in found]).mean()) for name in found[0]}
