"""The command line of `python -m sidrec.data import`."""

import argparse

from sidrec import types
from sidrec.data.imports import run
from sidrec.data.imports import recognise

_SEPARATORS = {'\\t': '\t', 'tab': '\t', 'space': ' '}


def add(commands: 'argparse._SubParsersAction') -> None:
  """Adds the command to those of `python -m sidrec.data`."""
  parser = commands.add_parser(
      'import', help='turn raw logs into the tables of sidrec',
      description='Turns raw files (CSV, TSV, Parquet, JSON, RecBole; .gz of '
      'them) into tables and a complete dataset.json.')
  parser.add_argument('files', metavar='FILE', nargs='+', help=(
      'a log, or several parts of it; tables of items and users'))
  parser.add_argument('--output', metavar='DIR', required=True,
                      help='folder of the tables')
  parser.add_argument(
      '--column', metavar='ROLE=NAME', action='append', default=[], help=(
          f'what a column is: {", ".join(recognise.NAMES)}; timestamp= alone '
          'says that the rows are in order'))
  parser.add_argument('--positive', metavar='RULE', default='', help=(
      "what makes an event a positive: 'event == buy', 'rating >= 4', "
      "'event in (buy, cart)'"))
  parser.add_argument('--drop_bad_rows', action='store_true', help=(
      'go on without broken rows, which rejected.csv then lists'))
  parser.add_argument('--separator', help='between columns of text files')
  parser.add_argument('--encoding', default='utf-8', help='of text files')
  parser.add_argument('--name', default='', help='of the data set')
  parser.add_argument('--overwrite', action='store_true',
                      help='replace the tables in DIR')


def main(args: argparse.Namespace) -> int:
  """Runs the command; returns the exit status.

  Raises:
    types.InputError: bad input, in one line.
  """
  columns = {}
  for text in args.column:
    role, sign, name = text.partition('=')
    if not sign:
      raise types.InputError(
          f'--column={text}: must be ROLE=NAME, such as user_id=visitor')
    if role in columns:
      raise types.InputError(f'--column={text}: {role} is given twice')
    columns[role] = name
  for line in run.run(run.Options(
      paths=args.files, output=args.output, columns=columns,
      positive=args.positive, drop_bad_rows=args.drop_bad_rows,
      separator=_SEPARATORS.get(args.separator, args.separator),
      encoding=args.encoding, name=args.name, overwrite=args.overwrite)):
    print(line)
  return 0
