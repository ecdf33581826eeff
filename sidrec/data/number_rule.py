"""Does a catalog's order give the future away?

The rule guesses the next ten numbers after the largest in the history, and
knows nothing else. Where items are numbered by first appearance over whole
sequences, test items included, it finds targets that it should not.
"""

import dataclasses

from absl import logging
import numpy as np

from sidrec.data import dataset as dataset_lib

NUM_GUESSES = 10
LEAST_RECALL = .01  # What is below says little of any order.
RATIO = 3.  # To the same rule with random numbers.
_ROWS = 4096  # Targets at once.


@dataclasses.dataclass(frozen=True)
class Found:
  """What the rule finds among the test targets.

  recall, ndcg: of ten guesses, numbered as the items table is ordered.
  random_recall, random_ndcg: the same with internal (random) numbers.
  """
  recall: float
  ndcg: float
  random_recall: float
  random_ndcg: float

  @property
  def leaks(self) -> bool:
    """Returns whether the order of the table gives the future away."""
    return self.recall > max(LEAST_RECALL, RATIO * self.random_recall)


def measure(dataset: dataset_lib.Dataset) -> Found:
  """Applies the rule to the last positive of each user in the test split."""
  row = np.empty(len(dataset.file_order), np.int64)
  row[dataset.file_order] = np.arange(len(row))
  return Found(*_of(dataset, row), *_of(dataset, np.arange(len(row))))


def warn(dataset: dataset_lib.Dataset, found: Found) -> None:
  """Says what a leak means for whoever reads the catalog's order."""
  if found.leaks:
    logging.warning(
        '%s: the order of items gives the future away: the next %d numbers '
        'after the largest in the history hit %.1f %% of the test targets, '
        'random numbers %.1f %%. sidrec numbers items at random; other '
        'readers of this folder should', dataset.name, NUM_GUESSES,
        100. * found.recall, 100. * found.random_recall)


def _of(
    dataset: dataset_lib.Dataset, number: np.ndarray) -> tuple[float, float]:
  """Returns Recall@10 and NDCG@10 with the number [V] of each item."""
  events = dataset.examples('test', 'targets')
  recall = ndcg = 0.
  for start in range(0, len(events), _ROWS):
    part = events[start:start + _ROWS]
    item, mask = dataset.seen(part)
    largest = np.where(mask > 0, number[item], -1).max(1)
    place = number[dataset.event_item[part]] - largest - 1
    # Without a history there is no largest number, and no guess.
    hit = (largest >= 0) & (place >= 0) & (place < NUM_GUESSES)
    recall += hit.sum()
    ndcg += (1. / np.log2(place[hit] + 2.)).sum()
  return float(recall) / max(len(events), 1), float(ndcg) / max(len(events), 1)
