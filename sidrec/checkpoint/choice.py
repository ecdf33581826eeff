"""Which checkpoint is the best one."""

import math
from typing import Mapping


def quality(name: str | None, among: str | None, sign: int,
            metrics: Mapping[str, float] | None) -> float:
  """Returns what the best checkpoint has the most (sign 1) or least of.

  Args:
    name: the metric.
    among: another one, whose largest value makes the group that competes.
    sign: 1 or -1.
    metrics: of a checkpoint, as they were read.
  """
  value = metrics.get(name) if isinstance(metrics, dict) else None
  if value is None or math.isnan(value):
    return -sign * math.inf
  if among is None:
    return float(value)
  if among not in metrics:  # Of another version: never the best.
    return -sign * math.inf
  # One number for both: the group, and within it the value as a share.
  return sign * metrics[among] + math.atan(value) / math.pi
