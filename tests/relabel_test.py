"""Items under other ids and in another order: the metrics are the same."""

import numpy as np
import pytest

from sidrec import train
from tests import data_tables
from tests import tiny_run

USERS, ITEMS, LENGTH = 120, 40, 8


def _log(seed=0):
  """A log in which one item mostly follows another, numbered by a leak.

  Items are numbered by first appearance, as in the published Amazon files.
  """
  rng = np.random.default_rng(seed)
  follows = rng.permutation(ITEMS)
  item = np.empty((USERS, LENGTH), int)
  item[:, 0] = rng.integers(0, ITEMS, USERS)
  for t in range(1, LENGTH):
    item[:, t] = np.where(
        rng.random(USERS) < .8, follows[item[:, t - 1]],
        rng.integers(0, ITEMS, USERS))
  _, first, place = np.unique(item, return_index=True, return_inverse=True)
  item = np.argsort(np.argsort(first))[place].reshape(item.shape)
  return dict(
      events={'user_id': np.repeat(np.arange(USERS), LENGTH).tolist(),
              'item_id': item.ravel().tolist(),
              'timestamp': np.tile(np.arange(LENGTH), USERS).tolist()},
      items={'item_id': list(range(item.max() + 1)),
             'brand': [f'b{v % 5}' for v in range(item.max() + 1)]},
      info={'name': 'log', 'time_unit': 'ordinal', 'cross': [],
            'split': {'kind': 'leave_one_out'},
            'columns': {'items': {
                'brand': {'role': 'item_static', 'type': 'category'}}}})


def _relabelled(log):
  """The same log: other ids, and the rows of the items shuffled."""
  rng = np.random.default_rng(1)
  num = len(log['items']['item_id'])
  names = [f'x{v}' for v in rng.permutation(num)]
  order = rng.permutation(num)
  events = {**log['events'],
            'item_id': [names[v] for v in log['events']['item_id']]}
  items = {'item_id': [names[v] for v in order],
           'brand': [log['items']['brand'][v] for v in order]}
  return {**log, 'events': events, 'items': items}


def _run(tmp_path, name, log, method, words='', **more):
  """Returns the metrics of the test split."""
  folder = tmp_path / name
  folder.mkdir()
  data_tables.write(folder, log)
  config = tiny_run.config(
      method, words, data__dir=str(folder), eval__valid_users=0, **more)
  return train.train_and_evaluate(
      config, str(folder / 'run'))['metrics']['test']


def test_popularity_is_exactly_the_same(tmp_path):
  # Many items have equal counts, also at the end of the list.
  one, two = (
      {k: v for k, v in _run(tmp_path, name, log, 'popularity').items()
       if k.startswith('retrieval/')}
      for name, log in (('one', _log()), ('two', _relabelled(_log()))))
  assert one == two and one['retrieval/recall@10']['mean'] > 0


@pytest.mark.parametrize('method, words, more', [
    pytest.param('sasrec', '', {}, marks=pytest.mark.slow),
    ('category_codes', 'decoder', {'tokenizer__codebook_size': 40})])
def test_what_learns_is_the_same_within_the_noise_of_seeds(
    tmp_path, method, words, more):
  one, two = (
      _run(tmp_path, name, log, method, words, num_seeds=2,
           train__num_steps=150, eval__every=150, train__learning_rate=.01,
           **more)['retrieval/recall@5']['per_seed']
      for name, log in (('one', _log()), ('two', _relabelled(_log()))))
  noise = max(np.ptp(one), np.ptp(two), .05)
  assert abs(np.mean(one) - np.mean(two)) < 2 * noise
  assert min(one + two) > 2 * 5 / ITEMS  # It learns; chance is 1 / 8.
