"""Catalogs of codes to decode over: uniform ones and one like Amazon Beauty."""

import numpy as np


def make(catalog: str, items: int, codebook: int, levels: int) -> np.ndarray:
  """Returns distinct codes [items, levels] int32, sorted, drawn with seed 0.

  Args:
    catalog: 'random' (uniform), or 'beauty' (12,088 codes of 4 x 256).
    items, codebook, levels: sizes.
  """
  rng = np.random.default_rng(0)
  if catalog == 'beauty':
    return _beauty(rng)
  codes = np.zeros((0, levels), np.int32)
  while len(codes) < items:
    more = rng.integers(
        0, codebook, (items - len(codes) + items // 100, levels), np.int32)
    codes = np.unique(np.concatenate([codes, more]), axis=0)
  if len(codes) > items:
    codes = np.delete(
        codes, rng.choice(len(codes), len(codes) - items, False), 0)
  return codes


def _beauty(rng: np.random.Generator) -> np.ndarray:
  """Draws codes with the branching of LETTER's public ids of Beauty.

  Counted there: 197 / 7,931 / 11,696 / 12,088 distinct prefixes of 1 to 4
  codes; most nodes of level 2 have one child, the widest has 23.
  """
  first = rng.choice(256, 197, replace=False)
  codes = first[:, None]
  for number, spread in ((7_931, 6.), (11_696, .25), (12_088, .05)):
    codes = _grow(rng, codes, number, spread)
  return codes[np.lexsort(codes.T[::-1])].astype(np.int32)


def _grow(rng: np.random.Generator, codes: np.ndarray, number: int,
          spread: float) -> np.ndarray:
  """Gives every prefix a child, and some prefixes more, to `number` rows."""
  weight = rng.gamma(spread, size=len(codes))
  pairs = {(i, int(rng.integers(256))) for i in range(len(codes))}
  draw = rng.choice(
      len(codes), 20 * number, p=weight / weight.sum()).tolist()
  for parent, code in zip(draw, rng.integers(0, 256, 20 * number).tolist()):
    if len(pairs) == number:
      break
    pairs.add((parent, code))
  pairs = np.array(sorted(pairs))
  return np.concatenate([codes[pairs[:, 0]], pairs[:, 1:]], 1)
