"""What is known of items and prefixes, against loops over the log."""

import jax.numpy as jnp
import numpy as np
import pytest

from sidrec import types
from sidrec.data import cross
from sidrec.data import known
from sidrec.methods import prefixes

V, HOUR = 9, 3_600_000
SIZES = (3, 4, 5)


def _log(seed=0, num=120):
  rng = np.random.default_rng(seed)
  time = np.sort(rng.integers(0, 300, num)) * HOUR
  return rng.integers(0, V - 1, num), time, rng.integers(0, 2, num)


def _columns():
  tags = [[0], [1, 2], [], [0, 2], [1], [2], [0], [1], [2]]
  offsets = np.cumsum([0] + [len(t) for t in tags])
  return [cross.Column('item_id', np.arange(V + 1), np.arange(V), V),
          cross.Column('tag', offsets, np.concatenate(tags).astype(int), 3)
          ], tags


def _build(most=known.MOST, **kwargs):
  item, time, label = _log()
  return known.build(item, time, label, int(time[-1]), _columns()[0],
                     num_items=V, labelled=True, most=most, **kwargs)


def test_equals_a_loop_over_the_log():
  item, time, label = _log()
  found, (_, tags) = _build(), _columns()
  assert found.moments[-1] > time[-1] and len(found.moments) > 50
  span = time[-1] - time[0]
  values = found.table.values
  assert values.shape == (len(found.moments), V, len(found.names))
  for g in (0, 1, 20, len(found.moments) - 1):
    now = found.moments[g]
    early = [e for e in range(len(item)) if time[e] < now]
    total = len(early), sum(label[e] for e in early)
    prior = (total[1] + cross.PRIOR_STRENGTH / 2) / (
        total[0] + cross.PRIOR_STRENGTH)
    own = {v: [e for e in early if item[e] == v] for v in range(V)}
    shown = {v: len(own[v]) for v in own}
    clicked = {v: sum(label[e] for e in own[v]) for v in own}
    recent = lambda v, share, now=now, own=own: sum(
        label[e] * .5 ** ((now - time[e]) / (share * span)) for e in own[v])
    rate = lambda n, p, prior=prior: (p - prior * n) / (
        n + cross.PRIOR_STRENGTH)
    for v in range(V):
      like = [[w for w in range(V) if tag in tags[w]] for tag in tags[v]]
      summed = lambda of, like=like: sum(of(w) for group in like for w in group)
      want = {
          'item/exposures': np.log1p(shown[v]),
          'item/positives': np.log1p(clicked[v]),
          'item/rate': rate(shown[v], clicked[v]),
          **{f'item/recent@{x:g}': np.log1p(recent(v, x))
             for x in known.HALF_LIVES},
          'item/age': np.log1p((now - time[own[v][0]]) / HOUR) if own[v] else 0,
          'item/new': not own[v],
          'tag/exposures': np.log1p(summed(shown.get)),
          'tag/rate': rate(summed(shown.get), summed(clicked.get)),
          f'tag/recent@{known.HALF_LIVES[1]:g}': np.log1p(summed(
              lambda w: recent(w, known.HALF_LIVES[1])))}
      assert tuple(want) == found.names
      np.testing.assert_allclose(
          values[g, v], list(want.values()), rtol=1e-5, atol=1e-6)
      assert found.table.weight[g, v] == 1 + shown[v]


def test_requests_read_the_last_moment_that_is_not_after_them():
  found = _build()
  at = found.moments
  np.testing.assert_array_equal(found.at(at), np.arange(len(at)))
  np.testing.assert_array_equal(found.at(at[1:] - 1), np.arange(len(at) - 1))
  np.testing.assert_array_equal(found.at(np.array([-5, at[-1] + 5])),
                                [0, len(at) - 1])


def test_later_events_change_no_earlier_moment():
  item, time, label = _log()
  make = lambda item, label: known.build(
      item, time, label, int(time[-1]), _columns()[0], num_items=V,
      labelled=True)
  cut = len(item) // 2
  later = np.arange(len(item)) >= cut
  first = make(item, label)
  second = make(np.where(later, 0, item), np.where(later, 1 - label, label))
  early = first.moments <= time[cut]
  np.testing.assert_array_equal(first.table.values[early],
                                second.table.values[early])
  assert not np.array_equal(first.table.values, second.table.values)


def test_moments_are_as_many_as_there_is_room_for():
  names = len(_build().names)
  assert len(_build(most=20 * V * names).moments) <= 20
  assert len(_build(most=1).moments) <= known.MOMENTS[0]


def test_an_unlabelled_log_has_no_rates_and_before_is_told():
  item, time, label = _log()
  before = np.arange(V), np.arange(V) // 2
  found = known.build(item, time, np.ones(len(item)), int(time[-1]), [],
                      num_items=V, labelled=False, before=before)
  assert not any('rate' in x or x == 'item/positives' for x in found.names)
  np.testing.assert_allclose(
      found.table.values[3, :, -2:], np.log1p(np.stack(before, 1)), rtol=1e-6)
  del label


def _codes(seed=1):
  rng = np.random.default_rng(seed)
  every = np.array([(a, b, c) for a in range(SIZES[0]) for b in range(SIZES[1])
                    for c in range(SIZES[2])])
  return every[rng.permutation(len(every))[:V]]


def _tables(table):
  return prefixes.build(_codes(), SIZES, table)


def _catalog(table):
  return types.Catalog(features=types.FeatureTable(),
                       popularity=jnp.zeros(V), known=table)


def test_prefixes_know_the_weighted_mean_of_the_items_below():
  table = _build().table
  tables, codes = _tables(table), _codes()
  batch = types.Batch(
      row=None, user=None, request=None, history=None, item=None, label=None,
      mask=None, cross=None, moment=jnp.array([0, 7, 30]))
  for level in range(3):
    node = tables['node'][:, level] if level < 2 else np.arange(V)
    got, size = prefixes.of_nodes(
        tables, _catalog(table), batch, level, jnp.tile(node, (3, 1)))
    for v in range(V):
      below = [w for w in range(V)
               if (codes[w, :level + 1] == codes[v, :level + 1]).all()]
      assert tables['count'][v, level] == len(below)
      if level < 2:
        np.testing.assert_allclose(size[:, v], np.log(len(below)), rtol=1e-6)
      for row, g in enumerate(batch.moment):
        want = np.average(table.values[g, below], 0, table.weight[g, below])
        np.testing.assert_allclose(got[row, v], want, rtol=1e-4, atol=1e-5)


def test_shapes_do_not_depend_on_the_codes():
  table = _build().table
  shapes = lambda tables: [np.shape(x) for name in sorted(tables)
                           for x in (tables[name] if isinstance(
                               tables[name], tuple) else [tables[name]])]
  assert shapes(prefixes.empty(SIZES, _catalog(table))) == shapes(
      _tables(table))


def test_siblings_are_drawn_below_the_prefixes_of_an_item():
  tables, codes = _tables(None), _codes()
  draw = np.random.default_rng(0).random((V, 4000, 2)).astype(np.float32)
  got = np.asarray(prefixes.siblings(tables, jnp.arange(V), jnp.asarray(draw)))
  for v in range(V):
    want = np.zeros(V)
    for level in range(2):
      below = (codes[:, :level + 1] == codes[v, :level + 1]).all(1)
      want += below / below.sum() / 2
    np.testing.assert_allclose(
        np.bincount(got[v], minlength=V) / 4000, want, atol=.03)


@pytest.mark.parametrize('sibling, seen', [(3, 0), (0, 2), (3, 2)])
def test_offsets_are_how_much_more_often_a_prefix_is_drawn(sibling, seen):
  tables, codes = _tables(None), _codes()
  history = np.array([2, 5, 5, 7])
  uniform, positive = 4, 3
  other = np.array([positive, *(v for v in range(V) if v != positive)])
  below = lambda v, level: (
      codes[:, :level + 1] == codes[v, :level + 1]).all(1)
  rate = np.full(V, uniform / V)  # Draws of each item, in expectation.
  if seen:
    rate += seen * np.bincount(history, minlength=V) / len(history)
  got = np.asarray(prefixes.offsets(
      tables, jnp.asarray(other[None]), jnp.asarray([[[
          below(v, level)[history].sum() for level in range(3)]
                                                      for v in other]]),
      jnp.asarray([float(len(history))]), uniform, sibling, seen))[0]
  for place, v in enumerate(other[1:], 1):
    for level in range(3):
      if below(positive, level)[v]:
        continue  # Such a negative is dropped.
      mine = below(v, level)
      total = rate[mine].sum()
      for shorter in range(2):  # Siblings below each prefix of the positive.
        whole = below(positive, shorter)
        if sibling and whole[v] and shorter < level:
          total += sibling / 2 * mine.sum() / whole.sum()
      np.testing.assert_allclose(
          got[place, level], np.log(total / (uniform * mine.sum() / V)),
          rtol=1e-5)
