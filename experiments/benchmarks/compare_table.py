"""How far is each method from what a user would pick instead?

    python experiments/benchmarks/compare_table.py --results WORKDIR ... \
        --baselines FILE.json --output FILE.md

Puts results.json of sidrec workdirs and the JSON of baselines.py side by side:
one table a split, mean ± standard deviation over seeds. Runs in a second.
"""

import argparse
import json
import os
import sys
from typing import Any, Mapping, Sequence

from sidrec import types

# Contract name -> heading. Metrics that nobody has are left out.
METRICS = {
    'ranking/auc': 'AUC',
    'ranking/gauc': 'GAUC',
    'ranking/logloss': 'log loss',
    'retrieval/recall@10': 'R@10',
    'retrieval/recall@50': 'R@50',
    'retrieval/ndcg@10': 'NDCG@10',
    'unified/recall@10': 'unified R@10',
    'unified/recall@50': 'unified R@50',
    'unified/ndcg@10': 'unified NDCG@10',
    'unified/auc_gap': 'AUC gap',
    'tokenizer/collision_rate': 'collisions',
}
LOWER_IS_BETTER = ('ranking/logloss', 'unified/auc_gap',
                   'tokenizer/collision_rate')


def read(path: str) -> list[dict[str, Any]]:
  """Reads results: a workdir, a results.json, or the JSON of baselines.py.

  Args:
    path: folder or file.

  Returns:
    One dict a method, each with 'name', 'method', 'dataset', 'seeds' and
    'metrics' as in results.json.

  Raises:
    types.InputError: naming the file that is missing or of another form.
  """
  if os.path.isdir(path):
    file = os.path.join(path, 'results.json')
    name = os.path.basename(os.path.abspath(path))
  else:
    file, name = path, None
  try:
    with open(file, encoding='utf-8') as stream:
      content = json.load(stream)
  except OSError as error:
    raise types.InputError(
        f'{file}: {error.strerror}; give a finished workdir or a file of '
        'results') from error
  except ValueError as error:
    raise types.InputError(f'{file}: no JSON: {error}') from error
  if not isinstance(content, dict):
    raise types.InputError(f'{file}: no results: not an object')
  many = content.get('results', [content])
  for result in many:
    for key in ('method', 'dataset', 'seeds', 'metrics'):
      if key not in result:
        raise types.InputError(f'{file}: no results: {key} is missing')
    result.setdefault('name', name or result['method'])
    if name and name != result['method']:
      result['name'] = f'{result["method"]} ({name})'
  return many


def cell(value: Mapping[str, Any] | None) -> str:
  """Formats one metric as 'mean ± std'; '' where there is none.

  Args:
    value: 'mean', 'std' and 'per_seed'; the std of one seed is left out.
  """
  if value is None or value.get('mean') is None:
    return ''
  text = f'{value["mean"]:.4f}'
  if len(value.get('per_seed', ())) > 1:
    text += f' ± {value["std"]:.4f}'
  return text


def best(
    results: Sequence[Mapping[str, Any]], split: str, metric: str
) -> float | None:
  """Returns the best mean of a metric, None where nobody has it."""
  values = [result['metrics'].get(split, {}).get(metric, {}).get('mean')
            for result in results]
  values = [value for value in values if value is not None]
  if not values:
    return None
  return (min if metric in LOWER_IS_BETTER else max)(values)


def table(results: Sequence[Mapping[str, Any]], split: str) -> str:
  """Formats one split as a Markdown table that is aligned as text too.

  Args:
    results: of `read`, one a row, in order.
    split: 'valid' or 'test'.

  Returns:
    Lines joined by newlines. `*` marks the best mean of a column.
  """
  tops = {metric: best(results, split, metric) for metric in METRICS}
  metrics = [metric for metric, top in tops.items() if top is not None]
  lines = [['method', 'seeds'] + [METRICS[metric] for metric in metrics]]
  for result in results:
    values = result['metrics'].get(split, {})
    line = [result['name'], str(len(result['seeds']))]
    for metric in metrics:
      value = values.get(metric)
      text = cell(value)
      if text and value['mean'] == tops[metric]:
        text += ' *'
      line.append(text)
    lines.append(line)
  widths = [max(len(text) for text in column) for column in zip(*lines)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
      '| ' + ' | '.join(
          text.ljust(width) for text, width in zip(line, widths)) + ' |'
      for line in lines)


def render(
    results: Sequence[Mapping[str, Any]],
    splits: Sequence[str] = ('test', 'valid'),
) -> str:
  """Formats results of one data set, one table a split, with a heading.

  Args:
    results: of `read`.
    splits: in order; one that no result has is left out.

  Returns:
    Markdown.

  Raises:
    types.InputError: if the results are not of one data set.
  """
  names = list(dict.fromkeys(result['dataset'] for result in results))
  if len(names) > 1:
    raise types.InputError(
        f'results of several data sets: {", ".join(names)}; compare one at a '
        'time')
  parts = [f'# {names[0]}']
  protocols = list(dict.fromkeys(
      result['protocol'] for result in results if result.get('protocol')))
  parts += [f'Protocol: {protocol}.' for protocol in protocols]
  for split in splits:
    if any(result['metrics'].get(split) for result in results):
      parts.append(f'## {split}\n\n{table(results, split)}')
  parts.append('Mean ± standard deviation over seeds; `*` is the best mean.')
  return '\n\n'.join(parts) + '\n'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--results', nargs='+', default=[], metavar='PATH',
                      help='workdirs or results.json files')
  parser.add_argument('--baselines', nargs='+', default=[], metavar='FILE',
                      help='JSON of baselines.py')
  parser.add_argument('--output', default='', help='Markdown file to write')
  args = parser.parse_args(argv)
  try:
    paths = args.results + args.baselines
    if not paths:
      raise types.InputError('give --results, --baselines or both')
    text = render([result for path in paths for result in read(path)])
  except types.InputError as error:
    print(error, file=sys.stderr)
    return 2
  print(text, end='')
  if args.output:
    with open(args.output, 'w', encoding='utf-8') as stream:
      stream.write(text)
  return 0


if __name__ == '__main__':
  sys.exit(main())
