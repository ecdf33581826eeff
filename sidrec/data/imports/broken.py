"""Rows that cannot be used: gathered with their reasons, written down."""

import collections
import csv
import os
from typing import Sequence

import numpy as np

from sidrec import types
from sidrec.data.imports import files

FILE = 'rejected.csv'


class Rejected:
  """Rows that are left out, each with its first reason."""

  def __init__(self, raws: Sequence[files.Raw]):
    self._raws = raws
    self._rows: dict[tuple[int, int], tuple[str, str | None]] = {}
    for place, raw in enumerate(raws):
      for row, reason, text in raw.broken:
        self._rows[place, row] = reason, text

  def add(self, bad: np.ndarray, source: np.ndarray, row: np.ndarray,
          reason: str) -> None:
    """Adds rows.

    Args:
      bad: [R] bool.
      source: [R] place of each row's file.
      row: [R] in that file.
      reason: why.
    """
    for place in np.flatnonzero(bad):
      self._rows.setdefault(
          (int(source[place]), int(row[place])), (reason, None))

  def counts(self) -> str:
    """Returns how many there are by reason, '' for none."""
    found = collections.Counter(reason for reason, _ in self._rows.values())
    return ', '.join(f'{count:,} {reason}' for reason, count in
                     found.most_common())

  def __len__(self) -> int:
    return len(self._rows)

  def write(self, directory: str) -> None:
    """Writes `rejected.csv`; removes an old one where nothing is rejected."""
    path = os.path.join(directory, FILE)
    try:
      if not self._rows:
        if os.path.exists(path):
          os.remove(path)
        return
      os.makedirs(directory, exist_ok=True)
      with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['file', 'row', 'reason', 'raw'])
        for (place, row), (reason, text) in sorted(self._rows.items()):
          raw = self._raws[place]
          writer.writerow([raw.name, row, reason, files.shown(raw, row)
                           if text is None else text])
    except OSError as error:
      raise types.InputError(
          f'{path}: cannot be written ({error}); choose another folder'
      ) from error
