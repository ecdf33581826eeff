"""How fast do tokenizers and generators train, next to PyTorch?

    python experiments/benchmarks/train.py --output=FILE.json [--cores=N]
        [--cases=rqvae,rqkmeans,t5,t5_beauty,decoder,t5_decode] [--seconds=20]
        [--cornac] [--compile] [--dtype=bfloat16] [--batch=256] [--users=32]

Times whole steps (forward, backward, optimizer; batches are ready) of sidrec's
tokenizers and generators, the whole fit of RQ-KMeans, and beam search with the
T5. Beside them in the same process, in turns: PyTorch modules of the same
shape (train_torch.py), and with --cornac the modules of Cornac's TIGER. Where
there is no PyTorch those columns are left out. Two further lines: the FLOPs of
sidrec's program as XLA counts them a second, as a share of the device's peak
(accelerators) or of a measured product of matrices (CPUs), and the least
FLOPs that the work needs, where they are counted by hand.

The step is the trainer's own (`methods.base.make_step`); the PyTorch step is
eager, with --compile also through torch.compile.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from typing import Any, Callable, Sequence

# JAX, NumPy and PyTorch count the cores when they are imported: see `main`.

_CASES = ('rqvae', 'rqkmeans', 't5', 't5_beauty', 'decoder', 't5_decode')
_ROUNDS = 3  # Of calls that take seconds.
_PACKAGES = ('jax', 'jaxlib', 'numpy', 'torch', 'cornac', 'transformers')

# Dense products in bfloat16, TFLOP/s, by a part of the device's name.
PEAKS = {
    'H200': 989., 'H100 PCIe': 756., 'H100': 989., 'A100': 312.,
    'TPU v4': 275., 'TPU v5 lite': 197., 'TPU v5e': 197., 'TPU v5p': 459.,
    'TPU v5': 459.}


def peak_flops(kind: str) -> float | None:
  """Returns the bfloat16 peak of a device kind in FLOP/s, None if unknown."""
  for name in sorted(PEAKS, key=len, reverse=True):
    if name.lower() in kind.lower():
      return PEAKS[name] * 1e12
  return None


def matmul_flops() -> float:
  """Measures a float32 product of two 2,048 x 2,048 matrices, FLOP/s.

  The faster one of JAX's and of NumPy's.
  """
  import jax  # pylint: disable=g-import-not-at-top
  import numpy as np  # pylint: disable=g-import-not-at-top
  x = np.ones((2048, 2048), np.float32)
  run, placed = jax.jit(lambda a: a @ a), jax.device_put(x)
  calls = dict(jax=lambda: run(placed).block_until_ready(), numpy=lambda: x @ x)
  for call in calls.values():
    call()
  return 2 * 2048 ** 3 / min(few(calls).values()) * 1e3


def few(fns: dict[str, Callable[[], Any]]) -> dict[str, float]:
  """Times long calls in turns; returns medians in ms."""
  found = {name: [] for name in fns}
  for _ in range(_ROUNDS):
    for name, fn in fns.items():
      began = time.perf_counter()
      fn()
      found[name].append(time.perf_counter() - began)
  return {name: sorted(times)[len(times) // 2] * 1e3
          for name, times in found.items()}


def measure(case: Any, rivals: Sequence[Any], seconds: float, peak: float,
            basis: str) -> list[dict[str, Any]]:
  """Times all contestants of one case.

  Args:
    case: of train_cases.
    rivals: (name, call, share of the case's amounts that a call does).
    seconds: for each contestant.
    peak: FLOP/s that utilisation is a share of; 0: unknown.
    basis: what that peak is.

  Returns:
    One row a contestant.
  """
  import decode  # pylint: disable=g-import-not-at-top
  fns = {'sidrec': case.ours} | {name: fn for name, fn, _ in rivals}
  share = {'sidrec': 1.} | {name: part for name, _, part in rivals}
  found = (few(fns) if case.name == 'rqkmeans'
           else decode.median_ms(fns, seconds))
  rows = []
  for name in fns:
    row, ms = dict(case=case.name, contestant=name), found[name]
    if isinstance(ms, str):
      rows.append(row | dict(error=ms))
      continue
    row.update(ms=ms, **{
        f'{unit}_per_s': amount * share[name] / ms * 1e3
        for unit, amount in case.amounts.items()})
    work = dict(flops=case.flops if name == 'sidrec' else None,
                floor=case.floor and case.floor * share[name])
    for kind, flops in work.items():
      if flops:
        row[kind] = flops
        row[f'{kind}_per_s'] = flops / ms * 1e3
        if peak:
          row[f'{kind}_utilisation'] = flops / ms * 1e3 / peak
          row['utilisation_of'] = basis
    rows.append(row)
  if case.num_params:
    rows[0]['num_params'] = case.num_params
  return rows


def describe(row: dict[str, Any]) -> str:
  """Returns a row of the table."""
  text = f'  {row["case"]:10} {row["contestant"]:16}'
  if 'error' in row:
    return text + row['error']
  text += f'{row["ms"]:11.2f} ms'
  for key, value in row.items():
    if key.endswith('_per_s') and not key.startswith(('flops', 'floor')):
      text += f'{value:12,.1f} {key.removesuffix("_per_s")}/s'
  for kind, label in (('flops', 'counted'), ('floor', 'needed')):
    if kind in row:
      text += f'  {row[f"{kind}_per_s"] / 1e9:,.1f} GFLOP/s {label}'
      if f'{kind}_utilisation' in row:
        text += f' ({row[f"{kind}_utilisation"]:.0%})'
  return text


def machine() -> dict[str, Any]:
  """Returns device, cores and versions."""
  import jax  # pylint: disable=g-import-not-at-top
  versions = {'python': platform.python_version()}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  model = platform.processor() or platform.machine()
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo', encoding='utf-8') as stream:
      names = [line.split(':', 1)[1].strip() for line in stream
               if line.startswith('model name')]
    model = names[0] if names else model
  device = jax.devices()[0]
  return dict(device=device.device_kind, platform=device.platform,
              num_devices=1, cpu=model, cores=_cores(), versions=versions)


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def pin(cores: int) -> None:
  """Restricts this process to the first `cores` of its cores; 0: all."""
  if cores and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  # JAX would take the whole memory of a GPU and leave PyTorch none.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')


def rival_module(cores: int) -> Any:
  """Imports the PyTorch side; None, with a line, where there is none."""
  try:
    torch = importlib.import_module('torch')
  except ImportError:
    print('PyTorch is not installed: its columns are left out', flush=True)
    return None
  torch.set_num_threads(cores)
  # The precision that JAX has by default on GPUs.
  torch.set_float32_matmul_precision('high')
  return importlib.import_module('train_torch')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--output', required=True, help='JSON file to write')
  add('--cores', type=int, default=0, help='to use; 0: all allowed')
  add('--cases', default=','.join(_CASES))
  add('--seconds', type=float, default=20., help='to time each contestant')
  add('--cornac', action='store_true', help="with Cornac's TIGER")
  add('--compile', action='store_true', help='with torch.compile too')
  add('--dtype', default='float32', choices=['float32', 'bfloat16'],
      help="of the generators' activations")
  add('--items', type=int, default=12_101, help='of rqvae')
  add('--kmeans_items', type=int, default=100_000)
  add('--kmeans_steps', type=int, default=20, help='rounds a level at most')
  add('--batch', type=int, default=256, help='of t5')
  add('--rows', type=int, default=32, help='of the decoder')
  add('--users', type=int, default=32, help='a call of t5_decode')
  add('--beam', type=int, default=10, help='of t5_decode')
  add('--model', default='', help='of the generator: dim=32,num_layers=1')
  args = parser.parse_args(argv)
  names = args.cases.split(',')
  if set(names) - set(_CASES):
    parser.error(f'--cases: one or more of {",".join(_CASES)}')
  pin(args.cores)
  # The settings of XLA that `python -m sidrec.main` runs with.
  importlib.import_module('sidrec.main').tune_xla()
  cases = importlib.import_module('train_cases')
  rivals = rival_module(_cores())
  settings = cases.Settings(
      items=args.items, kmeans_items=args.kmeans_items,
      kmeans_steps=args.kmeans_steps, batch=args.batch, rows=args.rows,
      users=args.users, beam=args.beam, dtype=args.dtype,
      model={key: int(value) for key, value in (
          word.split('=') for word in args.model.split(',') if word)})
  found = machine() | dict(dtype=args.dtype, seconds=args.seconds)
  if found['platform'] == 'cpu':
    peak, basis = matmul_flops(), 'measured float32 product, 2,048 x 2,048'
  else:
    peak, basis = peak_flops(found['device']) or 0., 'bfloat16 peak'
  found |= dict(peak_flops=peak or None, peak_is=basis, rows=[])
  print(f'{found["device"]} ({found["cpu"]}), {found["cores"]} cores, '
        f'{found["versions"]}' + (
            f'; {peak / 1e9:,.0f} GFLOP/s {basis}' if peak else ''), flush=True)
  for name in names:
    case = cases.CASES[name](settings)
    others = [] if rivals is None else rivals.contestants(
        case, cornac=args.cornac, compiled=args.compile, dtype=args.dtype)
    for row in measure(case, others, args.seconds, peak, basis):
      found['rows'].append(row)
      print(describe(row), flush=True)
  with open(args.output, 'w', encoding='utf-8') as stream:
    json.dump(found, stream, indent=1)
    stream.write('\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
