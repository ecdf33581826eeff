"""Raw columns of items and users as features: exact types, nothing guessed
from a part of a column.
"""

from typing import NamedTuple
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec.data import columns as columns_lib
from sidrec.data import ids
from sidrec.data import reading
from sidrec.data.imports import files
from sidrec.data.imports import values as values_lib

_TEXTS = {'title', 'name', 'description', 'text', 'summary', 'review',
          'headline', 'abstract', 'body', 'content', 'movie_title',
          'product_name', 'item_name', 'product_title', 'item_title'}
_QUANTITIES = {
    'price', 'cost', 'amount', 'age', 'year', 'duration', 'length', 'count',
    'num', 'number', 'quantity', 'qty', 'width', 'height', 'size', 'weight',
    'days', 'pages', 'score', 'seconds', 'minutes', 'ms', 'revenue',
    'discount'}
# Words of columns that are counted over a whole log: they know the future.
_COUNTED = {
    'rating', 'ratings', 'stars', 'reviews', 'review', 'sold', 'sales', 'rank',
    'popularity', 'views', 'likes', 'clicks', 'purchases', 'votes',
    'salesrank', 'helpful'}
_DATE = r'^\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?$'
_LONG = 40  # Characters of an entry from which on lists are of text.


class Feature(NamedTuple):
  """One column of a table.

  name, column: of it. type: of `dataset.json`. counted: seems to be counted
  over the whole log. note: what was done, '' for nothing.
  """
  name: str
  column: pa.Array
  type: str
  counted: bool = False
  note: str = ''


def words(name: str) -> set[str]:
  """Returns the words in a name: `num_sold`, `numSold`."""
  return set(re.sub(r'([a-z])([A-Z])', r'\1_\2', name).lower().replace(
      '-', '_').replace(' ', '_').split('_'))


def features(name: str, column: pa.ChunkedArray, kind: str | None
             ) -> list[Feature]:
  """Returns the feature or features that a raw column makes.

  Args:
    name: of the column.
    column: [R].
    kind: RecBole's word for it, or None.
  """
  array = ids.as_arrow(column)
  if columns_lib.is_list(array.type):
    return [_of_lists(name, array)]
  if not pa.types.is_large_string(array.type):
    return [_of_values(name, array)]
  if recognise_text(name):
    return [Feature(name, ids.as_arrow(reading.emptied(
        pa.chunked_array([array.cast(pa.string())]))), 'text')]
  if kind == files.TOKENS:
    lists = values_lib.mapped(array, lambda texts: [
        text.split() or None for text in texts], pa.list_(pa.string()))
    return [Feature(name, lists, 'categories', note=f'{name}: lists')]
  if kind == files.FLOATS:
    vectors = values_lib.mapped(array, lambda texts: [
        [float(x) for x in text.split()] for text in texts],
                                pa.list_(pa.float32()))
    return [Feature(name, vectors, 'vector')]
  typed = ids.as_arrow(reading.typed(
      pa.chunked_array([array.cast(pa.string())])))
  if not pa.types.is_large_string(typed.type):
    return [_of_values(name, typed, kind)]
  return _of_text(name, typed)


def recognise_text(name: str) -> bool:
  """Whether a column of this name holds sentences, whatever is in them."""
  return re.sub(r'([a-z])([A-Z])', r'\1_\2', name).lower() in _TEXTS


def _of_values(name: str, array: pa.Array, kind: str | None = None
               ) -> Feature:
  """Returns numbers, dates, or codes that are numbers."""
  counted = bool(words(name) & _COUNTED)
  if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
    text = array.cast(pa.timestamp('s'), safe=False)
    return Feature(name, pc.strftime(text, '%Y-%m-%dT%H:%M:%S'), 'date')
  if pa.types.is_boolean(array.type):
    return Feature(name, array.cast(pa.int8()), 'category')
  if pa.types.is_decimal(array.type):
    array = array.cast(pa.float64())
  if pa.types.is_null(array.type):
    return Feature(name, array.cast(pa.string()), 'category')
  is_code = kind == files.TOKEN or not (words(name) & _QUANTITIES)
  number = kind == files.FLOAT or pa.types.is_floating(array.type) or (
      not is_code)
  if kind == files.TOKEN and pa.types.is_integer(array.type):
    number = False
  return Feature(name, array, 'number' if number or counted else 'category',
                 counted)


def _of_lists(name: str, array: pa.Array) -> Feature:
  """Returns lists of categories or of texts, or vectors."""
  if columns_lib.is_vector(array.type):
    return Feature(name, array, 'vector')
  inner = pc.list_flatten(array)
  if pa.types.is_integer(inner.type):
    return Feature(name, array, 'categories')
  length = pc.mean(pc.utf8_length(inner.cast(pa.large_string()))).as_py() or 0
  return Feature(name, array.cast(pa.list_(pa.string())),
                 'text_list' if length > _LONG else 'categories')


def _of_text(name: str, array: pa.Array) -> list[Feature]:
  """Returns money, levels, lists, dates, categories or text."""
  present = array.drop_null()
  distinct = present.unique().to_pylist()
  prices = values_lib.money(distinct, bool(words(name) & _QUANTITIES))
  if prices is not None:
    bad = [text for text, price in zip(distinct, prices) if price is None]
    column = values_lib.mapped(
        array, lambda texts: values_lib.money(texts, True, distinct),
        pa.float64())
    note = f'{name}: money as numbers'
    if bad:
      note += f' ({len(bad)} texts such as {bad[0]!r} are missing)'
    return [Feature(name, column, 'number', note=note)]
  levels = values_lib.levels(distinct, name)
  if levels is not None:
    depth = max(len(parts) for parts in levels)
    table = dict(zip(distinct, levels))
    return [Feature(
        f'{name}_{level + 1}', values_lib.mapped(array, lambda texts: [
            table[text][level] if len(table[text]) > level else None
            for text in texts], pa.string()), 'category',
        note=f'{name}: {depth} levels' if not level else '')
            for level in range(depth)]
  split = values_lib.split(distinct, name)
  if split is not None:
    table = dict(zip(distinct, split))
    column = values_lib.mapped(
        array, lambda texts: [table[text] for text in texts],
        pa.list_(pa.string()))
    feature = _of_lists(name, column)
    return [feature._replace(note=f'{name}: lists')]
  if distinct and all(re.match(_DATE, text) for text in distinct):
    return [Feature(name, array, 'date')]
  spaces = np.mean([text.count(' ') for text in distinct]) if distinct else 0
  is_text = len(distinct) > .9 * len(present) and spaces >= 2
  return [Feature(name, array, 'text' if is_text else 'category')]


def kept(column: pa.ChunkedArray, kind: str | None = None) -> pa.ChunkedArray:
  """Returns a column that is no feature, typed but otherwise as it is."""
  if pa.types.is_string(column.type) and kind not in (files.TOKEN,):
    return reading.typed(column)
  return column
