"""`python -m sidrec.data check DIR|NAME`: checks data, says what is in them."""

import os
import sys
from typing import Sequence

import numpy as np

from sidrec import config as config_lib
from sidrec import data
from sidrec import types
from sidrec.data import number_rule
from sidrec.data import splits

_USAGE = '''usage: python -m sidrec.data check DIR|NAME
NAME: planted, or a folder in $SIDREC_DATA'''


def main(arguments: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr."""
  if len(arguments) != 2 or arguments[0] != 'check':
    print(_USAGE, file=sys.stderr)
    return 2
  config = config_lib.base_config().data
  where = arguments[1]
  is_folder = os.path.isdir(where) or os.path.basename(where) != where
  config.update(dict(dir=where) if is_folder else dict(name=where))
  try:
    dataset = data.load(config, seed=0)
  except types.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  found = number_rule.measure(dataset)
  for name, value in summary(dataset) + _rule(found):
    print(f'{name:<26} {value}')
  number_rule.warn(dataset, found)
  return 0


def _rule(found: number_rule.Found) -> list[tuple[str, str]]:
  """Returns the lines on what item numbers alone predict."""
  rows = (('recall', found.recall, found.random_recall),
          ('ndcg', found.ndcg, found.random_ndcg))
  return [(f'item_number_rule_{name}@10',
           f'{given:.4f} as ordered, {permuted:.4f} permuted')
          for name, given, permuted in rows]


def summary(dataset: data.Dataset) -> list[tuple[str, str]]:
  """Returns the lines of the table."""
  sizes = np.bincount(dataset.event_split, minlength=3)
  events = np.bincount(dataset.event_item, minlength=dataset.spec.num_items)
  spec = dataset.spec
  rows = [
      ('name', dataset.name), ('fingerprint', dataset.fingerprint),
      ('protocol', dataset.protocol),
      ('users', f'{spec.num_users:,}'), ('items', f'{spec.num_items:,}'),
      ('cold items', f'{int((events == 0).sum()):,} without events'),
      ('events', f'{len(dataset.event_item):,}'),
      ('positives', f'{dataset.event_label.mean():.1%}')]
  rows += [(f'{name} events', f'{size:,}')
           for name, size in zip(splits.NAMES, sizes)]
  for field in spec.items.fields + spec.request.fields:
    rows.append((f'{field.role.value}', f'{field.name} ({field.kind}, '
                 f'size {field.size:,})'))
  rows.append(('content vectors', f'{spec.vector_dim} dimensions'
               if spec.vector_dim else 'none'))
  rows.append((types.Role.CROSS.value, ', '.join(spec.cross_names) or 'none'))
  return rows


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
