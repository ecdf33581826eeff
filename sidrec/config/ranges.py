"""What settings may be: ranges and choices, declared beside what reads them.

A table has the form of the configuration that it is of: a `Range` for each
leaf, a table for each sub-tree. `checks.check` joins the tables of a run and
holds its configuration against them.
"""

import fractions
import re
from typing import Any, Callable, Mapping, NamedTuple

_FLOAT32 = 3e38  # Below the largest number that a model computes with.
_LENGTH = re.compile(
    r'\s*(\d{1,20}\.?\d{0,20}|\.\d{1,20})\s*(steps?|epochs?)\s*')

Table = Mapping[str, Any]  # Name -> Range, or the Table of a sub-tree.


class Range(NamedTuple):
  """What one setting may be.

  says: in words, as a message has them behind `config.KEY=VALUE: `.
  holds: (value) -> whether it is; for any value at all.
  fits: (its sub-tree, the whole configuration) -> whether it agrees with other
    settings; asked once all of them hold by themselves.
  brings: of a choice: name -> table of what there is then, from the top of the
    configuration.
  is_batch: whether it counts rows that devices share evenly.
  """
  says: str
  holds: Callable[[Any], bool]
  fits: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] | None = None
  brings: Mapping[str, Table] = {}
  is_batch: bool = False

  def that(self, says: str, fits: Callable[..., bool]) -> 'Range':
    """Returns the range with a condition on other settings, and its words."""
    return self._replace(says=f'{self.says}, {says}', fits=fits)


def whole(low: int, high: int) -> Range:
  """Whole numbers from `low` to `high`."""
  return Range(f'a whole number from {low} to {high}',
               lambda x: type(x) is int and low <= x <= high)  # No bool.


def number(low: float = 0., high: float = _FLOAT32) -> Range:
  """Numbers from `low` to `high`: finite, as NaN compares with none."""
  return Range(f'a number from {low:g} to {high:g}',
               lambda x: type(x) in (int, float) and low <= x <= high)


def choice(*names: str) -> Range:
  """One of some names."""
  return Range(f'one of {", ".join(names)}',
               lambda x: isinstance(x, str) and x in names)


def choice_of(tables: Mapping[str, Table]) -> Range:
  """One of some names, each with its table from the top of a configuration."""
  return choice(*tables)._replace(brings=tables)


def several(each: Range) -> Range:
  """Any number of values of a range."""
  return Range(f'values parted by /, each {each.says}', lambda x: isinstance(
      x, (tuple, list)) and all(each.holds(y) for y in x))


def either(one: Range, other: Range) -> Range:
  """What is in one of two ranges."""
  return Range(f'{one.says}, or {other.says}',
               lambda x: one.holds(x) or other.holds(x))


def read_length(text: Any) -> tuple[fractions.Fraction, str] | None:
  """Returns number and unit ('step' or 'epoch') of '2.5 epochs', or None."""
  match = isinstance(text, str) and _LENGTH.fullmatch(text)
  if not match or fractions.Fraction(match[1]) > MOST_STEPS:
    return None
  return fractions.Fraction(match[1]), match[2].rstrip('s')


MOST_STEPS = 1 << 30  # They are counted in int32, sums of them too.
LENGTH = Range(
    'a number and its unit, as in "1000 steps" or "2.5 epochs", of at most '
    f'{MOST_STEPS} steps',
    lambda x: read_length(x) is not None)
STEPS = whole(0, MOST_STEPS)
COUNT = whole(0, 2**31 - 1)
SEED = whole(0, 2**32 - 1)
ROWS = whole(1, 1 << 20)
BATCH = ROWS._replace(is_batch=True)
WIDTH = whole(1, 1 << 16)  # Of a layer.
DEPTH = whole(1, 1 << 10)  # Layers or heads.
CODES = whole(1, 1 << 24)  # Of a level.
WEIGHT = number()
POSITIVE = number(1e-30)
SHARE = number(0, 1)
FLAG = Range('true or false', lambda x: isinstance(x, bool))
TEXT = Range('text of one line',
             lambda x: isinstance(x, str) and (not x or x.isprintable()))
NAME = Range('a name, which is not empty',
             lambda x: TEXT.holds(x) and bool(x.strip()))
