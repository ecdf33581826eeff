"""KuaiRand-Pure (arXiv 2208.10696): exposures of short videos with clicks."""

import numpy as np

from sidrec.data import tables
from sidrec.data.builders.sources import raw

PAGE = 'https://kuairand.com'
ARCHIVE = 'https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz'
FILES = {
    'early': ('log_standard_4_08_to_4_21_pure.csv',),
    'late': ('log_standard_4_22_to_5_08_pure.csv',),
    'users': ('user_features_pure.csv',),
    'items': ('video_features_basic_pure.csv',),
}
# Midnights of 2022-05-05 and 2022-05-07 in UTC+8, where the log was taken.
_VALID_FROM, _TEST_FROM = 1651680000000, 1651852800000

_LABELS = ('is_click', 'long_view', 'is_like', 'is_follow', 'is_comment',
           'is_forward', 'is_hate')
_OUTCOMES = ('play_time_ms', 'duration_ms', 'profile_stay_time',
             'comment_stay_time', 'is_profile_enter')
_COUNTS = ('follow_user_num', 'fans_user_num', 'friend_user_num',
           'register_days')
_FLAGS = ('is_lowactive_period', 'is_live_streamer', 'is_video_author')
_ITEM_NUMBERS = ('video_duration', 'server_width', 'server_height')
_ITEM_CATEGORIES = ('author_id', 'video_type', 'upload_type', 'music_id',
                    'music_type')


def _user_columns() -> dict[str, tuple[str, str]]:
  """Returns column -> (kind, feature type) of the users."""
  columns = {'user_active_degree': ('text', 'category')}
  columns |= {name: ('float64', 'category') for name in _FLAGS}
  for name in _COUNTS:
    columns[name] = ('float64', 'number')
    columns[f'{name}_range'] = ('text', 'category')
  return columns | {
      f'onehot_feat{i}': ('float64', 'category') for i in range(18)}


def _item_columns() -> dict[str, str]:
  """Returns column -> kind of the items."""
  return dict(
      author_id='int64', video_type='text', upload_dt='text',
      upload_type='text', visible_status='float64', video_duration='float64',
      server_width='float64', server_height='float64', music_id='float64',
      music_type='float64', tag='text')


def source() -> raw.Source:
  """Returns the source: all standard exposures, 2022-04-08 to 05-08."""
  static = {'role': 'item_static'}
  items = {name: dict(static, type='category') for name in _ITEM_CATEGORIES}
  items |= {name: dict(static, type='number') for name in _ITEM_NUMBERS}
  items['upload_dt'] = dict(static, type='date')
  items['tag'] = dict(static, type='categories', separator=',')
  # The state when the data was published, not when the video was shown.
  items['visible_status'] = {'role': 'never'}
  events = {name: {'role': 'never'} for name in _OUTCOMES}
  events['tab'] = {'role': 'request', 'type': 'category'}
  info = dict(
      name='kuairand-pure',
      version='KuaiRand-Pure, standard logs 2022-04-08..2022-05-08',
      licence='CC BY-SA 4.0',
      citation='Gao et al., KuaiRand, CIKM 2022, arXiv 2208.10696',
      time_unit='ms', label=_LABELS[0], other_labels=list(_LABELS[1:]),
      split=dict(kind='time', valid_from=_VALID_FROM, test_from=_TEST_FROM),
      columns=dict(events=events, items=items, users={
          name: {'role': 'request', 'type': kind}
          for name, (_, kind) in _user_columns().items()}),
      cross=['item_id', 'author_id', 'tag'],
      note='exact repeats (user, video, time) removed; the logs of random '
           'exposure and the statistic features, which see the future, are '
           'left out')
  schema = dict(
      events=dict(user_id='int64', item_id='int64', timestamp='int64',
                  tab='int64', **({name: 'int64'
                                   for name in (*_LABELS, *_OUTCOMES)}
                                  | {_LABELS[0]: 'float32'})),
      # Checking splits the tags and makes the label a float.
      items=dict(item_id='int64', **(_item_columns() | {'tag': 'texts'})),
      users=dict(user_id='int64', **{
          name: kind for name, (kind, _) in _user_columns().items()}))
  return raw.Source(
      name='kuairand-pure', page=PAGE, files=FILES, urls={'archive': ARCHIVE},
      info=info, schema=schema, parse=parse)


def parse(paths: raw.Paths, progress: bool = False) -> tables.Tables:
  """Turns the four official CSV files into tables.

  Args:
    paths: of 'early', 'late' (logs), 'users' and 'items'.
    progress: unused, the files take seconds.

  Raises:
    types.InputError: names file, row and column.
  """
  del progress
  spec = source()
  columns = {
      {'item_id': 'video_id', 'timestamp': 'time_ms'}.get(name, name): 'int64'
      for name in spec.schema['events']}
  logs = [raw.csv(paths[key], columns) for key in ('early', 'late')]
  log = {name: np.concatenate([part[name] for part in logs])
         for name in columns}
  rows = raw.first_of_each(log['user_id'], log['video_id'], log['time_ms'])
  rows = rows[np.argsort(log['time_ms'][rows], kind='stable')]
  events = {
      {'video_id': 'item_id', 'time_ms': 'timestamp'}.get(name, name):
          values[rows] for name, values in log.items()}
  items = raw.csv(paths['items'], {
      'video_id': 'int64', **_item_columns()})
  items = {'item_id': items.pop('video_id'), **items}
  users = raw.csv(paths['users'], spec.schema['users'])
  return tables.Tables(
      info=dict(spec.info), events=events, items=items, users=users)
