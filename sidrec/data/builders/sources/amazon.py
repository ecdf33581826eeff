"""Amazon reviews, releases 2014, 2018 and 2023: reviews as positive events."""

import functools
from typing import Any, Mapping

from absl import logging
import numpy as np

from sidrec import types
from sidrec.data import tables
from sidrec.data.builders.sources import raw

PAGES = {
    2014: 'https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html',
    2018: 'https://nijianmo.github.io/amazon/',
    2023: 'https://amazon-reviews-2023.github.io/',
}
CITATIONS = {
    2014: 'McAuley et al., SIGIR 2015',
    2018: 'Ni et al., EMNLP 2019',
    2023: 'Hou et al. 2024, arXiv 2403.03952',
}
# As the official file names spell them.
CATEGORIES = {
    2014: (
        'Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books '
        'CDs_and_Vinyl Cell_Phones_and_Accessories '
        'Clothing_Shoes_and_Jewelry Digital_Music Electronics '
        'Grocery_and_Gourmet_Food Health_and_Personal_Care Home_and_Kitchen '
        'Kindle_Store Movies_and_TV Musical_Instruments Office_Products '
        'Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors '
        'Tools_and_Home_Improvement Toys_and_Games Video_Games').split(),
    2018: (
        'AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing '
        'Automotive Books CDs_and_Vinyl Cell_Phones_and_Accessories '
        'Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards '
        'Grocery_and_Gourmet_Food Home_and_Kitchen '
        'Industrial_and_Scientific Kindle_Store Luxury_Beauty '
        'Magazine_Subscriptions Movies_and_TV Musical_Instruments '
        'Office_Products Patio_Lawn_and_Garden Pet_Supplies Prime_Pantry '
        'Software Sports_and_Outdoors Tools_and_Home_Improvement '
        'Toys_and_Games Video_Games').split(),
    2023: (
        'All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing '
        'Automotive Baby_Products Beauty_and_Personal_Care Books '
        'CDs_and_Vinyl Cell_Phones_and_Accessories '
        'Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards '
        'Grocery_and_Gourmet_Food Handmade_Products Health_and_Household '
        'Health_and_Personal_Care Home_and_Kitchen '
        'Industrial_and_Scientific Kindle_Store Magazine_Subscriptions '
        'Movies_and_TV Musical_Instruments Office_Products '
        'Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors '
        'Subscription_Boxes Tools_and_Home_Improvement Toys_and_Games '
        'Unknown Video_Games').split(),
}
_SNAP = 'https://snap.stanford.edu/data/amazon/productGraph/categoryFiles'
_UCSD = 'https://mcauleylab.ucsd.edu/public_datasets/data'
_CORE = 5  # The 2023 files of all reviews are cut to what '5core' files hold.


def files(year: int, category: str) -> dict[str, tuple[str, ...]]:
  """Returns key -> accepted names of the official files of a category."""
  if year == 2014:
    return {'reviews': (f'reviews_{category}_5.json.gz',),
            'meta': (f'meta_{category}.json.gz',)}
  if year == 2018:
    return {'reviews': (f'{category}_5.json.gz',),
            'meta': (f'meta_{category}.json.gz',)}
  return {'reviews': (f'{category}.csv.gz', f'{category}.jsonl.gz'),
          'meta': (f'meta_{category}.jsonl.gz',)}


def _urls(year: int, category: str) -> dict[str, str]:
  if year == 2014:
    return {'reviews': f'{_SNAP}/reviews_{category}_5.json.gz',
            'meta': f'{_SNAP}/meta_{category}.json.gz'}
  if year == 2018:
    base = f'{_UCSD}/amazon_v2'
    return {'reviews': f'{base}/categoryFilesSmall/{category}_5.json.gz',
            'meta': f'{base}/metaFiles2/meta_{category}.json.gz'}
  base = f'{_UCSD}/amazon_2023'
  return {
      'reviews': f'{base}/benchmark/5core/rating_only/{category}.csv.gz',
      'meta': f'{base}/raw/meta_categories/meta_{category}.jsonl.gz'}


def source(year: int, category: str, time: str = 'ordinal') -> raw.Source:
  """Returns the source of one category of one release.

  Args:
    year: 2014, 2018 or 2023.
    category: as in the official file names, such as 'Beauty' (2014) or
      'All_Beauty' (2018, 2023).
    time: 'ordinal' or 's' for 2014 and 2018, whose times are days; 2023 has
      milliseconds and keeps them.

  Raises:
    types.InputError: unknown category; lists what there is.
  """
  if category not in CATEGORIES[year]:
    raise types.InputError(
        f'Amazon {year}: category {category!r} must be one of '
        f'{", ".join(CATEGORIES[year])}')
  static = {'role': 'item_static'}
  items = {'title': dict(static, type='text'),
           'brand': dict(static, type='category'),
           'categories': dict(static, type='categories'),
           'price': dict(static, type='number')}
  kinds = dict(title='text', brand='text', categories='texts',
               price='float64')
  events = dict(user_id='text', item_id='text', timestamp='int64',
                rating='float64')
  columns = dict(events={}, items=items, users={})
  if year == 2023:
    items['has_image'] = dict(static, type='category')
    # Averages over all time see the future of every event.
    items['avg_rating'] = items['n_ratings'] = {'role': 'never'}
    kinds |= dict(has_image='int64', avg_rating='float64',
                  n_ratings='float64')
  else:
    columns['events'] = {'unix_time': {'role': 'never'}}
    events['unix_time'] = 'int64'
  info = dict(
      name=f'amazon{year % 100}-{category.lower().replace("_", "-")}',
      version=f'Amazon {year}, {category}, 5-core',
      licence='Amazon review data, research use, no licence stated',
      citation=CITATIONS[year],
      time_unit='ms' if year == 2023 else time, label=None,
      other_labels=['rating'], split={'kind': 'leave_one_out'},
      columns=columns, cross=['item_id', 'brand', 'categories'],
      note='every review is a positive event, repeats (user, item) after the '
           'first removed; the catalog is the items with events')
  return raw.Source(
      name=info['name'], page=PAGES[year], files=files(year, category),
      urls=_urls(year, category), info=info,
      schema=dict(events=events, items=dict(item_id='text', **kinds)),
      parse=functools.partial(
          parse, year=year, category=category, time=time))


def parse(
    paths: raw.Paths, progress: bool = False, *, year: int, category: str,
    time: str = 'ordinal',
) -> tables.Tables:
  """Turns reviews and metadata of one category into tables.

  Args:
    paths: of 'reviews' and 'meta'.
    progress: shows bars.
    year, category, time: as in `source`.

  Raises:
    types.InputError: names file, row and field.
  """
  reviews = (_reviews_2023 if year == 2023 else _reviews)(
      paths['reviews'], progress)
  user, item, rating, unix = reviews
  # Earliest first, so that the first of a repeated pair is the one to keep.
  order = np.argsort(unix, kind='stable')
  rows = order[raw.first_of_each(user[order], item[order])]
  if len(rows) < len(user):
    logging.info('%s: %d repeated reviews removed', paths['reviews'],
                 len(user) - len(rows))
  if year == 2023:
    rows = rows[raw.core(user[rows], item[rows], _CORE)]
  if not len(rows):
    raise types.InputError(
        f'{paths["reviews"]}: no event is left of {len(user)} reviews')
  user, item, rating, unix = (column[rows] for column in reviews)
  events = dict(user_id=user, item_id=item, timestamp=unix, rating=rating)
  if year != 2023:
    events['unix_time'] = unix
    if time == 'ordinal':
      events['timestamp'] = raw.ordinal(user, unix)
  wanted = np.unique(item)
  meta = _metadata(paths['meta'], set(wanted.tolist()), year, progress)
  without = len(wanted) - len(meta)
  if without:
    logging.warning('%s: %d of %d items have no metadata', paths['meta'],
                    without, len(wanted))
  return tables.Tables(
      info=dict(source(year, category, time).info), events=events,
      items=_items(wanted, meta, year))


def _reviews(path: str, progress: bool) -> list[np.ndarray]:
  """Reads reviews of 2014 or 2018: user, item, rating, time in seconds."""
  names = ('reviewerID', 'asin', 'overall', 'unixReviewTime')
  return _from_records(path, names, progress)


def _reviews_2023(path: str, progress: bool) -> list[np.ndarray]:
  """Reads reviews of 2023: user, item, rating, time in milliseconds."""
  names = ('user_id', 'parent_asin', 'rating', 'timestamp')
  with raw.open_text(path) as file:
    is_json = file.read(1) == '{'
  if is_json:
    return _from_records(path, names, progress)
  columns = raw.csv(path, dict(zip(names, ('text', 'text', 'float64',
                                           'int64'))))
  return [columns[names[0]].astype(str), columns[names[1]].astype(str),
          columns[names[2]], columns[names[3]]]


def _from_records(
    path: str, names: tuple[str, ...], progress: bool
) -> list[np.ndarray]:
  """Reads four fields of JSON lines as text, text, float64 and int64."""
  columns = [[], [], [], []]
  for row, record in raw.json_lines(path, progress, loose=True):
    for column, name, cast in zip(columns, names, (str, str, float, int)):
      value = raw.field(record, name, path, row)
      try:
        column.append(cast(value))
      except (TypeError, ValueError):
        raise types.InputError(
            f'{path}: row {row}, field {name}: {value!r} is not a number'
        ) from None
  return [np.array(columns[0], str), np.array(columns[1], str),
          np.array(columns[2], np.float64), np.array(columns[3], np.int64)]


def _metadata(
    path: str, wanted: set[str], year: int, progress: bool
) -> dict[str, dict[str, Any]]:
  """Returns the columns of each wanted item; the first record of it counts."""
  key = 'parent_asin' if year == 2023 else 'asin'
  result = {}
  for row, record in raw.json_lines(path, progress, loose=year == 2014):
    asin = raw.field(record, key, path, row)
    if asin in wanted and asin not in result:
      result[asin] = _item(record, year)
  return result


def _item(record: Mapping[str, Any], year: int) -> dict[str, Any]:
  """Returns the columns of one item from its metadata."""
  title = raw.text(record.get('title'))
  # Some 2018 titles are the scripts of the page.
  if title is not None and 'getTime' in title:
    title = None
  path = record.get('category' if year == 2018 else 'categories') or []
  # 2014 has several paths, each a list.
  names = [name for part in path
           for name in (part if isinstance(part, list) else [part])]
  names = [raw.text(name) for name in names]
  item = dict(
      title=title,
      brand=raw.text(record.get('store' if year == 2023 else 'brand')),
      categories=list(dict.fromkeys(name for name in names if name)),
      price=raw.first_number(record.get('price')))
  if year == 2023:
    item |= dict(
        has_image=int(bool(record.get('images'))),
        avg_rating=raw.first_number(record.get('average_rating')),
        n_ratings=raw.first_number(record.get('rating_number')))
  return item


def _items(
    wanted: np.ndarray, meta: Mapping[str, Mapping[str, Any]], year: int
) -> dict[str, np.ndarray]:
  """Returns the item table; what an item without metadata lacks is missing."""
  empty = _item({}, year)
  rows = [meta.get(asin, empty) for asin in wanted.tolist()]
  items = {'item_id': wanted}
  for name, value in empty.items():
    values = [row[name] for row in rows]
    if isinstance(value, (int, float)):
      items[name] = np.array(values, type(value))
    else:
      items[name] = raw.objects(values)
  return items
