r"""How far does one column of the items get, without any learning?

    python experiments/benchmarks/field_rule.py --data=amazon23-mini \
        --column=brand

For each test user the ten most popular items (of the training split) that have
the last item's value in the column, then the most popular ones of all. Beside it
the same with the values dealt out at random: that says how much the mere size
of the groups, the last item itself and popularity give.
"""

import argparse
import sys

import numpy as np
from sidrec import config as config_lib
from sidrec import data as data_lib
from sidrec import types
from sidrec.data import splits

_NUM_GUESSES = 10


def recall(value: np.ndarray, item: np.ndarray, user: np.ndarray,
           split: np.ndarray, popularity: np.ndarray) -> float:
  """Returns Recall@10 on the test events.

  Args:
    value: [V] of the items.
    item, user, split: [E] of the events, in order of time.
    popularity: [V].
  """
  order = np.argsort(-popularity, kind='stable')
  groups: dict[str, list[int]] = {}
  for number in order:
    groups.setdefault(value[number], []).append(number)
  popular, last, hits, num = list(order[:_NUM_GUESSES]), {}, 0, 0
  for event in range(len(item)):
    if split[event] == splits.TEST:
      before = last.get(user[event])
      own = groups[value[before]] if before is not None else []
      hits += item[event] in (own[:_NUM_GUESSES] + popular)[:_NUM_GUESSES]
      num += 1
    last[user[event]] = item[event]
  return hits / max(num, 1)


def main() -> None:
  """Prints both numbers."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', required=True, help='name of a data set')
  parser.add_argument('--column', required=True, help='of the items')
  args = parser.parse_args()
  config = config_lib.base_config().data
  config.name = args.data
  try:
    _, tables = data_lib.read(config, seed=0)
    if args.column not in tables.items:
      raise types.InputError(
          f'--column={args.column}: items have {", ".join(tables.items)}')
  except types.InputError as error:
    sys.exit(f'field_rule: {error}')
  user, item = (
      tables.events[key].codes for key in ('user_id', 'item_id'))
  split, _ = splits.assign(
      tables.info, 'auto', user, tables.events['timestamp'], args.data)
  value = np.array([str(x) for x in tables.items[args.column]])
  popularity = np.bincount(item[split == splits.TRAIN], minlength=len(value))
  dealt = np.random.default_rng(0).permutation(value)
  for name, own in ((args.column, value), ('dealt at random', dealt)):
    found = recall(own, item, user, split, popularity)
    print(f'{name:<16} recall@10 {found:.4f}')


if __name__ == '__main__':
  main()
