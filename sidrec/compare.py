"""Trains several methods on one data set and puts them into one table.

    python -m sidrec.compare --configs=popularity,sasrec,tiger:decoder \
        --data=amazon14-beauty --seeds=3 --workdir=runs/compare

Each is a run of `sidrec.main` in a folder of its own, one after the other;
words behind a colon go to its config, joined by `+` (`tiger:decoder`,
`tiger:decoder+generator.dim=64`). Stopped, the same command goes on where it
was. Writes comparison.md, comparison.json and, with matplotlib, comparison.png.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
from typing import Any, Mapping, NamedTuple, Sequence

from scipy import stats

from sidrec import evaluate
from sidrec import types

# Columns; what no method has is left out.
METRICS = (
    'ranking/auc', 'retrieval/recall@5', 'retrieval/recall@10',
    'retrieval/ndcg@5', 'retrieval/ndcg@10', 'unified/recall@10',
    'tokenizer/collision_rate')


class Run(NamedTuple):
  """One row of the table. name: its folder. arguments: of sidrec.main."""
  name: str
  arguments: tuple[str, ...]


def runs(configs: Sequence[str], data: str, seeds: int, workdir: str,
         experiments: str, extra: Sequence[str] = ()) -> list[Run]:
  """Returns what to run, checked before anything is.

  Args:
    configs: `NAME[:word+word]`, or a file for the name.
    data: name of a data set, or a folder.
    seeds: how many.
    workdir: of the comparison; a run has a folder in it.
    experiments: folder of the names.
    extra: further arguments of every run.

  Raises:
    types.InputError: nothing to run, a file that is not there, or two runs of
      one name.
  """
  if not configs:
    raise types.InputError(
        '--configs is missing: for instance --configs=popularity,sasrec,dig')
  out = {}
  for config in configs:
    name, _, words = config.partition(':')
    path = name if name.endswith('.py') else os.path.join(
        experiments, f'{name}.py')
    if not os.path.isfile(path):
      raise types.InputError(
          f'--configs: no file {path!r} for {name!r}; --experiments names the '
          'folder')
    words = [word for word in words.split('+') if word]
    folder = '+'.join(
        [os.path.splitext(os.path.basename(path))[0], *words])
    if folder in out:
      raise types.InputError(f'--configs: {config!r} stands there twice')
    where = [f'--config.data.dir={data}'] if os.path.isdir(data) else []
    words += [] if where else [data]
    out[folder] = Run(folder, (
        f'--config={path}:{",".join(words)}',
        f'--workdir={os.path.join(workdir, folder)}',
        f'--config.num_seeds={seeds}', *where, *extra))
  return list(out.values())


def heading(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns what all runs have in common, and below it what they have not.

  Args:
    results: run -> what results.json holds.
  """
  parts = {run: [x['dataset'], 'test', *x['protocol'].split('; '),
                 f'{len(x["seeds"])} seed{"s" * (len(x["seeds"]) > 1)}',
                 x['device'], *_origin(x)] for run, x in results.items()}
  first = next(iter(parts.values()))
  shared = [x for x in first if all(x in own for own in parts.values())]
  # Versions that all runs share tell a reader of the table nothing.
  origin = _origin(next(iter(results.values())))
  lines = ['; '.join(x for x in shared if x not in origin) + '.']
  if any(len(x['seeds']) > 1 for x in results.values()):
    lines[0] += ' ± is half of a 95 % interval over seeds.'
  groups = {}
  for run, own in parts.items():
    groups.setdefault(
        '; '.join(x for x in own if x not in shared), []).append(run)
  lines += [f'{", ".join(own)}: {text}.' for text, own in groups.items()
            if text]
  return '\n\n'.join(lines)


def _origin(results: Mapping[str, Any]) -> list[str]:
  """Returns what a run's numbers come from, where results.json says it."""
  found = [f'{name} {version}'
           for name, version in results.get('versions', {}).items()]
  if 'data' in results:
    found.append(f'data {results["data"]["fingerprint"]}')
  return found


def summary(results: Mapping[str, Any], names: Sequence[str]
            ) -> dict[str, dict[str, float]]:
  """Returns mean and half of a 95 % interval over seeds of metrics.

  Args:
    results: what results.json holds.
    names: metrics of its test split; those it lacks are left out.

  Returns:
    name -> {'mean', 'half'}; `half` by Student's t, NaN for one seed. Beside
    them 'minutes' of training a seed, with its validations.
  """
  out = {}
  for name in names:
    value = results['metrics']['test'].get(name)
    if value is not None:
      num = len(value['per_seed'])
      half = math.nan if num < 2 else float(
          stats.t.ppf(.975, num - 1) * value['std'] / math.sqrt(num))
      out[name] = {'mean': value['mean'], 'half': half}
  if results.get('wall_seconds') is not None:
    out['minutes'] = {
        'mean': results['wall_seconds'] / 60 / len(results['seeds']),
        'half': math.nan}
  return out


def markdown(rows: Mapping[str, Mapping[str, Mapping[str, float]]],
             head: str, names: Sequence[str],
             removed: Mapping[str, bool | None] | None = None) -> str:
  """Lays the comparison out as a Markdown table.

  Args:
    rows: run -> `summary`.
    head: what stands above it.
    names: columns, in order; what no run has is left out. The minutes follow.
    removed: run -> whether it removes seen items, None = it does not say; a
      column of its own where runs differ in it.
  """
  removed = removed or {}
  both = len(set(removed.values())) > 1
  names = [name for name in names if any(name in row for row in rows.values())]
  if any('minutes' in row for row in rows.values()):
    names.append('minutes')
  columns = ['seen items'] * both + names
  lines = [head, '', '| | ' + ' | '.join(columns) + ' |',
           '|---|' + '---|' * len(columns)]
  for run, row in rows.items():
    cells = [{None: '', True: 'removed', False: 'kept'}[
        removed.get(run)]] if both else []
    for name in names:
      value = row.get(name)
      digits = 1 if name == 'minutes' else 4
      text = '' if value is None else f'{value["mean"]:.{digits}f}'
      if value is not None and math.isfinite(value['half']):
        text += f' ± {value["half"]:.4f}'
      cells.append(text)
    lines.append(f'| {run} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def plot(rows: Mapping[str, Mapping[str, Mapping[str, float]]],
         names: Sequence[str], path: str) -> None:
  """Draws a bar a run and metric, with intervals; nothing without matplotlib.

  Args:
    rows: run -> `summary`.
    names: metrics; each has a panel.
    path: of a PNG.
  """
  try:
    from matplotlib import figure  # pylint: disable=g-import-not-at-top
  except ImportError:
    return
  names = [name for name in names if any(name in row for row in rows.values())]
  shape = figure.Figure(
      (3 * len(names) + 1, .35 * len(rows) + 1), layout='constrained')
  for axis, name in zip(shape.subplots(
      1, len(names), sharey=True, squeeze=False)[0], names):
    own = [row.get(name, {'mean': math.nan, 'half': math.nan})
           for row in rows.values()]
    axis.barh(list(rows), [x['mean'] for x in own], color='#4477aa', xerr=[
        0. if math.isnan(x['half']) else x['half'] for x in own])
    axis.set_title(name, fontsize=9)
    axis.invert_yaxis()
  shape.savefig(path, dpi=120)


def _write(done: Mapping[str, Mapping[str, Any]], workdir: str,
           names: Sequence[str]) -> str:
  """Writes the comparison of what is done; returns its text."""
  rows = {run: summary(results, names) for run, results in done.items()}
  text = markdown(rows, heading(done), names, {
      run: results.get('remove_seen') for run, results in done.items()})
  at = lambda name: os.path.join(workdir, name)
  evaluate.write_file(at('comparison.md'), text.encode())
  evaluate.write_file(at('comparison.json'), (json.dumps(
      {'runs': done, 'table': {run: {
          name: {k: v for k, v in value.items() if math.isfinite(v)}
          for name, value in row.items()} for run, row in rows.items()}},
      indent=1) + '\n').encode())
  plot(rows, names, at('comparison.png'))
  return text


def _call(command: Sequence[str]) -> int:
  """Runs a command that ends when this process is told to.

  Returns:
    Its status; 128 and the signal once told to (143 by SIGTERM), even if the
    command finished all the same.
  """
  told = []
  child = subprocess.Popen(  # pylint: disable=consider-using-with
      command, stdout=subprocess.DEVNULL)

  def end(number, _):
    told.append(number)
    child.send_signal(number)

  kept = {number: signal.signal(number, end) for number in (
      signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
          if signal.getsignal(number) != signal.SIG_IGN}
  try:
    status = child.wait()
    return 128 + told[0] if told else status
  finally:
    for number, handler in kept.items():
      signal.signal(number, handler)


def main(argv: Sequence[str]) -> int:
  """Runs what is missing and writes the table; returns the exit status."""
  parser = argparse.ArgumentParser(
      prog='python -m sidrec.compare', allow_abbrev=False,
      description='Trains several methods on one data set and puts them into '
      'one table. Further arguments, such as --config.eval.beam_size=20, go to '
      'every run.')
  parser.add_argument(
      '--configs', default='', metavar='NAME[:word+word],...',
      help='names of experiments, or files, with words: tiger:decoder')
  parser.add_argument(
      '--data', default='planted', help='name of a data set, or a folder')
  parser.add_argument('--seeds', type=int, default=3, help='runs of each')
  parser.add_argument('--workdir', default='', help='where all is written')
  parser.add_argument('--experiments', default='experiments',
                      help='folder of the names')
  parser.add_argument('--metrics', default=','.join(METRICS), help='columns')
  args, extra = parser.parse_known_args(argv)
  try:
    if not args.workdir:
      raise types.InputError('--workdir is missing')
    workdir = os.path.expanduser(args.workdir)
    wanted = runs([x for x in args.configs.split(',') if x], args.data,
                  args.seeds, workdir, args.experiments, extra)
  except types.InputError as error:
    print(f'sidrec: {error}', file=sys.stderr)
    return 2
  done = {}
  os.makedirs(workdir, exist_ok=True)
  for number, run in enumerate(wanted, 1):
    print(f'== {number} of {len(wanted)}: {run.name}', file=sys.stderr,
          flush=True)
    # `main` itself sees what is done, and stops where the settings changed.
    status = _call([sys.executable, '-m', 'sidrec.main', *run.arguments])
    if status:
      return status if status > 0 else 128 - status
    with open(os.path.join(workdir, run.name, 'results.json'),
              encoding='utf-8') as file:
      done[run.name] = json.load(file)
    text = _write(done, workdir, args.metrics.split(','))
  print(text, end='')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
