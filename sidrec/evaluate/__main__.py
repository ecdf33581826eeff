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
      'codes.png (with matplotlib) and a table.')
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
  keys = list(dict.fromkeys(k for x in found.values() for k in x))
  print(writers.table(
      [{'': name.removeprefix('tokenizer/'),
        **{run: x.get(name) for run, x in found.items()}} for name in keys],
      ['', *found]))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
