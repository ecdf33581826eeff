"""What would a user pick instead of sidrec, and how good is it?

    python experiments/benchmarks/baselines.py --data=NAME|DIR \
        --output=FILE.json [--seeds=3]

Ranking: item click rate and gradient-boosted trees on the same point-in-time
features as sidrec's ranker. Retrieval: popularity, item neighbors and EASE.
Settings are chosen on the validation split, the test split is scored once,
under the same protocol and with the same metrics as sidrec.main. About ten
minutes on one core for 220,000 impressions of 7,600 items.
"""

import argparse
import json
import os
import sys
from typing import Sequence

import compare_table
import outcome
import ranking_baselines
import retrieval_baselines
from sidrec import config as config_lib
from sidrec import data
from sidrec import types


def load(name: str, root: str, history_length: int) -> data.Dataset:
  """Loads a data set as sidrec.main does, with longer histories.

  Args:
    name: a folder, or a name as after the colon of --config.
    root: `config.data.root`.
    history_length: entries of a history at most.

  Raises:
    types.InputError: bad input.
  """
  config = config_lib.base_config().data
  if os.path.isdir(os.path.expanduser(name)):
    config.dir = name
  else:
    config.name = name
  config.root, config.history_length = root, history_length
  return data.load(config, config.seed)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--data', required=True, help='name of a data set, or a folder')
  add('--output', required=True, help='JSON file to write')
  add('--root', default='', help='where names are; default $SIDREC_DATA')
  add('--seeds', type=int, default=3, help='seeds of the trees')
  add('--tasks', nargs='+', default=['ranking', 'retrieval'],
      choices=['ranking', 'retrieval'])
  add('--history_length', type=int, default=200)
  add('--max_rows', type=int, default=500_000, help='training rows of trees')
  add('--tune_users', type=int, default=2000, help='0: all')
  add('--max_ease_items', type=int, default=20_000)
  add('--num_threads', type=int, default=os.cpu_count())
  args = parser.parse_args(argv)
  results = []
  try:
    if args.seeds < 1:
      raise types.InputError(f'--seeds={args.seeds}: must be at least 1')
    dataset = load(args.data, args.root, args.history_length)
    outcome.log(f'{dataset.name}: {len(dataset.event_time)} events, '
                f'{dataset.spec.num_items} items; {dataset.protocol}')
    if 'ranking' in args.tasks:
      results += ranking_baselines.run(
          dataset, args.seeds, args.num_threads, args.max_rows)
    if 'retrieval' in args.tasks:
      results += retrieval_baselines.run(
          dataset, args.tune_users, args.max_ease_items)
  except types.InputError as error:
    print(error, file=sys.stderr)
    return 2
  with open(args.output, 'w', encoding='utf-8') as stream:
    json.dump(dict(results=results), stream, indent=1)
    stream.write('\n')
  print(compare_table.render([
      dict(result, name=result['method']) for result in results]), end='')
  return 0


if __name__ == '__main__':
  sys.exit(main())
