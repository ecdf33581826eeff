"""How long does a large log take from its files to a data set, and how much room?

    python experiments/benchmarks/reading.py --events=5000000

Writes a CSV log of text ids to a temporary folder, then does what `python -m
sidrec.data check` does, in a process of its own; then encodes it as a ranker
needs it, with statistics of users with items. Seconds of each part, and the
most memory that the process held. Two minutes on a core, 400 MB of disk.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv


def write(directory: str, num_events: int, num_users: int, num_items: int
          ) -> None:
  """Writes events.csv and items.csv.

  Args:
    directory: where to.
    num_events, num_users, num_items: E, U and V.
  """
  rng = np.random.default_rng(0)
  names = lambda letter, codes: pa.DictionaryArray.from_arrays(
      pa.array(codes, pa.int32()), pa.array(
          [f'{letter}{n:08x}-{n * 2654435761 % 2**32:08x}'
           for n in range(int(codes.max()) + 1)])).dictionary_decode()
  item = rng.zipf(1.3, num_events) % num_items
  pa_csv.write_csv(pa.table({
      'user_id': names('u', rng.integers(0, num_users, num_events)),
      'item_id': names('i', np.append(item[:-1], num_items - 1)),
      'timestamp': np.sort(rng.integers(
          1_600_000_000_000, 1_700_000_000_000, num_events)),
      'is_click': rng.integers(0, 2, num_events)}),
                   os.path.join(directory, 'events.csv'))
  pa_csv.write_csv(pa.table({
      'item_id': names('i', np.arange(num_items)),
      'brand': names('b', rng.integers(0, 500, num_items)),
      'price': rng.gamma(2., 10., num_items)}),
                   os.path.join(directory, 'items.csv'))


def read(directory: str) -> None:
  """Reads, checks and encodes a folder; prints seconds and GiB of each part."""
  from sidrec import config as config_lib  # pylint: disable=g-import-not-at-top
  from sidrec import data
  from sidrec.data import facts
  from sidrec.data import number_rule
  from sidrec.data import tables as tables_lib
  config = config_lib.base_config().data
  config.update(dict(dir=directory, cross='none', item_stats=False))
  began = time.perf_counter()

  def say(part: str) -> None:
    nonlocal began
    now = time.perf_counter()
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f'{part:<10} {now - began:6.1f} s   {size:5.2f} GiB so far',
          flush=True)
    began = now

  say('start')
  raw = tables_lib.read(directory)
  say('read')
  tables = tables_lib.check(raw, directory)
  del raw
  say('check')
  dataset = data.build(tables, config, 0, directory)
  say('encode')
  facts.measure(tables, dataset, number_rule.measure(dataset))
  say('measure')
  del dataset
  config.update(dict(cross='all', item_stats=True))
  data.build(tables, config, 0, directory)
  say('statistics')


def main() -> None:
  """Writes a log and reads it in a fresh process."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--events', type=int, default=5_000_000)
  parser.add_argument('--users', type=int, default=200_000)
  parser.add_argument('--items', type=int, default=50_000)
  parser.add_argument('--read', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.read:
    read(args.read)
    return
  with tempfile.TemporaryDirectory() as directory:
    write(directory, args.events, args.users, args.items)
    subprocess.run(
        [sys.executable, os.path.abspath(__file__), f'--read={directory}'],
        check=True)


if __name__ == '__main__':
  main()
