"""Turns official raw files into a folder of tables.

  python -m sidrec.data.builders ml-1m --manual_dir=RAW --output=DIR
"""

import argparse
import sys
from typing import Sequence

from sidrec import types
from sidrec.data import builders


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Args:
    arguments: without the program name; default those of the process.

  Returns:
    Exit status: 0 done, 2 bad input (one line on stderr).
  """
  parser = argparse.ArgumentParser(
      prog='python -m sidrec.data.builders',
      description='Turns official raw files into a folder of tables.')
  parser.add_argument('name', choices=builders.NAMES, metavar='NAME',
                      help=f'one of {", ".join(builders.NAMES)}')
  parser.add_argument('--output', required=True, help='folder to write')
  parser.add_argument('--manual_dir', default='',
                      help='folder with the raw files, packed or not')
  parser.add_argument('--download_dir', default='',
                      help='download the raw files to this folder instead')
  parser.add_argument('--category', default='',
                      help='of an Amazon data set, such as Beauty')
  parser.add_argument('--time', default='ordinal', choices=('ordinal', 's'),
                      help='timestamp: position among the events of the user '
                           '(leave-one-out), or seconds since the epoch')
  flags = parser.parse_args(arguments)
  try:
    data = builders.convert(
        flags.name, flags.manual_dir, category=flags.category,
        time=flags.time, download_dir=flags.download_dir, progress=True)
    builders.write(data, flags.output)
  except types.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  counts = builders.layout.counts(data)
  print(f'{flags.output}: {counts["events"]} events of {counts["users"]} users '
        f'with {counts["items_with_events"]} of {counts["items"]} items')
  return 0


if __name__ == '__main__':
  sys.exit(main())
