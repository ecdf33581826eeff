"""Finds keys among many, many questions at once."""

import numpy as np


def search(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
  """Returns searchsorted(keys, wanted), asked in order: it spares the cache.

  Of 5 million random questions that takes a fifth of the time.

  Args:
    keys: [N] sorted.
    wanted: [M].
  """
  order = np.argsort(wanted)
  result = np.empty(len(wanted), np.int64)
  result[order] = np.searchsorted(keys, wanted[order])
  return result


class Table:
  """Finds int64 keys: open addressing, all questions at once.

  Most questions (a user with a random item) have no entry; a hash says so
  with one look where a binary search needs twenty.
  """

  def __init__(self, names: np.ndarray):
    """Stores distinct keys [G] >= 0; the answer is their place."""
    bits = max(int(3 * len(names)).bit_length(), 4)
    self._shift = np.uint64(64 - bits)
    tail = 64
    while True:  # A run of taken slots may pass the end: then a longer tail.
      self._key = np.full((1 << bits) + tail, -1, np.int64)
      self._value = np.zeros((1 << bits) + tail, np.int32)
      todo, slot = np.arange(len(names)), self._slot(names)
      while len(todo) and slot.max() < len(self._key) - 1:
        free = self._key[slot] < 0
        self._key[slot[free]] = names[todo[free]]
        won = self._key[slot] == names[todo]
        self._value[slot[won]] = todo[won]
        todo, slot = todo[~won], slot[~won] + 1
      if not len(todo):
        return
      tail *= 4

  def _slot(self, keys: np.ndarray) -> np.ndarray:
    """Returns the first slot of each key (Fibonacci hashing)."""
    mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> self._shift).astype(np.int64)

  def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (which, place): the questions with an answer, and the answers."""
    place = np.full(len(keys), -1, np.int64)
    todo, slot = np.arange(len(keys)), self._slot(keys)
    while len(todo):
      there = self._key[slot]
      hit = there == keys[todo]
      place[todo[hit]] = self._value[slot[hit]]
      more = ~hit & (there >= 0)
      todo, slot = todo[more], slot[more] + 1
    which = np.flatnonzero(place >= 0)
    return which, place[which]
