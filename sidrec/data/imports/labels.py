"""Reads `--positive='event == buy'` and applies it to a log."""

import dataclasses
import re
from typing import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec import types
from sidrec.data import ids
from sidrec.data import schema
from sidrec.data.imports import recognise

_OPERATORS = ('==', '!=', '<=', '>=', '<', '>', 'in')
_FORM = re.compile(
    r'^\s*(?P<column>"[^"]*"|\'[^\']*\'|\S.*?)\s*'
    r'(?P<operator>==|!=|<=|>=|=<|=>|<>|=|<|>|\bnot in\b|\bin\b|~)\s*'
    r'(?P<value>.*?)\s*$')
_COMPARE = {'<': pc.less, '>': pc.greater, '<=': pc.less_equal,
            '>=': pc.greater_equal}
_ALSO = {'=': '==', '=<': '<=', '=>': '>=', '<>': '!='}


@dataclasses.dataclass(frozen=True)
class Rule:
  """What makes an event a positive.

  column: of the log. operator: of `_OPERATORS`. values: to compare with, one
    but for 'in'. text: as given.
  """
  column: str
  operator: str
  values: tuple[str, ...]
  text: str


def parse(text: str, columns: Sequence[str]) -> Rule:
  """Parses a rule.

  Args:
    text: 'column operator value'; quotes are optional.
    columns: of the log.

  Raises:
    types.InputError: unknown column or operator, with the nearest.
  """
  match = _FORM.match(text)
  if not match:
    raise types.InputError(
        f"--positive={text!r}: must be 'column operator value', such as "
        f"'event == buy'; operators are {', '.join(_OPERATORS)}")
  operator = match['operator']
  if operator not in _OPERATORS:
    if operator not in _ALSO:
      raise types.InputError(
          f'--positive={text!r}: unknown operator {operator!r}; there are '
          f'{", ".join(_OPERATORS)}{schema.nearest(operator, _OPERATORS)}')
    raise types.InputError(
        f'--positive={text!r}: unknown operator {operator!r}; did you mean '
        f'{_ALSO[operator]!r}?')
  name = _bare(match['column'])
  column = next((x for x in columns if x == name), None) or next(
      (x for x in columns if recognise.normal(x) == recognise.normal(name)),
      None)
  if column is None:
    raise types.InputError(
        f'--positive={text!r}: the log has no column {name!r}; it has '
        f'{schema.listed(columns)}{schema.nearest(name, columns)}')
  value = match['value']
  if operator == 'in':
    if value[:1] not in '([' or value[-1:] not in ')]' or len(value) < 3:
      raise types.InputError(
          f"--positive={text!r}: 'in' wants values in brackets: (a, b)")
    values = tuple(_bare(part) for part in re.findall(
        r'"[^"]*"|\'[^\']*\'|[^,]+', value[1:-1]))
  else:
    values = (_bare(value),)
  if operator in _COMPARE and number(values[0]) is None:
    raise types.InputError(
        f'--positive={text!r}: {values[0]!r} is no number to compare with')
  return Rule(column, operator, values, text)


def number(text: str) -> float | None:
  """Returns a text as a number, None if it is none."""
  try:
    return float(text)
  except ValueError:
    return None


def apply(rule: Rule, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
  """Returns which events are positives, and which cannot be told.

  Args:
    rule: of `parse`.
    column: of the log, text or numbers.

  Returns:
    ([E] bool, [E] bool: a number is compared, and there is none).
  """
  array = ids.as_arrow(column).dictionary_encode()
  distinct = array.dictionary.to_pylist()
  words = ['' if value is None else str(value) for value in distinct]
  numbers = [number(word) for word in words]
  wanted = [number(value) for value in rule.values]
  positive, bad = [], []
  for word, value in zip(words, numbers):
    same = any(word == text or (
        value is not None and other is not None and value == other)
               for text, other in zip(rule.values, wanted))
    broken = rule.operator in _COMPARE and (value is None or value != value)
    bad.append(broken)
    if rule.operator in _COMPARE:
      positive.append(not broken and _COMPARE[rule.operator](
          value, wanted[0]).as_py())
    else:
      positive.append(same != (rule.operator == '!='))
  # The last entry stands for missing values, which are no text.
  empty = rule.operator not in _COMPARE and (
      ('' in rule.values) != (rule.operator == '!='))
  code = pc.fill_null(array.indices, len(words)).to_numpy(zero_copy_only=False)
  return (np.array([*positive, empty], bool)[code],
          np.array([*bad, rule.operator in _COMPARE], bool)[code])


def _bare(text: str) -> str:
  """Returns a text without the quotes around it."""
  text = text.strip()
  if len(text) > 1 and text[0] == text[-1] and text[0] in '"\'':
    return text[1:-1]
  return text
