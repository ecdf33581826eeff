"""Describes the codes of finished runs.

    python -m sidrec.evaluate WORKDIR ... --output=DIR
"""

import argparse
import sys

from sidrec import types
from sidrec import writers
from sidrec.evaluate import code_report
from sidrec.evaluate import loaded


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='python -m sidrec.evaluate',
      description='Describes the codes of finished runs: writes codes.json, '
      'codes.png (with matplotlib) and a table, beside them the same tuples '
      'given out to items at random.')
  parser.add_argument('workdirs', nargs='+', metavar='WORKDIR')
  parser.add_argument('--output', default='.', help='folder to write to')
  args = parser.parse_args(argv)
  try:
    runs = {name: loaded.load(path) for name, path in zip(
        code_report.names(args.workdirs), args.workdirs)}
    found = code_report.write(runs, args.output)
  except types.InputError as error:
    print(f'sidrec: {error}', file=sys.stderr)
    return 2
  columns = {}
  for run, own in found.items():
    columns |= {run: own.codes, f'{run} by chance': own.chance}
  keys = list(dict.fromkeys(key for x in columns.values() for key in x))
  print(writers.table(
      [{'': key.removeprefix('tokenizer/'),
        **{name: x.get(key) for name, x in columns.items()}} for key in keys],
      ['', *columns]))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
