"""MovieLens 1M and 20M: ratings of movies."""

import functools
from typing import Any

import numpy as np

from sidrec import types
from sidrec.data import tables
from sidrec.data.builders.sources import raw

PAGES = {
    'ml-1m': 'https://grouplens.org/datasets/movielens/1m/',
    'ml-20m': 'https://grouplens.org/datasets/movielens/20m/',
}
FILES = {
    'ml-1m': {'ratings': ('ratings.dat',), 'movies': ('movies.dat',),
              'users': ('users.dat',)},
    'ml-20m': {'ratings': ('ratings.csv',), 'movies': ('movies.csv',)},
}
_PROFILE = ('gender', 'age', 'occupation', 'zip')
_NO_GENRE = '(no genres listed)'


def source(name: str, time: str = 'ordinal') -> raw.Source:
  """Returns the source of a MovieLens release.

  Args:
    name: 'ml-1m' or 'ml-20m'.
    time: 'ordinal' or 's'; many ratings of a user share a second.
  """
  static = {'role': 'item_static'}
  has_users = 'users' in FILES[name]
  info = dict(
      name=name, version=f'MovieLens {name[3:].upper()}, all ratings',
      licence='GroupLens: research use, no redistribution without permission, '
              'no commercial use',
      citation='Harper and Konstan, TiiS 2015',
      time_unit=time, label=None, other_labels=['rating'],
      split={'kind': 'leave_one_out'},
      columns=dict(
          events={'unix_time': {'role': 'never'}},
          items={'title': dict(static, type='text'),
                 'genres': dict(static, type='categories')},
          users={column: {'role': 'request', 'type': 'category'}
                 for column in _PROFILE} if has_users else {}),
      cross=['item_id', 'genres'],
      note='every rating is a positive event, as papers have it')
  schema: dict[str, Any] = dict(
      events=dict(user_id='int64', item_id='int64', timestamp='int64',
                  rating='float64', unix_time='int64'),
      items=dict(item_id='int64', title='text', genres='texts'))
  if has_users:
    schema['users'] = dict(
        user_id='int64', **{column: 'text' for column in _PROFILE})
  return raw.Source(
      name=name, page=PAGES[name], files=FILES[name],
      urls={'archive': f'https://files.grouplens.org/datasets/movielens/'
                       f'{name}.zip'},
      info=info, schema=schema,
      parse=functools.partial(parse, name=name, time=time))


def parse(
    paths: raw.Paths, progress: bool = False, *, name: str, time: str
) -> tables.Tables:
  """Turns the official files into tables.

  Args:
    paths: of 'ratings', 'movies' and, for 1M, 'users'.
    progress: shows a bar.
    name, time: as in `source`.

  Raises:
    types.InputError: names file and row.
  """
  if name == 'ml-1m':
    ratings = _dat(paths['ratings'], 4, progress)
    movies = _dat(paths['movies'], 3, progress)
  else:
    columns = raw.csv(paths['ratings'], dict(
        userId='int64', movieId='int64', rating='float64', timestamp='int64'))
    ratings = list(columns.values())
    movies = list(raw.csv(paths['movies'], dict(
        movieId='int64', title='text', genres='text')).values())
  user, item, unix = (
      _cast(ratings[i], np.int64, paths['ratings']) for i in (0, 1, 3))
  events = dict(
      user_id=user, item_id=item,
      timestamp=raw.ordinal(user, unix) if time == 'ordinal' else unix,
      rating=_cast(ratings[2], np.float64, paths['ratings']),
      unix_time=unix)
  items = dict(
      item_id=_cast(movies[0], np.int64, paths['movies']),
      title=raw.objects([raw.text(title) for title in movies[1]]),
      genres=raw.objects([
          genres.split('|') if genres and genres != _NO_GENRE else []
          for genres in movies[2]]))
  users = None
  if 'users' in FILES[name]:
    profile = _dat(paths['users'], 5, progress)
    users = dict(zip(('user_id', *_PROFILE), profile))
    users['user_id'] = _cast(users['user_id'], np.int64, paths['users'])
  return tables.Tables(
      info=dict(source(name, time).info), events=events, items=items,
      users=users)


def _dat(path: str, width: int, progress: bool) -> list[np.ndarray]:
  """Reads a file of fields between '::' as text columns."""
  rows = []
  for row, line in raw.lines(path, progress, encoding='latin-1'):
    fields = line.split('::')
    if len(fields) != width:
      raise types.InputError(
          f"{path}: row {row}: has {len(fields)} fields between '::', not "
          f'{width}')
    rows.append(fields)
  return [raw.objects(column) for column in zip(*rows)] or [
      np.empty(0, object)] * width


def _cast(values: np.ndarray, dtype: Any, path: str) -> np.ndarray:
  """Returns [R] numbers, or raises at the first row that is none."""
  try:
    return values.astype(dtype)
  except ValueError:
    row = next(row for row, value in enumerate(values)
               if not _is_number(value, dtype))
    raise types.InputError(
        f'{path}: row {row}: {values[row]!r} is not a number') from None


def _is_number(value: str, dtype: Any) -> bool:
  try:
    dtype(value)
  except ValueError:
    return False
  return True
