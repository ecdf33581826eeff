"""How fast is constrained decoding, and what does each part of it cost?

    python experiments/benchmarks/decode.py --output=FILE.json [--plot=FILE.png]
        [--grid=quick|static|growth|full] [--static=PATH]

Times sidrec's beam search against the same model without a constraint, with a
dense mask, with a Python trie behind a callback, and, where --static names a
checkout of github.com/youtube/static-constraint-decoding, against STATIC (arXiv
2602.22647). All compute the same search in one run on one machine; sidrec's
returns item ids and scores as well. Two models: 'lookup', log-probabilities
read from a table by the last code, so that the decoder itself is timed; and
'random', logits drawn anew at each level and normalized over the codebook.
Set the number of cores from outside: `taskset -c 0 python ...`.
"""

import argparse
import itertools
import json
import os
import sys
import time
from typing import Any, Callable, NamedTuple, Sequence

import decode_catalogs
import decode_rivals
import jax
import jax.numpy as jnp
import numpy as np
from sidrec import decode
from sidrec import trie
from sidrec import types
from sidrec.decode import search
from sidrec.decode import selection


_TURNS = 5


class Case(NamedTuple):
  """One measured setting. catalog: as `decode_catalogs.make` has it."""
  catalog: str
  items: int
  codebook: int
  levels: int
  batch: int
  beam: int


# The settings that the README quotes.
STATIC_CASES = (
    Case('beauty', 12_088, 256, 4, 32, 50),
    Case('beauty', 12_088, 256, 4, 32, 10),
    Case('random', 100_000, 2048, 4, 2, 70),
    Case('random', 1_000_000, 2048, 8, 2, 70),
    Case('random', 10_000_000, 2048, 8, 2, 70),
)
GROWTH_CASES = tuple(
    Case('random', items, 2048, 4, 2, 70)
    for items in (10_000, 100_000, 1_000_000, 10_000_000))
QUICK_CASES = (Case('random', 10_000, 256, 3, 16, 10),
               Case('random', 100_000, 2048, 4, 16, 50))


def full_cases() -> list[Case]:
  """Returns the grid: sizes x codebooks x levels x beams x batches."""
  cases = []
  for items, codebook, levels, beam, batch in itertools.product(
      (10_000, 100_000, 1_000_000, 10_000_000), (256, 2048), (3, 4, 8),
      (10, 50, 200), (1, 16, 256)):
    if items * 2 <= codebook ** levels:
      cases.append(Case('random', items, codebook, levels, batch, beam))
  return cases


def median_ms(fns: dict[str, Callable[[], Any]], seconds: float
              ) -> dict[str, float | str]:
  """Times calls in turns, so that a machine that slows down slows all.

  Args:
    fns: by name, what to call. One that cannot run is left out.
    seconds: for each of them, after the first call (it compiles).

  Returns:
    By name the median of a call in ms, or the error in one line.
  """
  spent, found = {}, {}
  for name, fn in fns.items():
    try:
      jax.block_until_ready(fn())
      spent[name] = []
    except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as error:
      found[name] = str(error).splitlines()[0]
  for turn in range(_TURNS):
    for name, times in spent.items():
      fn = fns[name]
      # What ran before left its own data in the caches.
      jax.block_until_ready(fn())
      until = time.perf_counter() + seconds / _TURNS
      while time.perf_counter() < until or len(times) <= turn:
        began = time.perf_counter()
        jax.block_until_ready(fn())
        times.append(time.perf_counter() - began)
  return found | {
      name: float(np.median(times)) * 1e3 for name, times in spent.items()}


class Lookup:
  """Log-probabilities by the last code, read from a table."""

  def __init__(self, codebook: int):
    self.logits = jax.random.normal(jax.random.key(0), (codebook, codebook))
    self.table = jax.nn.log_softmax(self.logits)

  def sparse(self, table: jax.Array, prefix: jax.Array, state: Any):
    """The children form of `decode.beam_search`."""
    start = _last(prefix) * table.shape[1]
    return (lambda found: table.reshape(-1)[
        found.take(start) + found.code]), state

  def dense(self, table: jax.Array, prefix: jax.Array, state: Any):
    """The form with the whole codebook."""
    return table[_last(prefix)], state


class Random:
  """Logits that are drawn anew at each level, as STATIC's benchmark does."""

  def __init__(self, codebook: int):
    self.table = jnp.zeros((codebook,))

  def dense(self, table: jax.Array, prefix: jax.Array, state: Any):
    """The form with the whole codebook."""
    key = jax.random.fold_in(jax.random.key(0), prefix.shape[-1])
    return jax.random.uniform(
        key, (*prefix.shape[:2], table.shape[0])), state

  sparse = dense


def _last(prefix: jax.Array) -> jax.Array:
  if prefix.shape[-1]:
    return prefix[..., -1]
  return jnp.zeros(prefix.shape[:2], jnp.int32)


MODELS = {'lookup': Lookup, 'random': Random}


def measure(case: Case, model_name: str, rivals: Sequence[str], static: str,
            seconds: float, codes: np.ndarray, t: types.Trie
            ) -> list[dict[str, Any]]:
  """Times all decoders of one case; returns one row a decoder."""
  model = MODELS[model_name](case.codebook)
  normalize = model_name == 'random'
  bounds = trie.bounds(t, case.beam)
  placed = jax.tree.map(jnp.asarray, t)
  run = jax.jit(lambda t, table: decode.beam_search(
      lambda prefix, state: model.sparse(table, prefix, state), t,
      beam_size=case.beam, batch_size=case.batch, bounds=bounds,
      normalize=normalize))
  check(jax.device_get(run(placed, model.table)), codes)
  context = decode_rivals.Context(
      codes, placed, bounds, case.codebook, case.batch, case.beam, model,
      normalize, static)
  fns = {'sidrec': lambda: run(placed, model.table)}
  for name in rivals:
    try:
      fns |= dict(decode_rivals.RIVALS[name](context))
    except (MemoryError, ValueError) as error:
      print(f'  {name}: left out: {error}', flush=True)
  parts = split(case, model, normalize, bounds, placed)
  rows = []
  for name, ms in median_ms(fns | parts, seconds).items():
    row = dict(case._asdict(), model=model_name, decoder=name)
    if isinstance(ms, str):
      row['error'] = ms
    else:
      row.update(ms=ms, ms_per_step=ms / case.levels,
                 users_per_s=case.batch / ms * 1e3)
    rows.append(row)
  ms = {row['decoder']: row.get('ms', 0.) for row in rows}
  rows = [row for row in rows if row['decoder'] not in parts]
  rows[0].update(
      {f'ms_{part}': ms[part] for part in parts}, trie_bytes=trie.nbytes(t),
      ms_constraint=max(ms['sidrec'] - sum(ms[part] for part in parts), 0.),
      temp_bytes=temp_bytes(run, placed, model.table))
  return rows


def check(beams: types.Beams, codes: np.ndarray) -> None:
  """Stops the benchmark where what came out is not in the catalog."""
  np.testing.assert_array_equal(
      codes[beams.item[beams.mask]], beams.code[beams.mask])


def temp_bytes(run: Any, *args: Any) -> int | None:
  """Returns the scratch memory of a compiled call, where XLA tells it."""
  analysis = run.lower(*args).compile().memory_analysis()
  return getattr(analysis, 'temp_size_in_bytes', None)


def split(case: Case, model: Any, normalize: bool, bounds: trie.Bounds,
          t: types.Trie) -> dict[str, Callable[[], Any]]:
  """Returns calls of the model alone and of top-k alone, as a search has."""
  widths = [1] + [min(case.beam, c.shape[0]) for c in t.code[:-1]]
  rng = np.random.default_rng(0)

  def dense(table):
    total = 0.
    for level, width in enumerate(widths):
      prefix = jnp.zeros((case.batch, width, level), jnp.int32) + (
          jnp.arange(width, dtype=jnp.int32)[None, :, None] % case.codebook)
      found = None
      if model.sparse != model.dense:
        size, steps = search.rungs(bounds, level, width, 3, case.beam)
        slots = steps[0] * (size or width)
        zeros = lambda n: jnp.zeros((case.batch, n), jnp.int32)
        found = decode.Children(
            beam=zeros(slots // size) if size else None,
            first=zeros(slots // size if size else width), code=zeros(slots),
            node=zeros(slots), mask=zeros(slots) > 0)
      answer, _ = model.sparse(table, prefix, None)
      scores = answer(found) if callable(answer) else answer
      if normalize:
        scores = scores - jax.nn.logsumexp(scores, -1, keepdims=True)
      total += scores.sum()
    return total

  keys = []
  for level, width in enumerate(widths):
    size, steps = search.rungs(bounds, level, width, 3, case.beam)
    slots = steps[0] * (size or width)
    keys.append(jnp.asarray(rng.normal(
        size=(case.batch, slots)).astype(np.float32)))
  pick = jax.jit(lambda keys: [
      selection.best(key, min(case.beam, key.shape[1])) for key in keys])
  alone = jax.jit(dense)
  return dict(model=lambda: alone(model.table), top_k=lambda: pick(keys))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--output', required=True, help='JSON file to write')
  add('--plot', default='', help='PNG file to write (needs matplotlib)')
  add('--grid', default='quick',
      choices=['quick', 'static', 'growth', 'full'])
  add('--static', default='', help="checkout of STATIC's repository")
  add('--models', nargs='+', default=list(MODELS), choices=list(MODELS))
  add('--rivals', nargs='*', default=list(decode_rivals.RIVALS),
      choices=list(decode_rivals.RIVALS))
  add('--seconds', type=float, default=1., help='to time each call')
  add('--max_items', type=int, default=10_000_000)
  args = parser.parse_args(argv)
  rivals = [r for r in args.rivals if r != 'static' or args.static]
  cases = dict(quick=QUICK_CASES, static=STATIC_CASES,
               growth=GROWTH_CASES, full=full_cases())[args.grid]
  rows, built, key = [], None, None
  for case in (c for c in cases if c.items <= args.max_items):
    if key != case[:4]:
      key, built = case[:4], None
      codes = decode_catalogs.make(*key)
      began = time.perf_counter()
      built = codes, trie.build(codes)
      took = time.perf_counter() - began
      print(f'{case.catalog} {case.items:,} items, K = {case.codebook}, '
            f'L = {case.levels}: trie in {took:.2f} s, '
            f'{trie.nbytes(built[1]) / case.items:.1f} bytes an item',
            flush=True)
    for model in args.models:
      for row in measure(
          case, model, rivals, args.static, args.seconds, *built):
        row.update(build_seconds=took)
        rows.append(row)
        print(f'  {model:6} {case.batch:3} x {case.beam:3}  '
              f'{row["decoder"]:24}' + (
                  f'{row["ms"]:10.3f} ms {row["users_per_s"]:12,.0f} users/s'
                  if 'ms' in row else row['error']), flush=True)
  device = jax.devices()[0]
  found = dict(
      device=device.device_kind, platform=device.platform, jax=jax.__version__,
      cores=len(os.sched_getaffinity(0)), rows=rows)
  with open(args.output, 'w', encoding='utf-8') as stream:
    json.dump(found, stream, indent=1)
    stream.write('\n')
  if args.plot:
    import decode_plot  # pylint: disable=g-import-not-at-top
    decode_plot.draw(found, args.plot)
  return 0


if __name__ == '__main__':
  sys.exit(main())
