"""What texts hold: money, paths, lists. Each looks at all distinct texts."""

import re
from typing import Any, Callable, Sequence

import pyarrow as pa

from sidrec.data import ids

_CURRENCY = (r'(?:US\$|CA\$|A\$|R\$|[$€£¥₹₽₩₺₴]|USD|EUR|GBP|JPY|CNY|RMB|INR|CAD'
             r'|AUD|CHF|SEK|NOK|DKK|PLN|CZK|HUF|BRL|MXN|RUB|TRY|KRW|ZAR|NZD|SGD'
             r'|HKD|kr|zł|Kč|Rs\.?)')
_MONEY = re.compile(
    rf'^\s*([-+]?)\s*({_CURRENCY})?\s*([-+]?\d[\d.,\s\']*)\s*({_CURRENCY})?'
    r'\s*$')
_LEAST_MONEY = .98  # Share of the texts; what is none becomes missing.
_LIST_WORDS = {'genre', 'genres', 'tag', 'tags', 'keyword', 'keywords',
               'topics', 'labels', 'categories', 'features', 'actors',
               'authors'}
_PATH_WORDS = {'category', 'categories', 'cat', 'cate', 'path', 'taxonomy',
               'department', 'breadcrumb', 'breadcrumbs', 'hierarchy'}
_MOST_LEVELS = 8
_LONGEST_ENTRY = 40


def mapped(array: pa.Array, change: Callable[[list[str]], Sequence[Any]],
           kind: pa.DataType) -> pa.Array:
  """Applies a function of texts to the distinct texts of a column.

  Args:
    array: [R] text.
    change: (distinct texts) -> a value each.
    kind: of the values.
  """
  encoded = array.dictionary_encode()
  return pa.array(change(encoded.dictionary.to_pylist()), kind).take(
      encoded.indices)


def money(texts: Sequence[str], named: bool,
          evidence: Sequence[str] | None = None) -> list[float | None] | None:
  """Returns amounts of money as numbers, None if the texts are none.

  Args:
    texts: distinct.
    named: whether the column is called a price; else a currency is needed.
    evidence: the texts that say what the decimal sign is; None: `texts`.
  """
  found = [_MONEY.match(text) for text in texts]
  if evidence is None:
    evidence = texts
    if not texts or sum(map(bool, found)) < _LEAST_MONEY * len(texts) or not (
        named or any(match and (match[2] or match[4]) for match in found)):
      return None
  amounts = [match[3] for match in map(_MONEY.match, evidence) if match]
  sign = _decimal_sign(amounts)
  return [_amount(match, sign) if match else None for match in found]


def _decimal_sign(amounts: Sequence[str]) -> str:
  """Returns ',' or '.': what stands before one or two last digits."""
  votes = {',': 0, '.': 0}
  for amount in amounts:
    amount = amount.strip()
    last = max(amount.rfind(','), amount.rfind('.'))
    if last < 0:
      continue
    sign = amount[last]
    other = ',' if sign == '.' else '.'
    if len(amount) - last - 1 != 3 or other in amount:
      votes[sign] += 1
    elif amount.count(sign) > 1 or sign == ',':
      votes[other] += 1  # 1,299 and 1.299.000 are thousands.
  return ',' if votes[','] > votes['.'] else '.'


def _amount(match: re.Match, sign: str) -> float | None:
  """Returns one amount."""
  text = re.sub(r"[\s']", '', match[3])
  text = text.replace(',' if sign == '.' else '.', '').replace(sign, '.')
  try:
    return float(match[1] + text)
  except ValueError:
    return None


def levels(texts: Sequence[str], name: str) -> list[list[str]] | None:
  """Returns the steps of each path, None if the texts are no paths.

  Args:
    texts: distinct. 'A > B' in at least half of them; or 'A/B', 'A|B' in all.
    name: of the column.
  """
  if not texts:
    return None
  words = set(name.lower().split('_'))
  for sign in ('>', '»'):
    if sum(bool(re.search(rf'[^<>]\s*{sign}\s*[^<>]', text)) and '<' not in text
           for text in texts) >= .5 * len(texts):
      return _steps(texts, sign)
  for sign in '/|':
    if not all(sign in text.strip(sign) and '//' not in text for text in texts):
      continue
    steps = _steps(texts, sign)
    if steps and (not words & (_LIST_WORDS - _PATH_WORDS)) and (
        words & _PATH_WORDS and sign == '/' or _is_tree(steps)):
      return steps
  return None


def _steps(texts: Sequence[str], sign: str) -> list[list[str]] | None:
  """Splits paths; None where some are too deep to be paths."""
  steps = [[part.strip() for part in text.split(sign) if part.strip()]
           for text in texts]
  return steps if max(map(len, steps)) <= _MOST_LEVELS else None


def _is_tree(steps: Sequence[Sequence[str]]) -> bool:
  """Whether what stands second is under one first, and firsts repeat."""
  parents: dict[str, set[str]] = {}
  for parts in steps:
    for above, below in zip(parts, parts[1:]):
      parents.setdefault(below, set()).add(above)
  first = {parts[0] for parts in steps}
  return len(first) < len(steps) and sum(
      len(above) == 1 for above in parents.values()) >= .9 * len(parents)


def split(texts: Sequence[str], name: str) -> list[list[str] | None] | None:
  """Returns the entries of lists as text, None if the texts are no lists."""
  if not texts:
    return None
  if all(text.strip()[:1] == '[' and text.strip()[-1:] == ']'
         and '{' not in text[:3] for text in texts):
    entries = [ids.split_text(text) for text in texts]
    if None in entries:
      return None
    return [[x for x in parts if x] or None for parts in entries]
  named = bool(set(name.lower().split('_')) & _LIST_WORDS)
  for sign, share, repeats in (('|', .05, .5), (';', .05, .5), (',', .3, .2)):
    if sum(sign in text for text in texts) < share * len(texts):
      continue
    entries = [[part.strip() for part in text.split(sign) if part.strip()]
               for text in texts]
    flat = [part for parts in entries for part in parts]
    if flat and max(map(len, flat)) <= _LONGEST_ENTRY and (
        named or len(set(flat)) <= repeats * len(flat)):
      return [parts or None for parts in entries]
  return None
