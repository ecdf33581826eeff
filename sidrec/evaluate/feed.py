"""Hands out batches that a thread assembles ahead, and keeps none."""

import collections
from concurrent import futures
from typing import Any, Callable, Iterable, Iterator

import numpy as np


def parts(events: np.ndarray, size: int) -> Iterator[np.ndarray]:
  """Yields events [N], `size` at a time; the last may be fewer."""
  for start in range(0, len(events), size):
    yield events[start:start + size]


def ahead(make: Callable[[Any], Any], jobs: Iterable[Any], depth: int = 2
          ) -> Iterator[Any]:
  """Yields make(job) of each job in order, at most `depth` made beforehand.

  An exception of `make` is raised here; the thread ends with the iterator.

  Args:
    make: called in one thread, one job at a time.
    jobs: what to make.
    depth: results that may wait.
  """
  ready = collections.deque()
  with futures.ThreadPoolExecutor(1, 'sidrec-evaluation') as pool:
    try:
      for job in jobs:
        ready.append(pool.submit(make, job))
        if len(ready) > depth:
          yield ready.popleft().result()
      while ready:
        yield ready.popleft().result()
    finally:
      for future in ready:
        future.cancel()
