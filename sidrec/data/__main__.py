"""`python -m sidrec.data check DIR`: checks a folder and says what is in it."""

import sys
from typing import Sequence

import numpy as np

from sidrec import config as config_lib
from sidrec import data
from sidrec import types
from sidrec.data import splits

_USAGE = 'usage: python -m sidrec.data check DIR'


def main(arguments: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr."""
  if len(arguments) != 2 or arguments[0] != 'check':
    print(_USAGE, file=sys.stderr)
    return 2
  config = config_lib.base_config().data
  config.dir = arguments[1]
  try:
    dataset = data.load(config, seed=0)
  except types.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  for name, value in summary(dataset):
    print(f'{name:<18} {value}')
  return 0


def summary(dataset: data.Dataset) -> list[tuple[str, str]]:
  """Returns the lines of the table."""
  sizes = np.bincount(dataset.event_split, minlength=3)
  events = np.bincount(dataset.event_item, minlength=dataset.spec.num_items)
  spec = dataset.spec
  rows = [
      ('name', dataset.name), ('protocol', dataset.protocol),
      ('users', f'{spec.num_users:,}'), ('items', f'{spec.num_items:,}'),
      ('cold items', f'{int((events == 0).sum()):,} without events'),
      ('events', f'{len(dataset.event_item):,}'),
      ('positives', f'{dataset.event_label.mean():.1%}')]
  rows += [(f'{name} events', f'{size:,}')
           for name, size in zip(splits.NAMES, sizes)]
  for field in spec.items.fields + spec.request.fields:
    rows.append((f'{field.role.value}', f'{field.name} ({field.kind}, '
                 f'size {field.size:,})'))
  rows.append((types.Role.CROSS.value, ', '.join(spec.cross_names) or 'none'))
  return rows


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
