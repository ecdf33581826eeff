"""Finds out what the columns of a raw file are, by name, and time by content.
"""

import os
import re
from typing import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sidrec import types
from sidrec.data import ids
from sidrec.data import schema
from sidrec.data import times
from sidrec.data.imports import files

USER, ITEM, TIME, LABEL = 'user_id', 'item_id', 'timestamp', 'label'
SHOWN, CLICKED, ITEMS = 'shown', 'clicked', 'items'
# Role -> names, letters and digits only, the surest first.
NAMES = {
    USER: '''userid user uid visitorid visitor customerid customer reviewerid
        clientid memberid accountid buyerid shopperid profileid personid
        listenerid playerid msnumber sessionid session''',
    ITEM: '''itemid item iid productid product goodsid parentasin asin sku
        movieid videoid articleid newsid songid trackid bookid isbn adid
        businessid gameid appid recipeid docid photoid poiid listingid
        contentid stockcode''',
    TIME: '''timestamp ts unixreviewtime eventtime eventtimestamp timems
        unixtime time datetime createdat reviewtime interactiontime clicktime
        purchasetime orderdate invoicedate eventdate date timestamps times''',
    LABEL: 'label isclick clicked click isclicked',
    SHOWN: '''shown impressions impression exposed exposures candidates slate
        displayed shownitems itemsshown impressionlist''',
    CLICKED: '''clicked clicks clickeditems purchased purchases bought
        positives itemsclicked clicklist''',
    ITEMS: '''sequence items history itemids itemlist itemseq itemidlist
        itemhistory products''',
}
NAMES = {role: tuple(names.split()) for role, names in NAMES.items()}
RATINGS = ('rating', 'ratings', 'stars', 'overall', 'score')
EVENTS = ('event', 'eventtype', 'action', 'behavior', 'behaviour',
          'interaction', 'interactiontype', 'type')
_ISO = r'^\d{4}[-/]\d\d?[-/]\d\d?([ T]\d\d:\d\d.*)?$'
_NEARLY_ALL = .9
_SAMPLE = 2000
_LIST = r'^\s*[\[(].*[\])]\s*$'


def normal(name: str) -> str:
  """Returns a name's letters and digits in lower case."""
  return re.sub(r'[\W_]+', '', name.casefold())


def roles(raw: files.Raw, given: Mapping[str, str]) -> dict[str, str]:
  """Returns role -> column of one file, what is given first.

  Args:
    raw: the file.
    given: role -> column, of --column; it holds where the file has it.
  """
  names = raw.table.column_names
  found = {role: name for role, name in given.items() if name in names}
  for role in (USER, ITEM):
    if role not in found:
      _by_name(raw, found, role)
  if ITEM not in found:
    for role in (SHOWN, CLICKED, ITEMS):
      if role not in found:
        _by_name(raw, found, role)
    if USER not in found and not {SHOWN, CLICKED, ITEMS} & set(found):
      role = USER if 'user' in raw.name.lower() else ITEM
      name = next((x for x in names if normal(x) == 'id'
                   and x not in found.values()), None)
      if name is not None:
        found[role] = name
  if is_log(found) and given.get(TIME) != '' and TIME not in found:
    find_time(raw.path, raw.table, found)
  return found


def is_log(found: Mapping[str, str]) -> bool:
  """Whether a file with these roles holds events."""
  return USER in found and bool({ITEM, SHOWN, CLICKED, ITEMS} & set(found))


def is_listed(column: pa.ChunkedArray) -> bool:
  """Whether a column holds lists, as such or as text."""
  kind = column.type
  return (pa.types.is_list(kind) or pa.types.is_large_list(kind)
          or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _by_name(raw: files.Raw, found: dict[str, str], role: str) -> None:
  """Adds the column whose name is the surest one of a role."""
  for name in NAMES[role]:
    for column in raw.table.column_names:
      if normal(column) != name or column in found.values():
        continue
      values = raw.table[column]
      if role in (USER, ITEM) and _is_list(values):
        continue
      if role in (SHOWN, CLICKED, ITEMS) and not is_listed(values):
        continue
      found[role] = column
      return


def _is_list(column: pa.ChunkedArray) -> bool:
  kind = column.type
  return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def find_time(path: str, table: pa.Table, found: dict[str, str]) -> None:
  """Adds the column of times: by name if its values are times, by content.

  Args:
    path: for messages.
    table: of a log.
    found: role -> column, changed in place.

  Raises:
    types.InputError: several columns hold times.
  """
  by_name = [column for name in NAMES[TIME]
             for column in table.column_names
             if normal(column) == name and column not in found.values()]
  for column in by_name:
    sample = table[column].slice(0, _SAMPLE)
    present = sample.filter(pa.array(~files.missing(sample)))
    if len(present) and np.mean(times.readable(present)) > .5:
      found[TIME] = column
      return
  if by_name:
    found[TIME] = by_name[0]
    return
  by_content = [column for column in table.column_names
                if column not in found.values()
                and _looks_like_time(table[column])]
  if len(by_content) == 1:
    found[TIME] = by_content[0]
  elif by_content:
    raise types.InputError(
        f'{path}: columns {schema.listed(by_content)} all hold times; say '
        f'which by --column={TIME}=NAME')


def _looks_like_time(column: pa.ChunkedArray) -> bool:
  """Whether the first values are dates between 1990 and 2100.

  Of texts nearly all: what a column is does not hang on a broken row.
  """
  sample = column.slice(0, _SAMPLE)
  sample = sample.filter(pa.array(~files.missing(sample)))
  if pa.types.is_timestamp(sample.type):
    return True
  if not len(sample) or pa.types.is_list(sample.type):
    return False
  numbers = times.as_numbers(sample)
  if numbers is not None:
    return all(times.guess(np.array([value])) for value in (
        numbers.min(), np.median(numbers), numbers.max()))
  array = ids.as_arrow(sample)
  return pa.types.is_large_string(array.type) and pc.mean(
      pc.match_substring_regex(array, _ISO)).as_py() >= _NEARLY_ALL


def check_given(given: Mapping[str, str], raws: list[files.Raw]) -> None:
  """Raises types.InputError on a --column that no file has."""
  names = list(dict.fromkeys(
      name for raw in raws for name in raw.table.column_names))
  for role, name in given.items():
    if role not in NAMES:
      raise types.InputError(
          f'--column={role}={name}: no such thing to name; there are '
          f'{", ".join(NAMES)}{schema.nearest(role, NAMES)}')
    if name not in names and not (role == TIME and not name):
      raise types.InputError(
          f'--column={role}={name}: no file has a column {name!r}; there are '
          f'{schema.listed(names)}{schema.nearest(name, names)}')


def require(raw: files.Raw, found: Mapping[str, str], given: Mapping[str, str]
            ) -> None:
  """Raises types.InputError where a file lacks what it needs."""
  listed = schema.listed(raw.table.column_names)
  say = lambda what, role: types.InputError(
      f'{raw.path}: no column of {what} recognised; there are {listed}; say '
      f'which by --column={role}=NAME')
  if USER not in found and ITEM not in found:
    raise say('users or items', USER)
  if is_log(found) and TIME not in found and given.get(TIME) != '' and (
      ITEM in found):
    raise types.InputError(
        f'{say("times", TIME)}, or --column={TIME}= if the rows are in order')


def kind_of(raw: files.Raw, found: Mapping[str, str]) -> str:
  """Returns which table a file is: 'events', 'items' or 'users'."""
  ending = os.path.splitext(raw.name.lower().removesuffix('.gz'))[1]
  if ending == '.item' or (ITEM in found and not is_log(found)):
    return 'items'
  if ending == '.user' or (USER in found and not is_log(found)):
    return 'users'
  return 'events'
