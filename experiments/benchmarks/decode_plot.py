"""Draws what experiments/benchmarks/decode.py measured."""

from typing import Any

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot as plt  # pylint: disable=g-import-not-at-top


def draw(found: dict[str, Any], path: str) -> None:
  """Draws users per second, a group of bars a case, one panel a model.

  Args:
    found: the JSON that decode.py writes.
    path: PNG file to write.
  """
  rows = [row for row in found['rows'] if 'ms' in row]
  models = sorted({row['model'] for row in rows})
  decoders = list(dict.fromkeys(row['decoder'] for row in rows))
  fields = ('catalog', 'items', 'codebook', 'levels', 'batch', 'beam')
  cases = list(dict.fromkeys(tuple(r[f] for f in fields) for r in rows))
  fig, axes = plt.subplots(
      len(models), 1, squeeze=False, sharex=True, layout='constrained',
      figsize=(3 + 1.3 * len(cases), 3.2 * len(models)))
  width = .8 / len(decoders)
  for axis, model in zip(axes[:, 0], models):
    for number, decoder in enumerate(decoders):
      value = {tuple(r[f] for f in fields): r['users_per_s'] for r in rows
               if r['model'] == model and r['decoder'] == decoder}
      axis.bar([i + number * width for i in range(len(cases))],
               [value.get(case, 0) for case in cases], width, label=decoder)
    axis.set_yscale('log')
    axis.set_ylabel('users per second')
    axis.set_title(f'{model} model')
  axes[0, 0].legend(fontsize='small', ncols=3)
  axes[-1, 0].set_xticks(
      [i + .4 - width / 2 for i in range(len(cases))],
      [f'{c[0]} {c[1]:,}\nK={c[2]} L={c[3]}\n{c[4]} x {c[5]}'
       for c in cases], fontsize='small')
  fig.suptitle(f'{found["device"]}, {found["cores"]} core(s), '
               f'jax {found["jax"]}')
  fig.savefig(path, dpi=120)
  plt.close(fig)
