"""Writes tiny raw files in the official formats, for tests."""

import gzip
import json

_LOG_HEADER = (
    'user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,'
    'is_comment,is_forward,is_hate,long_view,play_time_ms,duration_ms,'
    'profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab')
_USER_HEADER = ','.join(
    ['user_id', 'user_active_degree', 'is_lowactive_period',
     'is_live_streamer', 'is_video_author']
    + [f'{name}{suffix}' for name in (
        'follow_user_num', 'fans_user_num', 'friend_user_num', 'register_days')
       for suffix in ('', '_range')]
    + [f'onehot_feat{i}' for i in range(18)])


def put(path, text, encoding='utf-8'):
  """Writes text, gzipped where the name says so."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.suffix == '.gz':
    path.write_bytes(gzip.compress(text.encode(encoding)))
  else:
    path.write_bytes(text.encode(encoding))


def kuairand(folder):
  """Four CSV files: a repeat, missing values, quoted commas."""
  def row(user, video, time, click):
    return (f'{user},{video},20220421,400,{time},{click},0,0,0,0,0,1,1510,'
            '10440,0,0,0,0,1')
  put(folder / 'log_standard_4_08_to_4_21_pure.csv', '\n'.join([
      _LOG_HEADER, row(7, 2, 1650485801301, 1), row(7, 1, 1650485800000, 0),
      row(7, 2, 1650485801301, 1)]) + '\n')
  put(folder / 'log_standard_4_22_to_5_08_pure.csv', '\n'.join([
      _LOG_HEADER, row(9, 2, 1651680000001, 0), row(7, 2, 1651852800001, 1)]))
  put(folder / 'user_features_pure.csv', '\n'.join([
      _USER_HEADER,
      '7,full_active,0,0,1,5,"(0,10]",312,"[100,1k)",0,0,3624,730+,'
      + ','.join(['1'] * 4 + [''] + ['0'] * 13),
      '9,UNKNOWN,0,0,0,0,0,0,0,0,0,20,15-30,' + ','.join(['0'] * 18)]))
  put(folder / 'video_features_basic_pure.csv', '\n'.join([
      'video_id,author_id,video_type,upload_dt,upload_type,visible_status,'
      'video_duration,server_width,server_height,music_id,music_type,tag',
      '1,441,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,989,4,"12,65"',
      '2,442,AD,2022-04-01,LongImport,1,,720,1280,11,,']))


def amazon14(folder):
  """Reviews, and metadata as Python dicts."""
  reviews = [('U1', 'A1', 5.0, 300), ('U1', 'A2', 4.0, 100),
             ('U2', 'A2', 1.0, 100), ('U1', 'A3', 3.0, 300)]
  put(folder / 'reviews_Beauty_5.json.gz', ''.join(
      json.dumps(dict(reviewerID=u, asin=a, overall=r, unixReviewTime=t,
                      helpful=[0, 0], reviewText='"quoted" text')) + '\n'
      for u, a, r, t in reviews))
  put(folder / 'meta_Beauty.json.gz', '\n'.join([
      "{'asin': 'A1', 'title': \"It's a  brush\", 'price': 12.99, 'brand': "
      "'X', 'salesRank': {'Beauty': 3}, 'categories': [['Beauty', 'Makeup'], "
      "['Beauty', 'Nails']]}",
      "{'asin': 'ZZ', 'title': 'nobody bought this'}",
      "{'asin': 'A2', 'categories': [['Beauty']]}"]) + '\n')


def amazon18(folder):
  """A repeated review, an item twice, a title that is a script."""
  rows = [('U1', 'A1', 20), ('U1', 'A1', 10), ('U1', 'A2', 15),
          ('U2', 'A1', 5)]
  put(folder / 'Video_Games_5.json.gz', ''.join(
      json.dumps(dict(reviewerID=u, asin=a, overall=5, unixReviewTime=t)) +
      '\n' for u, a, t in rows))
  put(folder / 'meta_Video_Games.json', ''.join(json.dumps(r) + '\n' for r in [
      dict(asin='A1', title='Pong', brand='Atari', price='$1,012.50 - $1,020',
           category=['Video Games', 'PC']),
      dict(asin='A2', title='var t = getTime()', brand='', category=[],
           price='.a-box-inner{background-color:#fff}#alohaBuyBoxWidget{}'),
      dict(asin='A1', title='second record')]))


def amazon23(folder, as_json=False):
  """A 5-core with two reviews beside it."""
  rows = [(f'U{u}', f'P{p}', 1000 * u + p) for u in range(5) for p in range(5)]
  rows += [('U9', 'P0', 9), ('U0', 'P9', 9)]  # Fall out of the 5-core.
  if as_json:
    put(folder / 'All_Beauty.jsonl', ''.join(
        json.dumps(dict(user_id=u, parent_asin=p, asin='child', rating=5.0,
                        timestamp=t)) + '\n' for u, p, t in rows))
  else:
    put(folder / 'All_Beauty.csv.gz', 'user_id,parent_asin,rating,timestamp\n'
         + ''.join(f'{u},{p},5.0,{t}\n' for u, p, t in rows))
  put(folder / 'meta_All_Beauty.jsonl.gz', ''.join(json.dumps(dict(
      parent_asin=f'P{p}', title=f'item {p}', store=None if p else 'S',
      price=9.5 if p else None, categories=['Beauty'], average_rating=4.5,
      rating_number=7, images=[{}] if p else [])) + '\n' for p in range(5)))


def movielens_1m(folder):
  """As in the archive, in Latin-1."""
  put(folder / 'ml-1m' / 'ratings.dat',
       '1::1193::5::978300760\n1::661::3::978300760\n1::914::3::978300000\n')
  put(folder / 'ml-1m' / 'movies.dat',
       "661::James and the Peach (1996)::Animation|Children's\n"
       '914::My Fair Lady (1964)::Musical\n'
       '1193::Misérables, Les (1995)::Drama\n5::Nobody (2000)::Drama\n',
       'latin-1')
  put(folder / 'ml-1m' / 'users.dat', '1::F::1::10::02138\n')


def movielens_20m(folder):
  """CSV files with a quoted title."""
  put(folder / 'ratings.csv', 'userId,movieId,rating,timestamp\n'
       '1,2,3.5,1112486027\n1,29,3.5,1112484676\n')
  put(folder / 'movies.csv', 'movieId,title,genres\n'
       '2,"City, The (1995)",Crime|Drama\n29,Odd (1996),(no genres listed)\n')


WRITERS = {
    'kuairand-pure': (kuairand, ''), 'amazon14': (amazon14, 'Beauty'),
    'amazon18': (amazon18, 'Video_Games'),
    'amazon23': (amazon23, 'All_Beauty'), 'ml-1m': (movielens_1m, ''),
    'ml-20m': (movielens_20m, '')}
