"""Tests of the planted world: its truth must be the truth."""

import dataclasses
import time

import numpy as np
import pytest
from sklearn import metrics

from sidrec import config as config_lib
from sidrec import data
from sidrec import types
from sidrec.data import planted
from sidrec.data import planted_truth
from sidrec.data import tables


def _generate(seed: int = 0, **knobs) -> tables.Tables:
  config = {**planted.default_config(), 'num_users': 600, 'num_items': 200}
  return planted.generate({**config, **knobs}, seed)


@pytest.fixture(scope='module', name='world')
def _world() -> tables.Tables:
  return _generate()


def _targets(truth: planted_truth.Truth, num: int) -> np.ndarray:
  clicked = np.flatnonzero(truth.click == 1)
  return clicked[clicked >= truth.user.size // 2][:num]


def _auc(truth: planted_truth.Truth) -> float:
  return metrics.roc_auc_score(truth.click, truth.click_probability)


def test_same_seed_same_bits_other_seed_other_log(world):
  again = _generate()
  for name in ('events', 'items', 'users'):
    ours, theirs = getattr(world, name), getattr(again, name)
    assert list(ours) == list(theirs)
    for column, values in ours.items():
      assert values.dtype == theirs[column].dtype
      if values.dtype.kind == 'f':
        np.testing.assert_array_equal(values, theirs[column])
      else:
        assert values.tolist() == theirs[column].tolist(), column
  assert world.info == again.info
  np.testing.assert_array_equal(
      world.truth.click_probability, again.truth.click_probability)
  other = _generate(seed=1)
  assert (world.events['item_id'][:100].tolist()
          != other.events['item_id'][:100].tolist())


def test_tables_pass_the_checks_of_data_on_disk(world):
  checked = tables.check(world, 'planted')
  np.testing.assert_array_equal(
      checked.events['timestamp'], world.events['timestamp'])
  assert checked.truth is world.truth
  order = world.events['timestamp']
  assert (np.diff(order) >= 0).all()
  split = world.info['split']
  share = (order >= split['test_from']).mean()
  assert .08 < share < .22
  assert .08 < ((order >= split['valid_from']).mean() - share) < .22


def test_a_users_times_rise_strictly(world):
  by_user = np.lexsort((world.events['timestamp'], world.events['user_id']))
  user = world.events['user_id'][by_user]
  gaps = np.diff(world.events['timestamp'][by_user])
  assert (gaps[user[1:] == user[:-1]] > 0).all()


def test_default_size_is_quick_and_small():
  start = time.process_time()
  events = planted.generate(planted.default_config(), 0).events
  assert time.process_time() - start < 15.  # About 1.5 s on a free core.
  assert 80_000 < events['user_id'].size < 120_000


def test_probabilities_are_calibrated(world):
  truth = world.truth
  order = np.argsort(truth.click_probability)
  for part in np.array_split(order, 10):
    probability = truth.click_probability[part]
    spread = np.sqrt((probability * (1 - probability)).sum()) / part.size
    error = truth.click[part].mean() - probability.mean()
    assert abs(error) < 4 * spread


def _slow_logit(truth, event, item):
  """Recomputes a click logit from the log, one earlier event at a time."""
  world, user = truth.world, truth.user[event]
  clicks = brand_clicks = 0.
  last = None
  for other in range(truth.user.size):
    if truth.user[other] != user or truth.time[other] >= truth.time[event]:
      continue
    same = truth.item[other] == item
    clicks += truth.click[other] * same
    brand_clicks += truth.click[other] * (
        world.item_brand[truth.item[other]] == world.item_brand[item])
    if same and (last is None or truth.time[other] > last):
      last = truth.time[other]
  habit = planted_truth.ITEM_CLICK_EFFECT * (1 - np.exp(-clicks))
  habit += planted_truth.BRAND_CLICK_EFFECT * np.log(1 + brand_clicks)
  if last is not None:
    hours = (truth.time[event] - last) / 3.6e6
    habit -= planted_truth.SATIATION_EFFECT * np.exp(
        -hours / planted_truth.SATIATION_HOURS)
  taste = world.user_leaf[user, world.item_leaf[item]]
  taste += world.user_factor[user] @ world.item_factor[item]
  return (
      world.bias + world.user_bias[user] + taste + world.item_appeal[item]
      + world.tab_top[truth.tab[event], world.item_top[item]]
      - world.position_effect * np.log(1 + truth.position[event])
      + world.u2i_strength * habit) / world.noise


def test_generator_and_truth_match_a_double_loop():
  truth = _generate(num_users=60, num_items=40, noise=1.3).truth
  events = np.linspace(0, truth.user.size - 1, 12).astype(int)
  dense = truth.click_given_exposure(events)
  for row, event in enumerate(events):
    want = 1 / (1 + np.exp(-_slow_logit(truth, event, truth.item[event])))
    assert truth.click_probability[event] == pytest.approx(want, rel=1e-9)
    for item in (0, 7, 39, truth.item[event]):
      want = 1 / (1 + np.exp(-_slow_logit(truth, event, item)))
      assert dense[row, item] == pytest.approx(want, rel=1e-9)


def test_dense_click_probability_agrees_with_the_log(world):
  events = np.arange(0, world.truth.user.size, 37)
  dense = world.truth.click_given_exposure(events)
  np.testing.assert_allclose(
      dense[np.arange(events.size), world.truth.item[events]],
      world.truth.click_probability[events], rtol=1e-9)


def test_policy_is_what_showed_the_items(world):
  truth = world.truth
  events = np.arange(0, truth.user.size, 5)
  shown = truth.exposure(events)
  np.testing.assert_allclose(shown.sum(1), 1., atol=1e-12)
  # Rank items by the policy: the ten likeliest should be shown as often as
  # the policy says, and so should the items of each decile after them.
  order = np.argsort(-shown, 1)
  place = np.argmax(order == truth.item[events][:, None], 1)
  mass = np.take_along_axis(shown, order, 1)
  for low, high in ((0, 5), (5, 20), (20, 60), (60, 200)):
    want = mass[:, low:high].sum(1)
    spread = np.sqrt((want * (1 - want)).sum()) / events.size
    got = ((place >= low) & (place < high)).mean()
    assert abs(got - want.mean()) < 4 * spread


def test_next_click_beats_popularity_and_uniform(world):
  truth = world.truth
  events = _targets(truth, 1500)
  joint = truth.exposure_and_click(events, rows_per_chunk=400)
  np.testing.assert_allclose(joint.sum(1), 1., atol=1e-5)
  np.testing.assert_array_equal(joint[:5], truth.exposure_and_click(events[:5]))
  target = truth.item[events]
  loglik = np.log(joint[np.arange(events.size), target]).mean()
  half = truth.user.size // 2
  counts = np.bincount(
      truth.item[:half], truth.click[:half], minlength=200) + 1.
  popular = np.log(counts[target] / counts.sum()).mean()
  assert loglik > popular + .5 > np.log(1 / 200) + .5
  # It is no better on the real targets than it says of itself.
  draw = np.random.default_rng(0).random((events.size, 1))
  fake = np.minimum((joint.cumsum(1) < draw).sum(1), 199)
  own = np.log(joint[np.arange(events.size), fake])
  assert abs(own.mean() - loglik) < 5 * own.std() / np.sqrt(events.size)


def test_a_data_set_has_the_truth_in_its_own_numbers():
  config = config_lib.base_config().data
  config.planted.update(dict(num_users=60, num_items=40))
  dataset, truth = data.load(config, 0), planted.generate(
      config.planted, 0).truth
  world_number = dataset.item_ids
  assert world_number.tolist() != sorted(world_number)
  np.testing.assert_array_equal(
      world_number[dataset.event_item], truth.item)
  np.testing.assert_array_equal(
      dataset.truth.click_probability, truth.click_probability)
  # Not a bit depends on the numbers: the same ranks, ties and metrics.
  events = _targets(truth, 50)
  np.testing.assert_array_equal(
      dataset.truth.exposure_and_click(events),
      truth.exposure_and_click(events)[:, world_number])


def test_later_events_change_nothing_earlier(world):
  truth = world.truth
  events = _targets(truth, 50)
  cut = truth.time[events].max()
  later = truth.time >= cut
  assert later.any()
  altered = dataclasses.replace(
      truth, click=np.where(later, 1 - truth.click, truth.click),
      item=np.where(later, 0, truth.item))
  np.testing.assert_array_equal(
      truth.exposure_and_click(events), altered.exposure_and_click(events))
  # The event's own outcome plays no part either.
  own = events[:1]
  click, item = truth.click.copy(), truth.item.copy()
  click[own], item[own] = 1 - click[own], (item[own] + 1) % 200
  swapped = dataclasses.replace(truth, click=click, item=item)
  np.testing.assert_array_equal(
      truth.exposure_and_click(own), swapped.exposure_and_click(own))


def test_no_single_feature_beats_the_truth(world):
  truth = world.truth
  best = _auc(truth)
  assert .75 < best < .86
  world_ = truth.world
  features = {
      'taste': world_.affinity_with(truth.user, truth.item),
      'quality': world_.item_appeal[truth.item],
      'popularity': world_.popularity[truth.item],
      'position': -truth.position,
      'user': world_.user_bias[truth.user],
  }
  for name, values in features.items():
    assert metrics.roc_auc_score(truth.click, values) < best - .05, name


def test_u2i_strength_is_the_effect_of_past_clicks():
  def gap(strength: float) -> float:
    truth = _generate(u2i_strength=strength).truth
    events = np.arange(truth.user.size // 2, truth.user.size, 11)
    blank = dataclasses.replace(truth, click=np.zeros_like(truth.click))
    return float(np.abs(truth.click_given_exposure(events)
                        - blank.click_given_exposure(events)).max())
  assert gap(0.) == 0.
  assert gap(1.) > .2


def test_noise_lowers_the_best_auc():
  aucs = [_auc(_generate(noise=noise).truth) for noise in (.5, 1., 3.)]
  assert aucs[0] > aucs[1] + .03 > aucs[2] + .06


def test_repeat_rate_makes_repeats():
  def share(rate: float) -> float:
    truth = _generate(repeat_rate=rate).truth
    pairs = truth.user * 200 + truth.item
    return 1 - np.unique(pairs).size / pairs.size
  assert share(0.) + .1 < share(.3) < share(.6) - .1


def test_position_effect_and_popularity():
  flat = _generate(position_effect=0., popularity_exponent=0.).truth
  steep = _generate(position_effect=1.5, popularity_exponent=1.2).truth
  def drop(truth):
    deep = truth.position >= 4
    return truth.click[truth.position == 0].mean() - truth.click[deep].mean()
  assert drop(steep) > drop(flat) + .15
  assert np.ptp(flat.world.popularity) == 0.
  assert steep.world.popularity.max() > .1


def test_static_noise_spoils_that_share_of_fields():
  clean, dirty = (_generate(static_noise=x).items for x in (0., .4))
  for name in ('top_category', 'leaf_category', 'brand', 'price', 'score'):
    differs = np.array(
        [a != b for a, b in zip(clean[name], dirty[name])])
    missing = np.array([b is None or b != b for b in dirty[name]])
    assert not any(a is None or a != a for a in clean[name])
    assert .2 < differs.mean() < .5 and .1 < missing.mean() < .32


@pytest.mark.parametrize('knob, value', [
    ('num_users', 0), ('num_items', 2.5), ('noise', 0.), ('noise', np.nan),
    ('repeat_rate', 1.1), ('num_items', np.inf),
    ('events_per_user', 'many'), ('days', 4)])
def test_bad_knob_is_named(knob, value):
  with pytest.raises(types.InputError, match=f'config.data.planted.{knob}'):
    _generate(**{knob: value})


def test_missing_knob_is_named():
  config = planted.default_config()
  del config['days']
  with pytest.raises(types.InputError, match='config.data.planted.days'):
    planted.generate(config, 0)
