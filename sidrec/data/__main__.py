"""`python -m sidrec.data`: imports raw logs, checks data, says what they are.
"""

import argparse
import json
import os
import sys
from typing import Any, Sequence

from sidrec import config as config_lib
from sidrec import data
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.data import expect
from sidrec.data import facts
from sidrec.data import number_rule
from sidrec.data import reads
from sidrec.data import tables as tables_lib
from sidrec.data.imports import command as import_command


def main(arguments: Sequence[str]) -> int:
  """Returns the exit status: 0, or 2 after one line on stderr."""
  parser = argparse.ArgumentParser(
      prog='python -m sidrec.data', description=__doc__)
  commands = parser.add_subparsers(dest='command', required=True)
  check_parser = commands.add_parser(
      'check', help='say what decides the outcome on a data set, what each '
      'method reads of it, and what a run would take')
  check_parser.add_argument(
      'where', metavar='DIR|NAME',
      help='a folder of tables; or planted, or a folder in $SIDREC_DATA')
  check_parser.add_argument(
      '--json', metavar='FILE', help='write the same, for programs')
  import_command.add(commands)
  try:
    args = parser.parse_args(list(arguments))
  except SystemExit as error:
    return int(error.code or 0)
  try:
    if args.command == 'import':
      return import_command.main(args)
    return check(args.where, args.json)
  except types.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2


def check(where: str, target: str | None) -> int:
  """Prints what there is to know of a data set, as JSON too if asked.

  Args:
    where: a folder, or a name as `config.data.name` has it.
    target: path of the JSON file; None: none.

  Raises:
    types.InputError: bad data; a file that cannot be written.
  """
  config = config_lib.base_config().data
  is_folder = os.path.isdir(where) or os.path.basename(where) != where
  config.update(dict(dir=where) if is_folder else dict(name=where))
  # Statistics of users with items take half the time, and no fact is of them.
  config.update(dict(cross='none', item_stats=False))
  place, tables = data.read(config, seed=0)
  dataset = data.build(tables, config, 0, place)
  rule = number_rule.measure(dataset)
  found = facts.measure(tables, dataset, rule)
  found.update(_methods(tables, dataset, found['memory_gib']))
  for name, value in (*facts.lines(found), *_method_lines(found)):
    print(f'{name:<26} {value}')
  for line in facts.warnings(found):
    print(f'note: {line}')
  number_rule.warn(dataset, rule)
  if target:
    try:
      with open(target, 'w', encoding='utf-8') as file:
        json.dump(found, file, indent=1)
        file.write('\n')
    except OSError as error:
      raise types.InputError(f'--json={target}: cannot be written ({error})'
                             ) from error
  return 0


def _methods(tables: tables_lib.Tables, dataset: dataset_lib.Dataset,
             held: float) -> dict[str, dict[str, Any]]:
  """Returns 'reads' and 'expected' of all methods by their names.

  Args:
    tables: after `tables.check`.
    dataset: encoded of them.
    held: GiB that this took.
  """
  said, expected = {}, {}
  speed, rows = expect.measure_speed(), expect.Rows(dataset)
  for name in config_lib.names():
    try:
      experiment = reads.load(name)
      said[name] = reads.text(experiment, tables, dataset)
      reads.check(experiment, dataset)
      expected[name] = {'words': experiment.words, **expect.expect(
          experiment, rows, len(tables.info['cross']), held, speed)}
    except types.InputError as error:
      said[name] = '; '.join(filter(None, [
          said.get(name), f'cannot run: {error}']))
  return {'reads': said, 'expected': expected}


def _method_lines(found: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns what methods read and take, as `facts.lines`."""
  return [*(('reads', f'{names}: {text}')
            for names, text in reads.grouped(found['reads'])),
          *(('expected', line) for line in expect.lines(found['expected']))]


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
