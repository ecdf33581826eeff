"""The `planted` data set: a recommender world whose truth is known.

Users have tastes over a category tree, partly visible in their request
columns; items have static fields, some of them wrong or missing. A logging
policy shows popular items, items to the user's taste, and items the user met
before; clicks are drawn from known probabilities that depend on taste,
quality, context and on what this user did with the item and its brand. The
best reachable AUC and Recall are therefore known (`planted_truth.Truth`).
"""

import math
from typing import Any
import zlib

import numpy as np

from sidrec import types
from sidrec.data import planted_tables
from sidrec.data import planted_truth
from sidrec.data import tables

TABS = ('home', 'discover', 'follow', 'deals')
MEAN_SESSION = 4.  # Events.
MIN_EVENTS = 10
TASTE_SHARE = .65  # Of the exposures that repeat nothing.
TASTE_SHARPNESS = 5.  # The policy knows tastes well: showing reveals them.
# Logits of the world, tuned so that most of a taste can be learned from some
# thirty events: a ranker trained for minutes comes close to the best AUC.
BIAS = -.8
TASTE_FLOOR = -.3
FAVORITE_GAIN, SECOND_GAIN, LEAF_GAIN = .55, .45, .3
TASTE_SPREAD, LATENT_SPREAD, THRIFT, USER_SPREAD = .05, .1, .05, .1
QUALITY = .55
TAB_EFFECT, TAB_SPREAD = (.6, -.3, .3, -.7), .3

# Knob -> (type, smallest, largest); `default_config` says what they mean.
_KNOBS = {
    'num_users': (int, 2, math.inf),
    'num_items': (int, 10, math.inf),
    'events_per_user': (float, MIN_EVENTS, math.inf),
    'num_top_categories': (int, 2, math.inf),
    'leaves_per_category': (int, 1, math.inf),
    'num_brands': (int, 1, math.inf),
    'latent_dim': (int, 1, math.inf),
    'days': (int, 3, math.inf),
    'valid_days': (int, 1, math.inf),
    'test_days': (int, 1, math.inf),
    'u2i_strength': (float, 0., math.inf),
    'repeat_rate': (float, 0., 1.),
    'noise': (float, 1e-3, math.inf),
    'static_noise': (float, 0., 1.),
    'popularity_exponent': (float, 0., math.inf),
    'position_effect': (float, 0., math.inf),
}


def default_config() -> dict[str, Any]:
  """Returns the knobs of `config.data.planted` and their defaults."""
  return dict(
      num_users=3000,
      num_items=1000,
      events_per_user=38.,  # Mean; sparsity is this against num_items.
      num_top_categories=8,
      leaves_per_category=4,
      num_brands=60,
      latent_dim=4,  # Item-level factors beside categories and price.
      days=14,  # All of them; the last valid_days + test_days are held out.
      valid_days=2,
      test_days=2,
      u2i_strength=1.,  # Of past clicks on the item and its brand; 0: none.
      repeat_rate=.2,  # Share of exposures that repeat an earlier item.
      noise=1.,  # Temperature of the clicks: higher is more random.
      static_noise=.05,  # Share of static fields that are wrong or missing.
      popularity_exponent=.3,  # Of Zipf's law; 0: all items alike.
      position_effect=.7,  # Logit lost with log(1 + position in session).
  )


def _knobs(config: Any) -> dict[str, Any]:
  """Reads and checks the knobs of a ConfigDict, a mapping or a namespace."""
  knobs = {}
  for name, (kind, low, high) in _KNOBS.items():
    try:
      value = config[name] if hasattr(config, 'keys') else getattr(config, name)
    except (AttributeError, KeyError) as error:
      raise types.InputError(
          f'config.data.planted.{name} is missing; set it to a number, see '
          'sidrec.data.planted.default_config') from error
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high or (
        kind is int and value != int(value)):
      raise types.InputError(
          f'config.data.planted.{name} = {value!r}: set it to '
          f'{"an integer" if kind is int else "a number"} of at least {low}'
          + (f' and at most {high}' if high < math.inf else ''))
    knobs[name] = kind(value)
  if knobs['valid_days'] + knobs['test_days'] >= knobs['days']:
    raise types.InputError(
        f'config.data.planted.days = {knobs["days"]}: set it to more than '
        'valid_days + test_days, or nothing is left to train on')
  return knobs


def _rng(seed: int, stream: str) -> np.random.Generator:
  """Returns the generator of a named stream; no stream disturbs another."""
  return np.random.Generator(np.random.Philox(
      np.random.SeedSequence([seed, zlib.crc32(stream.encode())])))


def _make_items(knobs: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
  """Draws the true items."""
  rng = _rng(seed, 'items')
  num, leaves = knobs['num_items'], knobs['leaves_per_category']
  num_tops = knobs['num_top_categories']
  leaf = rng.permutation(np.arange(num) % (num_tops * leaves))
  top = leaf // leaves
  # A brand keeps to one top category, as far as there are enough brands.
  brand_top = np.arange(knobs['num_brands']) % num_tops
  brand = np.empty(num, np.int64)
  for value in range(num_tops):
    mine = np.flatnonzero(brand_top == value)
    mine = mine if mine.size else np.arange(knobs['num_brands'])
    rows = np.flatnonzero(top == value)
    brand[rows] = rng.choice(mine, rows.size)
  price = rng.normal(size=num)
  latent = rng.normal(size=(num, knobs['latent_dim']))
  weights = (1. + rng.permutation(num)) ** -knobs['popularity_exponent']
  return dict(
      leaf=leaf, top=top, brand=brand, price=price,
      quality=rng.normal(size=num),
      factor=np.concatenate([latent, price[:, None]], 1),
      popularity=weights / weights.sum())


def _make_users(knobs: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
  """Draws the true users: two favorite top categories, leaves within them."""
  rng = _rng(seed, 'users')
  num, leaves = knobs['num_users'], knobs['leaves_per_category']
  num_tops = knobs['num_top_categories']
  favorites = np.argsort(rng.random((num, num_tops)), 1)[:, :2]
  taste = rng.normal(TASTE_FLOOR, TASTE_SPREAD, (num, num_tops, leaves))
  rows = np.arange(num)
  for place, gain in enumerate((FAVORITE_GAIN, SECOND_GAIN)):
    top = favorites[:, place]
    taste[rows, top] += gain
    liked = np.argsort(rng.random((num, leaves)), 1)[:, :max(leaves // 2, 1)]
    taste[rows[:, None], top[:, None], liked] += LEAF_GAIN
  latent = rng.normal(size=(num, knobs['latent_dim']))
  latent *= LATENT_SPREAD / math.sqrt(knobs['latent_dim'])
  thrift = rng.normal(size=num)
  return dict(
      favorite=favorites[:, 0], thrift=thrift,
      leaf=taste.reshape(num, -1), bias=rng.normal(0., USER_SPREAD, num),
      factor=np.concatenate([latent, -THRIFT * thrift[:, None]], 1))


def _make_world(
    knobs: dict[str, Any], items: dict[str, np.ndarray],
    users: dict[str, np.ndarray], seed: int) -> planted_truth.World:
  """Joins users and items with the context effects and the policy."""
  rng = _rng(seed, 'context')
  num_tops = knobs['num_top_categories']
  tab_top = rng.normal(0., TAB_SPREAD, (len(TABS), num_tops))
  tab_top += np.array(TAB_EFFECT)[:, None]
  return planted_truth.World(
      item_top=items['top'], item_leaf=items['leaf'],
      item_brand=items['brand'], item_appeal=QUALITY * items['quality'],
      item_factor=items['factor'], popularity=items['popularity'],
      user_leaf=users['leaf'], user_factor=users['factor'],
      user_bias=users['bias'], tab_top=tab_top, bias=BIAS,
      position_effect=knobs['position_effect'],
      u2i_strength=knobs['u2i_strength'], noise=knobs['noise'],
      repeat_rate=knobs['repeat_rate'], taste_share=TASTE_SHARE,
      taste_sharpness=TASTE_SHARPNESS)


def _make_schedule(
    knobs: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
  """Draws when users come; [U, N] arrays of which `count` [U] are in use.

  Times rise strictly within a user, so 'earlier' leaves no doubt.
  """
  rng = _rng(seed, 'schedule')
  num, mean = knobs['num_users'], knobs['events_per_user']
  extra = rng.poisson(rng.gamma(4., (mean - MIN_EVENTS) / 4., num))
  count = MIN_EVENTS + extra
  width = int(count.max())
  shape = (num, width)
  first = rng.random(shape) < 1. / MEAN_SESSION
  first[:, 0] = True
  session = np.cumsum(first, 1) - 1
  used = np.arange(width) < count[:, None]
  # Days are uniform, the hour leans to the evening; an hour before the end
  # is kept free for the last session.
  hour = rng.triangular(0., 19., 23., shape)
  start = rng.integers(0, knobs['days'], shape) * 24. + hour
  num_sessions = np.where(used, session, 0).max(1) + 1
  start[np.arange(width) >= num_sessions[:, None]] = np.inf
  start = np.sort(start, 1)
  gap = rng.uniform(10_000., 90_000., shape)
  passed = np.cumsum(gap, 1)
  places = np.arange(width)
  opened = np.maximum.accumulate(np.where(first, places, 0), 1)
  passed -= np.take_along_axis(passed, opened, 1)
  begin = np.take_along_axis(start, np.where(used, session, 0), 1)
  time = (begin * planted_truth.HOUR_MS + passed).astype(np.int64)
  step = 1000 * places
  time = np.maximum.accumulate(time - step, 1) + step + planted_tables.START_MS
  evening = (time // planted_truth.HOUR_MS) % 24 >= 17
  draw = rng.random(shape)
  by_day, by_night = np.cumsum([.4, .3, .2]), np.cumsum([.55, .15, .1])
  tab = np.where(
      evening, np.searchsorted(by_night, draw), np.searchsorted(by_day, draw))
  return dict(
      count=count, used=used, time=time, tab=tab,
      position=np.minimum(places - opened, planted_truth.MAX_POSITION))


def _fresh_items(
    world: planted_truth.World, shape: tuple[int, int], seed: int
) -> np.ndarray:
  """Draws for every slot [U, N] the item shown if nothing is repeated."""
  rng = _rng(seed, 'fresh')
  draw, by_taste = rng.random(shape), rng.random(shape) < world.taste_share
  last = world.popularity.shape[0] - 1
  out = np.searchsorted(np.cumsum(world.popularity), draw)
  for start in range(0, shape[0], 512):
    users = np.arange(start, min(start + 512, shape[0]))
    # Row r's distribution function lies in (r, r + 1]: one sorted search.
    rows = np.arange(users.size)[:, None]
    steps = np.cumsum(world.taste_policy(users), 1)
    steps = np.minimum(steps, 1.)
    found = np.searchsorted((steps + rows).ravel(), draw[users] + rows)
    found -= rows * (last + 1)
    out[users] = np.where(by_taste[users], found, out[users])
  return np.clip(out, 0, last)


def _play(
    world: planted_truth.World, schedule: dict[str, np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Shows items and draws clicks, one slot of all users at a time.

  Returns:
    (item, click, click probability), each [U, N].
  """
  rng = _rng(seed, 'clicks')
  shape = schedule['time'].shape
  item = _fresh_items(world, shape, seed)
  click, probability = np.zeros(shape), np.zeros(shape)
  repeat_draw = rng.random(shape) < world.repeat_rate
  which_draw, click_draw = rng.random(shape), rng.random(shape)
  for slot in range(shape[1]):
    users = np.flatnonzero(schedule['count'] > slot)
    past_item, past_click = item[users, :slot], click[users, :slot]
    age = schedule['time'][users, slot, None] - schedule['time'][users, :slot]
    if slot:
      weight = np.cumsum(planted_truth.repeat_weights(past_click, age), 1)
      aim = which_draw[users, slot] * weight[:, -1]
      again = np.minimum((weight <= aim[:, None]).sum(1), slot - 1)
      again = past_item[np.arange(users.size), again]
      item[users, slot] = np.where(
          repeat_draw[users, slot], again, item[users, slot])
    shown = item[users, slot]
    same = past_item == shown[:, None]
    brand = world.item_brand[past_item] == world.item_brand[shown][:, None]
    hours = np.where(same, age / planted_truth.HOUR_MS, np.inf)
    effect = planted_truth.consumption_effect(
        (past_click * same).sum(1), (past_click * brand).sum(1),
        hours.min(1, initial=np.inf))
    probability[users, slot] = world.click_probability(
        world.affinity_with(users, shown), world.user_bias[users], shown,
        schedule['tab'][users, slot], schedule['position'][users, slot],
        effect)
    click[users, slot] = click_draw[users, slot] < probability[users, slot]
  return item, click, probability


def _make_truth(
    world: planted_truth.World, schedule: dict[str, np.ndarray], seed: int
) -> planted_truth.Truth:
  """Plays the log and puts its events in order of time (ties: of user)."""
  item, click, probability = _play(world, schedule, seed)
  user, rank = np.nonzero(schedule['used'])
  time = schedule['time'][user, rank]
  order = np.argsort(time, kind='stable')
  user, rank = user[order], rank[order]
  user_events = np.full(item.shape, -1, np.int64)
  user_events[user, rank] = np.arange(user.size)
  return planted_truth.Truth(
      click_probability=probability[user, rank], world=world, user=user,
      item=item[user, rank], time=time[order],
      tab=schedule['tab'][user, rank],
      position=schedule['position'][user, rank], click=click[user, rank],
      user_events=user_events, rank=rank)


def generate(config: Any, seed: int) -> tables.Tables:
  """Generates a planted world and its log; bit-stable by seed.

  Args:
    config: the knobs of `default_config`, as a mapping, a ConfigDict or a
      namespace.
    seed: non-negative; the only source of randomness.

  Returns:
    The tables, events in order of time, with `truth` set to a
    `planted_truth.Truth` (no histories, no embeddings).

  Raises:
    types.InputError: if a knob is missing, not a number, or out of range.
  """
  knobs = _knobs(config)
  items, users = _make_items(knobs, seed), _make_users(knobs, seed)
  world = _make_world(knobs, items, users, seed)
  truth = _make_truth(world, _make_schedule(knobs, seed), seed)
  events = {
      'user_id': truth.user.astype(np.int64),
      'item_id': truth.item.astype(np.int64),
      'timestamp': truth.time.astype(np.int64),
      'is_click': truth.click.astype(np.int64),
      'tab': np.array(TABS, object)[truth.tab],
      'position': truth.position.astype(np.int64),
  }
  return tables.Tables(
      info=planted_tables.info(knobs, seed, truth.user.size), events=events,
      items=planted_tables.item_table(
          knobs, items, _rng(seed, 'item_table')),
      users=planted_tables.user_table(
          knobs, users, _rng(seed, 'user_table')),
      truth=truth)
