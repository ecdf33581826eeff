"""Draws of items."""

import numpy as np


def skip_own(drawn: np.ndarray, own: np.ndarray) -> np.ndarray:
  """Turns draws from V - 1 into uniform draws of V that are never `own`.

  Args:
    drawn: [B, N] in [0, V - 1).
    own: [B, 1].
  """
  return (drawn + (drawn >= own)).astype(np.int32)


def hashed(value: np.ndarray) -> np.ndarray:
  """Mixes uint64 (the finalizer of SplitMix64)."""
  value = value + np.uint64(0x9E3779B97F4A7C15)
  value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return value ^ (value >> np.uint64(31))
